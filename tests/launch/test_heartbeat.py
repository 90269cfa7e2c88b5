"""A run that is silent for longer than its own pace explains is taken to hang, and no other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmjp_train.launch import heartbeat
from llmjp_train.launch.heartbeat import START_SECONDS, HangWatch
from llmjp_train.runlog.record import RunRecord


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


def test_the_limit_follows_steps_validations_and_saves(tmp_path: Path) -> None:
    watch, record = HangWatch(tmp_path, least_seconds=120), RunRecord(tmp_path)
    assert watch.limit() == START_SECONDS
    for step in range(1, 9):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=70.0)
    assert watch.limit() == 20 * 70
    record.metrics(step=8, tokens=8, validation={"loss": 1.0, "seconds": 100.0})
    record.event("save", step=8, seconds=50.0)
    assert watch.limit() == 20 * 70 + 3 * 150
    assert HangWatch(tmp_path / "none", least_seconds=5).limit() == START_SECONDS


def test_fast_steps_leave_the_least(tmp_path: Path) -> None:
    watch, record = HangWatch(tmp_path, least_seconds=30), RunRecord(tmp_path)
    for step in range(1, 9):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01)
    assert watch.limit() == 30


def test_a_run_that_falls_silent_at_once_is_found(tmp_path: Path, clock: list[float]) -> None:
    """All its rows may come between two looks: the limit of a start must not stay."""
    record = RunRecord(tmp_path)
    watch = HangWatch(tmp_path, least_seconds=30)
    assert watch.verdict() == ""
    for step in range(1, 40):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01)
    clock[0] += 1
    assert watch.verdict() == ""
    clock[0] += 31
    assert watch.verdict() == "nothing was logged for 31 s, where 30 s are the run's own limit"


def test_the_pace_before_a_restart_says_nothing_of_its_start(tmp_path: Path, clock: list[float]) -> None:
    record = RunRecord(tmp_path)
    for step in range(1, 40):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01)
    watch = HangWatch(tmp_path, least_seconds=30)
    assert watch.verdict() == ""
    record.event("resume", step=20)
    clock[0] += 1
    assert watch.verdict() == ""
    clock[0] += START_SECONDS - 1
    assert watch.verdict() == ""
    record.metrics(step=21, tokens=21, loss=1.0, step_s=0.01)
    assert watch.verdict() == ""
    clock[0] += 31
    assert "30 s are the run's own limit" in watch.verdict()


def test_silence_counts_from_the_last_sign_of_life(tmp_path: Path, clock: list[float]) -> None:
    record = RunRecord(tmp_path)
    watch = HangWatch(tmp_path, least_seconds=30)
    assert watch.verdict() == ""
    clock[0] += START_SECONDS - 1
    assert watch.verdict() == "", "a start may take long"
    for step in range(1, 9):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.1)
        clock[0] += 10
        assert watch.verdict() == ""
    clock[0] += 25
    assert watch.verdict() == ""
    clock[0] += 6
    assert watch.verdict() == "nothing was logged for 31 s, where 30 s are the run's own limit"
    record.event("save", step=8, seconds=1.0)
    assert watch.verdict() == ""


def test_rows_that_wait_for_a_full_disk_are_a_sign_of_life(
    small_disk: Callable[[str], Path], clock: list[float]
) -> None:
    run_dir = small_disk("200k")
    record, watch = RunRecord(run_dir), HangWatch(run_dir, least_seconds=30)
    for step in range(1, 9):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01)
    assert watch.verdict() == ""
    with pytest.raises(OSError, match="No space left"):
        (run_dir / "filler").write_bytes(bytes(300_000))
    shown = len(record.read_metrics())
    for step in range(9, 90):
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01, padding="x" * 400)
    assert len(RunRecord(run_dir).read_metrics()) < 89, "the disk is full"
    assert shown == 8
    for step in range(90, 95):
        clock[0] += 20
        record.metrics(step=step, tokens=step, loss=1.0, step_s=0.01, padding="x" * 400)
        assert watch.verdict() == ""
