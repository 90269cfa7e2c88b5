"""What a run runs on, without names of users, hosts or folders."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "llmjp-train",
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "tokenizers",
    "lm-eval",
    "hydra-core",
    "numpy",
    "safetensors",
)
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def environment() -> dict[str, Any]:
    """Versions, processor, devices and source revision, as JSON."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "distributions": dict(sorted((found.name, found.version) for found in distributions() if found.name)),
        "cpu": cpu(),
        "devices": _devices(),
        "source": source_revision(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """Model, cores that this process may use, and the vector features that decide its speed."""
    model, flags = platform.machine(), set[str]()
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    features = [feature for feature in _FEATURES if feature in flags]
    return {"model": model, "cores": len(os.sched_getaffinity(0)), "features": features}


def _devices() -> list[str]:
    """Names of CUDA devices, where torch is loaded and sees any."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def source_revision() -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from; none outside one."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.stdout.strip(), "changed": bool(changed.stdout.strip())}
