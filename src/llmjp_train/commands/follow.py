"""`llmjp follow RUN do=[evaluate]`: evaluate each new complete checkpoint, beside the training or afterwards.

A process or job of its own. Results go to RUN.followed (or --output DIR); nothing is written into the run. Ends
when the run has ended and every checkpoint is done or given up; started again, it goes on.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.checkpoint.listing import CheckpointInfo
    from llmjp_train.config.evaluation import FollowConfig

SUMMARY = "evaluate each new checkpoint of a run, beside the training"
USES_CONFIG = True
ACTIONS = ("evaluate",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where results go (RUN.followed otherwise)"
    )
    parser.add_argument("--once", action="store_true", help="take up what is there, and end")


def configuration(args: argparse.Namespace) -> "FollowConfig":
    """The composed configuration."""
    from llmjp_train.config.compose import compose

    config: FollowConfig = compose("follow", args.overrides, args.config_dir)
    return config


def run(args: argparse.Namespace) -> int:
    """Follow; see `add_arguments`."""
    config = configuration(args)
    unknown = [action for action in config.do if action not in ACTIONS]
    if unknown or not config.do:
        raise UserError(f"do={config.do}: give [{', '.join(ACTIONS)}]")
    if config.attempts < 1 or config.seconds <= 0:
        raise UserError(f"attempts={config.attempts}, seconds={config.seconds:g}: both must be positive")
    from llmjp_train.evaluate.follow import Follower
    from llmjp_train.evaluate.suites import choice
    from llmjp_train.runlog.reading import open_run, summary

    record = open_run(args.run)
    # A wrong task is told at once, not after the first checkpoint.
    choice(config.suite, config.tasks, num_fewshot=config.num_fewshot, limit=config.limit, include=config.include,
           licences=config.licences)  # fmt: skip
    out = args.output or args.run.with_name(args.run.name + ".followed")
    # An end from outside ends the work in hand too; its journal is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    follower = Follower(args.run, out, _evaluator(args.run, out, config), config.attempts, _say)
    while True:
        # Looked at before the checkpoints: one that is saved last is not missed.
        over = args.once or summary(record).state in ("ended", "stopped", "failed")
        if follower.turn():
            continue
        if over:
            break
        time.sleep(config.seconds)
    if follower.given_up:
        _say(f"given up: steps {', '.join(map(str, follower.given_up))}; {out / 'follow.json'} says why")
        return exit_codes.FAILED
    return exit_codes.OK


def _say(text: str) -> None:
    print(text, flush=True)


def _evaluator(run_dir: Path, out: Path, config: "FollowConfig") -> Any:
    """Evaluates a checkpoint in a process of its own: what it takes down is not the follower."""
    settings: dict[str, Any] = {
        "suite": config.suite,
        "tasks": f"[{','.join(config.tasks)}]",
        "num_fewshot": config.num_fewshot,
        "limit": config.limit,
        "licences": config.licences,
        "batch_tokens": config.batch_tokens,
        "include": f"[{','.join(config.include)}]",
        "device": config.device,
        "dtype": config.dtype,
    }
    words = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]

    def act(info: "CheckpointInfo") -> str:
        command = [
            sys.executable,
            "-m",
            "llmjp_train.cli",
            "evaluate",
            str(run_dir),
            "--step",
            str(info.step),
        ]
        log = out / f"step-{info.step:08d}.log"
        with log.open("ab") as file:
            done = subprocess.run([*command, "--output", str(out), *words], stdout=file, stderr=file)
        if done.returncode == 0:
            return ""
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {done.returncode}: {lines[-1] if lines else 'no output'}"

    return act
