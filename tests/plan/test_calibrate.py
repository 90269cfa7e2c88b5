"""Calibration on runs: a real one, and ones that cannot serve."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers.plans import experiment

from llmjp_train.cli import main
from llmjp_train.config.compose import dump_config
from llmjp_train.errors import UserError
from llmjp_train.plan.calibrate import calibrate
from llmjp_train.plan.constants import shipped
from llmjp_train.plan.job import job_from
from llmjp_train.plan.timing import step_time
from llmjp_train.runlog.reading import step_rows
from llmjp_train.runlog.record import RunRecord

LARGE = "experiment=llm-jp-3-13b"


def recorded(path: Path, config: Any, seconds: float, rows: int = 30) -> Path:
    """A run directory as the loop leaves it, with steps that took ``seconds`` (the first ones longer)."""
    record = RunRecord(path)
    record.create(dump_config(config))
    job = job_from(config)
    record.event("start", step=0, epoch=1, layout={"data": 1, "zero": 1, "ranks": job.ranks}, peak_tflops=0.2)
    for step in range(1, rows + 1):
        took = seconds * (4 if step <= 5 else 1)
        rate = job.global_batch * job.sequence_length / took
        record.metrics(step=step, tokens=step, loss=5.0, tokens_per_s=rate, step_s=took)
    return path


def test_the_plan_then_gives_the_step_that_was_measured(tmp_path: Path) -> None:
    config = experiment(LARGE)
    before = step_time(job_from(config))
    assert before is not None
    run = recorded(tmp_path / "run", config, 1.3 * before.seconds)
    found = calibrate(run, config)
    after = step_time(job_from(config), found.constants)
    assert after is not None
    assert after.seconds == pytest.approx(1.3 * before.seconds, rel=1e-3)
    assert after.of("data-parallel communication") == before.of("data-parallel communication")
    assert found.constants.source == str(run)
    # another layout of the same model is planned with the same machine
    wider = replace(job_from(config), micro_batch=1)
    slow, fast = step_time(wider, found.constants), step_time(wider, shipped())
    assert slow is not None
    assert fast is not None
    assert slow.seconds > fast.seconds


def test_the_command_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment(LARGE)
    run = recorded(tmp_path / "run", config, 10.0)
    assert main(["plan", "--calibrate", str(run), LARGE]) == 0
    out, err = capsys.readouterr()
    assert "took 10 s" in err
    assert f"calibrated on {run}" in out
    assert "published runs of other engines" not in out
    assert "(10 in all)" in out


@pytest.mark.slow
def test_what_bounds_the_fastest_is_said_of_the_calibrated_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(LARGE)
    run = recorded(tmp_path / "run", config, 100.0)  # compute so slow that nothing else counts
    shares = []
    for flags in ([], ["--calibrate", str(run)]):
        assert main(["plan", "--search", *flags, LARGE]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "the fastest spends" in line)
        shares.append(int(line.split("spends ")[1].partition("%")[0]))
    assert shares[0] < shares[1]


@pytest.mark.slow
def test_a_real_run_on_this_cpu(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [
        "experiment=tiny-cpu",
        f"tokenizer.path={tokenizer_folder}",
        f"data.sources.small.path={prepared}",
        "batch.global_batch=2",
        "batch.micro_batch=2",
        "batch.sequence_length=64",
        "schedule.length=22",
        "schedule.warmup=2",
        "evaluation=none",
    ]
    command = [sys.executable, "-m", "llmjp_train.cli", "train", *words, f"run_dir={run}"]
    trained = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert trained.returncode == 0, trained.stderr
    rows = step_rows(RunRecord(run).read_metrics())
    measured = 2 * 64 / median(row["tokens_per_s"] for row in rows[-20:])
    assert main(["plan", "--json", "--calibrate", str(run), *words]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["step_s"]["high"] == pytest.approx(measured, rel=1e-3)
    assert planned["constants"]["source"] == str(run)


def test_runs_that_cannot_serve(tmp_path: Path) -> None:
    config = experiment(LARGE)
    run = recorded(tmp_path / "run", config, 10.0)
    with pytest.raises(UserError, match="trained model 13b, the plan is for 172b"):
        calibrate(run, experiment("experiment=llm-jp-3-172b-geniac"))
    with pytest.raises(UserError, match="device_name"):
        calibrate(run, experiment(LARGE, "cluster=abci-3"))
    with pytest.raises(UserError, match="precision"):
        calibrate(run, experiment(LARGE, "precision=fp32"))
    short = recorded(tmp_path / "short", config, 10.0, rows=7)
    with pytest.raises(UserError, match="7 rows of steps, a calibration needs 20"):
        calibrate(short, config)
    with pytest.raises(UserError, match="does not exist"):
        calibrate(tmp_path / "none", config)
