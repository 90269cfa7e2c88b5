"""State, figures and words that are read from run directories."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.run_records import full_run, new_run, start, step_row, validation_row

from llmjp_train.errors import UserError
from llmjp_train.runlog import reading
from llmjp_train.runlog.lease import STALE_SECONDS, Lease, read_epochs
from llmjp_train.runlog.reading import describe, find_runs, open_run, run_state, summary
from llmjp_train.runlog.record import SCHEMA, RunRecord


def test_figures_of_a_whole_run(tmp_path: Path) -> None:
    found = summary(full_run(tmp_path / "run"))
    assert (found.name, found.state, found.reason, found.model) == ("toy", "ended", "finished", "tiny")
    assert (found.step, found.total_steps, found.tokens, found.total_tokens) == (100, 100, 204_800, 204_800)
    assert found.parameters == 1_840_256
    assert (found.starts, found.incidents) == (2, 2)
    assert found.best_validation is not None
    assert (found.best_validation.step, found.best_validation.loss) == (100, pytest.approx(8.05 * 100**-0.2))
    assert found.mfu == pytest.approx(0.4)
    assert found.began is not None
    assert found.changed is not None
    assert found.began <= found.changed
    assert json.loads(json.dumps(found.to_dict()))["derived"]["steps"] == 100


def test_the_best_validation_is_not_the_last(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        step_row(record, step, loss)
        validation_row(record, step, loss)
    record.metrics(
        step=30,
        tokens=1,
        validation={"loss": float("nan"), "bits_per_byte": None, "tokens": 1, "sources": {}},
    )
    found = summary(record)
    assert found.best_validation == reading.Point(20, 2.0, pytest.approx(2 / 3))
    assert found.validation == found.best_validation  # the one at 30 was measured again and not finite


def test_a_new_run(tmp_path: Path) -> None:
    found = summary(new_run(tmp_path / "run"))
    assert (found.state, found.step, found.loss, found.tokens) == ("new", 0, None, None)
    assert (found.validation, found.began, found.changed) == (None, None, None)


ENDS: list[tuple[list[tuple[str, dict[str, Any]]], str, str]] = [
    ([("end", {"reason": "finished", "outcome": "finished"})], "ended", "finished"),
    ([("stop", {"reason": "SIGTERM", "outcome": "stopped"})], "stopped", "SIGTERM"),
    (
        [("fault", {"message": "NaN"}), ("stop", {"reason": "unhealthy", "outcome": "unhealthy"})],
        "failed",
        "NaN",
    ),
    (
        [("save", {"folder": "x", "bytes": 1, "seconds": 1, "reason": "end"})],
        "failed",
        "never said how it ended",
    ),
    ([("stop", {"reason": "SIGTERM", "outcome": "stopped"}), ("resume", {})], "failed", "its resume of"),
]


@pytest.mark.parametrize(("ends", "state", "reason"), ENDS)
def test_states(tmp_path: Path, ends: list[tuple[str, dict[str, Any]]], state: str, reason: str) -> None:
    record = new_run(tmp_path / "run")
    with Lease.acquire(record.path):
        start(record)
        for kind, fields in ends:
            record.event(kind, step=3, **fields)
        assert run_state(record.path, record.read_events())[0] == "running"
    found, why = run_state(record.path, record.read_events())
    assert found == state
    assert reason in why


def test_a_holder_that_was_killed_is_not_running(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    start(record)
    lease = Lease.acquire(record.path)
    path = record.path / "lease" / "epoch-0001.json"
    value = json.loads(path.read_text())
    done = subprocess.Popen(["true"])
    done.wait()
    path.write_text(json.dumps(value | {"pid": done.pid}))
    assert run_state(record.path, record.read_events())[0] == "failed"
    path.write_text(json.dumps(value | {"pid": done.pid, "host": "elsewhere"}))  # only its sign of life tells
    assert run_state(record.path, record.read_events())[0] == "running"
    old = time.time() - STALE_SECONDS - 5
    os.utime(record.path / "lease" / "alive-0001", (old, old))
    assert reading.holder_age(record.path, read_epochs(record.path)[-1]) is None
    assert run_state(record.path, record.read_events())[0] == "failed"
    lease.release()


def test_only_runs_are_found(tmp_path: Path) -> None:
    for name in ("b", "a", "group/c"):
        new_run(tmp_path / name)
    (tmp_path / "a" / "inner").mkdir()
    (tmp_path / "a" / "inner" / "config.yaml").write_text("run_dir: x\n")
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "config.yaml").write_text("other: 1\n")
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b", tmp_path / "group" / "c"]
    with pytest.raises(UserError, match="is not a folder"):
        find_runs(tmp_path / "none")


@pytest.mark.parametrize("text", ["a: [1", "", "- 1\n"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        summary(open_run(tmp_path))


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    (record.path / "events.jsonl").write_text(json.dumps({"schema": SCHEMA + 1, "kind": "start"}) + "\n")
    with pytest.raises(UserError, match="update llmjp-train"):
        summary(record)


def test_half_a_line_of_a_killed_writer_is_passed_over(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    step_row(record, 1, 5.0)
    with (record.path / "metrics.jsonl").open("a") as file:
        file.write('{"schema": 1, "step": 2, "lo')
    assert summary(record).step == 1
    again = RunRecord(record.path)
    step_row(again, 2, 4.0)
    assert summary(again).loss == 4.0


def test_rows_that_a_resume_took_again_count_once(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    for step in (1, 2, 3, 2):
        step_row(record, step, 10.0 - step - (1 if step == 2 else 0))
    assert [row["step"] for row in record.read_metrics()] == [1, 2]
    assert len(record.read_metrics(latest=False)) == 4


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"kind": "save", "folder": "f", "bytes": 2_500_000, "seconds": 1.26, "reason": "cadence"},
            "f, 2.5 MB in 1.3 s (cadence)",
        ),
        ({"kind": "prune", "removed": ["a", "b"]}, "removed a, b"),
        (
            {"kind": "prune", "removed": [], "left": ["c (busy)"]},
            "removed nothing; could not be removed: c (busy)",
        ),
        ({"kind": "spike", "loss": 5.5, "score": 7.25}, "loss 5.5000, 7.2 deviations above its mean"),
        (
            {"kind": "spike", "loss": None, "score": None},
            "loss not finite, not finite deviations above its mean",
        ),
        ({"kind": "fault", "message": "NaN"}, "NaN"),
        (
            {
                "kind": "change",
                "global_batch": 16,
                "sequence_length": 8,
                "lr": 0.1,
                "weights": {},
                "reason": "r",
            },
            "batch 16, length 8, lr 0.1, r",
        ),
        ({"kind": "note", "time": "t", "schema": 1, "text": "hello"}, "hello"),
        (
            {
                "kind": "incident",
                "what": "hang",
                "node": "n1",
                "evidence": "silent",
                "action": "restart",
                "lost_steps": 3,
            },
            "hang on n1: silent; restart, 3 steps lost",
        ),
        ({"kind": "resume"}, "? processes on ?, ZeRO-?, ?"),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert describe(event) == words


def test_a_fork_names_its_origin(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    start(
        record,
        "fork",
        40,
        origin={"checkpoint": "step-40", "fork_of": "runs/a"},
    )
    assert describe(record.read_events()[0]).endswith("from step-40 of runs/a")


def test_a_holder_that_has_ended_and_is_not_waited_for_is_gone() -> None:
    """As of a supervisor that was killed: its ranks are left to a parent that may never look."""
    from llmjp_train.runlog.machine import alive

    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert not alive(child)
    os.waitpid(child, 0)
    assert not alive(child)
    assert alive(os.getpid())
