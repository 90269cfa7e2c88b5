"""`llmjp evaluate contamination RUN|DATA`: which test items the training text holds."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.evaluation import EvaluateConfig
    from llmjp_train.evaluate.contamination import Report


def look(source: str | None, config: "EvaluateConfig", args: argparse.Namespace) -> int:
    """Search, print and store; see `llmjp evaluate --help`."""
    if source is None:
        raise UserError(
            "name a run, text files, a folder of them, or a corpus of the catalogue to look through"
        )
    share = 0.7 if args.share is None else args.share
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: give a share above 0 and up to 1")
    from llmjp_train.evaluate.contamination import Index, search
    from llmjp_train.evaluate.suites import choice
    from llmjp_train.evaluate.training_text import training_text

    asked = choice(config.suite, config.tasks, include=config.include, licences=config.licences)
    seen: dict[str, Any] = {}
    elsewhere = [entry.task.name for entry in asked.chosen if not entry.task.local]
    for entry in (entry for entry in asked.chosen if entry.task.local):
        # Tasks on the same items (llm-jp-eval's beside ours) are looked for once.
        key = str(sorted(map(str, entry.task.files().get(entry.task.split, [])))) + str(
            len(entry.task.scored())
        )
        seen.setdefault(key, entry.task)
    texts = training_text(source, args.text_key or "text", _told)
    report = search(Index(list(seen.values())), texts, share)
    payload = asdict(report) | {"schema": 1, "source": source, "left_out": asked.skipped}
    if elsewhere:
        payload["left_out"] = [
            *asked.skipped, f"not looked for, as their items are not local files: {', '.join(elsewhere)}"
        ]  # fmt: skip
    if args.scores is not None:
        payload["scores"] = _clean(report, args.scores)
    # A run's goes into its record, where cards and releases find it.
    out = args.output or (Path(source) if (Path(source) / "config.yaml").is_file() else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "contamination.json"
        path.write_text(json.dumps(payload, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        _told(f"written to {path}")
    if args.json:
        print(json.dumps(payload, ensure_ascii=False, indent=2))
    else:
        _show(report, payload.get("scores") or {})
    return exit_codes.OK


def _told(text: str) -> None:
    print(text, file=sys.stderr)


def _clean(report: "Report", path: Path) -> dict[str, Any]:
    """Each task's main metric on all items and on the untouched ones alone."""
    from llmjp_train.evaluate.compare import read
    from llmjp_train.evaluate.resampling import without

    evaluation = read(path)
    return {
        task: without(
            evaluation.payload["tasks"][task], list(evaluation.items[task].values()), report.of(task)
        )
        for task in evaluation.payload["tasks"]
        if task in report.items
    }


def _show(report: "Report", scores: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    touched = Counter(each.task for each in report.touched)
    table = Table(box=SIMPLE)
    for heading in ("task", "items", "touched", "share", "too short", "score", "without touched"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task, items in report.items.items():
        figures = scores.get(task)
        table.add_row(
            task,
            str(items),
            str(touched[task]),
            f"{touched[task] / items:.1%}",
            str(report.too_short.get(task, 0)),
            "-" if figures is None else f"{figures['all']:.3f}",
            "-" if figures is None or figures["clean"] is None else f"{figures['clean']:.3f}",
        )
    console = Console()
    console.print(
        f"{report.documents:,} documents, {report.characters:,} characters; an item counts as touched where one "
        f"document holds {report.share:.0%} of its 13-grams"
    )
    console.print(table)
    for each in report.touched[:20]:
        console.print(
            f"{each.task} item {each.index}: {each.share:.0%} in document {each.document}: {each.span[:80]}",
            highlight=False, markup=False,
        )  # fmt: skip
    if len(report.touched) > 20:
        console.print(f"... and {len(report.touched) - 20} more: --json or --output has all")
