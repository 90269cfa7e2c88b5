"""A run that trains while its public steps are evaluated, released and published beside it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.toy import small_run

from llmjp_train.publish.release_folder import read_manifest


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_live_run_is_published_step_by_step(tmp_path: Path, prepared: Path, tokenizer_folder: Path) -> None:
    run, site = tmp_path / "run", tmp_path / "site"
    llmjp = [sys.executable, "-m", "llmjp_train.cli"]
    words = small_run(
        run, prepared, tokenizer_folder,
        "schedule.length=300", "checkpoint.every_steps=50", "checkpoint.keep_last=1", "checkpoint.keep_steps=[100]",
    )  # fmt: skip
    training = subprocess.Popen(
        [*llmjp, "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        while not (run / "events.jsonl").exists():
            assert training.poll() is None
            time.sleep(0.2)
        settings = ["do=[export,publish]", f"to={site}", "licence=apache-2.0", "seconds=0.5"]
        done = subprocess.run(
            [*llmjp, "follow", str(run), *settings], capture_output=True, text=True, timeout=500
        )
    finally:
        training.wait(120)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = sorted(path.name for path in site.iterdir())
    assert shown == ["latest", f"step-00000100-tokens-{100 * 192}", f"step-00000300-tokens-{300 * 192}"]
    assert os.readlink(site / "latest") == shown[2], "the last one was published last"
    for name in shown[1:]:
        assert read_manifest(site / name)["licence"] == "apache-2.0"
        checked = subprocess.run(
            [*llmjp, "verify", str(site / name), "--level", "arithmetic"], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout
    assert [line for line in done.stdout.splitlines() if line.endswith("publish: done")] == [
        "step 100: publish: done", "step 300: publish: done",
    ]  # fmt: skip
