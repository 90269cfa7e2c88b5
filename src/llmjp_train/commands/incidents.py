"""`llmjp incidents`: what went wrong in a run: when, where, the evidence, what was done, and what it cost."""

import argparse
import json
from typing import Any

from llmjp_train import exit_codes

SUMMARY = "what went wrong in a run, and what it cost"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print a table, or JSON."""
    from llmjp_train.launch.job import find_run
    from llmjp_train.runlog.incidents import incidents
    from llmjp_train.runlog.record import RunRecord

    record = RunRecord(find_run(args.run))
    found = incidents(record.read_events(), record.read_metrics(latest=False))
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return exit_codes.OK
    _show(found)
    return exit_codes.OK


def _show(found: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from llmjp_train.commands.run import _console, _table

    console = _console()
    if not found:
        console.print("no incident")
        return
    table = _table(
        None,
        ("time (UTC)", "kind", "where", "evidence", "action"),
        ("step", "lost steps", "lost s", "down s"),
    )
    for one in found:
        where = ", ".join(f"{key} {one[key]}" for key in ("rank", "node") if one[key] is not None)
        figures = [
            "" if one[key] is None else f"{one[key]:,.4g}"
            for key in ("lost_steps", "lost_seconds", "down_seconds")
        ]
        table.add_row(
            one["time"][:19].replace("T", " "), one["kind"], where, Text(one["evidence"]), one["action"],
            f"{one['step']:,}" if one["step"] is not None else "", *figures,
        )  # fmt: skip
    console.print(table)
