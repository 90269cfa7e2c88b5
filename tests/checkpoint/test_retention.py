"""Which checkpoints stay."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

from llmjp_train.checkpoint.listing import committed
from llmjp_train.checkpoint.retention import kept, prune
from llmjp_train.checkpoint.store import save
from llmjp_train.config.training import CheckpointConfig
from llmjp_train.parallel.fragment import Fragment


def make(run_dir: Path, step: int, epoch: int = 1) -> None:
    save(run_dir, step, [Fragment("master.w", (2,), (2,), (0,), 0, torch.zeros(2))], {}, epoch=epoch)


def test_newest_multiples_listed_and_log_spaced_stay() -> None:
    steps = range(1, 101)
    assert kept(steps, CheckpointConfig(keep_last=2)) == {99, 100}
    assert kept(steps, CheckpointConfig(keep_last=1, keep_every=30)) == {30, 60, 90, 100}
    assert kept(steps, CheckpointConfig(keep_last=1, keep_steps=[7])) == {7, 100}
    assert kept(steps, CheckpointConfig(keep_last=1, log_spaced=True)) == {1, 2, 5, 10, 20, 50, 100}
    assert kept([], CheckpointConfig()) == set()
    assert kept([3], CheckpointConfig(keep_last=0)) == {3}, "the only checkpoint is never removed"


def test_prune_removes_the_rest_but_what_is_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    removed = prune(tmp_path, CheckpointConfig(keep_last=1), 1, protect=[2]).removed
    assert [info.step for info in committed(tmp_path)] == [2, 4]
    assert removed == ["step-00000001.epoch-0001", "step-00000003.epoch-0001"]
    assert prune(tmp_path, CheckpointConfig(keep_last=1), 1, protect=[2]) == ([], [])


def test_prune_clears_what_a_killed_save_of_an_earlier_start_left(tmp_path: Path) -> None:
    make(tmp_path, 1)
    torn = tmp_path / "checkpoints" / "step-00000002.epoch-0001"
    torn.mkdir()
    (torn / "rank-00000.bin").write_bytes(b"x")
    assert prune(tmp_path, CheckpointConfig(), 1) == ([], []), (
        "a save of this very start may still be going on"
    )
    assert prune(tmp_path, CheckpointConfig(), 2).removed == [torn.name]
    assert not torn.exists()
    assert [info.step for info in committed(tmp_path)] == [1]


def test_what_cannot_be_removed_counts_no_longer_and_goes_at_a_later_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        make(tmp_path, step)
    remove = shutil.rmtree

    def held(folder: Path) -> None:
        if "step-00000001" in folder.name:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", held)
    done = prune(tmp_path, CheckpointConfig(keep_last=1), 1)
    assert done.removed == ["step-00000002.epoch-0001"], "one that is held does not keep the others"
    assert done.left == ["step-00000001.epoch-0001 ([Errno 39] Directory not empty)"]
    assert [info.step for info in committed(tmp_path)] == [3]
    monkeypatch.undo()
    assert prune(tmp_path, CheckpointConfig(keep_last=1), 1) == (["step-00000001.epoch-0001"], [])
    assert not (tmp_path / "checkpoints" / "step-00000001.epoch-0001").exists()
