"""Whether ranks start, start again, or not any more: every verdict, from records alone."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmjp_train import exit_codes
from llmjp_train.config.compose import compose, dump_config
from llmjp_train.launch import arbiter, schedulers
from llmjp_train.launch.arbiter import AGAIN, REQUEUE, begin, end
from llmjp_train.launch.bad_nodes import leave_out, left_out
from llmjp_train.launch.job import Job, JobFolder, folders, new_folder, now
from llmjp_train.launch.supervisor import Result
from llmjp_train.runlog.record import RunRecord

CONFIG = ["experiment=tiny-cpu", "tokenizer.path=t", "data.sources.small.path=d", "schedule.length=20"]


@pytest.fixture(scope="module")
def config() -> str:
    return dump_config(compose("train", [*CONFIG, "evaluation.validation_every=null"]))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(arbiter.time, "sleep", waited.append)
    return waited


def job(run_dir: Path, config: str, **values: Any) -> JobFolder:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(config)
    folder = new_folder(run_dir)
    described = Job(
        run_dir=str(run_dir), number=1, name="a", scheduler="slurm", nodes=2, ranks_per_node=4, submitted=now(),
    )  # fmt: skip
    folder.write(replace(described, **values))
    (folder.path / "config.yaml").write_text(config)
    return folder


def attempt(folder: JobFolder, name: str, **nodes: Any) -> None:
    """What supervisors leave of an attempt."""
    path = folder.path / f"attempt-{name}"
    path.mkdir()
    for number, (reason, kind, rank) in enumerate(nodes.values()):
        value = {"code": 1, "reason": reason, "kind": kind, "rank": rank, "host": f"n{number}", "codes": []}
        (path / f"node-{number:04d}.json").write_text(json.dumps(value))


def row(run_dir: Path, step: int) -> None:
    RunRecord(run_dir).metrics(step=step, tokens=step, loss=1.0, step_s=0.5)


def checkpoint(run_dir: Path, step: int) -> None:
    path = run_dir / "checkpoints" / f"step-{step:08d}.epoch-0001"
    path.mkdir(parents=True)
    (path / "COMMITTED").write_text("{}")


def test_a_killed_rank_starts_again_with_the_cost_written_down(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config)
    assert begin(folder) == ""
    row(tmp_path, 7)
    row(tmp_path, 8)
    checkpoint(tmp_path, 6)
    died, torn = (
        ("rank 5 was killed by SIGKILL", "rank_died", 5),
        ("rank 0 ended with exit code 1", "rank_died", 0),
    )
    attempt(folder, "1", a=torn, b=died)
    verdict = end(folder, "1", 1, "")
    assert (verdict.code, verdict.action) == (AGAIN, "restart")
    (incident,) = [e for e in RunRecord(tmp_path).read_events() if e["kind"] == "incident"]
    assert (incident["rank"], incident["node"], incident["what"]) == (5, "n1", "rank_died"), (
        "the cause, not its victim"
    )
    assert (incident["step"], incident["lost_steps"], incident["lost_seconds"]) == (8, 2, 1.0)


def test_faults_without_a_new_checkpoint_are_a_crash_loop(
    tmp_path: Path, config: str, no_waiting: list[float]
) -> None:
    folder = job(tmp_path, config, max_restarts=3)
    checkpoint(tmp_path, 5)
    for count in range(4):
        row(tmp_path, 6 + count)
        attempt(folder, str(count), a=("rank 1 was killed by SIGKILL", "rank_died", 1))
        verdict = end(folder, str(count), 137, "")
        assert (verdict.action == "halt") is (count == 3)
    assert "4 faults with no new checkpoint in between" in verdict.reason
    assert verdict.code == exit_codes.FAILED
    assert no_waiting == sorted(no_waiting), "each restart waits longer"
    later = job(tmp_path, config, submitted="2000-01-01T00:00:00.000+00:00")
    assert begin(later).startswith("the chain ended: 4 faults")
    assert begin(job(tmp_path, config)) == "", "a job that was submitted afterwards may try again"


def test_progress_resets_the_count(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config, max_restarts=1)
    for count in range(4):
        checkpoint(tmp_path, 5 * (count + 1))
        row(tmp_path, 5 * (count + 1))
        attempt(folder, str(count), a=("rank 1 was killed by SIGKILL", "rank_died", 1))
        assert end(folder, str(count), 1, "").action == "restart"


def test_the_same_error_at_the_same_step_twice_is_deterministic(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config, max_restarts=9)
    row(tmp_path, 6)
    for count, action in enumerate(("restart", "halt")):
        attempt(folder, str(count), a=("rank 1 ended with exit code 1", "rank_died", 1))
        verdict = end(folder, str(count), 1, "")
        assert verdict.action == action
    assert "the same fault at step 6 twice, so it is deterministic" in verdict.reason


@pytest.mark.parametrize(
    ("values", "reason", "code", "action"),
    [({}, "SIGUSR1", 75, "next"), ({"requeue": True}, "SIGUSR1", REQUEUE, "requeue"), ({}, "stop file", 75, "stopped"),
     ({"requeue": True}, "stop file", 75, "stopped")],
)  # fmt: skip
def test_orderly_stops(
    values: dict[str, Any], reason: str, code: int, action: str, tmp_path: Path, config: str
) -> None:
    folder = job(tmp_path, config, **values)
    RunRecord(tmp_path).event("start", step=0)
    RunRecord(tmp_path).event("stop", step=4, reason=reason, outcome="stopped")
    verdict = end(folder, "1", exit_codes.STOPPED, "")
    assert (verdict.code, verdict.action) == (code, action)


@pytest.mark.parametrize("code", [exit_codes.BAD_INPUT, exit_codes.UNHEALTHY])
def test_what_trying_again_does_not_help_ends_the_chain(code: int, tmp_path: Path, config: str) -> None:
    folder, later = job(tmp_path, config), job(tmp_path, config)
    RunRecord(tmp_path).event("fault", step=3, message="the loss is not finite")
    verdict = end(folder, "1", code, "")
    assert (verdict.code, verdict.action) == (code, "halt")
    assert begin(later).startswith("the chain ended:")


def test_reasons_to_start_nothing(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job(tmp_path, config, submitted="2000-01-01T00:00:00.000+00:00")
    record = RunRecord(tmp_path)
    record.event("start", step=0)
    record.event("stop", step=4, reason="stop file", outcome="stopped")
    assert "stopped by a person" in begin(folder)
    after = job(tmp_path, config, submitted="2000-01-01T00:00:00.000+00:00", after_stop=True)
    assert begin(after) == "", "one that was queued for what comes after the stop"
    record.event("end", step=20, reason="finished", outcome="finished")
    assert begin(folder) == "the run is complete"
    longer = job(tmp_path, config.replace("length: 20", "length: 40"))
    assert begin(longer) == "", "the same run, asked to go on to a greater length"
    longer.cancel()
    assert begin(longer) == "the job was cancelled"


def test_a_budget_counts_the_hours_of_all_jobs(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config, budget_hours=8.0)
    lines = [
        {"schema": 1, "time": "2026-01-01T00:00:00+00:00", "kind": "begin"},
        {"schema": 1, "time": "2026-01-01T01:00:00+00:00", "kind": "end", "action": "next", "reason": ""},
    ]
    (folder.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert arbiter.device_hours(tmp_path) == 8.0
    assert "the budget of 8 device hours is used up" in begin(folder)


def test_a_living_writer_is_never_joined(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    from llmjp_train.runlog.lease import Lease

    folder = job(tmp_path, config)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(arbiter.time, "monotonic", lambda: float(next(clock)))
    with Lease.acquire(tmp_path), pytest.raises(ValueError, match="so that two never write"):
        begin(folder)
    assert begin(folder) == "", "given back"


def test_cancelled_jobs_do_not_restart(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config)
    assert end(folder, "1", 143, "TERM").action == "cancelled"
    folder.cancel()
    assert end(folder, "2", 137, "").action == "cancelled"
    assert len(folders(tmp_path)) == 1


def test_a_job_that_was_ended_from_outside_does_not_queue_itself_again(tmp_path: Path, config: str) -> None:
    """A person's scancel of a job that requeues itself at its time limit: it saved, and that is the end of it."""
    folder = job(tmp_path, config, requeue=True)
    RunRecord(tmp_path).event("stop", step=7, reason="SIGTERM", outcome="stopped")
    assert end(folder, "1", exit_codes.STOPPED, " TERM").action == "next"
    RunRecord(tmp_path).event("stop", step=9, reason="SIGUSR1", outcome="stopped")
    for signals in ("USR1", " USR1", " USR1 TERM", ""):
        assert end(folder, "2", exit_codes.STOPPED, signals).action == "requeue"


