"""`llmjp status`: how runs and their jobs are, from the scheduler and the run directories.

llmjp status                  every run under runs/
llmjp status mine --watch
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes

if TYPE_CHECKING:
    from llmjp_train.launch.status import Status

SUMMARY = "state, step, loss, speed, time left of runs and jobs"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="directory or name; default: all under runs/")
    parser.add_argument("--watch", action="store_true", help="show it again every few seconds")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="with --watch; default: 5"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Show once, or until interrupted."""
    while True:
        found = [_status(path) for path in _paths(args.runs)]
        if args.json:
            print(json.dumps([one.to_dict() for one in found], ensure_ascii=False, indent=1), flush=True)
        else:
            _show(found, clear=args.watch)
        if not args.watch:
            return exit_codes.OK
        time.sleep(args.every)


def _paths(said: list[str]) -> list[Path]:
    from llmjp_train.launch.job import find_run

    if said:
        return [find_run(one) for one in said]
    root = Path("runs")
    found = {path.parent for pattern in ("*/config.yaml", "*/jobs") for path in root.glob(pattern)}
    return sorted(found)


def _status(path: Path) -> "Status":
    from llmjp_train.launch.status import status

    return status(path)


def _show(found: "list[Status]", *, clear: bool) -> None:
    from rich.text import Text

    from llmjp_train.commands.run import _console, _table

    console = _console()
    if clear and console.is_terminal:
        console.clear()
    if not found:
        console.print("no run under runs: 'llmjp submit experiment=… cluster=…' makes one")
        return
    table = _table(
        None, ("run", "state", "why"), ("step", "loss", "tokens/s", "MFU", "left", "job left", "next save")
    )
    for one in found:
        table.add_row(Text(one.run), Text(one.state), Text(one.why), *_cells(one))
    console.print(table)
    for one in found:
        if one.last_incident:
            console.print(Text(f"last incident of {one.run}: {one.last_incident}"))
        for host, why in one.left_out.items():
            console.print(Text(f"left out of {one.run}: {host} ({why})"))
        if one.left_out:
            console.print(
                Text(f"a node that is mended comes back with 'llmjp resume {one.run} --include NODE'")
            )


def _cells(one: "Status") -> list[str]:
    def said(value: Any, form: str) -> str:
        return "" if value is None else format(value, form)

    step = f"{one.step:,}" + ("" if one.total_steps is None else f" of {one.total_steps:,}")
    mfu = "" if one.mfu is None else f"{100 * one.mfu:.1f} %"
    return [
        step,
        said(one.loss, ".4f"),
        said(one.tokens_per_s, ",.0f"),
        mfu,
        duration(one.seconds_left),
        duration(one.job_seconds_left),
        said(one.next_save_step, ","),
    ]


def duration(seconds: float | None) -> str:
    """Days, hours and minutes, the two that say most."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
