"""Phases of a run: stretches of steps with one batch size, sequence length, peak learning rate and mixture.

A batch-size ramp and the declared changes both become phases here, so that the loop, the data order and
the derived numbers read one table. All counts are exact integers.
"""

from dataclasses import dataclass, replace

from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Unit


@dataclass(frozen=True)
class Phase:
    """A stretch of steps ``first_step <= step < last_step`` with the same sizes."""

    first_step: int
    last_step: int | None
    """First step after the phase; none: open end."""
    first_sample: int
    """Sequences consumed before the phase."""
    first_token: int
    """Tokens consumed before the phase."""
    global_batch: int
    sequence_length: int
    lr: float
    """Peak learning rate."""
    weights: dict[str, float]
    """Weights of the sources where a change set them; empty: the data group's."""

    def samples_at(self, step: int) -> int:
        """Sequences consumed before ``step``, a step of this phase."""
        return self.first_sample + (step - self.first_step) * self.global_batch

    def tokens_at(self, step: int) -> int:
        """Tokens consumed before ``step``, a step of this phase."""
        return self.first_token + (step - self.first_step) * self.global_batch * self.sequence_length


def phases(config: TrainConfig) -> list[Phase]:
    """The run's phases in order; the last one is open."""
    edges: dict[int, dict[str, object]] = {0: {}}
    batch = config.batch
    if batch.ramp_start is not None and batch.ramp_increment and batch.ramp_steps:
        stages = max(1, -(-(batch.global_batch - batch.ramp_start) // batch.ramp_increment))
        for stage in range(stages):
            size = batch.ramp_start + stage * batch.ramp_increment
            edges.setdefault(stage * batch.ramp_steps // stages, {})["global_batch"] = size
        edges.setdefault(batch.ramp_steps, {})["global_batch"] = batch.global_batch
    for change in sorted(config.changes, key=lambda c: c.step):
        edge = edges.setdefault(change.step, {})
        for key in ("lr", "global_batch", "sequence_length"):
            if getattr(change, key) is not None:
                edge[key] = getattr(change, key)
        if change.weights:
            edge["weights"] = dict(change.weights)

    current = Phase(0, None, 0, 0, batch.global_batch, batch.sequence_length, config.optimizer.lr, {})
    found: list[Phase] = []
    for step in sorted(edges):
        if found:
            found[-1] = replace(found[-1], last_step=step)
        current = replace(
            current,
            first_step=step,
            first_sample=current.samples_at(step),
            first_token=current.tokens_at(step),
            last_step=None,
            **edges[step],  # type: ignore[arg-type]
        )
        found.append(current)
    return found


def phases_from(config: TrainConfig, step: int) -> list[Phase]:
    """The phases that steps from ``step`` on lie in."""
    return [phase for phase in phases(config) if phase.last_step is None or phase.last_step > step]


def phase_at(table: list[Phase], step: int) -> Phase:
    """The phase that ``step`` lies in."""
    return next(phase for phase in reversed(table) if phase.first_step <= step)


def steps_for(table: list[Phase], amount: int, unit: Unit) -> int:
    """Steps after which at least ``amount`` steps, samples or tokens have been consumed."""
    if unit is Unit.steps:
        return amount
    for phase in table:
        size = phase.global_batch * (phase.sequence_length if unit is Unit.tokens else 1)
        start = phase.first_token if unit is Unit.tokens else phase.first_sample
        steps = phase.first_step + -(-(amount - start) // size)
        if phase.last_step is None or steps <= phase.last_step:
            return max(steps, phase.first_step)
    raise AssertionError("the last phase is open")
