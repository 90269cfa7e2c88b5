"""A run submitted to this machine itself: it trains apart from the shell, is watched, stopped and gone on with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import wait
from helpers.runs import losses
from helpers.toy import small_run

from llmjp_train.checkpoint.listing import committed

LLMJP = (sys.executable, "-m", "llmjp_train.cli")


def llmjp(*words: object) -> str:
    command = [*LLMJP, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(run_dir: Path) -> Any:
    return json.loads(llmjp("status", run_dir, "--json"))[0]


def steps(run_dir: Path) -> int:
    return len(losses(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


@pytest.mark.full
def test_a_run_on_this_machine_is_submitted_stopped_and_resumed(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "a local run"
    words = small_run(run_dir, prepared, tokenizer_folder, "schedule.length=100000", "parallel.data=2")
    llmjp("submit", *words)
    wait(lambda: steps(run_dir) > 5, 120, "steps")
    assert state(run_dir)["state"] == "running"
    llmjp("stop", run_dir)
    wait(lambda: state(run_dir)["jobs"] == [], 90, "end of the job")
    stopped = committed(run_dir)[-1].step
    assert stopped == steps(run_dir), "a gentle stop loses no step"

    llmjp("resume", run_dir)
    wait(lambda: steps(run_dir) > stopped + 3, 120, "steps after the resume")
    llmjp("cancel", run_dir)
    wait(lambda: state(run_dir)["jobs"] == [], 90, "end of the second job")
    assert state(run_dir)["state"] == "stopped"
    numbers = [row[0] for row in losses(run_dir)]
    assert numbers == list(range(1, len(numbers) + 1)), "no step is missing or done twice"
