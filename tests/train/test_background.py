"""Saves in the background hold the state of their step, are told when they fail, and end before the run does."""

import os
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import events, losses, state, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed, latest
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.train.background import Background

ASYNC = ("checkpoint.asynchronous=true", "checkpoint.every_steps=4", "evaluation.validation_every=null")
PLAIN = ("checkpoint.every_steps=4", "evaluation.validation_every=null")


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero"), [(1, 1), (2, 3)])
def test_they_hold_the_state_of_their_step(world: int, zero: int, overrides: Any, tmp_path: Path) -> None:
    more = f"parallel.zero={zero}"
    assert train(world, overrides(tmp_path / "plain", *PLAIN, more)) == [exit_codes.OK] * world
    assert train(world, overrides(tmp_path / "async", *ASYNC, more)) == [exit_codes.OK] * world
    assert losses(tmp_path / "plain") == losses(tmp_path / "async")
    steps = [info.step for info in committed(tmp_path / "async")]
    assert steps == [info.step for info in committed(tmp_path / "plain")] == [4, 8, 12, 16, 20]
    for step in steps:
        plain, found = state(tmp_path / "plain", step), state(tmp_path / "async", step)
        assert all(torch.equal(value, found[name]) for name, value in plain.items()), step
    saves = events(tmp_path / "async", "save")
    assert [event["step"] for event in saves] == steps
    assert len({event["staging_bytes"] for event in saves}) == 1
    assert all(0 < event["stall_s"] <= event["seconds"] for event in saves)


@pytest.mark.slow
def test_a_signal_during_one_ends_in_a_valid_checkpoint(overrides: Any, tmp_path: Path) -> None:
    more = ("checkpoint.asynchronous=true", "checkpoint.every_steps=1")
    assert train(2, overrides(tmp_path / "run", *more), stop_after=6) == [exit_codes.STOPPED] * 2
    stopped = latest(tmp_path / "run")
    assert CheckpointReader(stopped.path).verify() > 0
    assert stopped.step == events(tmp_path / "run", "stop")[-1]["step"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_tried_again(overrides: Any, small_disk: Any) -> None:
    run_dir = small_disk("900k") / "run"
    assert train(2, overrides(run_dir, *ASYNC)) == [exit_codes.FAILED] * 2
    failed = events(run_dir, "save_failed")
    assert failed
    assert "are free" in failed[0]["message"]
    assert len(failed) > 5 - len(committed(run_dir)), "a failed one is tried again before the next is due"
    assert [step for step, _, _ in losses(run_dir)] == list(range(1, 21))
    assert CheckpointReader(latest(run_dir).path).verify() > 0


def test_the_buffer_is_used_again_and_errors_are_not_lost() -> None:
    background = Background()
    value = torch.arange(6.0)
    fragment = Fragment("master.w", (6,), (6,), (0,), 0, value)
    first = background.staged([fragment])[0].view
    value += 1
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    assert background.staged([fragment])[0].view.data_ptr() == first.data_ptr()
    assert background.bytes == 24

    def fail() -> Any:
        raise OSError("gone")

    background.start(fail)
    with pytest.raises(OSError, match="gone"):
        background.end()
    assert not background.busy


def dies_in_a_save(rank: int, config: Any) -> None:
    """Rank 1 is killed when it has written a part of its second checkpoint."""
    from llmjp_train.checkpoint.storage import Writer

    plain, saves = Writer.write_data, count(1)

    def write_data(self: Writer, plan: Any, planner: Any) -> Any:
        if rank == 1 and next(saves) == 2:
            plain(self, replace(plan, items=plan.items[:3]), planner)
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, plan, planner)

    Writer.write_data = write_data  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rank_that_dies_during_a_save_costs_that_save_alone(
    asynchronous: bool, overrides: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = overrides(run_dir, *PLAIN, f"checkpoint.asynchronous={asynchronous}")
    with pytest.raises(RuntimeError, match=r"rank 1 died|Connection"):
        train(2, words, inject=dies_in_a_save)
    assert [info.step for info in committed(run_dir)] == [4]
    assert CheckpointReader(latest(run_dir).path).verify() > 0
    torn = run_dir / "checkpoints" / "step-00000008.epoch-0001"
    assert (torn / "rank-00001.bin").is_file(), "it died with a part of its payload written"
    assert train(2, words) == [exit_codes.OK] * 2
    assert [row[0] for row in losses(run_dir)] == list(range(1, 21))
    assert latest(run_dir).step == 20
    assert not torn.exists()
