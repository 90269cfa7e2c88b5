"""`llmjp train` as a user starts it: dry run, own ranks, torchrun, a killed rank, golden losses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import state
from helpers.sshd import need
from helpers.toy import small_run

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import latest
from llmjp_train.cli import main
from llmjp_train.launch.local import free_port
from llmjp_train.runlog.reading import run_state
from llmjp_train.runlog.record import RunRecord

LLMJP = [sys.executable, "-m", "llmjp_train.cli"]


def llmjp(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*LLMJP, *words], capture_output=True, text=True, timeout=200)


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in RunRecord(run_dir).read_metrics() if "loss" in row]


def test_a_dry_run_prints_the_numbers_and_makes_nothing(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    done = llmjp("train", "--dry-run", *small_run(tmp_path / "run", prepared, tokenizer_folder))
    assert done.returncode == exit_codes.OK, done.stderr
    assert "steps                  20 of 192 tokens, 6 micro batches a rank" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluation.tasks=[own_chioce,nosuch]"], ["own_chioce: no such task; did you mean own_choice", "--list"]),
        (["evaluation.tasks=[jsquad,own_choice]"], ["evaluation.tasks: jsquad: it generates text", "llmjp follow"]),
        (["evaluation.suite=quik"], ["evaluation.suite=quik: no such suite; did you mean quick"]),
    ],
)  # fmt: skip
def test_tasks_that_training_cannot_be_scored_on_are_told_with_all_that_is_wrong(
    words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["evaluation.every=20", "resume=newest", *words]
    assert main(["train", "--dry-run", "experiment=tiny-cpu", *more]) == exit_codes.BAD_INPUT
    error = capsys.readouterr().err
    assert all(part in error for part in ["resume=newest", *told])
    assert len(error) < 1000, "not every task's name"


def test_a_suite_s_tasks_that_generate_are_told_where_their_data_are(
    llmjp_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--dry-run", "experiment=tiny-cpu", "evaluation.every=20", "evaluation.suite=japanese"]
    assert main(words) == exit_codes.BAD_INPUT
    assert "evaluation.suite=japanese: it generates text" in capsys.readouterr().err
    monkeypatch.delenv("LLMJP_DATA")
    assert main(words) == exit_codes.OK, "left out of the suite, as in an evaluation"


@pytest.mark.slow
def test_own_ranks_and_torchrun_and_one_process_agree(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    def words(name: str) -> list[str]:
        return small_run(tmp_path / name, prepared, tokenizer_folder, "schedule.length=6", "parallel.data=2")

    done = llmjp("train", *words("own"))
    assert done.returncode == exit_codes.OK, done.stderr
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    started = subprocess.run(
        [*torchrun, "-m", "llmjp_train.cli", "train", *words("torchrun")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert started.returncode == 0, started.stderr
    assert losses(tmp_path / "own") == losses(tmp_path / "torchrun")
    one = llmjp("train", *words("one"), "parallel.data=1")
    assert one.returncode == exit_codes.OK, one.stderr
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "own"), rel=1e-5)


@pytest.mark.slow
def test_mpirun_ends_with_the_weights_of_own_ranks(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """Open MPI as it is installed, told nothing of addresses and ports."""
    need("mpirun")

    def words(name: str) -> list[str]:
        return small_run(tmp_path / name, prepared, tokenizer_folder, "schedule.length=6", "parallel.data=2")

    done = llmjp("train", *words("own"))
    assert done.returncode == exit_codes.OK, done.stderr
    mpirun = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"]
    mpirun += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    started = subprocess.run(
        [*mpirun, *LLMJP, "train", *words("mpirun")], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert started.returncode == 0, started.stdout + started.stderr
    assert losses(tmp_path / "own") == losses(tmp_path / "mpirun")
    own, theirs = (state(tmp_path / name, 6) for name in ("own", "mpirun"))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_launcher_with_another_number_of_processes_is_refused(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    env = {
        **os.environ,
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    done = subprocess.run(
        [*LLMJP, "train", *small_run(tmp_path / "run", prepared, tokenizer_folder, "parallel.data=2")],
        capture_output=True, text=True, env=env, timeout=100,
    )  # fmt: skip
    assert done.returncode == exit_codes.BAD_INPUT
    assert "needs 2 processes, but torchrun started 4" in done.stderr


def step_of(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"grad_norm":') if path.exists() else 0


def wait_for(run_dir: Path, step: int, process: "subprocess.Popen[Any]") -> None:
    end = time.monotonic() + 60
    while step_of(run_dir) < step:
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_next_start_goes_on(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    words = small_run(
        run_dir,
        prepared,
        tokenizer_folder,
        "parallel.data=2",
        "schedule.length=4000",
        "checkpoint.every_steps=10",
    )
    process = subprocess.Popen(
        [*LLMJP, "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(run_dir, 25, process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_codes.FAILED
    assert "rank 1 ended with signal SIGKILL" in errors
    saved = latest(run_dir).step
    assert saved >= 20
    again = subprocess.Popen(
        [*LLMJP, "train", str(run_dir), "time_limit=0.05"], stdout=subprocess.PIPE, text=True
    )
    out, _ = again.communicate(timeout=100)
    assert again.returncode == exit_codes.STOPPED, out
    assert f"goes on from step-{saved:08d}" in out


@pytest.mark.slow
def test_a_second_start_of_a_live_run_is_refused_and_the_first_saves_when_asked(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    words = small_run(run_dir, prepared, tokenizer_folder, "schedule.length=100000")
    process = subprocess.Popen([*LLMJP, "train", *words], stdout=subprocess.PIPE, text=True)
    wait_for(run_dir, 3, process)
    second = llmjp("train", str(run_dir))
    assert second.returncode == exit_codes.BAD_INPUT
    assert f"is being written by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED
    assert f"go on with: llmjp train {run_dir}" in out
    assert latest(run_dir).step == len(losses(run_dir))


@pytest.mark.slow
def test_a_signal_during_start_up_stops_before_the_first_step(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [*LLMJP, "train", *small_run(run_dir, prepared, tokenizer_folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the numbers are printed before torch is imported
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED
    assert len(losses(run_dir)) <= 1


SLOW_SAVES = """
import sys, time
from llmjp_train.train import saving
saving.save = lambda *args, **more: time.sleep(60)
from llmjp_train.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_the_record_says_so(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    words = small_run(run_dir, prepared, tokenizer_folder, "schedule.length=100000")
    process = subprocess.Popen([sys.executable, "-c", SLOW_SAVES, "train", *words], stdout=subprocess.DEVNULL)
    wait_for(run_dir, 3, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == exit_codes.INTERRUPTED
    events = RunRecord(run_dir).read_events()
    assert events[-1]["kind"] == "stop"
    assert events[-1]["reason"] == "SIGINT twice: ended without a save"
    assert run_state(run_dir, events) == ("stopped", "SIGINT twice: ended without a save")


@pytest.mark.slow
def test_a_fork_decays_from_a_saved_run(tmp_path: Path, prepared: Path, tokenizer_folder: Path) -> None:
    stable = small_run(
        tmp_path / "stable", prepared, tokenizer_folder, "schedule=wsd", "schedule.length=20", "schedule.decay=4",
        "checkpoint.every_steps=10",
    )  # fmt: skip
    assert llmjp("train", *stable).returncode == exit_codes.OK
    branch = small_run(
        tmp_path / "branch", prepared, tokenizer_folder, "schedule=wsd", "schedule.length=14", "schedule.decay=4",
        f"fork.run={tmp_path / 'stable'}", "fork.step=10",
    )  # fmt: skip
    done = llmjp("train", *branch)
    assert done.returncode == exit_codes.OK, done.stderr
    record = RunRecord(tmp_path / "branch")
    event = next(event for event in record.read_events() if event["kind"] == "fork")
    assert event["step"] == 10
    rows = [row for row in record.read_metrics() if "loss" in row]
    assert [row["step"] for row in rows] == [11, 12, 13, 14]
    assert rows[-1]["lr"] == pytest.approx(1e-4)
    assert rows[0]["loss"] == losses(tmp_path / "stable")[10], (
        "the first step of the branch sees the same weights and data"
    )
    words = ("train", f"fork.from={tmp_path / 'stable'}", "fork.step=10")
    done = llmjp(*words, f"run_dir={tmp_path / 'again'}")
    assert done.returncode == exit_codes.OK, done.stderr
    assert losses(tmp_path / "again") == losses(tmp_path / "stable")[10:], "without more it is the stem again"
    refused = llmjp("train", str(tmp_path / "stable"), f"run_dir={tmp_path / 'elsewhere'}")
    assert refused.returncode == exit_codes.BAD_INPUT
    assert "start a branch there with 'llmjp train fork.run=" in refused.stderr


@pytest.mark.slow
def test_a_run_whose_batch_ramp_is_over_goes_on_with_ranks_that_the_ramp_did_not_fit(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    ramp = ("batch.global_batch=4", "batch.ramp_start=1", "batch.ramp_increment=1", "batch.ramp_steps=6")
    words = small_run(run_dir, prepared, tokenizer_folder, *ramp, "schedule.length=8")
    assert llmjp("train", *words).returncode == exit_codes.OK
    refused = llmjp("train", *words, "run_dir=" + str(tmp_path / "new"), "parallel.data=2")
    assert refused.returncode == exit_codes.BAD_INPUT
    assert "batch.global_batch=1 is not a multiple" in refused.stderr
    done = llmjp("train", str(run_dir), "parallel.data=2", "schedule.length=10")
    assert done.returncode == exit_codes.OK, done.stderr
    assert len(losses(run_dir)) == 10


@pytest.mark.slow
def test_golden_losses_of_tiny_cpu(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, root: Path
) -> None:
    """tiny-cpu as it stands, on the tests' own text, 12 steps; `LLMJP_WRITE_GOLDEN=1` writes the file anew."""
    words = [
        "experiment=tiny-cpu", f"run_dir={tmp_path / 'run'}", f"tokenizer.path={tokenizer_folder}",
        f"data.sources.small.path={prepared}", "schedule.length=12", "evaluation.validation_every=6",
    ]  # fmt: skip
    done = llmjp("train", *words)
    assert done.returncode == exit_codes.OK, done.stderr
    path = root / "tests" / "golden" / "tiny-cpu.json"
    found = losses(tmp_path / "run")
    if os.environ.get("LLMJP_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([round(loss, 7) for loss in found], indent=1) + "\n")
    # SSE4 alone, AVX2 and AVX-512, one thread and two differ by 2e-7; a change of what is computed by more than this.
    assert found == pytest.approx(json.loads(path.read_text()), rel=1e-5)


@pytest.mark.slow
def test_a_sweep_is_stopped_in_its_first_run_and_goes_on_with_all(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    words = ["-m", *small_run(tmp_path / "runs", prepared, tokenizer_folder), "seed=1,2"]
    first, second = tmp_path / "runs" / "seed=1", tmp_path / "runs" / "seed=2"
    process = subprocess.Popen([*LLMJP, "train", *words], stdout=subprocess.PIPE, text=True)
    wait_for(first, 2, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED
    assert "ends with run 1 of 2" in said
    assert latest(first).step < 20
    assert not second.exists()
    done = llmjp("train", *words)
    assert done.returncode == exit_codes.OK, done.stderr
    assert len(losses(first)) == len(losses(second)) == 20
    assert losses(first) != losses(second)
    assert f"llmjp run list {tmp_path / 'runs'}" in done.stdout
