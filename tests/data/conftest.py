"""What tests of `llmjp prepare` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.toy import write_jsonl

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig


@pytest.fixture
def preparing(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> Callable[..., PrepareConfig]:
    """Makes a configuration of `llmjp prepare`: one worker, output in the test's folder."""

    def make(**changes: Any) -> PrepareConfig:
        known = {
            "input": [str(corpus)],
            "output": str(tmp_path / "prepared"),
            "tokenizer": TokenizerConfig(name="toy", path=str(tokenizer_folder)),
            "workers": 1,
            "validation_share": 0.1,
        }
        return PrepareConfig(**(known | changes))

    return make


@pytest.fixture(scope="session")
def jsonl() -> Callable[[Path, list[str]], Path]:
    """Writes JSON lines with a text each."""
    return write_jsonl


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Bytes of all files that `llmjp prepare` makes."""
    names = [f"{name}.{suffix}" for name in ("train", "validation") for suffix in ("bin", "idx")]
    return lambda folder: {name: (folder / name).read_bytes() for name in [*names, "manifest.json"]}
