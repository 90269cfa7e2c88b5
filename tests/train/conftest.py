"""What tests of whole runs share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.toy import small_run


@pytest.fixture
def overrides(prepared: Path, tokenizer_folder: Path) -> Callable[..., list[str]]:
    """Overrides of a small run in a directory, with more of the test's own."""
    return lambda run_dir, *more: small_run(run_dir, prepared, tokenizer_folder, *more)
