"""`llmjp evaluate` in this process."""

import argparse

from llmjp_train import cli
from llmjp_train.commands import evaluate as command


def llmjp(*words: str) -> int:
    """The command as cli.py calls it."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    rest = [word for word in words if cli._is_override(word)]
    args = parser.parse_args([word for word in words if word not in rest])
    args.overrides, args.config_dir, args.cfg = rest, None, False
    return command.run(args)
