"""Which checkpoints are kept."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from llmjp_train.checkpoint.listing import COMMITTED, committed
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


def prune(run_dir: Path, config: CheckpointConfig, epoch: int, *, protect: Iterable[int] = ()) -> list[str]:
    """Remove what retention does not keep, and what killed saves of earlier epochs left; the removed names.

    A checkpoint first loses its COMMITTED file, so that a kill in between leaves nothing that counts.
    """
    infos = committed(run_dir)
    stay = kept((info.step for info in infos), config) | set(protect)
    removed = []
    for info in infos:
        if info.step not in stay:
            (info.path / COMMITTED).unlink()
            shutil.rmtree(info.path)
            removed.append(info.path.name)
    counting = {info.path.name for info in infos}
    for folder in (run_dir / "checkpoints").glob("step-*.epoch-*"):
        older = int(folder.name.rpartition("-")[2]) < epoch
        if older and folder.name not in counting and not (folder / COMMITTED).exists():
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed
