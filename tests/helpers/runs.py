"""Whole training runs on forked ranks, with faults put in where a test wants them."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from helpers.ranks import run_ranks

from llmjp_train.checkpoint.listing import committed
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.launch.job import JobFolder
from llmjp_train.runlog.record import RunRecord


def rank_main(
    rank: int,
    world: int,
    config: Any,
    stop_after: int = 0,
    number: int = signal.SIGTERM,
    inject: Callable[[int, Any], None] | None = None,
) -> Any:
    """Train as one rank: its exit code, or the text of a user error.

    A signal comes to rank ``world - 1`` once ``stop_after`` steps are logged; ``inject`` is called with
    the rank and the configuration before anything else.
    """
    from llmjp_train.commands.train_rank import train_rank
    from llmjp_train.errors import UserError
    from llmjp_train.train.stops import Stops

    stops = Stops().install()
    if inject is not None:
        inject(rank, config)
    if stop_after and rank == world - 1:
        watcher = threading.Thread(
            target=_signal_at, args=(Path(config.run_dir), stop_after, number), daemon=True
        )
        watcher.start()
    try:
        return train_rank(config, stops)
    except UserError as error:
        return str(error)


def _signal_at(run_dir: Path, step: int, number: int) -> None:
    while (last_row(run_dir) or {"step": 0})["step"] < step:
        time.sleep(0.001)
    os.kill(os.getpid(), number)


def last_row(run_dir: Path) -> dict[str, Any] | None:
    """Newest row of metrics.jsonl, read from its end: records of chaos are long, and looked at often."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return None


def composed(overrides: list[str]) -> Any:
    """Once in the parent, as `llmjp train` does, and not by each rank."""
    from llmjp_train.config.compose import compose

    return compose("train", overrides)


def train(
    world: int,
    overrides: list[str],
    stop_after: int = 0,
    number: int = signal.SIGTERM,
    inject: Callable[[int, Any], None] | None = None,
    timeout: float = 240,
) -> list[Any]:
    """Exit code, or error text, of each rank; those beyond what the layout says share the batch."""
    config = composed(overrides)
    config.parallel.data = world // (config.parallel.tensor * config.parallel.pipeline)
    return run_ranks(rank_main, world, config, stop_after, number, inject, timeout=timeout)


def state(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    info = next(info for info in committed(run_dir) if info.step == step)
    reader = CheckpointReader(info.path)
    return {name: reader.read(name) for name in reader.names()}


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every step that counts."""
    return [(r["step"], r["loss"], r["grad_norm"]) for r in RunRecord(run_dir).read_metrics() if "loss" in r]


def events(run_dir: Path, kind: str = "") -> list[dict[str, Any]]:
    """Events, of one kind or all."""
    return [event for event in RunRecord(run_dir).read_events() if not kind or event["kind"] == kind]


def seconds_between(folder: JobFolder) -> str:
    """What docs/faults.md tells of an attempt that failed: how long it took, and until the next met."""
    rows = folder.history()
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    return ", ".join(
        f"{a['kind']} to {b['kind']} {(later - earlier).total_seconds():.1f} s"
        for (a, earlier), (b, later) in pairwise(zip(rows, times, strict=True))
    )
