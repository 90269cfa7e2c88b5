"""A stop that comes while `llmjp train parallel.data=2` still starts its processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import losses
from helpers.toy import small_run

from llmjp_train import exit_codes


@pytest.mark.slow
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 0.0), (signal.SIGUSR1, 0.4)])
def test_a_signal_while_own_ranks_start_ends_them_as_a_stop(
    number: int, delay: float, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    words = small_run(
        tmp_path / "run", prepared, tokenizer_folder, "parallel.data=2", "schedule.length=100000"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "llmjp_train.cli", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the numbers are printed before any rank is started
    time.sleep(delay)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == exit_codes.STOPPED, out
    assert (tmp_path / "run" / "metrics.jsonl").exists() is False or losses(tmp_path / "run") == []
