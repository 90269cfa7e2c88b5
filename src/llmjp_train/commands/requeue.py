"""`llmjp requeue`: save and end the run's job, and put it into the queue again, to go on from there.

Where there is nothing to end it is `llmjp resume`.
"""

import argparse
from dataclasses import replace

from llmjp_train import exit_codes
from llmjp_train.commands.submit import configuration

__all__ = ["SUMMARY", "USES_CONFIG", "add_arguments", "configuration", "run"]

SUMMARY = "save, end, and queue a run again"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")


def run(args: argparse.Namespace) -> int:
    """The new job first, so that it waits for the old one; then the stop."""
    from llmjp_train.commands.submit import submit
    from llmjp_train.launch.job import find_run
    from llmjp_train.launch.submit import Asked, open_jobs

    run_dir = find_run(args.run)
    waiting = open_jobs(run_dir)
    asked = Asked(after=waiting[-1][0].scheduler_id if waiting else "", after_stop=True)
    code = submit(configuration(args), replace(asked))
    if any(state == "running" for _, state in waiting):
        (run_dir / "stop").touch()
        print("asked the running job to save and end")
    return code if code else exit_codes.OK
