"""`llmjp incidents`: what went wrong in a run: when, where, the evidence, what was done, and what it cost."""

import argparse
import json
from datetime import datetime
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
    from llmjp_train.runlog.record import RunRecord

    found = incidents(RunRecord(find_run(args.run)).read_events())
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return exit_codes.OK
    _show(found)
    return exit_codes.OK


def incidents(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Incidents with what followed: ``down_seconds`` until the run went on, none where it did not."""
    from llmjp_train.runlog.reading import STARTS, describe, is_incident

    found = []
    for place, event in enumerate(events):
        if not is_incident(event) or _told_by_supervisor(event, events[place + 1 :]):
            continue
        after = next((later["time"] for later in events[place:] if later["kind"] in STARTS), None)
        ended = event["kind"] == "incident" or event.get("outcome") in ("failed", "unhealthy")
        down = None
        if ended and after is not None:
            down = (datetime.fromisoformat(after) - datetime.fromisoformat(event["time"])).total_seconds()
        kind = event.get("what") or event["kind"]
        found.append(
            {
                "time": event["time"],
                "step": event.get("step"),
                "kind": kind,
                "rank": event.get("rank"),
                "node": event.get("node"),
                "evidence": event.get("evidence") or describe(event),
                "action": event.get("action", ""),
                "lost_steps": event.get("lost_steps"),
                "lost_seconds": event.get("lost_seconds"),
                "down_seconds": down,
            }
        )
    return found


def _told_by_supervisor(event: dict[str, Any], later: list[dict[str, Any]]) -> bool:
    """A rank's own failed end, which the supervisor's incident names with its cause: another rank died first, say."""
    from llmjp_train.runlog.reading import STARTS

    if event["kind"] != "stop":
        return False
    until = next((place for place, one in enumerate(later) if one["kind"] in STARTS), len(later))
    return any(one["kind"] == "incident" for one in later[:until])


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
