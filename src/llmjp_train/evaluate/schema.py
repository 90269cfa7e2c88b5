"""What an evaluation leaves behind: the payload stored in RUN/evaluations, version 1."""

import math
from dataclasses import MISSING, asdict, dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """A figure and how sure it is."""

    value: float
    stderr: float | None
    """Standard error over items; none where one item, or no rule, gives none."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the 95 % interval."""
    higher_is_better: bool


@dataclass(frozen=True)
class TaskResult:
    """One task's figures and what they were measured on."""

    metric: dict[str, Metric]
    main_metric: str
    """The metric that a table shows."""
    items: int
    """Items scored."""
    items_in_all: int
    """Items of the task; more than ``items`` under a limit."""
    majority_baseline: float | None
    """Accuracy of always giving the most frequent answer among the scored items; none without choices."""
    chance: float | None
    """Accuracy of guessing; none without choices."""
    num_fewshot: int
    licence: str
    source: str
    data_version: str
    data_sha256: str | None
    """Of the scored split's files; none where the items do not come from files."""
    task_version: str
    prompts_sha256: str
    """Of all inputs as text: two evaluations with the same value asked the same questions."""
    seconds: float
    truncated: int
    """Inputs cut from the left because the model's context was too short."""
    joined_tokens: int
    """Inputs where a token would have crossed from context to continuation; these were encoded apart."""
    family: str = ""
    """Ability that a report sorts the task under."""
    clusters: int = 0
    """Independent groups of items (passages, photographs); ``items`` where each stands for itself."""
    faults: list[str] = field(default_factory=list)
    """What is known to be wrong with the task's definition, kept for comparison's sake."""
    tokens_run: int | None = None
    """Tokens that went through the model, padding included; none where the runner does not count."""
    tokens_plain: int | None = None
    """Tokens that one sequence a request takes, without padding: what the plain harness would run at least."""
    unfinished: int = 0
    """Generated answers that reached their greatest length without an end."""


@dataclass(frozen=True)
class Payload:
    """An evaluation of one model on some tasks."""

    model: str
    """Run or folder."""
    step: int | None
    """Checkpoint's step; none for a folder."""
    suite: str
    """Suite, or empty where tasks were named."""
    tasks: dict[str, TaskResult]
    skipped: list[str]
    """Why a task of the suite was left out."""
    harness: str
    """lm-evaluation-harness's version."""
    time: str
    """UTC, ISO 8601, at the end."""
    seconds: float
    settings: dict[str, Any]
    """batch_size, max_length, bos, prefix_token_id, dtype, device, class of the adapter."""
    items_file: str | None
    """JSONL with a line for each item, beside the payload."""
    averages: list[dict[str, Any]] = field(default_factory=list)
    """Groups, categories and averages: fields of `evaluate.averages.Average`."""
    faults: list[str] = field(default_factory=list)
    """What is known to be wrong with the suite's definitions."""
    differs: list[str] = field(default_factory=list)
    """Where the suite's figures differ from the published ones that it follows."""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def problems(payload: dict[str, Any]) -> list[str]:
    """What is wrong with a stored payload; empty for a good one."""
    found: list[str] = []
    if payload.get("schema") != SCHEMA:
        return [f"schema {payload.get('schema')}: this version reads {SCHEMA}"]
    for key, wanted in Payload.__dataclass_fields__.items():
        if key not in payload and not _optional(wanted):
            found.append(f"no {key} ({wanted.type})")
    for name, task in dict(payload.get("tasks") or {}).items():
        found.extend(
            f"{name}: no {key}"
            for key, wanted in TaskResult.__dataclass_fields__.items()
            if key not in task and not _optional(wanted)
        )
        if task.get("main_metric") not in task.get("metric", {}):
            found.append(f"{name}: main_metric {task.get('main_metric')} is not among its metrics")
        for metric, figures in task.get("metric", {}).items():
            value = figures.get("value")
            if not isinstance(value, int | float) or not math.isfinite(value):
                found.append(f"{name}.{metric}: value is {value}")
    return found


def _optional(wanted: Any) -> bool:
    """Whether a field came later than version 1's first records, which do without it."""
    return wanted.default is not MISSING or wanted.default_factory is not MISSING
