"""Standard errors and intervals of any figure over items, also where items share a passage or a photograph."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from llmjp_train.evaluate import scores, text_metrics

DRAWS = 1000
"""Bootstrap draws of figures without a closed form."""

Figure = Callable[[Sequence[Any]], float]


def bits_per_byte(pairs: Sequence[tuple[float, float]]) -> float:
    """Bits per byte of (log-likelihood in nats, bytes) pairs."""
    return -sum(ll for ll, _ in pairs) / sum(size for _, size in pairs) / math.log(2)


def matthews(pairs: Sequence[tuple[int, int]]) -> float:
    """Matthews' correlation (1975) of (gold, prediction) pairs of two classes; 0.0 where one side is constant."""
    return text_metrics.pearson(pairs)


def mean(values: Sequence[float]) -> float:
    """Plain mean."""
    return float(np.mean(np.asarray(values, dtype=np.float64)))


FIGURES: dict[str, Figure] = {
    "bits_per_byte": bits_per_byte,
    "mcc": matthews,
    "pearson": text_metrics.pearson,
    "spearman": text_metrics.spearman,
    "macro_f1": text_metrics.macro_f1,
    **{name: partial(text_metrics.of_counts, name=name) for name in text_metrics.TRANSLATION},
}
"""From items' values to a figure, by metric; a metric that is not here is a mean."""


def numbered(clusters: Sequence[Hashable]) -> list[int]:
    """Clusters as 0, 1, 2, ... in the order of their first item."""
    places: dict[Hashable, int] = {}
    return [places.setdefault(cluster, len(places)) for cluster in clusters]


def mean_stderr(values: Sequence[float], clusters: Sequence[int]) -> float | None:
    """Standard error of a mean over items in clusters; none for fewer than two clusters.

    The cluster-robust form with the small-sample factor G/(G-1) (Cameron and Miller, 2015, section II); with
    a cluster for each item it is the sample deviation over the root of n.
    """
    count = len(values)
    groups = max(clusters, default=-1) + 1
    if groups < 2:
        return None
    residuals = np.asarray(values, dtype=np.float64) - mean(values)
    sums = np.bincount(np.asarray(clusters), weights=residuals, minlength=groups)
    return float(math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / count)


def draws(
    figure: Figure, values: Sequence[Any], clusters: Sequence[int], count: int = DRAWS, seed: int = 0
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The figure over ``count`` bootstrap samples of clusters, with a generator of its own."""
    members: list[list[int]] = [[] for _ in range(max(clusters) + 1)]
    for place, cluster in enumerate(clusters):
        members[cluster].append(place)
    generator = np.random.default_rng(seed)
    found = np.empty(count)
    for draw in range(count):
        picked = generator.integers(len(members), size=len(members))
        found[draw] = figure([values[place] for cluster in picked for place in members[cluster]])
    return found


def error_and_interval(
    name: str, value: float, values: Sequence[Any], clusters: Sequence[int]
) -> tuple[float | None, float | None, float | None]:
    """Standard error and 95 % interval of a metric's figure.

    Means: closed form; of shares the interval is Wilson's with the number of independent items that the
    standard error implies. Bits per byte: the ratio estimator. Others: a bootstrap over clusters.
    """
    if not values:
        return None, None, None
    if name == "bits_per_byte":
        stderr = scores.ratio_stderr([-ll / math.log(2) for ll, _ in values], [size for _, size in values])
        return (None, None, None) if stderr is None else (stderr, *scores.normal(value, stderr))
    if name in FIGURES or not all(isinstance(v, int | float) for v in values):
        if name not in FIGURES or max(clusters) < 1:
            return None, None, None
        found = draws(FIGURES[name], values, clusters)
        low, high = np.percentile(found, [2.5, 97.5])
        return float(found.std(ddof=1)), float(low), float(high)
    stderr = mean_stderr(values, clusters)
    if all(v in (0, 1) for v in values):
        independent = float(len(values))
        if stderr and max(clusters) + 1 < len(values):
            independent = min(independent, value * (1 - value) / stderr**2)
        return (stderr, *scores.wilson(value, independent))
    if stderr is None:
        return None, None, None
    low, high = scores.normal(value, stderr)
    if all(0 <= v <= 1 for v in values):
        low, high = max(low, 0.0), min(high, 1.0)  # the mean of shares is one
    return stderr, low, high


def mean_of(
    figures: Sequence[tuple[float, float | None]], weights: Sequence[float]
) -> tuple[float, float | None]:
    """Weighted mean of independent figures and its standard error; none where one figure has none."""
    total = sum(weights)
    value = sum(weight * figure for weight, (figure, _) in zip(weights, figures, strict=True)) / total
    errors = [error for _, error in figures]
    if any(error is None for error in errors):
        return value, None
    squares = sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True) if e is not None)
    return value, math.sqrt(squares) / total


def without(task: dict[str, Any], lines: Sequence[dict[str, Any]], touched: set[int]) -> dict[str, Any]:
    """A task's main metric on all its items and on those not ``touched`` (places), with standard errors.

    Args:
        task: the stored result.
        lines: its items' lines.
    """
    name = str(task["main_metric"]).partition(",")[0]
    figure = FIGURES.get(name, mean)
    kept = [line for line in lines if line["index"] not in touched]
    found: dict[str, Any] = {
        "items": len(lines),
        "clean_items": len(kept),
        "clean": None,
        "clean_stderr": None,
    }
    found["all"] = figure([line["metrics"][name] for line in lines])
    if kept:
        values = [line["metrics"][name] for line in kept]
        found["clean"] = figure(values)
        clusters = numbered([line.get("cluster", line["index"]) for line in kept])
        found["clean_stderr"] = error_and_interval(name, found["clean"], values, clusters)[0]
    return found
