"""The throw-away Slurm itself: up, in use, and gone, for any user."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.throwaway import SCRIPT, cluster, load, require


@pytest.mark.slow
def test_jobs_run_on_every_node_and_nothing_is_left() -> None:
    with cluster(3, gpus=8) as slurm:
        said = slurm.run(
            "srun", "-N3", "--gpus-per-node=8", "bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
        )
        assert sorted(said.split("\n")) == ["", *(f"127.0.0.{i} 0,1,2,3,4,5,6,7" for i in (1, 2, 3))]
        # A daemon that is killed and a step that ignores signals: the worst to clean up after.
        stubborn = slurm.run(
            "sbatch", "--parsable", "--wrap", "srun bash -c \"trap '' TERM; sleep 1000\""
        ).strip()
        slurm.wait_job(stubborn, ("RUNNING",))
        slurm.daemon("kill", "127.0.0.1")
        root = slurm.root
    assert not root.exists()


@pytest.mark.slow
def test_up_and_down_by_an_ordinary_user() -> None:
    require()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    script = shutil.copy(SCRIPT, folder)
    other = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    as_user: dict[str, Any] = (
        {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3"
    root = Path(tempfile.gettempdir()) / f"llmjp-slurm-user-{os.getpid()}"

    def act(word: str) -> "subprocess.CompletedProcess[str]":
        words = [python, script, word, "--root", str(root), "--nodes", "2"]
        return subprocess.run(words, capture_output=True, text=True, cwd="/", **as_user, timeout=60)

    try:
        started = act("up")
        assert started.returncode == 0, started.stderr
        assert f"export SLURM_CONF={root}/slurm.conf" in started.stdout
        again = act("up")
        assert again.returncode == 1
        assert "make slurm-down" in again.stderr
        env = load().environment(root)
        said = subprocess.run(
            ["srun", "-N2", "id", "-un"], env=env, capture_output=True, text=True, **as_user, cwd="/"
        )
        assert said.stdout.split() == [other.pw_name] * 2, said.stderr
    finally:
        ended = act("down")
        shutil.rmtree(folder)
    assert ended.stdout == "down\n"
    assert load()._strays(root) == []
    assert not root.exists()


def test_without_the_packages_it_says_how_to_have_them() -> None:
    python = shutil.which("python3") or "python3"
    done = subprocess.run(
        [python, "-c", f"import sys; sys.argv=['x','up']; import runpy, shutil; shutil.which=lambda *a, **k: None; "
         f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "apt-get install slurm-wlm munge" in done.stderr
