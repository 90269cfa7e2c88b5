"""Token files that others made are sources as they are: named by prefix, read, never written to."""

import argparse
import json
import struct
from pathlib import Path

import pytest
import torch

from llmjp_train.commands.data import add_arguments, run
from llmjp_train.config.data import DataConfig, SourceConfig
from llmjp_train.config.phases import Phase
from llmjp_train.data.stream import TrainingStream, ValidationStream

TABLE = [Phase(0, None, 0, 0, 2, 8, 1e-3, {})]
EOD = 2


def megatron(prefix: Path, documents: list[list[list[int]]], letter: str, code: int) -> Path:
    """Documents of several sequences each, as Megatron's preprocessing with split sentences leaves them."""
    sequences = [sequence for document in documents for sequence in document]
    size = struct.calcsize(letter)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{prefix}.bin", "wb") as file:
        for sequence in sequences:
            file.write(struct.pack(f"<{len(sequence)}{letter}", *sequence))
    lengths = [len(sequence) for sequence in sequences]
    pointers = [size * sum(lengths[:number]) for number in range(len(sequences))]
    ends = [sum(len(document) for document in documents[:number]) for number in range(len(documents) + 1)]
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(ends)))
        file.write(struct.pack(f"<{len(lengths)}i", *lengths))
        file.write(struct.pack(f"<{len(pointers)}q", *pointers))
        file.write(struct.pack(f"<{len(ends)}q", *ends))
    return prefix


def written(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}


@pytest.mark.parametrize(
    ("letter", "code", "vocab_size"), [("H", 8, 60_000), ("i", 4, 100_000), ("q", 5, 100_000)]
)
def test_a_foreign_pair_is_a_source_unchanged(
    tmp_path: Path, letter: str, code: int, vocab_size: int
) -> None:
    top = vocab_size - 1
    documents = [
        [[top, 11, 12], [13, EOD]],
        [[21, 22, 23, 24, 25, 26, 27, EOD]],
        [[31, 32], [33], [34, 35, EOD]],
    ]
    wiki = megatron(tmp_path / "corpora" / "wiki.ja", documents, letter, code)
    held_out = megatron(
        tmp_path / "corpora" / "wiki.held_out", [[[41, 42], [43, EOD]], [[51, 52, EOD]]], letter, code
    )
    before = written(tmp_path)
    data = DataConfig(name="x", sources={"wiki": SourceConfig(path=str(wiki), validation=str(held_out))})

    stream = TrainingStream(data, TABLE, vocab_size)
    batch = stream.batch(0, 2, 8)
    flat = [token for document in documents for sequence in document for token in sequence]
    first, second = sorted(range(2), key=lambda row: flat.index(int(batch.tokens[row, 0])))
    assert batch.tokens[first].tolist() + batch.tokens[second].tolist() == flat[:16]
    assert batch.documents[first].tolist() == [0, 0, 0, 0, 0, 1, 1, 1], "sequences of a document are one"
    assert batch.positions[first].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.targets[first].tolist() == [11, 12, 13, EOD, -100, 22, 23, 24]
    assert batch.documents[second].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert stream.fingerprint["sources"]["wiki"]["tokenizer"] is None
    stream.check_tokenizer("0" * 64, "any", 0)  # nothing tells with which these were made

    validation = ValidationStream(data, 8, vocab_size)
    assert validation.num_samples == 1
    assert validation.batch(0, 1).tokens[0].tolist() == [41, 42, 43, EOD, 51, 52, EOD, 0]
    assert torch.equal(validation.batch(0, 1).targets[0, 2:5], torch.tensor([EOD, -100, 52]))
    assert written(tmp_path) == before


def test_a_foreign_source_without_validation_has_none(tmp_path: Path) -> None:
    wiki = megatron(tmp_path / "wiki", [[[5] * 20]], "H", 8)
    data = DataConfig(name="x", sources={"wiki": SourceConfig(path=str(wiki))})
    assert ValidationStream(data, 8, 100).num_samples == 0


def test_the_command_shows_and_verifies_a_foreign_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    wiki = str(megatron(tmp_path / "wiki.ja", [[[5, 6], [7]], [[8]]], "H", 8))
    assert run(parser.parse_args(["show", wiki, "--json"])) == 0
    shown = json.loads(capsys.readouterr().out)[0]
    assert (shown["documents"], shown["tokens"], shown["dtype"]) == (2, 4, "uint16")
    assert run(parser.parse_args(["verify", f"{wiki}.idx"])) == 0
    assert f"{wiki}: sound" in capsys.readouterr().out
