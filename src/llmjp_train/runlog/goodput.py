"""Where a run's time went, by its record: steps that count, steps taken again, validation, saving, being down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmjp_train.runlog.incidents import seconds_between
from llmjp_train.runlog.reading import STARTS, step_rows

_OF_OTHERS = ("note", "incident")
"""What people and supervisors write beside the run: no sign of its life."""


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run's clock from its first start to its newest row of metrics."""

    seconds: float
    steps: float
    """In steps that count."""
    again: float
    """In steps that a resume took again or gave up, as far as they were logged."""
    validation: float
    saving: float
    """In which training waited for a save."""
    down: float
    """From the last sign of an attempt to the next start: stopped, queueing, loading."""
    starts: int
    again_steps: int

    @property
    def share(self) -> float:
        """Share of the time in steps that count."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0

    @property
    def plausible(self) -> bool:
        """Whether the parts fit into the clock, up to a hundredth and a second."""
        parts = self.steps + self.again + self.validation + self.saving + self.down
        return parts <= 1.01 * self.seconds + 1.0

    @property
    def rest(self) -> float:
        """All else: until the first step of a start, evaluations in training, logging."""
        return max(0.0, self.seconds - self.steps - self.again - self.validation - self.saving - self.down)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"share": self.share, "rest": self.rest}


def goodput(
    every_row: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    *,
    logged_every: int | None,
) -> Goodput | None:
    """Account for the time; none where the record does not hold enough for it.

    Args:
        every_row: all rows of the metrics in the order of the file, ``rows`` those that count.
        logged_every: steps between rows; the time of steps without a row is unknown, so that it must be 1.
    """
    began = next((event["time"] for event in events if event["kind"] in STARTS), None)
    steps, taken = step_rows(list(rows)), step_rows(list(every_row))
    if began is None or not steps or logged_every != 1 or any(row.get("step_s") is None for row in taken):
        return None
    end = max(row["time"] for row in every_row)
    within = [event for event in events if event["time"] <= end]
    counted = sum(row["step_s"] for row in steps)
    return Goodput(
        seconds=max(0.0, seconds_between(began, end)),
        steps=counted,
        again=max(0.0, sum(row["step_s"] for row in taken) - counted),
        validation=sum(row["validation"].get("seconds") or 0.0 for row in every_row if "validation" in row),
        saving=sum(_waited(event) for event in within if event["kind"] == "save"),
        down=_down(every_row, within),
        starts=sum(event["kind"] in STARTS for event in within),
        again_steps=len(taken) - len(steps),
    )


def _waited(save: dict[str, Any]) -> float:
    """Seconds that training waited for a save: all of it, but for one that went on in the background."""
    return float(save.get("stall_s") or save.get("seconds") or 0.0)


def _down(every_row: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> float:
    """Seconds from the last sign of life before each further start to that start."""
    own = [event for event in events if event["kind"] not in _OF_OTHERS]
    signs = sorted(str(one["time"]) for one in (*every_row, *own))
    total = 0.0
    for start in [event["time"] for event in own if event["kind"] in STARTS][1:]:
        last = max((time for time in signs if time < start), default=start)
        total += seconds_between(last, start)
    return total
