"""Figures over several tasks: groups such as JMMLU's subjects, a suite's categories and its average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmjp_train.evaluate import scores
from llmjp_train.evaluate.resampling import mean_of
from llmjp_train.evaluate.schema import TaskResult
from llmjp_train.evaluate.suites import Suite
from llmjp_train.evaluate.tasks import Group

SHARES = ("acc", "acc_norm", "exact_match", "char_f1", "set_f1", "pass_at_1")
"""Metrics from 0 to 1 that may be averaged with each other."""


@dataclass(frozen=True)
class Average:
    """A mean over tasks, or why there is none."""

    name: str
    kind: str
    """``group``, ``category`` or ``average``."""
    tasks: list[str]
    value: float | None
    """None: not comparable."""
    stderr: float | None
    low: float | None
    high: float | None
    reason: str
    """Why there is no value; empty where there is one."""


def group_averages(groups: Mapping[str, Group], results: Mapping[str, TaskResult]) -> list[Average]:
    """A figure for each group of which every task was run."""
    found = []
    for group in groups.values():
        parts = [results[name] for name in group.tasks]
        weights = [float(part.items) if group.weighted else 1.0 for part in parts]
        found.append(_mean(group.name, "group", group.tasks, parts, weights))
    return found


def suite_averages(
    suite: Suite, results: Mapping[str, TaskResult], groups: Sequence[Average]
) -> list[Average]:
    """The suite's categories and average by its own rules; else one mean over its tasks, a group counting once."""
    if suite.average_of:
        return _by_categories(suite, results)
    grouped = {name for group in groups for name in group.tasks}
    single = [name for name in results if name not in grouped and results[name].main_metric in SHARES]
    parts = [_main(results[name]) for name in single]
    parts += [(group.value, group.stderr) for group in groups if group.value is not None]
    names = [*single, *(group.name for group in groups if group.value is not None)]
    if len(parts) < 2:
        return []
    value, stderr = mean_of(parts, [1.0] * len(parts))
    return [_average("mean of tasks", "average", names, value, stderr)]


def _by_categories(suite: Suite, results: Mapping[str, TaskResult]) -> list[Average]:
    found = []
    for name, tasks in suite.categories.items():
        missing = [task for task in tasks if task not in results]
        if missing:
            reason = f"not run: {', '.join(missing)}"
            found.append(Average(name, "category", tasks, None, None, None, None, reason))
            continue
        found.append(_mean(name, "category", tasks, [results[task] for task in tasks], [1.0] * len(tasks)))
    wanted = [average for average in found if average.name in suite.average_of]
    lacking = [average.name for average in wanted if average.value is None]
    if lacking:
        reason = f"categories that did not run in full: {', '.join(lacking)}"
        return [*found, Average("AVG", "average", suite.average_of, None, None, None, None, reason)]
    parts = [(average.value, average.stderr) for average in wanted if average.value is not None]
    value, stderr = mean_of(parts, [1.0] * len(parts))
    return [*found, _average("AVG", "average", suite.average_of, value, stderr)]


def _main(result: TaskResult) -> tuple[float, float | None]:
    metric = result.metric[result.main_metric]
    return metric.value, metric.stderr


def _mean(
    name: str, kind: str, tasks: list[str], parts: Sequence[TaskResult], weights: Sequence[float]
) -> Average:
    value, stderr = mean_of([_main(part) for part in parts], weights)
    return _average(name, kind, tasks, value, stderr)


def _average(name: str, kind: str, tasks: list[str], value: float, stderr: float | None) -> Average:
    low, high = (None, None) if stderr is None else scores.normal(value, stderr)
    return Average(name, kind, tasks, value, stderr, low, high, "")
