"""What this machine has, found without torch: processor, memory, disk, schedulers, build tools."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

SCHEDULERS = {
    "sbatch": "Slurm",
    "qsub": "PBS or Grid Engine",
    "pjsub": "Fujitsu TCS",
    "bsub": "LSF",
}
"""Commands that submit jobs, and whose they are."""
LAUNCHERS = ("srun", "mpirun", "torchrun")
COMPILERS = ("g++", "c++", "clang++")


def memory() -> dict[str, float]:
    """Total and free memory in GiB; a container's limit counts where it is lower."""
    found = psutil.virtual_memory()
    total, free = found.total, found.available
    limit = _cgroup("memory.max")
    if limit is not None and limit < total:
        used = _cgroup("memory.current") or 0
        total, free = limit, min(free, max(0, limit - used))
    return {"total_gib": total / 2**30, "free_gib": free / 2**30}


def alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that has ended and that nobody has waited for does not."""
    return began(pid) != ""


def began(pid: int) -> str:
    """When a process began, in ticks since boot; empty when there is none that lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _cgroup(name: str) -> int | None:
    """A number of this process's control group (version 2); none where there is none, or no limit."""
    path = Path("/sys/fs/cgroup") / name
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def disk(folder: Path) -> dict[str, Any]:
    """Free space in GB where ``folder`` lies, and whether a file can be written there."""
    return {"free_gb": shutil.disk_usage(folder).free / 1e9, "writable": os.access(folder, os.W_OK)}


def tools() -> dict[str, str | None]:
    """Paths of what compiles extensions; none where it is absent."""
    return {
        "ninja": shutil.which("ninja"),
        "compiler": next((path for name in COMPILERS if (path := shutil.which(name))), None),
    }


def schedulers() -> dict[str, str]:
    """Submit commands found here, and whose they are."""
    return {name: whose for name, whose in SCHEDULERS.items() if shutil.which(name)}


def launchers() -> list[str]:
    """Commands found here that start the processes of a job."""
    return [name for name in LAUNCHERS if shutil.which(name)]


def nvidia_devices() -> list[str]:
    """Devices that the driver shows, as nvidia-smi names them; they may still not fit the torch installed."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]
