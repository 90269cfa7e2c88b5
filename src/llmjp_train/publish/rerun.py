"""Stored evaluation items: whether they give the stated figures, and a sample of them run again."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError
from llmjp_train.evaluate.resampling import FIGURES, mean
from llmjp_train.publish.release_folder import RECORD

SAMPLE = 60
"""Items that are run again at most, over all tasks."""
BOUNDS = {"float32": (1e-3, 1e-4), "bfloat16": (0.05, 0.01)}
"""How far a log-likelihood may be from the stored one: nats, and share of it. A release in bfloat16 holds rounded
weights, and what is stored was computed with the checkpoint's own: 2^-9 of each weight, in every layer."""
_SAME = 1e-4

Stored = tuple[str, dict[str, Any], list[dict[str, Any]]]
"""Name, payload and item lines of an evaluation."""


@dataclass
class Rerun:
    """What came of running items again."""

    items: int = 0
    stored: int = 0
    worst: float = 0.0
    """Largest difference of a log-likelihood, as a share of its bound."""
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What was not run, and why."""


def stored_evaluations(folder: Path) -> list[Stored]:
    """The evaluations of a release; without item lines where it holds none."""
    found = []
    for path in sorted((folder / RECORD / "evaluations").glob("*.json")):
        payload = json.loads(path.read_text(encoding="utf-8"))
        items = path.parent / (payload.get("items_file") or "none")
        lines = items.read_text(encoding="utf-8").splitlines() if items.is_file() else []
        found.append((path.stem, payload, [json.loads(line) for line in lines]))
    return found


def item_problems(result: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    """Where a task's items contradict themselves or its figures; nothing where none are stored."""
    if not lines:
        return []
    problems = []
    if len(lines) != result["items"]:
        problems.append(f"{len(lines)} items are stored, {result['items']} are stated")
    for line in lines:
        scores = line.get("loglikelihoods") or []
        best = max(range(len(scores)), key=scores.__getitem__) if len(scores) > 1 else None
        if best is not None and line.get("prediction") != best:
            problems.append(f"item {line['id']}: says choice {line.get('prediction')}, its scores say {best}")
        right = line["metrics"].get("acc")
        if best is not None and "answer" in line and right is not None and right != (best == line["answer"]):
            problems.append(
                f"item {line['id']}: acc is {right}, choice {best} and answer {line['answer']} say otherwise"
            )
    for name, metric in result["metric"].items():
        values = [line["metrics"].get(name) for line in lines]
        if None in values:  # several answer rules: items have the first one's values
            continue
        figure = FIGURES.get(name) or (mean if all(isinstance(v, int | float) for v in values) else None)
        if figure is not None and not math.isclose(
            figure(values), metric["value"], rel_tol=_SAME, abs_tol=_SAME
        ):
            problems.append(f"{name} is {metric['value']:.6g}, its items give {figure(values):.6g}")
    return problems


def rerun(folder: Path, stored: Sequence[Stored], *, dtype: str, most: int = SAMPLE) -> Rerun:
    """Run the first items of each task again, as the evaluation did, in float32 on this machine's CPU.

    Generated answers are not: one rounded weight may turn a word. Their figures are checked by `item_problems`.
    """
    found = Rerun(stored=sum(len(lines) for _, _, lines in stored))
    tasks = [(payload, task, lines) for _, payload, lines in stored for task in payload["tasks"]]
    each = max(1, most // max(1, len(tasks)))
    models: dict[str, Any] = {}
    for payload, task, lines in tasks:
        mine = [line for line in lines if line["task"] == task][:each]
        if not any(line.get("loglikelihoods") for line in mine):
            found.left_out.append(f"{task}: its answers were generated, not scored")
            continue
        try:
            again = _run(folder, payload, task, len(mine), models)
        except UserError as error:
            found.left_out.append(f"{task}: {error}")
            continue
        found.items += len(mine)
        _compare(found, task, mine, again, *BOUNDS[dtype])
    return found


def _run(
    folder: Path, payload: dict[str, Any], task: str, count: int, models: dict[str, Any]
) -> list[dict[str, Any]]:
    from llmjp_train.config.evaluation import EvaluateConfig
    from llmjp_train.evaluate import harness
    from llmjp_train.evaluate.loading import folder_lm
    from llmjp_train.evaluate.runner import evaluate
    from llmjp_train.evaluate.suites import choice

    settings = payload["settings"]
    config = EvaluateConfig(
        device="cpu", dtype="float32", max_length=settings.get("max_length"), bos=bool(settings.get("bos"))
    )
    asked = choice(
        "", [task], num_fewshot=payload["tasks"][task]["num_fewshot"], limit=count, include=(), licences="all"
    )
    harness.offline()
    key = json.dumps([config.max_length, config.bos])
    if key not in models:
        models[key] = folder_lm(folder, config, lambda text: None)
    with tempfile.TemporaryDirectory() as place:
        items = Path(place) / "items.jsonl"
        chat = bool(settings.get("chat"))
        evaluate(models[key], asked, model=str(folder), items_path=items, chat=chat)
        return [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]


def _compare(
    found: Rerun,
    task: str,
    lines: Sequence[dict[str, Any]],
    again: Sequence[dict[str, Any]],
    nats: float,
    share: float,
) -> None:
    by_index = {line["index"]: line for line in again}
    for line in lines:
        other = by_index.get(line["index"])
        if other is None or other["prompt_sha256"] != line["prompt_sha256"]:
            found.problems.append(f"{task}: item {line['id']} asks something else here")
            continue
        for mine, theirs in zip(line["loglikelihoods"], other["loglikelihoods"], strict=True):
            distance = abs(mine - theirs) / (nats + share * abs(mine))
            found.worst = max(found.worst, distance)
            if not distance <= 1:
                found.problems.append(
                    f"{task}: item {line['id']}: {mine:.4f} is stored, {theirs:.4f} comes out here"
                )
