"""The figures that a report and a card share, taken from a run record and from nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo, committed
from llmjp_train.config.derive import Derived
from llmjp_train.errors import UserError
from llmjp_train.runlog.reading import STARTS, Summary, config_values, step_rows, summary
from llmjp_train.runlog.record import RunRecord, counting

Z95 = 1.96
"""Standard errors in half of a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """A metric of a task."""

    task: str
    metric: str
    value: float
    half: float | None
    """1.96 standard errors; none where there is none, and where it is 0 because every item was right, or wrong."""
    low: float | None
    """Lower end of the 95 % interval as the evaluation states it (a Wilson interval for shares, say)."""
    high: float | None
    higher_is_better: bool
    majority: float | None
    """What always giving the most frequent answer scores; none for a task without choices."""
    chance: float | None
    items: int | None
    items_in_all: int | None
    licence: str
    main: bool

    @property
    def limited(self) -> bool:
        """Whether it is of a part of the items."""
        return None not in (self.items, self.items_in_all) and self.items != self.items_in_all

    @property
    def told_apart(self) -> bool | None:
        """Whether the interval excludes the majority baseline; none without one."""
        if self.majority is None:
            return None
        if self.low is not None and self.high is not None:
            return not self.low <= self.majority <= self.high
        return None if self.half is None else abs(self.value - self.majority) > self.half


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation."""

    name: str
    step: int | None
    suite: str
    harness: str
    scores: list[Score]
    skipped: list[str]
    time: str = ""
    """UTC, ISO 8601; empty where it is not stored."""

    @property
    def in_loop(self) -> bool:
        """Whether it was made in training."""
        return self.name.endswith("-in-loop")


@dataclass(frozen=True)
class Facts:
    """A run record, read."""

    summary: Summary
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    data: dict[str, Any]
    rows: list[dict[str, Any]]
    every_row: list[dict[str, Any]]
    """Rows that a resume took again or gave up among them, in the order in which they were written."""
    events: list[dict[str, Any]]
    checkpoints: list[CheckpointInfo]
    evaluations: list[Evaluation]
    """By step, trials left out (`without_trials`)."""
    contamination: dict[str, Any]
    """What `llmjp evaluate contamination` found in the training text; empty where nobody looked."""

    @property
    def touched(self) -> list[tuple[str, int, int]]:
        """Task, items that the training text holds, items in all; of tasks that were looked for."""
        held = Counter(each["task"] for each in self.contamination.get("touched", []))
        return [(task, held[task], items) for task, items in self.contamination.get("items", {}).items()]

    @property
    def derived(self) -> Derived | None:
        """Derived numbers; none when this version cannot read the configuration."""
        return self.summary.derived

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Rows of optimizer steps."""
        return step_rows(self.rows)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Starts, resumes and forks."""
        return [event for event in self.events if event["kind"] in STARTS]

    @property
    def source_tokens(self) -> dict[str, int]:
        """Target tokens that each source gave; empty unless every step was logged."""
        found: dict[str, int] = {}
        steps = self.steps
        if not steps or [row["step"] for row in steps] != list(range(1, len(steps) + 1)):
            return {}
        for row in steps:
            for name, figures in (row.get("sources") or {}).items():
                found[name] = found.get(name, 0) + int(figures["tokens"])
        return found

    @property
    def licences(self) -> dict[str, str | None]:
        """Licence and origin of each data source, its inputs in order; none where any of them has no licence."""
        sources = (self.data.get("data") or {}).get("sources") or {}
        said = self.data.get("statements") or {}
        found: dict[str, str | None] = {}
        for name in sources:
            parts = said.get(name) or []
            complete = bool(parts) and all(part.get("licence") for part in parts)
            words = (
                f"{part['licence']} ({part['input']}: {part.get('origin') or 'origin not stated'})"
                for part in parts
                if complete
            )
            found[name] = "; ".join(words) or None
        return found

    @property
    def filters(self) -> dict[str, str | None]:
        """What was left out of each data source before it was prepared, in the words of who prepared it."""
        said = self.data.get("statements") or {}
        return {
            name: "; ".join(part["filters"] for part in parts if part.get("filters")) or None
            for name, parts in said.items()
        }

    @property
    def final_evaluations(self) -> list[Evaluation]:
        """Evaluations beside the training, or else the newest one in it."""
        beside = [found for found in self.evaluations if not found.in_loop]
        return beside or self.evaluations[-1:]

    @property
    def results(self) -> list[Score]:
        """What stands for the model where a reader sees no step: the newest step's, on all items, each task once.

        Of two with other settings the one with the shorter name counts: it has fewer that are not the suite's.
        """
        final = self.final_evaluations
        newest = [one for one in final if one.step == final[-1].step] if final else []
        found: dict[tuple[str, str], Score] = {}
        for one in sorted(newest, key=lambda one: (len(one.name), one.name)):
            for score in one.scores:
                if score.main and not score.limited:
                    found.setdefault((score.task, score.metric), score)
        return list(found.values())


def facts(record: RunRecord) -> Facts:
    """Read everything.

    Raises:
        UserError: config.yaml or another file of the record is damaged, or of a newer version.
    """
    found = summary(record)
    every_row = record.read_metrics(latest=False)
    evaluations = [evaluation(name, payload) for name, payload in record.read_evaluations().items()]
    return Facts(
        summary=found,
        config=config_values(record),
        config_text=record.config_text,
        environment=record.read_json("environment.json"),
        data=record.read_json("data.json"),
        rows=counting(every_row),
        every_row=every_row,
        events=record.read_events(),
        checkpoints=committed(record.path),
        evaluations=without_trials(
            sorted(evaluations, key=lambda e: (-1 if e.step is None else e.step, e.name))
        ),
        contamination=record.read_json("contamination.json"),
    )


def without_trials(found: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations without a task that another one of the same step, beside the training too, scored on more items."""
    most: dict[tuple[int | None, bool, str], int] = {}
    for one in found:
        for score in one.scores:
            key = (one.step, one.in_loop, score.task)
            most[key] = max(most.get(key, 0), score.items or 0)
    kept = []
    for one in found:
        fullest = [s for s in one.scores if (s.items or 0) == most[one.step, one.in_loop, s.task]]
        if fullest or not one.scores:
            kept.append(replace(one, scores=fullest))
    return kept


