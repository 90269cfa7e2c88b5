"""What happened in a run, day by day, from its record and nothing else; the words are chronicle.py's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmjp_train.publish.facts import Evaluation, Facts, facts
from llmjp_train.runlog.compare import WHERE, Change, Difference, compare
from llmjp_train.runlog.goodput import Goodput, goodput
from llmjp_train.runlog.incidents import SILENT, incidents
from llmjp_train.runlog.reading import STARTS, step_rows, validations
from llmjp_train.runlog.record import RunRecord

HALF = 0.5
"""A share of parameters above which epsilon damps most of Adam's updates."""
_SUMMED = ("save", "prune", "validation_best", "evaluation")
"""Kinds of events that come too often for a line each: a day tells them together."""


@dataclass(frozen=True)
class Entry:
    """Something that happened at a time."""

    time: str
    step: int | None
    kind: str
    event: dict[str, Any]
    """As the record has it, or made from what it has: the end of an attempt that was killed, an evaluation."""
    again: int = 0
    """Of a start: steps before it that it takes again."""
    layout_before: dict[str, Any] | None = None
    """Of a start: the layout of the start before, where it was another."""
    incident: bool = False


@dataclass(frozen=True)
class Day:
    """What a day (UTC) brought."""

    date: str
    first_step: int | None
    last_step: int | None
    rows: int
    """Steps that were logged."""
    tokens: int | None
    """Consumed by the last of them."""
    losses: tuple[float, float] | None
    """Training loss of the first and the last, nats a token; none where one was not finite."""
    validation: tuple[int, float] | None
    """Step and loss of the newest validation of the day."""
    saves: list[dict[str, Any]]
    removed: int
    """Checkpoints that retention removed."""
    evaluations: int
    """Stored in training."""
    entries: list[Entry]


@dataclass(frozen=True)
class Incident:
    """What went wrong and what the record says of it."""

    what: dict[str, Any]
    """As `runlog.incidents` gives it."""
    followed: dict[str, Any] | None
    """The start that came next."""


