"""Evaluations and task lists as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from llmjp_train.evaluate.compare import Comparison
from llmjp_train.evaluate.tasks import MissingDataError, TaskFile, majority


def show_results(payload: dict[str, Any], console: Console | None = None) -> None:
    """Print each task's main metric with its interval, next to what guessing and the majority answer give."""
    console = console or Console()
    table = Table(title=_title(payload), title_justify="left", box=SIMPLE)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "95 % interval", "majority", "items"):
        table.add_column(heading, justify="right", no_wrap=True)
    # A group's tasks are summed up below; the result's page has each.
    grouped = {task for a in payload.get("averages", []) if a["kind"] == "group" for task in a["tasks"]}
    shown = {name: task for name, task in payload["tasks"].items() if name not in grouped}
    for name, task in shown.items():
        # The main one first: it carries the task's name.
        for metric in sorted(task["metric"], key=lambda key: key != task["main_metric"]):
            figures, main = task["metric"][metric], metric == task["main_metric"]
            low, high = figures["low"], figures["high"]
            table.add_row(
                name if main else "",
                metric + ("" if figures["higher_is_better"] else " ↓"),
                f"{figures['value']:.3f}",
                "-" if low is None or high is None else f"{low:.3f} to {high:.3f}",
                _figure(task["majority_baseline"]),
                f"{task['items']}/{task['items_in_all']}" if main else "",
            )
    _print_whole(console, table)
    for name, task in shown.items():
        console.print(f"{name}: {'; '.join(_notes(task, payload))}", highlight=False, soft_wrap=True)
    cut = sum(task["truncated"] for name, task in payload["tasks"].items() if name in grouped)
    if cut:
        console.print(
            f"{cut} inputs of grouped tasks were cut from the left: see the page",
            highlight=False,
            soft_wrap=True,
        )
    for average in payload.get("averages", []):
        console.print(_average(average), highlight=False, soft_wrap=True)
    for title, key in (("known fault", "faults"), ("differs from published figures", "differs")):
        for line in payload.get(key, []):
            console.print(f"{title}: {line}", highlight=False, soft_wrap=True)
    for reason in payload["skipped"]:
        console.print(f"left out: {reason}", highlight=False, soft_wrap=True)


def _print_whole(console: Console, table: Table) -> None:
    """Print a table at its own width: a narrow terminal wraps it, and no figure is cut off."""
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def _average(average: dict[str, Any]) -> str:
    """A mean over tasks in a line, or why there is none."""
    if average["value"] is None:
        return f"{average['name']}: not comparable ({average['reason']})"
    interval = "" if average["low"] is None else f" ({average['low']:.3f} to {average['high']:.3f})"
    return f"{average['name']}: {average['value']:.3f}{interval}, mean of {len(average['tasks'])}"


def _notes(task: dict[str, Any], payload: dict[str, Any]) -> list[str]:
    """What a reader of a task's figures should know."""
    count = task["num_fewshot"]
    examples = "no example" if count == 0 else f"{count} example{'s' * (count > 1)} before each"
    notes = [task["licence"], examples, f"{task['seconds']:.1f} s"]
    if task["chance"] is not None:
        notes.append(f"guessing gives {task['chance']:.3f}")
    best, baseline = task["metric"][task["main_metric"]], task["majority_baseline"]
    if baseline is not None and best["high"] is not None and best["low"] <= baseline <= best["high"]:
        notes.append("not told apart from always giving the most frequent answer")
    if task["truncated"]:
        notes.append(
            f"{task['truncated']} inputs over {payload['settings']['max_length']} tokens cut from the left: "
            "fewer examples (num_fewshot) avoid that"
        )
    return notes


