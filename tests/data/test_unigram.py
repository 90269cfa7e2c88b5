"""The unigram's cross-entropy against a count by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from llmjp_train.data.token_files import TokenFileWriter
from llmjp_train.data.unigram import unigram_cross_entropy


def test_cross_entropy_with_one_added_to_each_count(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "train", 10) as writer:
        for document in ([0, 0, 1], [0]):
            writer.add(document)
    expected = -(math.log(4 / 8) + math.log(2 / 8) + math.log(1 / 8)) / 3
    targets = np.array([[0, -100], [1, 3]])  # -100: no target
    assert unigram_cross_entropy(tmp_path / "train", targets) == pytest.approx(expected)
