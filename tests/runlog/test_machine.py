"""What is found of a machine without torch."""

import shutil
from pathlib import Path

import psutil
import pytest

from llmjp_train.runlog import machine


def put(folder: Path, name: str, text: str = "exit 0") -> None:
    """An executable script in ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_schedulers_and_tools_are_looked_for_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.schedulers() == {}
    assert machine.tools() == {"ninja": None, "compiler": None}
    for name in ("qsub", "sbatch", "srun", "ninja", "clang++"):
        put(tmp_path, name)
    assert machine.schedulers() == {"sbatch": "Slurm", "qsub": "PBS or Grid Engine"}
    assert machine.launchers() == ["srun"]
    assert machine.tools() == {"ninja": str(tmp_path / "ninja"), "compiler": str(tmp_path / "clang++")}


def test_devices_are_those_that_the_driver_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Path(shutil.which("sh") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_devices() == []
    put(tmp_path, "nvidia-smi", "echo 'Card A, 80 GiB'; echo 'Card B, 80 GiB'")
    assert shell.is_file()
    assert machine.nvidia_devices() == ["Card A, 80 GiB", "Card B, 80 GiB"]
    put(tmp_path, "nvidia-smi", "echo 'no driver' >&2; exit 9")
    assert machine.nvidia_devices() == []


def test_memory_is_within_what_the_system_has() -> None:
    found = machine.memory()
    assert 0 < found["free_gib"] <= found["total_gib"] <= psutil.virtual_memory().total / 2**30


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup", {"memory.max": 2**30, "memory.current": 2**29}.get)
    assert machine.memory() == {"total_gib": 1.0, "free_gib": 0.5}


def test_disk(tmp_path: Path) -> None:
    found = machine.disk(tmp_path)
    assert found["free_gb"] > 0
    assert found["writable"] is True