def _title(payload: dict[str, Any]) -> str:
    step = "" if payload["step"] is None else f", step {payload['step']}"
    return f"{payload['model']}{step} ({payload['harness']}, {payload['seconds']:.0f} s)"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def describe(task: TaskFile) -> dict[str, Any]:
    """A task's size, metrics, licence and baseline, whether its data are here, and whether we have run it on them."""
    row: dict[str, Any] = {
        "task": task.name,
        "title": str(task.metadata.get("title", "")),
        "kind": task.output_type,
        "metrics": task.metrics,
        "num_fewshot": task.num_fewshot,
        "licence": task.licence,
        "items": None,
        "majority_baseline": None,
        "data": "from elsewhere",
        "tried": task.local and not task.metadata.get("not_run"),
    }
    if not task.local:
        return row
    try:
        row["items"] = len(task.scored())
    except MissingDataError as error:
        return row | {"data": f"missing: {error}"}
    golds = task.golds()
    return row | {"majority_baseline": majority(golds) if golds else None, "data": "here"}


def show_tasks(
    rows: Sequence[dict[str, Any]],
    suites: dict[str, list[str]],
    groups: dict[str, list[str]] | None = None,
    console: Console | None = None,
) -> None:
    """Print the tasks that there are, a group's in one line, and the suites made of them."""
    console = console or Console()
    table = Table(box=SIMPLE)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for heading in ("items", "majority", "examples"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("data")
    member = {task: name for name, tasks in (groups or {}).items() for task in tasks}
    shown: set[str] = set()
    for row in rows:
        group = member.get(row["task"])
        if group in shown:
            continue
        if group is not None:
            shown.add(group)
            row = _together(group, [each for each in rows if member.get(each["task"]) == group])
        table.add_row(
            row["task"],
            next(iter(row["metrics"]), "?"),
            "?" if row["items"] is None else str(row["items"]),
            _figure(row["majority_baseline"]),
            str(row["num_fewshot"]),
            row["licence"],
            row["data"].partition(":")[0],
        )
    _print_whole(console, table)
    for message in dict.fromkeys(row["data"] for row in rows if row["data"].startswith("missing")):
        console.print(message.removeprefix("missing: "), highlight=False, soft_wrap=True)
    untried = dict.fromkeys(member.get(row["task"], row["task"]) for row in rows if not row["tried"])
    if untried:
        console.print(
            f"not run on real data by this project: {', '.join(untried)}", highlight=False, soft_wrap=True
        )
    for name, tasks in suites.items():
        console.print(f"suite={name}: {', '.join(tasks)}", highlight=False, soft_wrap=True)


def _together(group: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A group's tasks as one row; its majority baseline is the mean of theirs."""
    sizes = [row["items"] for row in rows]
    baselines = [row["majority_baseline"] for row in rows]
    return dict(rows[0]) | {
        "task": f"{group} ({len(rows)} tasks)",
        "items": None if None in sizes else sum(sizes),
        "majority_baseline": None if None in baselines else sum(baselines) / len(baselines),
    }


def show_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print each difference with its interval, and what may be said of it."""
    console = console or Console()
    for first, second in dict.fromkeys((each.first, each.second) for each in found.differences):
        table = Table(title=f"{second} minus {first}", title_justify="left", box=SIMPLE)
        table.add_column("task", no_wrap=True)
        table.add_column("metric", no_wrap=True)
        for heading in (first, second, "difference", "95 % interval", "p (Holm)"):
            table.add_column(heading, justify="right", no_wrap=True)
        rows = [each for each in found.differences if (each.first, each.second) == (first, second)]
        for each in rows:
            table.add_row(
                each.task,
                each.metric + ("" if each.higher_is_better else " ↓"),
                f"{each.first_value:.3f}",
                f"{each.second_value:.3f}",
                f"{each.difference:+.3f}",
                f"{each.low:+.3f} to {each.high:+.3f}",
                f"{each.p_corrected:.3f}",
            )
        _print_whole(console, table)
        for each in rows:
            console.print(
                f"{each.task}: {'; '.join([each.verdict, *each.notes])}", highlight=False, soft_wrap=True
            )
    for reason in found.left_out:
        console.print(f"left out: {reason}", highlight=False, soft_wrap=True)
