"""The learning rate against torch's own schedulers and by hand."""

import math

import pytest
import torch

from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import ChangeConfig, DecayForm, ScheduleKind, Unit
from llmjp_train.train.schedule import schedule


def _config(**settings: object) -> TrainConfig:
    config = TrainConfig()
    config.optimizer.lr = 1.0
    for key, value in settings.items():
        setattr(config.schedule, key, value)
    return config


def test_cosine_equals_torch_after_its_warm_up():
    ours = schedule(_config(kind=ScheduleKind.cosine, length=100, warmup=10, min_lr=0.1))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.1)
    for step in range(10, 100):
        optimizer.step()
        theirs.step()
        assert ours.lr(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)


def test_warm_up_is_linear_and_reaches_the_peak():
    ours = schedule(_config(length=100, warmup=10))
    assert [ours.lr(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_cosine_may_end_before_or_after_the_run():
    early = schedule(_config(length=100, warmup=0, decay=50, min_lr=0.1))
    assert early.lr(49) == pytest.approx(0.1)
    assert early.lr(99) == pytest.approx(0.1)
    late = schedule(_config(length=100, warmup=0, decay=200))
    assert late.lr(99) == pytest.approx(0.5, abs=1e-9)


def test_linear_ends_at_the_floor():
    ours = schedule(_config(kind=ScheduleKind.linear, length=100, warmup=0, min_lr=0.2))
    assert ours.lr(49) == pytest.approx(0.6)
    assert ours.lr(99) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("form", "half"),
    [(DecayForm.linear, 0.5), (DecayForm.cosine, 0.5), (DecayForm.minus_sqrt, 1 - math.sqrt(0.5))],
)
def test_wsd_is_flat_and_then_decays(form: DecayForm, half: float):
    ours = schedule(_config(kind=ScheduleKind.wsd, length=100, warmup=5, decay=20, decay_form=form))
    assert {ours.lr(step) for step in range(5, 80)} == {1.0}
    assert ours.lr(89) == pytest.approx(half)
    assert ours.lr(99) == pytest.approx(0.0, abs=1e-12)


def test_lengths_in_tokens_round_up_to_steps():
    config = _config(unit=Unit.tokens, length=8 * 256 * 10 + 1, warmup=8 * 256)
    ours = schedule(config)
    assert (ours.total_steps, ours.warmup_steps) == (11, 1)


def test_lengths_in_samples_and_tokens_follow_a_ramp_of_the_batch():
    config = _config(kind=ScheduleKind.wsd, unit=Unit.samples, length=100, warmup=4, decay=24)
    config.batch.ramp_start, config.batch.ramp_increment, config.batch.ramp_steps = 2, 2, 6
    # batches of 2, 2, 4, 4, 6, 6, then 8: 24 samples in six steps, 76 more in ten
    ours = schedule(config)
    assert (ours.total_steps, ours.warmup_steps, ours.decay_steps) == (16, 2, 3)
    assert ours.lr(12) == 1.0
    assert ours.lr(13) < 1.0
    assert ours.lr(15) == pytest.approx(0.0, abs=1e-12)
    config.schedule.unit = Unit.tokens
    for name in ("length", "warmup", "decay"):
        setattr(config.schedule, name, getattr(config.schedule, name) * config.batch.sequence_length)
    again = schedule(config)
    assert (again.total_steps, again.warmup_steps, again.decay_steps) == (16, 2, 3)


def test_the_rate_is_a_function_of_the_step_alone():
    config = _config(kind=ScheduleKind.wsd, length=60, warmup=5, decay=20)
    forward = [schedule(config).lr(step) for step in range(60)]
    backward = [schedule(config).lr(step) for step in reversed(range(60))]
    assert forward == backward[::-1]


def test_a_branch_decays_from_the_stable_rate_of_the_run_it_left():
    stable = schedule(_config(kind=ScheduleKind.wsd, length=100, warmup=5, decay=0))
    branch = schedule(_config(kind=ScheduleKind.wsd, length=70, warmup=5, decay=20, min_lr=0.1))
    assert [branch.lr(step) for step in range(50)] == [stable.lr(step) for step in range(50)]
    assert branch.lr(69) == pytest.approx(0.1)


def test_a_declared_change_moves_the_peak():
    config = _config(kind=ScheduleKind.constant, length=100, warmup=0)
    config.changes = [ChangeConfig(step=30, lr=0.25)]
    ours = schedule(config)
    assert (ours.lr(29), ours.lr(30)) == (1.0, 0.25)
