"""`llmjp resume`: submit a job that goes on with a run; overrides of values as in `llmjp train RUN`.

llmjp resume mine
llmjp resume mine --chain 3 cluster.time_limit=600
"""

import argparse

from llmjp_train.commands import submit
from llmjp_train.commands.submit import configuration

__all__ = ["SUMMARY", "USES_CONFIG", "add_arguments", "configuration", "run"]

SUMMARY = "submit a job that goes on with a run"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of submit, with a run that must be named."""
    submit.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Submit."""
    from llmjp_train.errors import UserError

    if args.run is None:
        raise UserError("resume needs a run: llmjp resume RUN")
    return submit.run(args)
