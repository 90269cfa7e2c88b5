"""`llmjp train -m`: a run for each combination of values, one after another on this machine."""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.commands import train
from llmjp_train.commands.flags import refuse
from llmjp_train.config.sweep import SweepRun, at_once, sweep_runs
from llmjp_train.errors import UserError
from llmjp_train.parallel.world import world

if TYPE_CHECKING:
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.train.stops import Stops


def sweep(args: argparse.Namespace, stops: "Stops") -> int:
    """Check every run, then start them in turn, each in a directory of its own; the first that fails ends it.

    Raises:
        ConfigError: what is wrong with any of the runs; nothing was started.
    """
    if args.run is not None:
        refuse(f"with RUN ({args.run}), which is one run", {"-m": True})
    if launcher := world().launcher:
        raise UserError(f"-m starts its runs itself: not under {launcher}")
    runs = sweep_runs(args.overrides)
    parent = _checked(args, runs)
    flags = [flag for flag in ("--dry-run", "--ranks", "--takeover", "--force") if _given(args, flag)]
    if args.config_dir is not None:
        flags += ["--config-dir", str(args.config_dir)]
    for number, one in enumerate(runs, 1):
        print(f"== run {number} of {len(runs)}: {' '.join(one.differs)}", flush=True)
        code = _start([*flags, *one.overrides, f"run_dir={parent / one.folder}"], stops)
        if code:
            print(f"the sweep ends with run {number} of {len(runs)}; the same command goes on with it")
            return code
    if not args.dry_run:
        print(f"{len(runs)} runs: llmjp run list {parent}")
    return exit_codes.OK


def _given(args: argparse.Namespace, flag: str) -> bool:
    return bool(getattr(args, flag.removeprefix("--").replace("-", "_")))


def _checked(args: argparse.Namespace, runs: Sequence[SweepRun]) -> Path:
    """The directory that the runs' own lie in."""

    def checked(one: SweepRun) -> "TrainConfig":
        return train.checked(argparse.Namespace(**{**vars(args), "overrides": list(one.overrides)}))[0]

    return Path(at_once(runs, checked)[-1].run_dir)


def _start(words: Sequence[str], stops: "Stops") -> int:
    """One run in a process of its own; a stop is passed on, and its save waited for."""
    if stops.stop:
        return exit_codes.STOPPED
    command = [sys.executable, "-m", "llmjp_train.cli", "train", *words]
    process = subprocess.Popen(command, start_new_session=True)
    told = False
    try:
        while process.poll() is None:
            if stops.stop and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(0.05)
    except KeyboardInterrupt:  # asked twice
        process.kill()
        raise
    return process.returncode
