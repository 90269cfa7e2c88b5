"""Which checkpoint a run goes on from: one that the leader sees and every rank can read."""

import socket
import time
from pathlib import Path
from typing import Any

from llmjp_train.checkpoint.listing import COMMITTED, CheckpointInfo, choose, committed, damage, newest_valid
from llmjp_train.config.phases import phases, steps_for
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError
from llmjp_train.parallel.layout import Layout
from llmjp_train.runlog.reading import config_values
from llmjp_train.runlog.record import RunRecord

SEEN_SECONDS = 90
"""How long a node may take to see a checkpoint that another sees; NFS keeps a listing for up to 60 s."""


def agreed_start(config: TrainConfig, layout: Layout, run_dir: Path) -> tuple[CheckpointInfo | None, bool]:
    """The checkpoint to go on from and whether it is another run's, the same on every rank. Collective.

    The leader chooses: of a shared disk, another node may still see an older listing.

    Raises:
        UserError: on every rank; what was asked for is not there, or damaged, or not seen by some rank.
    """
    found: tuple[CheckpointInfo | None, bool] = None, False
    told = ""
    if layout.leader:
        try:
            found = _chosen(config, run_dir)
        except UserError as error:
            told = str(error)
    (checkpoint, fork), told = layout.from_leader((found, told))
    if told:
        raise UserError(told)
    if checkpoint is not None and not fork and config.resume == "latest-valid":
        checkpoint = _newest_valid(layout, run_dir)
    if checkpoint is not None:
        _wait_for(checkpoint, layout)
    return checkpoint, fork


def _newest_valid(layout: Layout, run_dir: Path) -> CheckpointInfo:
    """Every byte is read, by all ranks together. Collective."""

    def agreed(info: CheckpointInfo) -> str:
        return next(filter(None, layout.gather(damage(info, layout.world.rank, layout.size))), "")

    return newest_valid(layout.from_leader(committed(run_dir) if layout.leader else []), agreed)


def _wait_for(checkpoint: CheckpointInfo, layout: Layout) -> None:
    end = time.monotonic() + SEEN_SECONDS
    while not (seen := (checkpoint.path / COMMITTED).is_file()) and time.monotonic() < end:
        time.sleep(1)
    blind = [node for node in layout.gather("" if seen else socket.gethostname()) if node]
    if blind:
        raise UserError(
            f"{checkpoint.path} is not there for {len(blind)} of {layout.size} ranks after {SEEN_SECONDS} s, the "
            f"first of them on {blind[0]}: the run directory must be on a file system that all nodes share"
        )


def _chosen(config: TrainConfig, run_dir: Path) -> tuple[CheckpointInfo | None, bool]:
    """What the configuration asks for; of ``latest-valid`` the newest, still to be read."""
    if found := committed(run_dir):
        _check_fork(config, RunRecord(run_dir))
        if config.resume == "latest-valid":
            return found[-1], False
        which: int | str = int(config.resume) if config.resume.isdigit() else config.resume
        return choose(run_dir, which, setting="resume="), False
    if not config.fork.run:
        return None, False
    source, total = (
        Path(config.fork.run),
        steps_for(phases(config), config.schedule.length, config.schedule.unit),
    )
    if not committed(source):
        raise UserError(f"fork.run={source} holds no complete checkpoint")
    which = "latest" if config.fork.step is None else config.fork.step
    stem = choose(source, which, setting="fork.step=")
    if stem.step >= total:
        raise UserError(
            f"fork.run={source} stands at step {stem.step}, and the branch would end at step {total}: schedule.length "
            "counts from the start of the run that it branches from; raise it, or name an earlier fork.step"
        )
    return stem, True


def _check_fork(config: TrainConfig, record: RunRecord) -> None:
    """A run that has checkpoints goes on from them: a fork that it is not must not be asked for."""
    fork = config.fork
    stored: dict[str, Any] = config_values(record).get("fork") or {}
    if not fork.run or (stored.get("run"), stored.get("step")) == (fork.run, fork.step):
        return  # nothing new is asked
    forks = [event["origin"] for event in record.read_events() if event["kind"] == "fork"]
    asked = [
        origin
        for origin in forks
        if Path(origin["fork_of"]).resolve() == Path(fork.run).resolve()
        and fork.step in (None, origin["step"])
    ]
    if not asked:
        was = f"a branch of {forks[-1]['fork_of']} at step {forks[-1]['step']}" if forks else "no branch"
        step = "" if fork.step is None else f" fork.step={fork.step}"
        raise UserError(
            f"fork.run={fork.run}{step}: run_dir={record.path} has checkpoints already and is {was}: name another "
            f"run_dir, or go on with 'llmjp train {record.path}'"
        )
