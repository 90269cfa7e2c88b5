"""An evaluation or a comparison as one HTML page in two languages, with CSV and JSON beside it.

The page loads nothing. Its one script sorts and filters tables; the policy allows that script by its hash.
"""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import Environment, PackageLoader, StrictUndefined

from llmjp_train import __version__
from llmjp_train.evaluate.compare import Comparison
from llmjp_train.evaluate.definitions import DIFFERS, both
from llmjp_train.evaluate.references import published
from llmjp_train.evaluate.suites import COMMERCIAL
from llmjp_train.evaluate.tasks import MissingDataError, TaskFile, find_tasks
from llmjp_train.publish.evaluation_words import LANGUAGES, WORDS
from llmjp_train.publish.report import write_text

SAMPLES = 2
"""Right and wrong answers of each task that are shown."""
SHOWN = 600
"""Characters of a question at most."""


def write_evaluation(
    payload: dict[str, Any],
    lines: Sequence[dict[str, Any]],
    folder: Path,
    include: Sequence[str] = (),
    others: Sequence[dict[str, Any]] = (),
) -> list[Path]:
    """Write index.html, index.ja.html, tasks.csv and results.json (lm-evaluation-harness's layout); definitions.json
    where tasks were run in two definitions.

    Args:
        lines: the items' lines, for samples.
        include: the user's folders of task files.
        others: further results of the same model, for tasks in the other definition.

    Raises:
        UserError: a file cannot be written.
    """
    samples = samples_of(payload, lines, include)
    definitions = both(payload, others)
    written = [
        write_text(
            folder / f"index{_suffix(language)}.html",
            _render(
                "evaluation.html.j2",
                language,
                page=payload,
                samples=samples,
                families=families(payload),
                published=published(figures_of(payload)),
                definitions=definitions,
                differs=DIFFERS[language],
            ),
        )
        for language in LANGUAGES
    ]
    written.append(write_text(folder / "tasks.csv", evaluation_csv(payload)))
    written.append(write_text(folder / "results.json", _json(harness_layout(payload))))
    if definitions:
        written.append(write_text(folder / "definitions.json", _json([asdict(row) for row in definitions])))
    return written


def write_comparison(found: Comparison, out: Path) -> list[Path]:
    """Write the page at ``out`` (NAME.html), NAME.ja.html, NAME.json and NAME.csv.

    Raises:
        UserError: a file cannot be written.
    """
    rows = found.to_dict()["differences"]
    widest = max((abs(row[end]) for row in rows for end in ("low", "high")), default=0.0) or 1.0
    written = [
        write_text(
            out.with_suffix(f"{_suffix(language)}.html"),
            _render("comparison.html.j2", language, page=found.to_dict(language), widest=widest),
        )
        for language in LANGUAGES
    ]
    written.append(write_text(out.with_suffix(".json"), _json(found.to_dict())))
    columns = [key for key in rows[0] if key != "notes"]
    written.append(
        write_text(out.with_suffix(".csv"), _csv(columns, [[row[key] for key in columns] for row in rows]))
    )
    return written


