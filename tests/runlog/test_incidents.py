"""What counts as an incident, what it cost, and where the time of a run went."""

from typing import Any

import pytest

from llmjp_train.runlog.goodput import goodput
from llmjp_train.runlog.incidents import SILENT, incidents


def at(second: float) -> str:
    return f"2026-04-01T00:{int(second) // 60:02d}:{second % 60:06.3f}+00:00"


def event(second: float, kind: str, step: int = 0, **fields: Any) -> dict[str, Any]:
    return {"time": at(second), "kind": kind, "step": step, **fields}


def row(second: float, step: int) -> dict[str, Any]:
    return {"time": at(second), "step": step, "loss": 5.0, "step_s": 1.0}


def test_a_killed_attempt_is_told_with_its_last_sign_and_what_it_cost() -> None:
    events = [event(0, "start"), event(12, "note", 9, text="the power failed"), event(60, "resume", 5)]
    rows = [*(row(second, second) for second in range(1, 10)), *(row(60 + step - 5, step) for step in (6, 7))]
    (found,) = incidents(events, rows)
    assert (found["kind"], found["time"], found["step"]) == (SILENT, at(9), 9)
    assert (found["lost_steps"], found["down_seconds"]) == (4, 51.0)
    assert "the start at step 0 never said how it ended" in found["evidence"]
    (without,) = incidents(events)
    assert (without["time"], without["lost_steps"]) == (at(0), None)


def test_a_stop_an_end_and_a_running_attempt_are_none() -> None:
    assert incidents([event(0, "start")], [row(1, 1)]) == []
    stopped = [event(0, "start"), event(5, "stop", 4, outcome="stopped"), event(9, "resume", 4)]
    assert incidents([*stopped, event(12, "end", 8)]) == []


def test_an_end_is_told_once_with_its_cause() -> None:
    fault = event(5, "fault", 4, message="loss is not finite")
    unhealthy = event(6, "stop", 4, outcome="unhealthy", reason="loss is not finite")
    (found,) = incidents([event(0, "start"), fault, unhealthy, event(20, "resume", 2)])
    assert (found["kind"], found["lost_steps"], found["down_seconds"]) == ("fault", 2, 15.0)
    failed = event(5, "stop", 4, outcome="failed", reason="RuntimeError")
    seen = event(7, "incident", 4, what="rank_died", evidence="signal 9", action="restart", lost_steps=3)
    (found,) = incidents([event(0, "start"), failed, seen, event(20, "resume", 1)])
    assert (found["kind"], found["action"], found["lost_steps"]) == ("rank_died", "restart", 3)
    (found,) = incidents([event(0, "start"), failed])
    assert (found["kind"], found["down_seconds"], found["lost_steps"]) == ("stop", None, None)


def test_the_time_of_a_run_is_accounted_for() -> None:
    events = [
        event(0, "start"),
        event(10, "save", 5, seconds=2.0),
        event(13, "save", 6, seconds=9.0, stall_s=0.5),
        event(20, "incident", 8, what="rank_died"),
        event(40, "resume", 5),
    ]
    first = [row(4 + step, step) for step in range(1, 9)]  # 1 s each, the first ends at 5 s
    validation = {"time": at(12.5), "step": 8, "validation": {"loss": 5.0, "seconds": 0.5}}
    second = [row(42 + step - 5, step) for step in range(6, 11)]
    every = [*first, validation, *second]
    counted = [*first[:5], *second]
    found = goodput(every, counted, events, logged_every=1)
    assert found is not None
    assert (found.seconds, found.steps, found.again, found.again_steps) == (47.0, 10.0, 3.0, 3)
    assert (found.saving, found.validation, found.starts) == (2.5, 0.5, 2)
    assert found.down == 40 - 13, "from the last save's event, not from the supervisor's word"
    assert found.share == pytest.approx(10 / 47)
    parts = found.steps + found.again + found.validation + found.saving + found.down + found.rest
    assert parts == pytest.approx(found.seconds)
    assert goodput(every, counted, events, logged_every=2) is None
    assert goodput([], [], [], logged_every=1) is None
