"""Which checkpoints are kept."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llmjp_train.checkpoint.listing import COMMITTED, committed, parse_name
from llmjp_train.config.training import CheckpointConfig

LOG_SPACED = frozenset(digit * 10**power for power in range(7) for digit in (1, 2, 5))
"""Steps 1, 2, 5, 10, 20, 50, ...: early training changes on a logarithmic scale."""


def kept(steps: Iterable[int], config: CheckpointConfig) -> set[int]:
    """Steps among ``steps`` that retention keeps."""
    ordered = sorted(steps)
    newest = set(ordered[-max(1, config.keep_last) :])
    return {step for step in ordered if step in newest or kept_for_good(step, config)}


def kept_for_good(step: int, config: CheckpointConfig) -> bool:
    """Whether retention never removes a checkpoint of this step."""
    return (
        bool(config.keep_every and step % config.keep_every == 0)
        or step in config.keep_steps
        or (config.log_spaced and step in LOG_SPACED)
    )


class Pruned(NamedTuple):
    """What a prune did, by names of folders."""

    removed: list[str]
    left: list[str]
    """Those that could not be removed, each with the reason; a later prune tries again."""


def prune(run_dir: Path, config: CheckpointConfig, epoch: int, *, protect: Iterable[int] = ()) -> Pruned:
    """Remove what retention does not keep, and what killed saves and prunes that failed left.

    A checkpoint first loses its COMMITTED file, so that a kill in between leaves nothing that counts.
    """
    infos = committed(run_dir)
    stay = kept((info.step for info in infos), config) | set(protect)
    going = [info.path for info in infos if info.step not in stay]
    newest = infos[-1].step if infos else 0
    counting = {info.path.name for info in infos}
    for folder in sorted((run_dir / "checkpoints").glob("step-*.epoch-*")):
        step, of = parse_name(folder.name)
        over = of < epoch or step < newest  # a save of this start that still goes on is of a later step
        if over and folder.name not in counting and not (folder / COMMITTED).exists():
            going.append(folder)
    done = Pruned([], [])
    for folder in going:
        try:
            (folder / COMMITTED).unlink(missing_ok=True)
            shutil.rmtree(folder)
            done.removed.append(folder.name)
        except OSError as error:  # NFS keeps files that somebody reads
            done.left.append(f"{folder.name} ({error})")
    return done
