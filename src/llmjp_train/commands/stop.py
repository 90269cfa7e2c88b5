"""`llmjp stop`: save and end a run; what of it waits in the queue is taken out."""

import argparse
import json

from llmjp_train import exit_codes

SUMMARY = "save and end a run, and the rest of its chain"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask."""
    from llmjp_train.launch.control import ask_stop
    from llmjp_train.launch.job import find_run

    done = ask_stop(find_run(args.run))
    print(json.dumps({"done": done}, ensure_ascii=False) if args.json else "\n".join(done))
    return exit_codes.OK
