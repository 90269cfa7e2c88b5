"""From the harness's samples of one task to its figures, and to a line for each item."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from llmjp_train.errors import UserError
from llmjp_train.evaluate import resampling
from llmjp_train.evaluate.schema import Metric
from llmjp_train.evaluate.tasks import TaskFile, majority

Sample = dict[str, Any]


def first_rule(samples: Sequence[Sample]) -> list[Sample]:
    """A sample for each item: a task with several answer rules has one for each rule."""
    rule = samples[0].get("filter") if samples else None
    return [sample for sample in samples if sample.get("filter") == rule]


def clusters_of(task: TaskFile, samples: Sequence[Sample]) -> list[str]:
    """What an item shares with others (the field that ``metadata.cluster`` names), hashed; else itself."""
    field = task.metadata.get("cluster")
    if field is None:
        return [f"item {sample['doc_id']}" for sample in samples]
    return [hashlib.sha256(str(sample["doc"][field]).encode()).hexdigest()[:12] for sample in samples]


def loglikelihoods(sample: Sample) -> list[float]:
    """Scores of an item's requests; none for generated text."""
    found: list[float] = []
    for response in sample["filtered_resps"]:
        value = response[0] if isinstance(response, tuple | list) else response
        if isinstance(value, float):
            found.append(value)
    return found


def check_finite(name: str, samples: Sequence[Sample]) -> None:
    """Refuse log-likelihoods that are not finite.

    Raises:
        UserError: the model's weights are damaged, or its format is too narrow.
    """
    bad = sum(not all(map(math.isfinite, loglikelihoods(sample))) for sample in samples)
    if bad:
        raise UserError(
            f"task {name}: the model gives log-likelihoods that are not finite on {bad} of {len(samples)} "
            "items; its weights are damaged, or the format is too narrow (dtype=float32)"
        )


def metrics(task: TaskFile, found: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Metric]:
    """Each metric of the harness's results with our standard error and interval."""
    figures = found["results"][task.name]
    better = found["higher_is_better"][task.name]
    result: dict[str, Metric] = {}
    for key, value in figures.items():
        name, comma, rule = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        mine = [sample for sample in samples if sample.get("filter", rule) == rule and name in sample]
        clusters = resampling.numbered(clusters_of(task, mine))
        values = [sample[name] for sample in mine]
        stderr, low, high = resampling.error_and_interval(name, float(value), values, clusters)
        shown = name if rule == "none" else key
        result[shown] = Metric(float(value), stderr, low, high, bool(better.get(name, True)))
    return result


def baselines(loaded: Any, samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    """Chance and majority accuracy of the scored items."""
    if loaded.OUTPUT_TYPE != "multiple_choice":
        return None, None
    choices = [loaded.doc_to_choice(sample["doc"]) for sample in samples]
    golds: list[int] = []
    for sample, options in zip(samples, choices, strict=True):
        target = sample["target"]
        if isinstance(target, str) and target in options:
            target = options.index(target)
        if not isinstance(target, int):
            return None, None
        golds.append(target)
    return sum(1 / len(options) for options in choices) / len(choices), majority(golds)


def item_line(name: str, sample: Sample, cluster: str, seconds: float | None = None) -> dict[str, Any]:
    """An item's line: enough for a paired comparison of two models, without the item's text (licences).

    Args:
        seconds: its share of the time of the batches that it was in; none: not measured.
    """
    doc = sample["doc"]
    identity = next((doc[key] for key in ("id", "q_id", "qid") if key in doc), sample["doc_id"])
    line: dict[str, Any] = {"task": name, "id": identity, "index": int(sample["doc_id"])}
    if isinstance(sample["target"], int):
        line["answer"] = sample["target"]
    lls = loglikelihoods(sample)
    if lls:
        line["loglikelihoods"] = [round(ll, 6) for ll in lls]
    if len(lls) > 1:
        line["prediction"] = max(range(len(lls)), key=lls.__getitem__)
    if not lls:
        line["response"] = sample["filtered_resps"]
    line["metrics"] = {metric: _plain(sample[metric]) for metric in sample["metrics"]}
    line["cluster"] = cluster
    line["prompt_sha256"] = sample["prompt_hash"]
    if seconds is not None:
        line["seconds"] = round(seconds, 6)
    return line


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, pairs as lists."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def prompts_sha256(samples: Sequence[Sample]) -> str:
    """sha256 over all inputs as text."""
    digest = hashlib.sha256()
    for sample in samples:
        for arguments in sample["arguments"]:
            digest.update(
                json.dumps([a for a in arguments if isinstance(a, str)], ensure_ascii=False).encode()
            )
    return digest.hexdigest()


def files_sha256(task: TaskFile) -> str | None:
    """sha256 over the scored split's files; none where the items do not come from files."""
    files = task.files().get(task.split, [])
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
