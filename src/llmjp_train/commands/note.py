"""`llmjp note`: add what a person knows to a run's record; reports and `llmjp run show` tell it.

llmjp note mine "the cooling failed at 14:20, node a012 is out"
"""

import argparse
import json

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

SUMMARY = "add what a person knows to a run's record"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Append to notes.jsonl, which needs no lease."""
    from llmjp_train.launch.job import find_run
    from llmjp_train.runlog.record import RunRecord

    text = args.text.strip()
    if not text:
        raise UserError('the note is empty: llmjp note RUN "what happened"')
    record = RunRecord(find_run(args.run))
    rows = record.read_metrics()
    step = int(rows[-1]["step"]) if rows else 0
    record.beside("notes.jsonl", "note", step=step, text=text)
    print(
        json.dumps({"step": step, "text": text}, ensure_ascii=False) if args.json else f"noted at step {step}"
    )
    return exit_codes.OK
