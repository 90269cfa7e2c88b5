"""The life of a run in a real Slurm: submitted, watched, hurt, stopped, resumed."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import processes, ranks, wait
from helpers.runs import events, losses, train
from helpers.throwaway import Slurm
from helpers.toy import small_run

from llmjp_train.checkpoint.listing import committed
from llmjp_train.launch.job import folders
from llmjp_train.runlog.record import RunRecord

LLMJP = (sys.executable, "-m", "llmjp_train.cli")
NODES = ("cluster=dev-slurm", "cluster.devices_per_node=1", "nodes=2")


def steps(run_dir: Path) -> int:
    return max((row[0] for row in losses(run_dir)), default=0) if (run_dir / "metrics.jsonl").exists() else 0


def said(slurm: Slurm, *words: object) -> Any:
    """JSON that a command prints."""
    return json.loads(slurm.run(*LLMJP, *words, "--json"))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_survives_a_killed_rank_and_stops_when_asked(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "a $HOME run;x"
    words = small_run(
        run_dir, prepared, tokenizer_folder, *NODES, "schedule.length=100000", "checkpoint.every_steps=10",
        "evaluation.validation_every=null",
    )  # fmt: skip
    slurm.run(*LLMJP, "submit", "--chain", "2", *words, cwd=tmp_path)
    first, second = folders(run_dir)
    assert said(slurm, "status", run_dir)[0]["state"] in ("queued", "starting")
    refused = slurm.run(*LLMJP, "submit", *words, check=False)
    assert f"job {first.scheduler_id} of" in refused
    assert "a run has one writer" in refused
    wait(lambda: steps(run_dir) > 25, 90, "25 steps")
    now = said(slurm, "status", run_dir)[0]
    assert now["state"] == "running"
    assert [job["state"] for job in now["jobs"]] == ["running", "pending"]
    assert now["next_save_step"] % 10 == 0
    assert 0 < now["job_seconds_left"] < 600

    found = ranks(run_dir)
    assert len(found) == 2
    os.kill(found[1], signal.SIGKILL)
    wait(lambda: len(events(run_dir, "resume")) == 1, 90, "a restart inside the job")
    (incident,) = said(slurm, "incidents", run_dir)
    assert incident["kind"] == "rank_died"
    assert "was killed by SIGKILL" in incident["evidence"]
    assert incident["action"] == "restart"
    assert 0 <= incident["lost_steps"] <= 10
    assert incident["down_seconds"] > 0

    before = len(committed(run_dir))
    at = steps(run_dir)
    wait(lambda: steps(run_dir) > at, 60, "steps after the restart")
    slurm.run(*LLMJP, "save", run_dir)
    slurm.run(*LLMJP, "note", run_dir, "a rank was killed on purpose")
    slurm.run(*LLMJP, "stop", run_dir)
    assert slurm.wait_job(first.scheduler_id, seconds=60) == "FAILED"  # code 75: stopped, not finished
    assert slurm.wait_job(second.scheduler_id) == "CANCELLED"
    assert before >= 1
    last = events(run_dir, "stop")[-1]
    assert (last["reason"], last["outcome"]) == ("stop file", "stopped")
    assert committed(run_dir)[-1].step == last["step"], "a gentle stop loses no step"
    assert processes(run_dir) == {}
    ended = said(slurm, "status", run_dir)[0]
    assert (ended["state"], ended["jobs"]) == ("stopped", [])
    assert ended["last_incident"].startswith("step ")
    assert "finished" not in slurm.run(*LLMJP, "logs", run_dir)
    assert "was killed by SIGKILL" in slurm.run(*LLMJP, "logs", run_dir, "--errors") + first.log.read_text()
    lines = [
        json.loads(line) for line in slurm.run(*LLMJP, "logs", run_dir, "--ranks", "--json").splitlines()
    ]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert any("on purpose" in str(event) for event in events(run_dir, "note"))


@pytest.mark.full
@pytest.mark.timeout(280)
def test_a_chain_goes_over_signals_to_the_same_losses_and_then_ends_by_itself(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """The signal is the one that Slurm sends ahead of a time limit, which it looks at every 30 s alone."""
    run_dir, calm = tmp_path / "chained", tmp_path / "calm"
    sizes = ("schedule.length=150", "evaluation.validation_every=null", "checkpoint.every_steps=500")
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *sizes)
    slurm.run(*LLMJP, "submit", "--chain", "4", *words, cwd=tmp_path)
    jobs = [folder.scheduler_id for folder in folders(run_dir)]
    for job, step in ((jobs[0], 20), (jobs[1], 60)):
        wait(lambda step=step: steps(run_dir) > step, 100, f"step {step}")  # type: ignore[misc]
        slurm.run("scancel", "--signal=USR1", job)
        slurm.wait_job(job)
    ends = [slurm.wait_job(job, seconds=120) for job in jobs]
    assert ends == ["FAILED", "FAILED", "COMPLETED", "COMPLETED"]
    stops = events(run_dir, "stop")
    assert [stop["reason"] for stop in stops] == ["SIGUSR1", "SIGUSR1"]
    assert [event["step"] for event in events(run_dir, "resume")] == [stop["step"] for stop in stops]
    last = folders(run_dir)[3].history()
    assert [(row["kind"], row["reason"]) for row in last] == [("skip", "the run is complete")]
    assert said(slurm, "status", run_dir)[0]["state"] == "ended"
    train(2, small_run(calm, prepared, tokenizer_folder, *sizes))
    assert losses(run_dir) == losses(calm)


@pytest.mark.full
@pytest.mark.timeout(200)
def test_a_requeued_job_and_one_cancelled_gently(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "requeued"
    sizes = ("schedule.length=100000", "evaluation.validation_every=null", "checkpoint.every_steps=null")
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *sizes)
    slurm.run(*LLMJP, "submit", "--requeue", *words, cwd=tmp_path)
    folder = folders(run_dir)[0]
    wait(lambda: steps(run_dir) > 5, 60, "steps")
    slurm.run("scancel", "--signal=USR1", folder.scheduler_id)
    wait(lambda: len(events(run_dir, "resume")) == 1, 100, "the job's second run")
    assert slurm.job(folder.scheduler_id)["Restarts"] == "1"
    assert events(run_dir, "resume")[0]["step"] == events(run_dir, "stop")[0]["step"]
    at = steps(run_dir)
    wait(lambda: steps(run_dir) > at + 2, 60, "steps after it")
    # And by hand, as a second job that waits for the first to have saved.
    slurm.run(*LLMJP, "requeue", run_dir)
    assert slurm.wait_job(folder.scheduler_id) == "FAILED"
    wait(lambda: len(events(run_dir, "resume")) == 2, 100, "the second job")
    assert events(run_dir, "resume")[1]["step"] == events(run_dir, "stop")[1]["step"]
    folder = folders(run_dir)[1]
    done = slurm.run(*LLMJP, "cancel", run_dir)
    assert "asked the run to save and end" in done
    assert slurm.wait_job(folder.scheduler_id) == "FAILED"
    assert committed(run_dir)[-1].step == events(run_dir, "stop")[-1]["step"]
    assert processes(run_dir) == {}
    again = slurm.run(*LLMJP, "cancel", run_dir, check=False)
    assert "has no job that runs or waits" in again


@pytest.mark.full
@pytest.mark.timeout(200)
def test_bare_ranks_train_the_same(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """One task a rank, as srun starts them, without a supervisor."""
    run_dir, calm = tmp_path / "bare", tmp_path / "calm"
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES)
    slurm.run(*LLMJP, "submit", "--bare", *words, "cluster.environment.GLOO_SOCKET_IFNAME=lo", cwd=tmp_path)
    (folder,) = folders(run_dir)
    assert slurm.wait_job(folder.scheduler_id, seconds=150) == "COMPLETED", folder.log.read_text()
    train(2, small_run(calm, prepared, tokenizer_folder))
    assert losses(run_dir) == losses(calm)
    assert not list(folder.path.glob("node-*.txt"))


@pytest.mark.full
@pytest.mark.timeout(200)
def test_a_sweep_is_one_array_with_a_run_directory_each(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    sweep = tmp_path / "a sweep"
    words = small_run(sweep, prepared, tokenizer_folder, *NODES, "nodes=1")
    done = slurm.run(
        *LLMJP, "submit", "-m", *words, "optimizer.lr=1e-3,2e-3", "schedule.min_lr=0", cwd=tmp_path
    )
    runs = [sweep / f"optimizer.lr={lr}" for lr in ("0.001", "0.002")]
    jobs = [folders(run)[0].scheduler_id for run in runs]
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_1", f"{array}_2"]
    assert all(job in done for job in jobs)
    wait(lambda: said(slurm, "status", *runs)[1]["jobs"] != [], 30, "the second to be known")
    for run, job in zip(runs, jobs, strict=True):
        assert slurm.wait_job(job, seconds=120) == "COMPLETED", folders(run)[0].log.read_text()
    peaks = [max(row["lr"] for row in RunRecord(run).read_metrics() if "lr" in row) for run in runs]
    assert peaks == pytest.approx([1e-3, 2e-3])
    assert [status["state"] for status in said(slurm, "status", *runs)] == ["ended", "ended"]
    longer = [f"run_dir={sweep}", "schedule.length=100000", "schedule.warmup=0"]
    slurm.run(*LLMJP, "submit", "-m", *words, "optimizer.lr=3e-3,4e-3", *longer, cwd=tmp_path)
    runs = [sweep / f"optimizer.lr={lr}" for lr in ("0.003", "0.004")]
    wait(lambda: all(steps(run) > 3 for run in runs), 90, "steps of both")
    slurm.run(*LLMJP, "cancel", runs[0], "--now")
    wait(lambda: said(slurm, "status", runs[0])[0]["jobs"] == [], 60, "the end of one")
    at = steps(runs[1])
    wait(lambda: steps(runs[1]) > at + 3, 60, "steps of the other")
    slurm.run(*LLMJP, "cancel", runs[1], "--now")
    wait(lambda: said(slurm, "status", runs[1])[0]["jobs"] == [], 60, "the end of the other")
