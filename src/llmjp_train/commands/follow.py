"""`llmjp follow RUN do=[evaluate,export,publish]`: work on each new complete checkpoint, beside the training or later.

A process or job of its own. Each checkpoint is evaluated; each that retention keeps for good, and the last one, is made
a release and published (to=TARGET). Results go to RUN.followed (or --output DIR); nothing is written into the run. Ends
when the run has ended and everything is done or given up; started again, it goes on.
"""

import argparse
import os
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
    from llmjp_train.evaluate.follow import Action
    from llmjp_train.runlog.record import RunRecord

SUMMARY = "evaluate, release and publish each new checkpoint of a run, beside the training"
USES_CONFIG = True
_OVER = ("ended", "stopped", "failed")
ACTIONS = ("evaluate", "export", "publish")
GRACE_SECONDS = 20
"""For the command in hand to end, when the follower is asked to."""


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
    _check(config)
    from llmjp_train.evaluate.follow import Follower
    from llmjp_train.runlog.reading import open_run, summary

    record = open_run(args.run)
    if "evaluate" in config.do:
        from llmjp_train.evaluate.suites import choice

        # A wrong task is told at once, not after the first checkpoint.
        choice(config.suite, config.tasks, num_fewshot=config.num_fewshot, limit=config.limit,
               include=config.include, licences=config.licences)  # fmt: skip
    out = args.output or args.run.with_name(args.run.name + ".followed")
    # An end from outside ends the work in hand too; its journal is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    actions = _actions(record, out, config)
    follower = Follower(args.run, out, actions, config.attempts, _say, oldest_first="publish" in config.do)
    while True:
        # Looked at before the checkpoints: one that is saved last is not missed.
        over = args.once or summary(record).state in _OVER
        if follower.turn():
            continue
        if over:
            break
        time.sleep(config.seconds)
    if follower.given_up:
        _say(f"given up: {', '.join(follower.given_up)}; {out / 'follow.json'} says why")
        return exit_codes.FAILED
    return exit_codes.OK


def _check(config: "FollowConfig") -> None:
    order = [action for action in ACTIONS if action in config.do]
    if not config.do or order != config.do:
        raise UserError(f"do={config.do}: give some of [{', '.join(ACTIONS)}], in this order")
    if "publish" in config.do and "export" not in config.do:
        raise UserError("do: publish sends what export makes: give do=[evaluate,export,publish]")
    if ("publish" in config.do) != bool(config.to):
        raise UserError(f"to={config.to}: name a target of llmjp publish, together with publish in do")
    if config.attempts < 1 or config.seconds <= 0:
        raise UserError(f"attempts={config.attempts}, seconds={config.seconds:g}: both must be positive")


def _say(text: str) -> None:
    print(text, flush=True)


def _actions(record: "RunRecord", out: Path, config: "FollowConfig") -> "list[Action]":
    """Each in a process of its own: what it takes down is not the follower."""
    from llmjp_train.checkpoint.listing import committed
    from llmjp_train.checkpoint.retention import kept_for_good
    from llmjp_train.config.compose import load_config
    from llmjp_train.evaluate.follow import Action
    from llmjp_train.runlog.reading import summary

    retention = load_config(record.path / "config.yaml").checkpoint

    def public(info: "CheckpointInfo") -> bool:
        if kept_for_good(info.step, retention):
            return True
        return summary(record).state == "ended" and info.path == committed(record.path)[-1].path

    def release(info: "CheckpointInfo") -> Path:
        return out / "releases" / f"step-{info.step:08d}"

    def evaluate(info: "CheckpointInfo") -> str:
        words = [str(record.path), "--step", str(info.step), "--output", str(out), *_evaluation(config)]
        return _llmjp(out, info, "evaluate", words)

    def export(info: "CheckpointInfo") -> str:
        words = [str(record.path), "--step", str(info.step), "--out", str(release(info)), "--live", "--force"]
        words += ["--evaluations", str(out), "--language", ",".join(config.languages)]
        words += ["--licence", config.licence] if config.licence else []
        return _llmjp(out, info, "release", words)

    def publish(info: "CheckpointInfo") -> str:
        return _llmjp(out, info, "publish", [str(release(info)), "--to", config.to])

    known = {
        "evaluate": Action("evaluate", evaluate),
        "export": Action("export", export, public),
        "publish": Action("publish", publish, public, needs="export"),
    }
    return [known[name] for name in config.do]


def _evaluation(config: "FollowConfig") -> list[str]:
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
        "parallel.tensor": config.parallel.tensor,
        "parallel.pipeline": config.parallel.pipeline,
        "parallel.data": config.parallel.data,
    }
    return [f"{key}={'null' if value is None else value}" for key, value in settings.items()]


def _llmjp(out: Path, info: "CheckpointInfo", command: str, words: list[str]) -> str:
    """Run a command with its output in the checkpoint's log; empty, or what went wrong."""
    from llmjp_train.launch.local import PARENT

    log = out / f"step-{info.step:08d}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmjp_train.cli", command, *words],
            stdout=file, stderr=file, env={**os.environ, PARENT: str(os.getpid())},
        )  # fmt: skip
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends the processes that it started
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1] if lines else 'no output'}"
