"""The chosen layouts, their bounds, and all of them verified."""

from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from llmjp_train import exit_codes
from llmjp_train.cli import main
from llmjp_train.config.compose import compose
from llmjp_train.config.training import Dtype, OptimizerConfig
from llmjp_train.errors import UserError
from llmjp_train.verify.bounds import compare, momentum_bound
from llmjp_train.verify.measure import Measurement
from llmjp_train.verify.run import prepared
from llmjp_train.verify.spec import FORMS, Spec, matrix, parse, possible


@pytest.fixture(scope="module")
def config() -> Any:
    return prepared(compose("train", ["experiment=tiny-cpu"], partial=True))


def meetings(specs: Any) -> set[Any]:
    return {
        pair
        for spec in specs
        for pair in combinations([(field.name, getattr(spec, field.name)) for field in fields(spec)], 2)
    }


def test_every_two_choices_that_can_meet_do(config: Any) -> None:
    chosen = matrix(config, 8, tuple(FORMS), least=26)
    assert len(chosen) >= 24
    assert meetings(chosen) == meetings(possible(config, 8, tuple(FORMS)))
    assert {spec.ranks for spec in chosen} >= {1, 2, 4, 8}
    for axis in ("tensor", "pipeline", "data"):
        assert {getattr(spec, axis) for spec in chosen} == {1, 2, 4}


def test_a_layout_reads_as_it_is_written() -> None:
    spec = Spec(2, 2, 1, 1, True, Dtype.bf16, "neox")
    assert parse(str(spec)) == spec
    assert parse("dp2-z3") == Spec(data=2, zero=3)
    with pytest.raises(UserError, match="'tq2' of 'tq2-pp2' means nothing"):
        parse("tq2-pp2")


def test_an_impossible_layout_is_refused_before_anything_starts(capsys: Any) -> None:
    assert main(["verify-layout", "layouts=[tp2-pp2-z3,pp8-llama]"]) == exit_codes.BAD_INPUT
    told = capsys.readouterr().err
    assert "tp2-pp2-dp1-z3: parallel.zero=3 does not go with parallel.pipeline=2" in told
    assert "pp8-dp1-z1-llama: parallel.pipeline=8 is more than model.num_layers=4" in told


def test_momentum_never_exceeds_its_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    bound = momentum_bound(0.9, 0.95)
    m = v = torch.zeros(4096, dtype=torch.float64)
    # Gradients that grow make the first moment large beside the second.
    for step in range(1, 60):
        gradient = torch.randn(4096, generator=generator, dtype=torch.float64) * 1.1**step
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        assert float((m / v.sqrt()).abs().max()) <= bound
    assert bound == pytest.approx(1.165, abs=1e-3)


def adam(gradients: list[torch.Tensor], start: torch.Tensor, settings: OptimizerConfig) -> Measurement:
    """What a plain Adam makes of given gradients."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([weight], settings.lr, (settings.beta1, settings.beta2), settings.eps)
    found = Measurement(initial={"w": start}, gradients={"w": gradients[0]})
    for step, gradient in enumerate(gradients):
        weight.grad = gradient
        optimizer.step()
        squares = optimizer.state[weight]["exp_avg_sq"] / (1 - settings.beta2 ** (step + 1))
        found.squares.append({"w": squares})
        found.losses.append(1.0)
        found.norms.append(1.0)
    found.weights = {"w": weight.detach()}
    return found


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0])
def test_rounding_noise_lies_inside_and_a_wrong_gradient_outside(scale: float) -> None:
    """Also where a gradient is nothing but noise beside that of the rest, as a key bias's is."""
    settings = OptimizerConfig(lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.ones(512)
    sizes[256:] = scale
    true = [torch.randn(512, generator=generator) * sizes for _ in range(4)]
    noisy = [g + 5e-7 * float(g.abs().max()) * torch.randn(512, generator=generator) for g in true]
    start = torch.randn(512, generator=generator)
    reference = adam(true, start, settings)
    verdict = compare(adam(noisy, start, settings), reference, settings)
    assert verdict.failures == []
    late = [*true[:1], *[torch.cat([g[:256] * torch.tensor([1.01]).repeat(256), g[256:]]) for g in true[1:]]]
    late[2][0] *= -1
    assert not compare(adam(late, start, settings), reference, settings).equal


@pytest.mark.slow
def test_the_command_prints_and_writes_the_table(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "layouts.md"
    words = ["experiment=llm-jp-3-172b-geniac", "layouts=[tp2-z1-sp]", "--steps", "2", "--output", str(path)]
    assert main(["verify-layout", *words]) == exit_codes.OK
    assert "1 of 1 layouts compute what one process does" in capsys.readouterr().out
    assert "| tp2-pp1-dp1-z1-sp | 2 | own | fp32 |" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_product_is_every_layout_that_can_be(config: Any, capsys: Any) -> None:
    assert (
        main(["verify-layout", "experiment=llm-jp-3-13b", "layouts=full", "--ranks", "1", "--steps", "1"])
        == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tp")]
    assert len(lines) == len(list(possible(config, 1))) == 7


@pytest.mark.full
@pytest.mark.timeout(900)
def test_every_chosen_layout_computes_what_one_process_does(capsys: Any) -> None:
    assert main(["verify-layout"]) == exit_codes.OK, capsys.readouterr().out
