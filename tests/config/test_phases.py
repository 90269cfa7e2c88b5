"""Declared changes and the batch-size ramp become phases: exact counts of samples and tokens at any step."""

import pytest

from llmjp_train.config.compose import compose
from llmjp_train.config.derive import derived, flops_per_token, flops_until
from llmjp_train.config.phases import phase_at, phases, steps_for
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Unit
from llmjp_train.config.validate import problems

RAMP = (
    "batch.global_batch=8",
    "batch.micro_batch=1",
    "batch.ramp_start=2",
    "batch.ramp_increment=2",
    "batch.ramp_steps=9",
)
CHANGES = "changes=[{step:30,lr:1e-3},{step:20,global_batch:16,sequence_length:128},{step:40,weights:{b:1}}]"


def composed(*overrides: str) -> TrainConfig:
    found: TrainConfig = compose(
        "train", ["experiment=tiny-cpu", "data.sources.b.path=b", *overrides], partial=True
    )
    assert problems(found) == []
    return found


def brute(config: TrainConfig, step: int) -> tuple[int, int]:
    """Samples and tokens before a step, counted one step after another."""
    table = phases(config)
    sizes = [phase_at(table, one) for one in range(step)]
    return sum(p.global_batch for p in sizes), sum(p.global_batch * p.sequence_length for p in sizes)


def test_a_ramp_rises_in_equal_stages() -> None:
    table = phases(composed(*RAMP))
    assert [(p.first_step, p.global_batch) for p in table] == [(0, 2), (3, 4), (6, 6), (9, 8)]


def test_changes_hold_from_their_step_on_in_any_order() -> None:
    table = phases(composed(CHANGES))
    assert [(p.first_step, p.global_batch, p.sequence_length, p.lr, p.weights) for p in table] == [
        (0, 4, 256, 3e-3, {}),
        (20, 16, 128, 3e-3, {}),
        (30, 16, 128, 1e-3, {}),
        (40, 16, 128, 1e-3, {"b": 1.0}),
    ]
    assert [p.last_step for p in table] == [20, 30, 40, None]


@pytest.mark.parametrize("overrides", [(), RAMP, (CHANGES,), (*RAMP, CHANGES)])
def test_counts_are_those_of_counting(overrides: tuple[str, ...]) -> None:
    config = composed(*overrides)
    table = phases(config)
    for step in (0, 1, 2, 3, 8, 9, 10, 19, 20, 21, 30, 40, 55):
        phase = phase_at(table, step)
        samples, tokens = brute(config, step)
        assert (phase.samples_at(step), phase.tokens_at(step)) == (samples, tokens)
        # The first step at which that much has been consumed is the step itself.
        assert steps_for(table, samples, Unit.samples) == step
        assert steps_for(table, tokens, Unit.tokens) == step
        assert steps_for(table, step, Unit.steps) == step
        if step:
            assert steps_for(table, samples - 1, Unit.samples) == step
            assert steps_for(table, tokens + 1, Unit.tokens) == step + 1


@pytest.mark.parametrize("steps", [1, 15, 21, 60])
def test_flops_are_counted_at_each_step_s_own_length(steps: int) -> None:
    config = composed(CHANGES)
    table = phases(config)
    each = (phase_at(table, step) for step in range(steps))
    brute = sum(
        p.global_batch * p.sequence_length * flops_per_token(config.model, p.sequence_length) for p in each
    )
    assert flops_until(config.model, table, steps) == pytest.approx(brute)
    config.schedule.length = steps
    assert derived(config).flops_total == pytest.approx(brute)
