"""A real Slurm for tests: the keeper of slurm/throwaway.py as a child that ends with us."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from helpers.processes import wait

SCRIPT = Path(__file__).parents[2] / "slurm" / "throwaway.py"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")


def load() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("throwaway", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require() -> None:
    """Skip where Slurm is not installed, saying how to have it; CI has it."""
    module = load()
    missing = module.missing_programs()
    if missing and os.environ.get("LLMJP_CI"):
        pytest.fail(f"CI must have Slurm: {', '.join(missing)} not found ({module.HOW_TO_INSTALL})")
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}); to run these tests: {module.HOW_TO_INSTALL}")


class Slurm:
    """Commands of a running cluster."""

    def __init__(self, root: Path, keeper: "subprocess.Popen[str]") -> None:
        self.root, self._keeper = root, keeper
        self.env = load().environment(root)
        venv = str(Path(sys.executable).parent)
        self.env["PATH"] = f"{venv}{os.pathsep}{self.env['PATH']}"

    def run(self, *command: object, check: bool = True, cwd: Path | None = None, **env: str) -> str:
        """Standard output and error of a command, within the cluster."""
        done = subprocess.run(
            [str(word) for word in command], env={**self.env, **env}, cwd=cwd or self.root,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job; empty when nothing."""
        text = self.run("scontrol", "-o", "show", "job", number, check=False)
        return dict(re.findall(r"(\w+)=(\S*)", text.strip().splitlines()[-1])) if "JobState" in text else {}

    def wait_job(self, number: str, states: tuple[str, ...] = ENDED, seconds: float = 60) -> str:
        """The state of a job once it is one of ``states``."""
        wait(lambda: self.job(number).get("JobState", "GONE") in states, seconds, f"job {number} {states}")
        return self.job(number).get("JobState", "GONE")

    def daemon(self, word: str, name: str) -> None:
        """`kill` or `start` slurmctld or the slurmd of a node; `lose` a node with all that runs on it."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(f"{word} {name}\n")
        self._keeper.stdin.flush()
        assert self._keeper.stdout.readline() == "done\n"


@contextmanager
def cluster(nodes: int, gpus: int = 0, cpus: int = 16) -> Iterator[Slurm]:
    """A cluster of ``nodes``, all idle; nothing of it is left afterwards."""
    require()
    root = Path(tempfile.mkdtemp(prefix="llmjp-slurm-test-"))
    words = ["--root", root, "--nodes", nodes, "--gpus", gpus, "--cpus", cpus]
    keeper = subprocess.Popen(
        [sys.executable, str(SCRIPT), "keep", *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        yield Slurm(root, keeper)
    finally:
        keeper.communicate(timeout=30)  # closes its standard input
        assert load()._strays(root) == []
        shutil.rmtree(root, ignore_errors=True)
