"""Two or more evaluations, item by item: differences with intervals, corrected for how many were looked at."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from llmjp_train.errors import UserError
from llmjp_train.evaluate import resampling
from llmjp_train.evaluate.schema import SCHEMA
from llmjp_train.evaluate.verdicts import Sentence

SHUFFLES = 2000
"""Random exchanges of the two models' results; the least p value is about 1 in as many."""
POWER = 0.8
LEVEL = 0.05


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation with its items."""

    name: str
    payload: dict[str, Any]
    items: dict[str, dict[str, dict[str, Any]]]
    """Task to item to its line."""


@dataclass(frozen=True)
class Difference:
    """The main metric of a task in two evaluations: the second minus the first."""

    task: str
    metric: str
    first: str
    second: str
    first_value: float
    second_value: float
    difference: float
    stderr: float
    low: float
    """Lower end of the 95 % interval of the difference, for this task alone."""
    high: float
    p: float
    """Chance of such a difference or a larger one if the two were exchangeable item by item."""
    p_corrected: float
    """After Holm (1979), over all tasks and pairs of the comparison."""
    visible: float
    """Smallest true difference that is found in four cases of five at the corrected level."""
    items: int
    clusters: int
    higher_is_better: bool
    notes: list[Sentence]

    @property
    def verdict(self) -> Sentence:
        """What may be said: which is ahead and by how much, or that no difference was seen and what could have been."""
        if self.stderr == 0 and self.difference == 0:
            return Sentence("alike")
        if self.p_corrected >= LEVEL:
            return Sentence("not_seen", visible=self.visible)
        ahead = self.second if (self.difference > 0) == self.higher_is_better else self.first
        low, high = sorted((abs(self.low), abs(self.high)))
        return Sentence("ahead", name=ahead, by=abs(self.difference), low=low, high=high)


@dataclass(frozen=True)
class Comparison:
    """What was found, and which tasks could not be compared."""

    names: list[str]
    differences: list[Difference]
    left_out: list[Sentence]

    def to_dict(self, language: str = "en") -> dict[str, Any]:
        """As JSON takes it, its sentences in a language."""

        def texts(sentences: list[Sentence]) -> list[str]:
            return [sentence.text(language) for sentence in sentences]

        rows = [
            vars(each) | {"notes": texts(each.notes), "verdict": each.verdict.text(language)}
            for each in self.differences
        ]
        return {"schema": SCHEMA, "names": self.names, "differences": rows, "left_out": texts(self.left_out)}


def read(path: Path, name: str = "") -> Evaluation:
    """An evaluation by its JSON file, or the newest one of a run or of a folder of results.

    Raises:
        UserError: there is none, it is of another kind, or its items are missing.
    """
    file = path
    if path.is_dir():
        folder = path / "evaluations" if (path / "evaluations").is_dir() else path
        found = sorted(
            (p for p in folder.glob("*.json") if "tasks" in _json(p)), key=lambda p: str(_json(p).get("time"))
        )
        if not found:
            raise UserError(
                f"{folder} holds no evaluation: run `llmjp evaluate` first, or name its JSON file"
            )
        file = found[-1]
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: give an evaluation's JSON file, a run or a folder of results"
        )
    payload = _json(file)
    if payload.get("schema") != SCHEMA or "tasks" not in payload:
        raise UserError(f"{file} is not an evaluation of version {SCHEMA}")
    items_file = file.with_name(str(payload.get("items_file")))
    if not payload.get("items_file") or not items_file.is_file():
        raise UserError(
            f"{file} has no items beside it ({payload.get('items_file')}): evaluations in training keep none; "
            "evaluate the checkpoint with `llmjp evaluate`"
        )
    items: dict[str, dict[str, dict[str, Any]]] = {}
    for line in items_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        items.setdefault(row["task"], {})[f"{row['id']}#{row['index']}"] = row
    step = "" if payload["step"] is None else f"@{payload['step']}"
    return Evaluation(name or f"{Path(payload['model']).name}{step}", payload, items)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}): it was damaged or is something else") from error
    return found if isinstance(found, dict) else {}


def compare(evaluations: Sequence[Evaluation], seed: int = 0) -> Comparison:
    """Every pair on every task that both have.

    Raises:
        UserError: fewer than two evaluations, or no task in common.
    """
    if len(evaluations) < 2:
        raise UserError("a comparison needs two evaluations or more")
    names = _distinct([each.name for each in evaluations])
    found: list[Difference] = []
    left_out: list[Sentence] = []
    for (i, first), (j, second) in combinations(enumerate(evaluations), 2):
        for task in first.payload["tasks"]:
            if task not in second.payload["tasks"]:
                left_out.append(Sentence("no_figures", task=task, name=names[j]))
            elif reason := _unlike(first, second, task):
                left_out.append(reason)
            else:
                found.append(_difference(first, second, (names[i], names[j]), task, seed))
        missing = [task for task in second.payload["tasks"] if task not in first.payload["tasks"]]
        left_out += [Sentence("no_figures", task=task, name=names[i]) for task in missing]
    if not found:
        raise UserError("the evaluations have no task that can be compared: " + "; ".join(left_out))
    return Comparison(names, _corrected(found), left_out)


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _unlike(first: Evaluation, second: Evaluation, task: str) -> Sentence | None:
    """Why two results of a task are not of the same thing; none where they are."""
    one, other = first.payload["tasks"][task], second.payload["tasks"][task]
    for key in ("data_sha256", "main_metric", "task_version"):
        if one[key] != other[key]:
            return Sentence(key, task=task, one=one[key], other=other[key])
    if len(first.items.get(task, {}).keys() & second.items.get(task, {}).keys()) < 2:
        return Sentence("few", task=task)
    return None


def _difference(
    first: Evaluation, second: Evaluation, names: tuple[str, str], task: str, seed: int
) -> Difference:
    facts = first.payload["tasks"][task]
    metric = facts["main_metric"]
    key = metric.partition(",")[0]
    ours, theirs = first.items[task], second.items[task]
    shared = [item for item in ours if item in theirs]
    values = (
        [ours[item]["metrics"][key] for item in shared],
        [theirs[item]["metrics"][key] for item in shared],
    )
    clusters = resampling.numbered([ours[item].get("cluster", item) for item in shared])
    figure = resampling.FIGURES.get(key, resampling.mean)
    one, other = figure(values[0]), figure(values[1])
    stderr, low, high = _error(figure, values, clusters, other - one, seed)
    notes = []
    if len(shared) < max(len(ours), len(theirs)):
        notes.append(Sentence("in_common", shared=len(shared), ours=len(ours), theirs=len(theirs)))
    if facts["prompts_sha256"] != second.payload["tasks"][task]["prompts_sha256"]:
        notes.append(Sentence("prompts"))
    return Difference(
        task, metric, *names, one, other, other - one, stderr, low, high,
        _exchange_p(figure, values, clusters, seed), 1.0, math.nan, len(shared), max(clusters) + 1,
        bool(facts["metric"][metric]["higher_is_better"]), notes,
    )  # fmt: skip


def _error(
    figure: resampling.Figure,
    values: tuple[list[Any], list[Any]],
    clusters: list[int],
    difference: float,
    seed: int,
) -> tuple[float, float, float]:
    """Standard error and 95 % interval of a difference of figures over the same items."""
    if figure is resampling.mean:
        each = [b - a for a, b in zip(*values, strict=True)]
        stderr = resampling.mean_stderr(each, clusters) or 0.0
        half = NormalDist().inv_cdf(0.975) * stderr
        return stderr, difference - half, difference + half
    paired = list(zip(*values, strict=True))

    def of_pairs(pairs: Sequence[Any]) -> float:
        return figure([b for _, b in pairs]) - figure([a for a, _ in pairs])

    found = resampling.draws(of_pairs, paired, clusters, seed=seed)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(found.std(ddof=1)), float(low), float(high)


def _exchange_p(
    figure: resampling.Figure, values: tuple[list[Any], list[Any]], clusters: list[int], seed: int
) -> float:
    """p of the randomisation test: the models' results exchanged at random, cluster by cluster.

    (Noreen, 1989; Dror et al., 2018.) Needs no assumption on how scores are spread.
    """
    generator = np.random.default_rng(seed)
    groups = max(clusters) + 1
    first, second = values
    seen = abs(figure(second) - figure(first))
    if first == second:
        return 1.0
    if figure is resampling.mean:
        each = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
        sums = np.bincount(np.asarray(clusters), weights=each, minlength=groups)
        signs = generator.integers(0, 2, size=(SHUFFLES, groups)) * 2 - 1
        found = np.abs(signs @ sums) / len(first)
    else:
        found = np.empty(SHUFFLES)
        for draw in range(SHUFFLES):
            swapped = generator.integers(0, 2, size=groups).astype(bool)
            pairs = [
                (b, a) if swapped[c] else (a, b) for a, b, c in zip(first, second, clusters, strict=True)
            ]
            one, other = zip(*pairs, strict=True)
            found[draw] = abs(figure(other) - figure(one))
    return float((1 + (found >= seen - 1e-12).sum()) / (SHUFFLES + 1))


def _corrected(found: list[Difference]) -> list[Difference]:
    """Holm's correction, and the smallest difference that could have been seen under it."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    corrected = [1.0] * len(found)
    greatest = 0.0
    for rank, place in enumerate(order):
        greatest = max(greatest, min(1.0, found[place].p * (len(found) - rank)))
        corrected[place] = greatest
    normal = NormalDist()
    factor = normal.inv_cdf(1 - LEVEL / 2 / len(found)) + normal.inv_cdf(POWER)
    return [
        replace(each, p_corrected=p, visible=factor * each.stderr)
        for each, p in zip(found, corrected, strict=True)
    ]