def _suffix(language: str) -> str:
    return "" if language == "en" else f".{language}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _render(template: str, language: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("llmjp_train.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("llmjp_train.publish").joinpath("templates/tables.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters.update(figure=_figure)
    return environment.get_template(template).render(
        words=WORDS[language], language=language, version=__version__, script=script, digest=digest, **values
    )


def _figure(value: Any, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def families(payload: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Bars by family: main metrics from 0 to 1, a group's tasks as one bar."""
    found: dict[str, list[dict[str, Any]]] = {}
    groups = [a for a in payload.get("averages", []) if a["kind"] == "group" and a["value"] is not None]
    grouped = {task for group in groups for task in group["tasks"]}
    for name, task in payload["tasks"].items():
        metric = task["metric"][task["main_metric"]]
        if name in grouped or not 0 <= metric["value"] <= 1 or not metric["higher_is_better"]:
            continue
        bar = {"name": name, "metric": task["main_metric"], "baseline": task["majority_baseline"], **metric}
        bar["published"] = published([f"{name}.{task['main_metric']}"])
        found.setdefault(task.get("family") or name, []).append(bar)
    for group in groups:
        first = payload["tasks"][group["tasks"][0]]
        baselines = [payload["tasks"][task]["majority_baseline"] for task in group["tasks"]]
        baseline = None if None in baselines else sum(baselines) / len(baselines)
        bar = {"name": group["name"], "metric": first["main_metric"], "baseline": baseline, **group}
        bar["published"] = []
        found.setdefault(first.get("family") or group["name"], []).append(bar)
    return found


def figures_of(payload: dict[str, Any]) -> list[str]:
    """Names of the figures that published scores may stand beside: TASK.METRIC, categories and averages."""
    found = [f"{name}.{metric}" for name, task in payload["tasks"].items() for metric in task["metric"]]
    # Another suite's mean of tasks is not llm-jp-eval's.
    return found + [a["name"] for a in payload.get("averages", []) if a["kind"] != "group"]


def samples_of(
    payload: dict[str, Any], lines: Sequence[dict[str, Any]], include: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A few right and wrong answers of each task, with the question where its licence allows passing it on."""
    known = find_tasks(include)
    found: list[dict[str, Any]] = []
    for name, result in payload["tasks"].items():
        metric = result["main_metric"].partition(",")[0]
        mine = [
            line
            for line in lines
            if line["task"] == name and isinstance(line["metrics"].get(metric), int | float)
        ]
        if not mine or not result["metric"][result["main_metric"]]["higher_is_better"]:
            continue
        for right in (True, False):
            picked = [line for line in mine if (line["metrics"][metric] >= 1) == right][:SAMPLES]
            found += [
                {
                    "task": name,
                    "right": right,
                    "id": line["id"],
                    "question": _question(known.get(name), line["index"]),
                    "answer": _answer(known.get(name), line),
                    "licence": result["licence"],
                }
                for line in picked
            ]
    return found


def _question(task: TaskFile | None, index: int) -> str:
    """The item's prompt without examples; empty where it is not here or may not be passed on."""
    template = "" if task is None else task.settings.get("doc_to_text")
    if task is None or task.licence not in COMMERCIAL or not isinstance(template, str) or not task.local:
        return ""
    try:
        doc = task.scored()[index]
    except (MissingDataError, IndexError):
        return ""
    text = str(jinja2.Template(template, keep_trailing_newline=True).render(**doc))
    return text if len(text) <= SHOWN else "… " + text[-SHOWN:]


def _answer(task: TaskFile | None, line: dict[str, Any]) -> str:
    if "response" in line:
        return str(line["response"][0] if isinstance(line["response"], list) else line["response"])
    choices = None if task is None else task.settings.get("doc_to_choice")
    number = line.get("prediction")
    if isinstance(choices, list) and number is not None:
        return str(choices[number])
    return "" if number is None else f"{number + 1}"


def evaluation_csv(payload: dict[str, Any]) -> str:
    """A row for each metric of each task, and one for each average."""
    columns = ["task", "metric", "value", "stderr", "low", "high", "items", "clusters", "majority_baseline",
               "num_fewshot", "licence", "data_version"]  # fmt: skip
    rows = [
        [name, metric, figures["value"], figures["stderr"], figures["low"], figures["high"], task["items"],
         task.get("clusters"), task["majority_baseline"], task["num_fewshot"], task["licence"], task["data_version"]]
        for name, task in payload["tasks"].items()
        for metric, figures in task["metric"].items()
    ]  # fmt: skip
    rows += [
        [
            average["name"],
            average["kind"],
            average["value"],
            average["stderr"],
            average["low"],
            average["high"],
        ]
        + [None] * 6
        for average in payload.get("averages", [])
    ]
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return out.getvalue()


def harness_layout(payload: dict[str, Any]) -> dict[str, Any]:
    """The figures as lm-evaluation-harness's own results file has them."""
    results: dict[str, dict[str, Any]] = {}
    for name, task in payload["tasks"].items():
        row: dict[str, Any] = {"alias": name}
        for metric, figures in task["metric"].items():
            plain, _, rule = metric.partition(",")
            row[f"{plain},{rule or 'none'}"] = figures["value"]
            row[f"{plain}_stderr,{rule or 'none'}"] = (
                "N/A" if figures["stderr"] is None else figures["stderr"]
            )
        results[name] = row
    return {
        "results": results,
        "versions": {name: task["task_version"] for name, task in payload["tasks"].items()},
        "n-shot": {name: task["num_fewshot"] for name, task in payload["tasks"].items()},
        "n-samples": {
            name: {"original": task["items_in_all"], "effective": task["items"]}
            for name, task in payload["tasks"].items()
        },
        "higher_is_better": {
            name: {metric: figures["higher_is_better"] for metric, figures in task["metric"].items()}
            for name, task in payload["tasks"].items()
        },
        "config": payload["settings"] | {"model": payload["model"]},
        "total_evaluation_time_seconds": str(payload["seconds"]),
    }
