"""Two runs beside each other: configuration, environment, data, and losses at common steps."""

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import yaml

from llmjp_train.runlog.reading import config_values, step_rows, validations
from llmjp_train.runlog.record import RunRecord

T = TypeVar("T")
MISSING = "(none)"
WINDOW = 20
"""Common steps over which a difference of losses is averaged before it is called visible."""


@dataclass(frozen=True)
class Change:
    """A value that differs; ``MISSING`` where one side lacks the key."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class LossPair:
    """Losses of both runs at a step, nats a token; none where a loss was not finite."""

    step: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Difference:
    """What differs between two runs."""

    config: list[Change]
    environment: list[Change]
    data: list[Change]
    losses: list[LossPair]
    """Every step that both logged, equal or not."""
    validations: list[LossPair]

    @property
    def first_different_step(self) -> int | None:
        """First common step with another training loss; none when all are equal."""
        return next((pair.step for pair in self.losses if pair.before != pair.after), None)

    @property
    def largest_gap(self) -> float | None:
        """Largest absolute difference of training losses; none without common finite ones."""
        gaps = [abs(p.before - p.after) for p in self.losses if p.before is not None and p.after is not None]
        return max(gaps, default=None)

    @property
    def apart_from(self) -> LossPair | None:
        """Step from which, to the end, the curves can be told apart by eye; none where they never can.

        From there on the mean difference over the last `WINDOW` common steps exceeds the scatter of the curves
        themselves: the standard deviation of a loss around its neighbours, of the rougher curve.
        """
        pairs = [pair for pair in self.losses if pair.before is not None and pair.after is not None]
        found = None
        for end in range(len(pairs), WINDOW - 1, -1):
            window = pairs[end - WINDOW : end]
            before, after = ([getattr(pair, side) for pair in window] for side in ("before", "after"))
            gap = abs(statistics.fmean(after) - statistics.fmean(before))
            if gap <= max(_scatter(before), _scatter(after)):
                break
            found = window[-1]
        return found


def compare(before: RunRecord, after: RunRecord) -> Difference:
    """Compare two runs by their records.

    Raises:
        UserError: a file of a record is damaged or of a newer version.
    """
    rows = before.read_metrics(), after.read_metrics()
    losses = [{row["step"]: row["loss"] for row in step_rows(found)} for found in rows]
    points = [{point.step: point.loss for point in validations(found)} for found in rows]
    return Difference(
        config=changes(config_values(before), config_values(after)),
        environment=changes(before.read_json("environment.json"), after.read_json("environment.json")),
        data=changes(before.read_json("data.json"), after.read_json("data.json")),
        losses=_pairs(*losses),
        validations=_pairs(*points),
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Leaves that differ, by dotted key in the order of the first file, then of the second."""
    old, new = flat(before), flat(after)
    keys = list(dict.fromkeys([*old, *new]))
    return [
        Change(key, old.get(key, MISSING), new.get(key, MISSING))
        for key in keys
        if old.get(key, MISSING) != new.get(key, MISSING)
    ]


def _scatter(values: list[float]) -> float:
    """Standard deviation of values around their neighbours, a slope taken out."""
    return statistics.pstdev(b - a for a, b in pairwise(values)) / math.sqrt(2)


def changed_settings(record: RunRecord, config_text: str) -> dict[str, list[Any]]:
    """Settings in which a start differs from the one before: values before and after by key; a missing one is null."""
    if not (record.path / "config.yaml").is_file():
        return {}
    found = changes(config_values(record), yaml.safe_load(config_text))
    return {
        change.key: [None if value == MISSING else value for value in (change.before, change.after)]
        for change in found
        if change.key != "run_dir"  # a directory that was moved is no other setting
    }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf, and so is an empty mapping."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def sample(pairs: list[T], most: int = 12) -> list[T]:
    """At most ``most`` of them, evenly spread, with the first and the last."""
    if len(pairs) <= most:
        return pairs
    return [pairs[round(index * (len(pairs) - 1) / (most - 1))] for index in range(most)]


def _pairs(before: dict[int, Any], after: dict[int, Any]) -> list[LossPair]:
    return [LossPair(step, before[step], after[step]) for step in sorted(before.keys() & after.keys())]
