"""`llmjp cancel`: end a run and everything of it in the queue.

The run is asked to save first and has its job's lead time for it; --now does not wait.
"""

import argparse
import json

from llmjp_train import exit_codes

SUMMARY = "end a run's jobs, saved if there is time"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument("--now", action="store_true", help="do not wait for a save")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Take out of the queue, ask, wait, end."""
    from llmjp_train.launch.control import cancel
    from llmjp_train.launch.job import find_run

    done: list[str] = []

    def say(line: str) -> None:
        done.append(line)
        if not args.json:
            print(line, flush=True)

    cancel(find_run(args.run), gently=not args.now, say=say)
    if args.json:
        print(json.dumps({"done": done}, ensure_ascii=False))
    return exit_codes.OK
