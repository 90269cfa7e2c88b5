"""Code, configuration and environment as they are when a job is submitted, so that later edits change nothing."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import llmjp_train
from llmjp_train.config.machine import ClusterConfig
from llmjp_train.resources import resource
from llmjp_train.runlog.environment import environment

RESOURCES = ("configs", "eval", "slurm", "pbs", "grid_engine", "hosts")
_LARGEST_DIFF = 10_000_000


def take(folder: Path, config_yaml: str, cluster: ClusterConfig) -> dict[str, Any]:
    """Write config.yaml, code/, environment.json and source.json into a job's folder; what source.json says."""
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    package = Path(llmjp_train.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, folder / "code" / "src" / "llmjp_train", ignore=ignore)
    if not (package / "resources").is_dir():  # a checkout; a wheel has them inside
        for name in RESOURCES:
            shutil.copytree(resource(name), folder / "code" / name, ignore=ignore)
    found = environment()
    if cluster.image:
        found["image"] = image(cluster.image)
    _write(folder / "environment.json", {"schema": 1, **found})
    source = _source(package, folder / "changes.diff")
    source["code"] = fingerprint(folder / "code")
    source["config"] = hashlib.sha256(config_yaml.encode()).hexdigest()
    _write(folder / "source.json", {"schema": 1, **source})
    return source


def share(folder: Path, first: Path, config_yaml: str) -> None:
    """The later jobs of a chain run the first one's snapshot."""
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    for name in ("code", "environment.json", "source.json", "changes.diff"):
        if (first / name).exists():
            (folder / name).symlink_to(Path("..") / first.name / name)


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(folder)}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def image(name: str) -> dict[str, Any]:
    """An image's digest where it is a file, its size where reading it whole would take long."""
    path = Path(name)
    if not path.is_file():
        return {"name": name, "sha256": None}
    size = path.stat().st_size
    if size > 20e9:
        return {"name": name, "sha256": None, "bytes": size}
    with path.open("rb") as file:
        return {"name": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": size}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _source(package: Path, diff: Path) -> dict[str, Any]:
    """Commit and uncommitted changes of the checkout that the package runs from."""
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "changed": None, "version": llmjp_train.__version__}
    changed = _git(package, "status", "--porcelain") or ""
    text = _git(package, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    if text:
        diff.write_text(text[:_LARGEST_DIFF], encoding="utf-8")
    return {"commit": commit.strip(), "changed": sorted(line[3:] for line in changed.splitlines()),
            "version": llmjp_train.__version__}  # fmt: skip


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=60,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
