"""Runs tasks on a model and sums them up: figures with standard errors, baselines, a line for each item."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError
from llmjp_train.evaluate import averages, harness, results
from llmjp_train.evaluate.encoding import Counts
from llmjp_train.evaluate.resampling import numbered
from llmjp_train.evaluate.schema import Payload, TaskResult
from llmjp_train.evaluate.suites import Choice, Chosen, Suite
from llmjp_train.evaluate.tasks import MissingDataError


def evaluate(
    lm: Any,
    chosen: Sequence[Chosen] | Choice,
    *,
    model: str,
    step: int | None = None,
    suite: str = "",
    skipped: Sequence[str] = (),
    include: Sequence[str] = (),
    items_path: Path | None = None,
    settings: dict[str, Any] | None = None,
    chat: bool = False,
    first: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Evaluate ``lm`` on the chosen tasks, one after the other.

    Args:
        lm: a model of `evaluate.models` (or any of the harness's).
        model: name of the run or folder, for the record.
        items_path: JSONL file that gets a line for each item; none: not written.
        settings: what else the record should say of how the model was run.
        chat: write each item in the tokenizer's chat template.
        first: of several processes that share the items, the one that scores and reports; others compute alone.
        say: told what begins.

    Returns:
        The payload of `evaluate.schema`, as a dict; empty where this is not the first process.

    Raises:
        UserError: no tasks, a task that the model cannot do, or a model whose figures are not finite.
    """
    asked = chosen if isinstance(chosen, Choice) else Choice(list(chosen), [], Suite("", "", [], [], {}), {})
    if not asked.chosen:
        raise UserError("no tasks to run: name some (tasks=[own_choice]) or get the data of the suite's")
    began = time.perf_counter()
    done: dict[str, TaskResult] = {}
    left_out = [*skipped, *asked.skipped]
    lines: list[dict[str, Any]] = []
    for entry in asked.chosen:
        if entry.task.name in done:
            continue
        say(f"{entry.task.name}: {_size(entry)}")
        try:
            if not first:
                harness.ask(lm, _loaded(lm, entry, list(include)), entry.limit, chat=chat)
                continue
            done[entry.task.name] = _run_task(lm, entry, list(include), lines, chat)
        except (MissingDataError, harness.UnfitError) as error:
            if not entry.optional:
                raise
            left_out.append(str(error))
    if not first:
        return {}
    if items_path is not None:
        _write(items_path, lines)
    groups = averages.group_averages(
        {n: g for n, g in asked.groups.items() if done.keys() >= set(g.tasks)}, done
    )
    means = [*groups, *averages.suite_averages(asked.suite, done, groups)]
    payload = Payload(
        model=model,
        step=step,
        suite=suite,
        tasks=done,
        skipped=list(dict.fromkeys(left_out)),
        harness=harness.version(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - began, 3),
        settings=_settings(lm) | (settings or {}),
        items_file=items_path.name if items_path is not None else None,
        averages=[asdict(average) for average in means],
        faults=asked.suite.faults,
        differs=asked.suite.differs,
    )
    return payload.to_dict()


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _size(entry: Chosen) -> str:
    if not entry.task.local:
        return "items from elsewhere"
    count = len(entry.task.items[entry.task.split])
    return f"{min(count, entry.limit or count)} of {count} items"


def _settings(lm: Any) -> dict[str, Any]:
    encoder = getattr(lm, "encoder", None)
    found = {"adapter": type(lm).__name__, "batch_size": getattr(lm, "batch_size", None)}
    found["max_length"] = getattr(lm, "max_length", None)
    if encoder is not None:
        found |= {"bos": encoder.bos_id is not None, "prefix_token_id": encoder.prefix_id}
    return found


def _loaded(lm: Any, entry: Chosen, include: list[str]) -> Any:
    """The harness's task, which the model can do."""
    from llmjp_train.evaluate.likelihood import LikelihoodLM

    loaded = harness.load_task(entry, include)
    harness.check(
        entry.task,
        loaded,
        likelihood_only=isinstance(lm, LikelihoodLM),
        knows_greedy=getattr(lm, "knows_greedy", True),
    )
    return loaded


def _run_task(
    lm: Any, entry: Chosen, include: list[str], lines: list[dict[str, Any]], chat: bool
) -> TaskResult:
    began = time.perf_counter()
    encoder = getattr(lm, "encoder", None)
    if encoder is not None:
        encoder.counts = Counts()
    lm.seconds = {}
    loaded = _loaded(lm, entry, include)
    found = harness.run(lm, loaded, entry.limit, chat=chat)
    task, name = entry.task, entry.task.name
    samples = sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"]))
    items = results.first_rule(samples)
    results.check_finite(name, items)
    clusters = results.clusters_of(task, items)
    lines.extend(
        results.item_line(name, s, cluster, lm.seconds.get(int(s["doc_id"])))
        for s, cluster in zip(items, clusters, strict=True)
    )
    counts = encoder.counts if encoder is not None else Counts()
    metadata = task.metadata
    # A graded scale has no right choice that could be guessed.
    chance, baseline = (None, None) if metadata.get("graded") else results.baselines(loaded, items)
    return TaskResult(
        metric=results.metrics(task, found, samples),
        main_metric=_main_metric(task.metrics, found["results"][name]),
        items=len(items),
        items_in_all=int(found["n-samples"][name]["original"]),
        majority_baseline=baseline,
        chance=chance,
        num_fewshot=entry.num_fewshot,
        licence=task.licence,
        source=str(metadata.get("source", "")),
        data_version=str(metadata.get("data_version", "")),
        data_sha256=results.files_sha256(task),
        task_version=str(metadata.get("version", "")),
        prompts_sha256=results.prompts_sha256(items),
        seconds=round(time.perf_counter() - began, 3),
        truncated=counts.truncated,
        joined_tokens=counts.joined_tokens,
        family=str(metadata.get("family", "")),
        clusters=max(numbered(clusters), default=-1) + 1,
        faults=[str(fault) for fault in metadata.get("faults") or []],
        tokens_run=counts.tokens_run or None,
        tokens_plain=counts.tokens_plain or None,
        unfinished=counts.unfinished,
    )


def _main_metric(stated: Sequence[str], figures: dict[str, Any]) -> str:
    """The task file's first metric by the name that the result gives it."""
    shown: dict[str, str] = {}
    for key in figures:
        name, comma, rule = key.partition(",")
        if comma and not name.endswith("_stderr"):
            shown.setdefault(name, name if rule == "none" else key)
    return next((shown[name] for name in stated if name in shown), next(iter(shown.values()), ""))
