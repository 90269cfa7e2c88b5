"""Two runs beside each other: configuration, data, code, environment, and results at equal steps and tokens."""

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import yaml

from llmjp_train.runlog.goodput import goodput
from llmjp_train.runlog.incidents import incidents
from llmjp_train.runlog.reading import config_values, median, step_rows, summary, validations
from llmjp_train.runlog.record import RunRecord, counting

T = TypeVar("T")
_Figures = dict[tuple[str, str], float | None]
"""Values by name and unit."""
MISSING = "(none)"
WHERE = ("name", "run_dir")
"""Settings that say where a run lies, not what it does."""
WINDOW = 20
"""Common steps over which a difference of losses is averaged before it is called visible."""


@dataclass(frozen=True)
class Change:
    """A value that differs; ``MISSING`` where one side lacks the key."""

    key: str
    before: Any
    after: Any

    @property
    def relative(self) -> float | None:
        """Difference over the value before; none where either is no number, or the first is 0."""
        return relative(self.before, self.after)


@dataclass(frozen=True)
class Result:
    """A figure that came out of both runs; none where a record lacks it."""

    name: str
    unit: str
    before: float | None
    after: float | None

    @property
    def relative(self) -> float | None:
        """Difference over the value before; none where either is missing, or the first is 0."""
        return relative(self.before, self.after)


@dataclass(frozen=True)
class LossPair:
    """Losses of both runs at a step, nats a token; none where a loss was not finite."""

    step: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class TokenPair:
    """Losses of both runs when each had consumed so many tokens, nats a token."""

    tokens: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Difference:
    """What differs between two runs."""

    config: list[Change]
    data: list[Change]
    code: list[Change]
    environment: list[Change]
    results: list[Result]
    losses: list[LossPair]
    """Every step that both logged, equal or not."""
    validations: list[LossPair]
    losses_at_tokens: list[TokenPair]
    """Losses at equal tokens; empty where the common steps have equal tokens anyway."""
    unknown: dict[str, str]
    """Why nothing is known of ``data``, ``code`` or ``environment``, or not all of it."""

    @property
    def nothing(self) -> bool:
        """Whether nothing differs: no setting but where the runs lie, no input, and no loss."""
        settings = [change for change in self.config if change.key not in WHERE]
        inputs = [*settings, *self.data, *self.code, *self.environment]
        return not inputs and all(pair.before == pair.after for pair in (*self.losses, *self.validations))

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
    every_row = [record.read_metrics(latest=False) for record in (before, after)]
    rows = [counting(each) for each in every_row]
    steps = [step_rows(found) for found in rows]
    losses = [{row["step"]: row["loss"] for row in found} for found in steps]
    points = [{point.step: point.loss for point in validations(found)} for found in rows]
    machines = before.read_json("environment.json"), after.read_json("environment.json")
    data = before.read_json("data.json"), after.read_json("data.json")
    machine = changes(*machines)
    return Difference(
        config=changes(config_values(before), config_values(after)),
        data=changes(*data),
        code=[change for change in machine if change.key.startswith("source")],
        environment=[change for change in machine if not change.key.startswith("source")],
        results=_results(*map(_figures, (before, after), every_row, rows)),
        losses=_pairs(*losses),
        validations=_pairs(*points),
        losses_at_tokens=_at_tokens(*steps),
        unknown=_unknown(data, machines),
    )


def _unknown(data: tuple[dict[str, Any], ...], machines: tuple[dict[str, Any], ...]) -> dict[str, str]:
    found = {}
    neither = "recorded in neither run"
    if not any(data):
        found["data"] = neither
    if not any(machines):
        found["environment"] = neither
    sources = [machine.get("source") or {} for machine in machines]
    if not any(source.get("commit") for source in sources):
        found["code"] = neither
    elif any(source.get("changed") for source in sources):
        found["code"] = "changes that were not committed are not recorded"
    return found


def relative(before: Any, after: Any) -> float | None:
    """(after - before) / |before| of two numbers; none where either is none, or the first is 0."""
    numbers = (int, float)
    if any(isinstance(value, bool) or not isinstance(value, numbers) for value in (before, after)):
        return None
    return float((after - before) / abs(before)) if before else None


def _results(before: _Figures, after: _Figures) -> list[Result]:
    """What came out, of both runs."""
    return [Result(name, unit, before[name, unit], after[name, unit]) for name, unit in before]


def _figures(record: RunRecord, every_row: list[dict[str, Any]], rows: list[dict[str, Any]]) -> _Figures:
    found, events = summary(record), record.read_events()
    logged_every = (config_values(record).get("metrics") or {}).get("every")
    time = goodput(every_row, rows, events, logged_every=logged_every)
    shares = [row["eps_dominated"] for row in rows if row.get("eps_dominated") is not None]
    best = found.best_validation
    return {
        ("steps", ""): found.step,
        ("tokens", ""): found.tokens,
        ("training loss, newest", "nats a token"): found.loss,
        ("validation loss, best", "nats a token"): best.loss if best else None,
        ("throughput, median", "tokens/s"): found.tokens_per_s,
        ("time of a step, median", "s"): median(step_rows(rows), "step_s"),
        ("MFU, median", "%"): None if found.mfu is None else 100 * found.mfu,
        ("goodput", "%"): None if time is None or not time.plausible else 100 * time.share,
        ("updates dominated by epsilon, newest", "%"): 100 * shares[-1] if shares else None,
        ("starts", ""): found.starts,
        ("incidents", ""): len(incidents(events, every_row)),
    }


def _at_tokens(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[TokenPair]:
    at = [{row["step"]: row.get("tokens") for row in rows} for rows in (before, after)]
    if all(at[0][step] == at[1][step] for step in at[0].keys() & at[1].keys()):
        return []
    losses = [{row["tokens"]: row["loss"] for row in rows if "tokens" in row} for rows in (before, after)]
    common = sorted(losses[0].keys() & losses[1].keys())
    return [TokenPair(tokens, losses[0][tokens], losses[1][tokens]) for tokens in common]


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