@dataclass(frozen=True)
class Finding:
    """A fact that follows from the record, by the name of its sentence and what stands in it."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    weight: str = ""
    """``bad`` or ``good`` where it is either."""


@dataclass(frozen=True)
class Beside:
    """Another run to compare with."""

    facts: Facts
    name: str
    """The other run's, or its folder's where both runs have one name."""
    difference: Difference
    settings: list[Change]
    """Settings that differ, where the runs lie left out."""


@dataclass(frozen=True)
class Story:
    """A run as a chronicle tells it."""

    facts: Facts
    days: list[Day]
    incidents: list[Incident]
    notes: list[dict[str, Any]]
    goodput: Goodput | None
    """None where the record does not hold enough for it, or contradicts itself (`odd_clock`)."""
    odd_clock: bool
    logged_every: int | None
    """Steps between rows of the metrics, by the configuration."""
    findings: list[Finding]
    changed: list[tuple[dict[str, Any], dict[str, list[Any]]]]
    """Later starts that changed settings, and which."""
    untold: int
    """Later starts whose record does not say what they changed."""
    beside: Beside | None = None


def story(found: Facts, other: RunRecord | None = None) -> Story:
    """Tell a run, beside another one where it is given.

    Raises:
        UserError: a file of the other record is damaged or of a newer version.
    """
    logged_every = (found.config.get("metrics") or {}).get("every")
    went_wrong = incidents(found.events, found.every_row)
    beside = None if other is None else _beside(found, other)
    later = found.starts[1:]
    time = goodput(found.every_row, found.rows, found.events, logged_every=logged_every)
    odd = time is not None and not time.plausible
    return Story(
        facts=found,
        days=_days(found, _entries(found, went_wrong)),
        incidents=[Incident(one, _next_start(found, one["time"])) for one in went_wrong],
        notes=[event for event in found.events if event["kind"] == "note"],
        goodput=None if odd else time,
        odd_clock=odd,
        logged_every=logged_every,
        findings=[*_health(found, beside), *_loss(found, went_wrong), *_costs(went_wrong), *_scores(found)],
        changed=[(start, start["changed"]) for start in later if start.get("changed")],
        untold=sum("changed" not in start for start in later),
        beside=beside,
    )


def _beside(found: Facts, other: RunRecord) -> Beside:
    difference = compare(RunRecord(found.summary.path), other)
    there = facts(other)
    name = there.summary.name
    if name == found.summary.name:
        name = other.path.resolve().name
    return Beside(there, name, difference, [one for one in difference.config if one.key not in WHERE])


def _entries(found: Facts, went_wrong: Sequence[dict[str, Any]]) -> list[Entry]:
    """Events that have a line of their own, in the order of time."""
    wrong = {(one["time"], one["step"]) for one in went_wrong}
    entries, before = [], None
    for event in found.events:
        if event["kind"] in _SUMMED:
            continue
        again, layout = 0, None
        if event["kind"] in STARTS:
            again = _taken_again(found, event) if before is not None else 0
            if before is not None and before.get("layout") != event.get("layout"):
                layout = before.get("layout")
            before = event
        told = (event["time"], event.get("step")) in wrong
        entries.append(Entry(event["time"], event.get("step"), event["kind"], event, again, layout, told))
    entries += [
        Entry(one["time"], one["step"], SILENT, one, incident=True)
        for one in went_wrong
        if one["kind"] == SILENT
    ]
    entries += [
        Entry(one.time, one.step, "evaluation", _evaluated(one))
        for one in found.evaluations
        if not one.in_loop and one.time
    ]
    return sorted(entries, key=lambda entry: entry.time)


def _taken_again(found: Facts, start: dict[str, Any]) -> int:
    """Steps that were logged before a start and lie after the step that it begins at."""
    steps = [row["step"] for row in step_rows(found.every_row) if row["time"] < start["time"]]
    return max(0, steps[-1] - start["step"]) if steps else 0


def _evaluated(one: Evaluation) -> dict[str, Any]:
    scores = [(score.task, score.metric, score.value, score.half) for score in one.scores if score.main]
    return {"kind": "evaluation", "suite": one.suite, "step": one.step, "scores": scores}


def _days(found: Facts, entries: Sequence[Entry]) -> list[Day]:
    times = [one["time"] for one in (*found.events, *found.every_row)] + [entry.time for entry in entries]
    return [_day(found, entries, date) for date in sorted({time[:10] for time in times})]


def _day(found: Facts, entries: Sequence[Entry], date: str) -> Day:
    rows = [row for row in found.every_row if row["time"].startswith(date)]
    events = [event for event in found.events if event["time"].startswith(date)]
    steps, points = step_rows(rows), validations(rows)
    ends = (steps[0].get("loss"), steps[-1].get("loss")) if steps else (None, None)
    return Day(
        date=date,
        first_step=steps[0]["step"] if steps else None,
        last_step=steps[-1]["step"] if steps else None,
        rows=len(steps),
        tokens=steps[-1].get("tokens") if steps else None,
        losses=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
        validation=(points[-1].step, points[-1].loss) if points else None,
        saves=[event for event in events if event["kind"] == "save"],
        removed=sum(len(event.get("removed") or []) for event in events if event["kind"] == "prune"),
        evaluations=sum(event["kind"] == "evaluation" for event in events),
        entries=[entry for entry in entries if entry.time.startswith(date)],
    )


def _next_start(found: Facts, time: str) -> dict[str, Any] | None:
    return next((start for start in found.starts if start["time"] > time), None)


def _health(found: Facts, beside: Beside | None) -> list[Finding]:
    """What the share of updates that epsilon dominates says, and how long before the loss."""
    checks = [row for row in found.rows if "eps_dominated" in row]
    if not checks:
        return [Finding("no_health", {"every": (found.config.get("metrics") or {}).get("health_every")})]
    eps = (found.config.get("optimizer") or {}).get("eps")
    crossed = next((row for row in checks if (row["eps_dominated"] or 0.0) > HALF), None)
    newest, highest = checks[-1], max(checks, key=lambda row: row["eps_dominated"] or 0.0)
    common = {"eps": eps, "checks": len(checks), "newest": newest["eps_dominated"], "at": newest["step"]}
    if crossed is None:
        values = common | {"highest": highest["eps_dominated"], "step": highest["step"]}
        return [Finding("health_fine", values, "good"), *_against(found, beside, None)]
    values = common | {
        "share": crossed["eps_dominated"], "step": crossed["step"], "tokens": crossed.get("tokens"),
    }  # fmt: skip
    return [Finding("health_crossed", values, "bad"), *_against(found, beside, crossed)]


def _against(found: Facts, beside: Beside | None, crossed: dict[str, Any] | None) -> list[Finding]:
    """When the loss shows beside another run what the health metric had shown."""
    if beside is None:
        return []
    pairs = beside.difference.losses
    if not pairs:
        return [Finding("nothing_common", {"other": beside.name})]
    said = [_other_health(beside, crossed)]
    apart = beside.difference.apart_from
    values = {"other": beside.name, "first": pairs[0].step, "last": pairs[-1].step}
    if apart is None:
        return [*said, Finding("loss_alike", values)]
    tokens = {row["step"]: row.get("tokens") for row in found.steps}
    gaps = [
        (abs(pair.before - pair.after), pair.step)
        for pair in pairs
        if pair.step < apart.step and pair.before is not None and pair.after is not None
    ]
    values["early"], values["early_step"] = max(gaps)  # there are some: apart is the last step of a window
    values |= {"step": apart.step, "here": apart.before, "there": apart.after, "tokens": tokens[apart.step]}
    said.append(Finding("loss_apart", values))
    if crossed is not None and crossed["step"] < apart.step:
        begun, ended = crossed.get("tokens"), values["tokens"]
        if begun is not None and ended is not None:
            lead = {"steps": apart.step - crossed["step"], "tokens": ended - begun}
            said.append(Finding("told_before", lead, "bad"))
    return said


def _other_health(beside: Beside, crossed: dict[str, Any] | None) -> Finding:
    """The other run's share at the step where this one's crossed, or its highest."""
    name = beside.name
    checks = [row for row in beside.facts.rows if row.get("eps_dominated") is not None]
    if not checks:
        return Finding("other_no_health", {"other": name})
    highest = max(checks, key=lambda row: row["eps_dominated"])
    values = {"other": name, "highest": highest["eps_dominated"], "step": highest["step"], "gap": None}
    if crossed is not None:
        pair = next((one for one in beside.difference.losses if one.step == crossed["step"]), None)
        if pair is not None and pair.before is not None and pair.after:
            values |= {"gap": abs(pair.before - pair.after) / pair.after, "at": pair.step}
    return Finding("other_health", values)


def _loss(found: Facts, went_wrong: Sequence[dict[str, Any]]) -> list[Finding]:
    """What the loss alone shows."""
    points = validations(found.rows)
    spikes = sum(one["kind"] == "spike" for one in went_wrong)
    said = [Finding("spikes" if spikes else "no_spike", {"count": spikes}, "bad" if spikes else "")]
    if not points:
        return [*said, Finding("no_validation")]
    best = min(points, key=lambda point: point.loss)
    values = {"count": len(points), "step": best.step, "loss": best.loss, "last": points[-1].step}
    return [*said, Finding("best_is_last" if best is points[-1] else "best_before", values)]


def _costs(went_wrong: Sequence[dict[str, Any]]) -> list[Finding]:
    """What the incidents cost together."""
    if not went_wrong:
        return []
    values: dict[str, Any] = {"count": len(went_wrong)}
    for key in ("lost_steps", "lost_seconds", "down_seconds"):
        held = [one[key] for one in went_wrong if one[key] is not None]
        values[key] = sum(held) if held else None
    return [Finding("cost", values)]


def _scores(found: Facts) -> list[Finding]:
    """Tasks whose score says nothing: the interval holds what always giving the most frequent answer scores."""
    scores = [score for one in found.final_evaluations for score in one.scores if score.main]
    if not scores:
        return [Finding("not_evaluated")]
    blind = [score.task for score in scores if score.told_apart is False]
    values = {"tasks": ", ".join(blind), "count": len(blind), "of": len(scores)}
    return [Finding("not_apart" if blind else "evaluated", values)]
