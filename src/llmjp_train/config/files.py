"""What small files on this machine say, and what tools it has, before anything is imported that could tell more."""

import json
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from llmjp_train.config.machine import Device
from llmjp_train.config.root import TrainConfig

_NAMED = 3
"""Absent sources that a message names."""


def tokenizer_size(path: Path) -> int | None:
    """Ids of a Hugging Face tokenizer folder, added tokens included; none where it cannot be told from JSON.

    Reads ``tokenizer.json`` alone. What it cannot read is left to the tokenizer's own loader to tell.
    """
    try:
        content: Any = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        last = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        added = [int(token["id"]) for token in content.get("added_tokens") or []]
        return int(max([last, *added])) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def compiler_problems(config: TrainConfig) -> list[str]:
    """What compiled layers need on CPUs and is not on this machine."""
    if not config.parallel.compile or config.cluster.device is not Device.cpu:
        return []
    compiler = os.environ.get("CXX", "g++")  # as PyTorch looks for it
    if shutil.which(compiler) is None:
        return [
            f"parallel.compile=true needs a C++ compiler on CPUs, and there is no {compiler}: install g++, name "
            "another with the environment variable CXX, or take parallel.compile=false"
        ]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return [
            f"parallel.compile=true needs Python's headers on CPUs, and there is no {header}: install them "
            "(python3-dev), or take parallel.compile=false"
        ]
    return []


def file_problems(config: TrainConfig) -> list[str]:
    """Files that a start needs and that are not here."""
    found = []
    path = config.tokenizer.path
    if path not in ("", "???") and not Path(path).exists():
        found.append(
            f"tokenizer.path={path} does not exist: train one with 'llmjp tokenizer train' or correct it"
        )
    absent = {
        name: source.path
        for name, source in config.data.sources.items()
        if source.path != "???" and not _has_token_files(Path(source.path))
    }
    if absent:
        named = [f"data.sources.{name}.path={path}" for name, path in list(absent.items())[:_NAMED]]
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        found.append(
            f"{', '.join(named)}{more}: neither a folder of 'llmjp prepare' nor the prefix of a .bin/.idx pair "
            "that exists; make it with 'llmjp prepare', or correct it"
        )
    if config.fork.run and not (Path(config.fork.run) / "config.yaml").is_file():
        found.append(
            f"fork.run={config.fork.run} is no run directory (it holds no config.yaml): 'llmjp run list' shows runs"
        )
    return found


def _has_token_files(path: Path) -> bool:
    return path.is_dir() or Path(f"{path}.idx").is_file() or Path(f"{path}.bin").is_file()
