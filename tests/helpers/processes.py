"""Processes of other programs: those of a run, those that a program started, and waiting for them."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


def wait(ready: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait until ``ready`` says so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def to_each_below(pid: int, act: Callable[[psutil.Process], None], *names: str) -> None:
    """Act on all that a process started, or on those alone whose name begins so; some end meanwhile."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith(names or ""):
                act(process)


def processes(run_dir: Path) -> dict[int, int]:
    """Supervisors and ranks of a run's jobs, each with its parent; srun names them too, and is another program."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, stat = (process / "cmdline").read_bytes(), (process / "stat").read_text()
        except OSError:
            continue
        if (
            words.startswith(sys.executable.encode())
            and b"train_node" in words
            and str(run_dir).encode() in words
        ):
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(process.name)] = int(parent)
    return found


def ranks(run_dir: Path) -> list[int]:
    """Those of them that train."""
    found = processes(run_dir)
    return sorted(pid for pid, parent in found.items() if parent in found)
