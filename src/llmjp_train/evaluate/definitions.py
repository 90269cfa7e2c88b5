"""One task in two definitions: the right one and llm-jp-eval's, side by side, and what differs between them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THEIRS = "llm_jp_eval_"
"""What the names of tasks in llm-jp-eval's definition begin with."""
_OURS = {"mawps": "mawps_ja"}

DIFFERS: dict[str, dict[str, str]] = {
    "en": {
        "choices": "choices by their log-probability; llm-jp-eval: greedy text, exact match, so the tokenizer decides",
        "char_f1": "F1 over characters, best of the golds; llm-jp-eval: fuzzywuzzy's ratio in per cents, one gold",
        "joined": "llm-jp-eval joins all golds by commas",
        "title": "llm-jp-eval shows the title before the passage",
        "scale": "mean under the probabilities; llm-jp-eval: digits of the text, a minus lost, -2.0 where none is read",
        "numbers": "numbers compared as numbers; llm-jp-eval: as text",
        "prompts": "llm-jp-eval's own prompt, examples and answer length",
    },
    "ja": {
        "choices": "選択肢は対数確率で選ぶ。llm-jp-eval は貪欲生成の完全一致で、トークナイザに左右される",
        "char_f1": "文字の F1（正解のうち最良）。llm-jp-eval は fuzzywuzzy の編集類似度（整数パーセント、正解は一つ）",
        "joined": "llm-jp-eval はすべての正解を読点でつなぐ",
        "title": "llm-jp-eval は文章の前に題名を示す",
        "scale": "確率による期待値。llm-jp-eval は文中の数字で、負号は失われ、読めなければ -2.0",
        "numbers": "数を数として比べる。llm-jp-eval は文字列として比べる",
        "prompts": "llm-jp-eval 独自のプロンプト・例示・答えの長さ",
    },
}
_OF_TASK = {
    "jsts": ("scale",), "jsquad": ("char_f1", "title"), "jemhopqa": ("char_f1",), "niilc": ("char_f1", "joined"),
    "mawps": ("numbers",), "chabsa": (),
}  # fmt: skip
"""The other tasks are choices."""


@dataclass(frozen=True)
class Figure:
    """A task's main metric in one definition."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    items: int


@dataclass(frozen=True)
class Both:
    """A task in both definitions."""

    task: str
    right: Figure
    theirs: Figure
    differs: tuple[str, ...]
    """Keys of `DIFFERS`."""


def right_name(theirs: str) -> str:
    """The task, or group of tasks, that is the right definition of one of llm-jp-eval's."""
    short = theirs.removeprefix(THEIRS)
    return _OURS.get(short, short)


def both(payload: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> list[Both]:
    """The tasks that were run in both definitions, in an evaluation or in it and others of the same model.

    Args:
        others: further results of the same model; a figure of the evaluation itself goes before theirs, a later
            one of theirs before an earlier one.
    """
    figures: dict[str, Figure] = {}
    for one in (*sorted(others, key=lambda other: str(other.get("time"))), payload):
        figures |= _figures(one)
    mine = _figures(payload)
    found = []
    for name, theirs in figures.items():
        if not name.startswith(THEIRS):
            continue
        short = name.removeprefix(THEIRS)
        right = figures.get(right_name(name))
        if right is not None and (name in mine or right.task in mine):
            found.append(Both(short, right, theirs, (*_OF_TASK.get(short, ("choices",)), "prompts")))
    return found


def others_of(path: Path, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The results beside that at ``path`` that are of the same model and step; damaged files are passed over."""
    found = []
    for other in sorted(path.parent.glob("*.json")):
        try:
            one = json.loads(other.read_text(encoding="utf-8"))
        except ValueError:
            continue
        same = isinstance(one, dict) and all(
            one.get(key) == payload[key] for key in ("schema", "model", "step")
        )
        if same and other != path and "tasks" in one:
            found.append(one)
    return found


def _figures(payload: dict[str, Any]) -> dict[str, Figure]:
    """Main metrics by task, and the means of groups such as JMMLU's subjects."""
    tasks = payload["tasks"]
    found = {}
    for name, task in tasks.items():
        metric = task["metric"][task["main_metric"]]
        found[name] = Figure(
            name, task["main_metric"], metric["value"], metric["low"], metric["high"], task["items"]
        )
    for group in payload.get("averages", []):
        if group["kind"] == "group" and group["value"] is not None:
            items = sum(tasks[task]["items"] for task in group["tasks"])
            metric = tasks[group["tasks"][0]]["main_metric"]
            found[group["name"]] = Figure(
                group["name"], metric, group["value"], group["low"], group["high"], items
            )
    return found