def bad_attempt(folder: JobFolder, name: str) -> None:
    """What the first node leaves when it finds others to be bad."""
    bad = {"n1": "GPU 3 has 2 uncorrected memory (ECC) errors", "n7": "7 usable devices instead of 8"}
    path = folder.path / f"attempt-{name}"
    path.mkdir()
    Result(exit_codes.FAILED, bad["n1"], "bad_node", host="n1", bad=bad).write(path, 0)


def test_a_bad_node_is_left_out_of_what_waits_and_the_chain_goes_on(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(schedulers, "call", lambda words, **_: told.append(list(words)) or "")
    cluster = config.replace("scheduler: local", "scheduler: slurm")
    cluster = cluster.replace("options: []", "options: ['--exclude=n2']")
    first, second = job(tmp_path, cluster), job(tmp_path, cluster)
    second.scheduler_id = "42"
    bad_attempt(first, "1")
    verdict = end(first, "1", exit_codes.FAILED, "")
    assert (verdict.code, verdict.action) == (exit_codes.FAILED, "next")
    assert "bad node n1, n7" in verdict.reason
    assert begin(second) == "", "a bad node is no reason to end the chain"
    assert left_out(tmp_path) == {
        "n1": "GPU 3 has 2 uncorrected memory (ECC) errors", "n7": "7 usable devices instead of 8",
    }  # fmt: skip
    found = [e for e in RunRecord(tmp_path).read_events() if e["kind"] == "incident"]
    assert [(e["what"], e["node"], e["action"], e["lost_steps"]) for e in found] == [
        ("bad_node", "n1", "next", 0), ("bad_node", "n7", "next", 0),
    ]  # fmt: skip
    assert told == [["scontrol", "update", "jobid=42", "excnodelist=n2,n1,n7"]], (
        "with those of cluster.options"
    )


def test_a_job_that_requeues_itself_does_so_until_it_is_a_crash_loop(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job(tmp_path, config, requeue=True, max_restarts=2)
    actions = []
    for name in ("1", "2", "3"):
        bad_attempt(folder, name)
        actions.append(end(folder, name, exit_codes.FAILED, "").action)
    assert actions == ["requeue", "requeue", "halt"]
    monkeypatch.setattr("sys.argv", ["arbiter", "excluded", str(folder.path)])
    assert arbiter.main() == exit_codes.OK
    assert capsys.readouterr().out == "n1,n7\n"


def test_this_machine_is_not_left_out_of_its_own_runs(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config, scheduler="local")
    bad_attempt(folder, "1")
    assert end(folder, "1", exit_codes.FAILED, "").action == "halt"
    assert left_out(tmp_path) == {}


def test_a_scheduler_that_cannot_be_told_does_not_end_the_chain(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, waiting = job(tmp_path, config), job(tmp_path, config)
    waiting.scheduler_id = "42"
    bad_attempt(folder, "1")
    assert end(folder, "1", exit_codes.FAILED, "").action == "next"
    assert "could not be told to leave n1, n7 out: scontrol is not on this machine" in capsys.readouterr().out


@pytest.mark.parametrize("named", [2, 3])
def test_plain_hosts_go_on_at_once_where_one_is_to_spare(named: int, tmp_path: Path) -> None:
    hosts = ["n0", "n1", "n2"][:named]
    words = ("cluster.scheduler=hosts", "cluster.launcher=ssh", f"cluster.hosts=[{','.join(hosts)}]")
    config = dump_config(compose("train", [*CONFIG, "evaluation.validation_every=null", *words]))
    folder = job(tmp_path, config, scheduler="hosts")
    (folder.path / "attempt-1").mkdir()
    bad = {"n0": "ssh could not start it"}
    Result(exit_codes.FAILED, bad["n0"], "bad_node", host="n0", bad=bad).write(folder.path / "attempt-1", 0)
    verdict = end(folder, "1", 255, "")
    assert verdict.action == ("restart" if named == 3 else "halt")
    assert arbiter._hosts(folder) == hosts[1:]


def test_a_lost_host_is_the_cause_and_those_that_missed_it_are_not(tmp_path: Path, config: str) -> None:
    folder = job(tmp_path, config)
    row(tmp_path, 3)
    missed = ("rank 0 was killed by SIGABRT", "rank_died", 0)
    attempt(folder, "1", a=missed, b=("ssh lost it (code 255)", "node_lost", None))
    assert end(folder, "1", 255, "").action == "restart"
    (incident,) = [e for e in RunRecord(tmp_path).read_events() if e["kind"] == "incident"]
    assert (incident["what"], incident["node"]) == ("node_lost", "n1")


@pytest.mark.parametrize(
    ("nodes", "launcher", "code"),
    [
        ([75, 75], 0, 75),  # Open MPI's mpirun, whatever the codes were
        ([0, 0], 255, 0),  # an ssh whose line broke after the end
        ([1, 75], 75, 1),  # srun's highest, though a node failed
        ([2, 75], 75, 2),
        ([76, 1], 137, 76),
        ([75], 137, 1),  # one was killed and says nothing
        ([0], 0, 1),  # and a launcher that does not know
        ([], 75, 75),  # told to end before there was a supervisor
    ],
)
def test_the_code_is_what_the_nodes_say_and_not_what_a_launcher_makes_of_it(
    nodes: list[int], launcher: int, code: int, tmp_path: Path, config: str
) -> None:
    folder = job(tmp_path, config)
    (folder.path / "attempt-1").mkdir()
    for node, value in enumerate(nodes):
        Result(value, "why" if value == 1 else "", "rank_died" if value == 1 else "").write(
            folder.path / "attempt-1", node
        )
    verdict = end(folder, "1", launcher, "")
    assert folder.history()[-1]["code"] == code
    actions = {0: "done", 1: "restart", 2: "halt", 75: "next", 76: "halt"}
    assert verdict.action == actions[code]


def test_a_stop_that_no_rank_lived_to_see_is_obeyed_all_the_same(tmp_path: Path, config: str) -> None:
    (tmp_path / "stop").touch()
    folder = job(tmp_path, config)
    os.utime(tmp_path / "stop", (1, 1))
    assert begin(folder) == "", "it was asked of an earlier job"
    folder.note("begin", attempt="1")
    assert "a person asked the run to stop" in begin(folder), (
        "asked between two attempts, or while a rank died"
    )
    waits = job(tmp_path, config)
    os.utime(tmp_path / "stop", (time.time() + 5,) * 2)
    assert "a person asked the run to stop" in begin(waits)
    after = job(tmp_path, config, after_stop=True)
    os.utime(tmp_path / "stop", (time.time() + 5,) * 2)
    assert begin(after) == "", "the stop that it was submitted for"


def test_nothing_starts_after_a_signal_between_two_attempts(
    tmp_path: Path, config: str, no_waiting: list[float]
) -> None:
    folder = job(tmp_path, config)
    assert "SIGTERM" in begin(folder, " USR1 TERM")
    assert begin(folder, " USR1") == "", "its time is over soon: the ranks are told so by the deadline"
    attempt(folder, "1", a=("rank 1 was killed by SIGKILL", "rank_died", 1))
    cancels = iter([False, False, True])
    type(folder).cancelled, kept = property(lambda self: next(cancels)), type(folder).cancelled  # type: ignore[method-assign,misc]
    try:
        end(folder, "1", 1, "")
    finally:
        type(folder).cancelled = kept  # type: ignore[method-assign]
    assert no_waiting == [1], "a cancelled job does not wait"


def test_too_few_hosts_are_an_error_and_not_five_minutes_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("cluster.scheduler=hosts", "cluster.launcher=ssh", "cluster.hosts=[n0,n1]")
    config = dump_config(compose("train", [*CONFIG, "evaluation.validation_every=null", *words]))
    folder = job(tmp_path, config, scheduler="hosts")
    leave_out(tmp_path, "n1", "left out by a person")
    monkeypatch.setattr("sys.argv", ["arbiter", "hosts", str(folder.path)])
    assert arbiter.main() == exit_codes.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert "has 1 hosts that are not left out, the job needs 2" in said.err