def evaluation(name: str, payload: dict[str, Any]) -> Evaluation:
    """A stored payload (evaluate/schema.py) as figures; the main metric of each task comes first.

    Raises:
        UserError: it is not such a payload.
    """
    scores = []
    try:
        for task, result in payload["tasks"].items():
            main = result.get("main_metric") or next(iter(result["metric"]), "")
            for metric in sorted(result["metric"], key=lambda key: key != main):
                scores.append(_score(task, metric, result, main=metric == main))
        return Evaluation(
            name=name,
            step=payload.get("step"),
            suite=str(payload.get("suite") or ""),
            harness=str(payload.get("harness") or ""),
            scores=scores,
            skipped=[str(reason) for reason in payload.get("skipped") or []],
            time=str(payload.get("time") or ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"evaluations/{name}.json is damaged ({error!r}): remove it, or evaluate again"
        ) from error


def _score(task: str, metric: str, result: dict[str, Any], *, main: bool) -> Score:
    figures = result["metric"][metric]
    error, value = figures.get("stderr"), float(figures["value"])
    if error == 0 and value in (0, 1) and figures.get("low") is not None:
        error = None  # of a share that is 0 or 1 the Wilson interval alone says how sure it is
    return Score(
        task=task,
        metric=metric,
        value=value,
        half=None if error is None else Z95 * float(error),
        low=figures.get("low"),
        high=figures.get("high"),
        higher_is_better=bool(figures.get("higher_is_better", True)),
        majority=result.get("majority_baseline"),
        chance=result.get("chance"),
        items=result.get("items"),
        items_in_all=result.get("items_in_all"),
        licence=str(result.get("licence") or ""),
        main=main,
    )
