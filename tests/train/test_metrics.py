import torch

from llmjp_train.config.machine import ClusterConfig
from llmjp_train.config.training import Dtype
from llmjp_train.train.metrics import SpikeScore, peak_flops


def test_a_spike_scores_high_and_does_not_move_the_mean():
    score = SpikeScore()
    generator = torch.Generator().manual_seed(0)
    for noise in torch.randn(200, generator=generator).tolist():
        score.update(3.0 + 0.01 * noise)
    mean = score.mean
    value = score.score(4.0)
    score.update(4.0)
    assert value is not None
    assert value > 20
    assert abs(score.mean - mean) < 0.01


def test_the_first_steps_have_no_score():
    score = SpikeScore()
    for step in range(20):
        assert score.score(10.0 - step) is None
        score.update(10.0 - step)
    assert score.score(1.0) is not None


def test_state_goes_through_json():
    first = SpikeScore()
    for step in range(30):
        first.update(5 - step * 0.01)
    second = SpikeScore(**first.state())
    assert first.score(4.0) == second.score(4.0)


def test_peak_is_stated_or_measured_or_unknown():
    known = ClusterConfig(peak_tflops_bf16=312.0, peak_tflops_fp32=19.5)
    assert peak_flops(known, Dtype.bf16, torch.device("cuda")) == 312e12
    assert peak_flops(known, Dtype.fp32, torch.device("cuda")) == 19.5e12
    assert peak_flops(ClusterConfig(), Dtype.bf16, torch.device("cuda")) is None
    measured = peak_flops(ClusterConfig(), Dtype.fp32, torch.device("cpu"))
    assert measured is not None
    assert measured > 1e8


def test_mfu_above_a_stated_peak_is_an_error_and_above_a_measured_one_unknown() -> None:
    import pytest

    from llmjp_train.train.metrics import model_flops_utilisation

    assert model_flops_utilisation(4e11, 1e12, stated=True) == pytest.approx(0.4)
    assert model_flops_utilisation(4e11, None, stated=False) is None
    assert model_flops_utilisation(2e12, 1e12, stated=False) is None
    with pytest.raises(RuntimeError, match="MFU would be 200%"):
        model_flops_utilisation(2e12, 1e12, stated=True)
