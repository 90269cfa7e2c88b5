"""The unigram's cross-entropy against a count by hand."""

import math
from pathlib import Path

import pytest

from llmjp_train.data.token_files import TokenFileWriter
from llmjp_train.data.unigram import unigram_cross_entropy


def test_cross_entropy_with_one_added_to_each_count(tmp_path: Path) -> None:
    for name, documents in (("train", [[0, 0, 1], [0]]), ("validation", [[0, 1, 3]])):
        with TokenFileWriter(tmp_path / name, 10) as writer:
            for document in documents:
                writer.add(document)
    expected = -(math.log(4 / 8) + math.log(2 / 8) + math.log(1 / 8)) / 3
    assert unigram_cross_entropy(tmp_path / "train", tmp_path / "validation") == pytest.approx(expected)
