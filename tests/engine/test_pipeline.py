"""Pipelines, with tensor and data parallelism, compute what one process does."""

from typing import Any

import pytest
import torch
from helpers.engines import FORMS, SAMPLES, build, run_steps, sizes
from helpers.layouts import alone, compare
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

__all__ = ["alone"]

LAYOUTS = [
    ("llama", 1, 2, 1, False),
    ("gpt", 1, 4, 1, False),
    ("neox", 1, 2, 2, False),
    ("llama", 2, 2, 1, True),
    ("neox", 2, 2, 2, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "tensor", "pipeline", "data", "sequence"), LAYOUTS)
def test_stages_compute_what_one_process_does(
    form: str, tensor: int, pipeline: int, data: int, sequence: bool, alone: Any
) -> None:
    overrides = (*sizes(tensor, pipeline, data), f"parallel.sequence={sequence}", *FORMS[form])
    for found in run_ranks(run_steps, tensor * pipeline * data, overrides):
        compare(found, alone(*FORMS[form]))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["optimizer.z_loss=1e-2", "parallel.recompute=full"])
def test_options_go_with_stages(option: str, alone: Any) -> None:
    found = run_ranks(run_steps, 2, (*sizes(pipeline=2), *FORMS["neox"], option))
    compare(found[0], alone(*FORMS["neox"], option))


def mixed(rank: int, world: int, overrides: tuple[str, ...]) -> Any:
    """Likelihoods of other shapes between steps, squared norms of gradients, and a loss that is not finite."""
    config = small_config(*overrides, *FORMS["neox"], "optimizer.clip=0")
    layout, engine = build(config)
    squares: dict[str, float] = {}
    batches = ragged_batches(config, SAMPLES)
    mine = batches[layout.data_rank :: layout.data]
    before = engine.token_nll(batches[3])
    first = engine.step(mine, lr=1e-3, inspect_gradients=squares.update)
    double = [
        torch.cat([getattr(b, n) for b in batches[:2]])
        for n in ("tokens", "targets", "documents", "positions", "sources")
    ]
    wide = engine.token_nll(type(batches[0])(*double))
    state = {f.name: f.view.clone() for f in engine.fragments()}
    weight = engine.weights()[0][1]
    good = weight.clone()
    weight.fill_(float("nan"))
    bad = engine.step(mine, lr=1e-3)
    weight.copy_(good)
    refused = engine.step(mine, lr=1e-3, refuse=lambda loss: f"{loss} is too much")
    same = all(torch.equal(state[f.name], f.view) for f in engine.fragments())
    again = engine.step(mine, lr=1e-3)
    engine.close()
    return before, first, squares, wide, bad, same, refused, again


@pytest.mark.slow
def test_likelihoods_norms_and_bad_losses_go_with_stages() -> None:
    plain = run_ranks(mixed, 1, sizes())[0]
    for found in run_ranks(mixed, 4, sizes(2, 2)):
        for index in (0, 3):
            torch.testing.assert_close(found[index], plain[index], rtol=1e-5, atol=1e-5)
        assert found[2] == pytest.approx(plain[2], rel=1e-4, abs=1e-12)
        assert sum(found[2].values()) ** 0.5 == pytest.approx(found[1].grad_norm, rel=1e-5)
        assert not found[4].applied
        assert "loss is nan" in found[4].reason
        assert found[5], "masters and moments are untouched"
        assert "too much" in found[6].reason
        assert (found[7].loss, found[7].grad_norm) == pytest.approx(
            (plain[7].loss, plain[7].grad_norm), rel=1e-5
        ), "what was not applied has left nothing in the accumulated gradients"
