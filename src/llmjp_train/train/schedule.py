"""The learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from llmjp_train.config.phases import phase_at, phases, steps_for
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import DecayForm, ScheduleKind


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then the form that the configuration names; all lengths in steps."""

    config: TrainConfig
    total_steps: int
    warmup_steps: int
    decay_steps: int
    """Cosine and linear: the step where the decay ends. WSD: length of the decay."""

    def lr(self, step: int) -> float:
        """Learning rate of 0-based ``step``, a function of the step and the configuration alone.

        The warm-up is linear and reaches the peak at step ``warmup_steps - 1``. Cosine:
        Loshchilov and Hutter, 2017. WSD: Hu et al., 2024 (MiniCPM); its 1 - sqrt decay: Haegele et al., 2024.
        """
        settings = self.config.schedule
        peak = phase_at(phases(self.config), step).lr
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        floor = settings.min_lr
        kind = settings.kind
        if kind is ScheduleKind.constant:
            return peak
        if kind is ScheduleKind.wsd:
            done = (step + 1 - (self.total_steps - self.decay_steps)) / max(1, self.decay_steps)
            if done <= 0:
                return peak
            return floor + (peak - floor) * _remaining(settings.decay_form, min(1.0, done))
        done = min(1.0, (step + 1 - self.warmup_steps) / max(1, self.decay_steps - self.warmup_steps))
        form = DecayForm.cosine if kind is ScheduleKind.cosine else DecayForm.linear
        return floor + (peak - floor) * _remaining(form, done)


def _remaining(form: DecayForm, done: float) -> float:
    """Share of the way from the floor to the peak that is left after ``done`` of the decay."""
    if form is DecayForm.cosine:
        return 0.5 * (1 + math.cos(math.pi * done))
    if form is DecayForm.linear:
        return 1 - done
    return 1 - math.sqrt(done)


def schedule(config: TrainConfig) -> Schedule:
    """The run's schedule, its lengths turned into steps."""
    table = phases(config)
    settings = config.schedule

    def steps(amount: int) -> int:
        return steps_for(table, amount, settings.unit)

    total = steps(settings.length)
    warmup = steps(settings.warmup)
    if settings.kind is ScheduleKind.wsd:
        # The decay's length is counted back from the end, where the batch is its final one.
        decay = total - steps(settings.length - (settings.decay or 0))
    else:
        decay = total if settings.decay is None else steps(settings.decay)
    return Schedule(config, total, warmup, decay)
