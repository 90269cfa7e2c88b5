"""Each fault that is known to happen silently is seen, with the first step and parameter that it reaches."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import pytest

from llmjp_train.config.compose import compose
from llmjp_train.verify.measure import measure
from llmjp_train.verify.run import Verifier, prepared
from llmjp_train.verify.spec import parse


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    from helpers.ranks import _warm

    _warm()
    return Verifier(prepared(compose("train", ["experiment=tiny-cpu"], partial=True)), steps=2)


def with_patch(target: str, make: Callable[[Any], Any]) -> Callable[..., Any]:
    """A measurement on ranks where ``target`` is what ``make`` makes of it."""

    def measured(rank: int, size: int, config: Any, steps: int) -> Any:
        with patch(target, make(resolve_name(target))):
            return measure(rank, size, config, steps)

    return measured


def without_mark(plain: Any) -> Any:
    """A split parameter is not marked as such, so that it counts once in the gradient norm."""

    def mark(name: str, parameter: Any, layout: Any) -> None:
        if not name.endswith("mlp.up.weight"):
            plain(name, parameter, layout)

    return mark


def counted_twice(plain: Any) -> Any:
    """A replicated parameter is marked as split."""

    def mark(name: str, parameter: Any, layout: Any) -> None:
        plain(name, parameter, layout)
        if name == "norm.weight":
            parameter.tensor_model_parallel = True

    return mark


def swapped_heads(plain: Any) -> Any:
    """Each rank holds the key heads of the other one."""

    def place(model: Any, name: str, logical: Any, tensor: int, rank: int) -> Any:
        return plain(model, name, logical, tensor, tensor - 1 - rank if name.endswith("key.weight") else rank)

    return place


def seeded_by_rank(plain: Any) -> Any:
    """Initial weights depend on the rank."""
    import torch.distributed as dist

    def initial_value(model: Any, name: str, shape: Any, seed: int) -> Any:
        return plain(model, name, shape, seed + dist.get_rank())

    return initial_value


def one_micro_batch_short(plain: Any) -> Any:
    """The loss is divided by one micro batch less than there are."""

    def step(self: Any, batches: Any, lr: float, **kwargs: Any) -> Any:
        counts = self._counts
        self._counts = lambda _: counts(batches[1:])
        return plain(self, batches, lr, **kwargs)

    return step


def tied_on_one_stage(rank: int, size: int, config: Any, steps: int) -> Any:
    """The two copies of a tied embedding do not add up their gradients."""
    from deepspeed.runtime.pipe import schedule
    from deepspeed.runtime.pipe.engine import PipelineEngine

    silent = {**PipelineEngine._INSTRUCTION_MAP, schedule.ReduceTiedGrads: lambda engine: None}
    with patch.object(PipelineEngine, "_INSTRUCTION_MAP", silent):
        return measure(rank, size, config, steps)


TENSOR = "llmjp_train.parallel.tensor"
FAULTS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "a split parameter without its mark": (
        "tp2-llama",
        with_patch("llmjp_train.engine.flat.mark", without_mark),
        "step 1: gradient norm",
    ),
    "a norm counted twice": (
        "tp2-llama",
        with_patch("llmjp_train.engine.flat.mark", counted_twice),
        "step 1: gradient norm",
    ),
    "a missing all-reduce": (
        "tp2-llama",
        with_patch("llmjp_train.parallel.collectives.leave", lambda plain: lambda x, group: x),
        "step 1: loss",
    ),
    "a missing all-reduce in the backward pass": (
        "tp2-gpt",
        with_patch("llmjp_train.parallel.collectives.enter", lambda plain: lambda x, group: x),
        "step 1: gradient norm",
    ),
    "swapped heads": (
        "tp2-llama",
        with_patch("llmjp_train.engine.base.place", swapped_heads),
        "step 1: loss",
    ),
    "weights that start different": (
        "dp2-llama",
        with_patch("llmjp_train.engine.base.initial_value", seeded_by_rank),
        "initial weights: ",
    ),
    "a wrongly scaled loss": (
        "dp2-llama",
        with_patch("llmjp_train.engine.flat.FlatEngine.step", one_micro_batch_short),
        "step 1: loss",
    ),
    "a tied embedding updated on one stage": ("pp2-neox", tied_on_one_stage, "step 1: gradient norm"),
    "a norm of shared tokens whose gradient is not summed": (
        "tp2-sp-llama",
        with_patch(f"{TENSOR}.partial_gradient", lambda plain: lambda name, sequence: False),
        "step 1: gradient norm",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, verifier: Verifier) -> None:
    layout, measured, first = FAULTS[fault]
    row = verifier.verify(parse(layout), measured)
    assert not row.verdict.equal
    assert row.verdict.failures[0].startswith(first), row.verdict.failures[:3]


@pytest.mark.slow
def test_a_count_of_micro_steps_from_another_layout_changes_nothing(verifier: Verifier) -> None:
    """DeepSpeed's own accumulation would take its boundary from it; ours is said explicitly."""

    def between(step: int, engine: Any, layout: Any) -> None:
        engine._engine.micro_steps += 3

    def measured(rank: int, size: int, config: Any, steps: int) -> Any:
        return measure(rank, size, config, steps, between)

    for layout in ("dp2-llama", "pp2-neox"):
        assert verifier.verify(parse(layout), measured).verdict.equal


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp2-pp2-z1-sp-neox", "tp2-bf16-llama", "tp2-dp2-z3-gpt"])
def test_without_a_fault_a_layout_is_equal(layout: str, verifier: Verifier) -> None:
    row = verifier.verify(parse(layout))
    assert row.verdict.failures == []
    assert row.verdict.weight > 0, "the figures are those of two computations"


@pytest.mark.slow
def test_a_fault_names_the_first_parameter_outside(verifier: Verifier) -> None:
    """One weight is nudged between two steps: loss and gradients of step 1 agree."""

    def between(step: int, engine: Any, layout: Any) -> None:
        if step == 1:
            fragment = next(f for f in engine.fragments() if f.name == "master.layers.2.mlp.down.weight")
            fragment.view[0] += 0.1
            engine.restore(1)

    def measured(rank: int, size: int, config: Any, steps: int) -> Any:
        return measure(rank, size, config, steps, between)

    failures = verifier.verify(parse("z0-llama"), measured).verdict.failures
    assert all("step 1" not in line for line in failures)
    assert any("weight layers.2.mlp.down.weight" in line for line in failures)
