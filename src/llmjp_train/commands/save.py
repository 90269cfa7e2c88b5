"""`llmjp save`: ask a running run for a checkpoint; it goes on."""

import argparse
import json

from llmjp_train import exit_codes

SUMMARY = "ask a running run for a checkpoint"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask."""
    from llmjp_train.launch.control import ask_save
    from llmjp_train.launch.job import find_run

    ask_save(find_run(args.run))
    done = "asked for a checkpoint at the next step"
    print(json.dumps({"done": [done]}) if args.json else done)
    return exit_codes.OK
