"""Which checkpoints a run directory holds, and which of them to go on from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError
from llmjp_train.runlog.lease import committed_folders, read_epochs

COMMITTED = "COMMITTED"
CHUNK_BYTES = 64 * 2**20
"""Largest chunk: what a rank reads at once, also when it needs a part."""
FILE_BYTES = 4 * 2**30
"""A file is closed when it has grown to this size; the last chunk may reach beyond it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed checkpoint."""

    step: int
    path: Path
    epoch: int
    """Start of the run that committed it."""
    bytes: int
    time: str
    """UTC, ISO 8601."""
    layout: dict[str, Any]
    """Layout that saved it; any other can load it."""
    sha256: str
    """Of its COMMITTED file, and through it of all: that names the index, which names every chunk's checksum."""


def folder_name(step: int, epoch: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}.epoch-{epoch:04d}"


def parse_name(name: str) -> tuple[int, int]:
    """Step and epoch of a checkpoint's folder."""
    step, epoch = (int(part.rpartition("-")[2]) for part in name.split("."))
    return step, epoch


def read_info(path: Path) -> CheckpointInfo:
    """What a committed checkpoint says of itself; what its folder's name says where COMMITTED is damaged.

    A damaged one still is the newest, so that who asks for that is told.
    """
    step, epoch = parse_name(path.name)
    try:
        content = (path / COMMITTED).read_bytes()
        value = json.loads(content)
        size, time, layout = sum(value["files"].values()), str(value["time"]), dict(value["layout"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return CheckpointInfo(step, path, epoch, 0, "", {}, "")
    return CheckpointInfo(step, path, epoch, size, time, layout, hashlib.sha256(content).hexdigest())


def committed(run_dir: Path) -> list[CheckpointInfo]:
    """Checkpoints that count, by step; of one step, the one of the newest epoch."""
    names = committed_folders(run_dir, read_epochs(run_dir))
    infos = [read_info(run_dir / "checkpoints" / name) for name in names]
    newest = {info.step: info for info in sorted(infos, key=lambda info: info.epoch)}
    return [newest[step] for step in sorted(newest)]


def latest(run_dir: Path) -> CheckpointInfo:
    """The newest checkpoint.

    Raises:
        UserError: there is none.
    """
    found = committed(run_dir)
    if not found:
        raise UserError(f"{run_dir} holds no complete checkpoint: train until the first is saved")
    return found[-1]


def first_step(config: TrainConfig) -> int:
    """Steps taken before the start that the configuration asks for: those of the checkpoint that it goes on from.

    By the folders' names alone, since each rank asks. Of ``resume=latest-valid`` the earliest possible.
    """
    steps = _steps(Path(config.run_dir))
    if steps and config.resume.isdigit():
        return int(config.resume)
    if steps:
        return steps[0 if config.resume == "latest-valid" else -1]
    if config.fork.run:
        return (
            config.fork.step
            if config.fork.step is not None
            else max(_steps(Path(config.fork.run)), default=0)
        )
    return 0


def _steps(run_dir: Path) -> list[int]:
    return sorted(parse_name(name)[0] for name in committed_folders(run_dir, read_epochs(run_dir)))


def choose(run_dir: Path, which: int | str = "latest", *, setting: str = "--step ") -> CheckpointInfo:
    """The checkpoint to read: ``latest``, ``latest-valid`` or a step.

    ``latest-valid`` reads every byte of what it considers; the others check sizes and JSON files here,
    and each chunk when it is loaded.

    Args:
        setting: what the user chooses a checkpoint with, for the advice.

    Raises:
        UserError: there is none; the chosen one is damaged (named, with the one before); no such step.
    """
    from llmjp_train.checkpoint.store import check_commit

    newest = latest(run_dir)
    found = committed(run_dir)
    if which == "latest-valid":
        return newest_valid(found, damage)
    if which == "latest":
        chosen = newest
    elif isinstance(which, int) and which in (steps := {info.step: info for info in found}):
        chosen = steps[which]
    elif isinstance(which, int):
        raise UserError(
            f"{run_dir} holds no checkpoint of step {which}, only {', '.join(str(i.step) for i in found)}"
        )
    else:
        raise UserError(f"'{which}' names no checkpoint: say latest, latest-valid or a step")
    try:
        check_commit(chosen.path)
    except UserError as error:
        raise UserError(f"{error}. {offer(chosen, setting)}") from None
    return chosen


def damage(info: CheckpointInfo, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, or with a share of its chunks; empty: nothing."""
    from llmjp_train.checkpoint.store import CheckpointReader

    try:
        CheckpointReader(info.path).verify(part, parts)
    except UserError as error:
        return str(error)
    return ""


def newest_valid(found: Sequence[CheckpointInfo], damage: Callable[[CheckpointInfo], str]) -> CheckpointInfo:
    """The newest with which nothing is wrong.

    Raises:
        UserError: there is none; what is wrong with each.
    """
    damages = []
    for info in reversed(found):
        told = damage(info)
        if not told:
            return info
        damages.append(f"{info.path.name}: {told}")
    raise UserError("no checkpoint is undamaged:\n  " + "\n  ".join(damages))


def offer(damaged: CheckpointInfo, setting: str) -> str:
    """What to do instead of going on from a damaged checkpoint."""
    before = [info.step for info in committed(damaged.path.parent.parent) if info.step < damaged.step]
    if not before:
        return "There is none before it."
    takes_words = setting in ("--step ", "resume=")  # the others take a step alone
    valid = f" or {setting}latest-valid" if takes_words else ""
    return f"The one before is of step {before[-1]}: take it with {setting}{before[-1]}{valid}."


def set_aside(run_dir: Path, step: int) -> list[str]:
    """Take checkpoints after ``step`` out of the count, for a run that goes on from there; their new names.

    They belong to a line that is given up: were they left, the next start would go on from them. Nothing
    is deleted. For the holder of the lease.
    """
    names = []
    for info in committed(run_dir):
        if info.step > step:
            name = f"left-{info.path.name}"
            while info.path.with_name(name).exists():  # one start may go back over a step more than once
                name += "+"
            names.append(info.path.rename(info.path.with_name(name)).name)
    return names
