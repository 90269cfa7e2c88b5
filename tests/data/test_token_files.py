"""Token files against a writer straight from the format's description, and past 2^31 bytes."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp_train.data.token_files import TokenFile, TokenFileWriter, write_index
from llmjp_train.errors import UserError


def by_the_book(
    prefix: Path, documents: list[list[int]], letter: str, code: int, modes: bool = False
) -> None:
    """The format with `struct` alone, from the description in NVIDIA/Megatron-LM's indexed_dataset.py."""
    size = struct.calcsize("<" + letter)
    with prefix.with_suffix(".bin").open("wb") as file:
        for document in documents:
            for token in document:
                file.write(struct.pack("<" + letter, token))
    with prefix.with_suffix(".idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code))
        file.write(struct.pack("<Q", len(documents)) + struct.pack("<Q", len(documents) + 1))
        for document in documents:
            file.write(struct.pack("<i", len(document)))
        offset = 0
        for document in documents:
            file.write(struct.pack("<q", offset))
            offset += len(document) * size
        for number in range(len(documents) + 1):
            file.write(struct.pack("<q", number))
        file.write(b"\x00" * (len(documents) if modes else 0))


documents_strategy = st.lists(st.lists(st.integers(0, 60_000), max_size=9), max_size=12)


@settings(max_examples=60)
@given(
    documents_strategy,
    st.sampled_from([(60_001, "H", 8), (65_499, "H", 8), (65_500, "i", 4), (99_574, "i", 4)]),
)
def test_writes_the_same_bytes_as_an_independent_writer(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], kind: tuple[int, str, int]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    vocab_size, letter, code = kind
    by_the_book(folder / "book", documents, letter, code)
    with TokenFileWriter(folder / "ours", vocab_size) as writer:
        for document in documents:
            writer.add(document)
    for suffix in (".bin", ".idx"):
        assert (folder / f"ours{suffix}").read_bytes() == (folder / f"book{suffix}").read_bytes()
    assert writer.num_tokens == sum(map(len, documents))


@settings(max_examples=60)
@given(documents_strategy, st.booleans())
def test_reads_what_an_independent_writer_wrote(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], modes: bool
) -> None:
    prefix = tmp_path_factory.mktemp("files") / "book"
    by_the_book(prefix, documents, "i", 4, modes)
    file = TokenFile(prefix)
    flat = [token for document in documents for token in document]
    assert file.read(0, 10**6).tolist() == flat
    assert file.num_tokens == len(flat)
    assert file.num_documents == len(documents)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])]).tolist()
    assert file.document_offsets.tolist() == offsets
    assert file.problems() == []
    for start in range(0, max(1, len(flat) - 4), 3):
        rows, columns = file.starts_within(np.array([start]), 5)
        assert columns.tolist() == [o - start for o in offsets[:-1] if start < o < start + 5]
        assert set(rows.tolist()) <= {0}


def test_many_documents_at_once_are_as_one_by_one(tmp_path: Path) -> None:
    lengths = [3, 0, 5, 1]
    with TokenFileWriter(tmp_path / "many", 100) as many:
        many.add_many(np.arange(9), lengths)
    with TokenFileWriter(tmp_path / "single", 100) as single:
        for start, length in zip([0, 3, 3, 8], lengths, strict=True):
            single.add(range(start, start + length))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"many{suffix}").read_bytes() == (tmp_path / f"single{suffix}").read_bytes()


def synthetic(prefix: Path, lengths: list[int]) -> TokenFile:
    """Files of the given lengths whose content is a hole: no disk is used."""
    with prefix.with_suffix(".idx").open("wb") as file:
        write_index(file, np.array(lengths, dtype=np.int32), np.dtype("<i4"))
    with prefix.with_suffix(".bin").open("wb") as file:
        file.truncate(4 * sum(lengths))
    return TokenFile(prefix)


def test_offsets_beyond_two_to_the_31_bytes(tmp_path: Path) -> None:
    lengths = [1_500_000_000, 7, 2_000_000_000, 1_000_000_000, 5]
    file = synthetic(tmp_path / "large", lengths)
    assert file.num_tokens == sum(lengths)
    ends = np.cumsum(lengths)
    assert file.document_offsets.tolist() == [0, *ends.tolist()]
    raw = (tmp_path / "large.idx").read_bytes()
    pointers = struct.unpack_from("<5q", raw, 34 + 4 * 5)
    assert pointers == (0, *(4 * int(end) for end in ends[:-1]))
    assert pointers[2] > 2**31
    with (tmp_path / "large.bin").open("r+b") as content:
        content.seek(4 * (sum(lengths) - 2))
        content.write(struct.pack("<ii", 17, 18))
    assert file.read(sum(lengths) - 3, 9).tolist() == [0, 17, 18]
    rows, columns = file.starts_within(np.array([int(ends[2]) - 2, int(ends[3]) - 1]), 4)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [2, 1])
    assert file.problems() == []


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    """Megatron-core keeps sentences apart as sequences; documents end where document_indices says."""
    by_the_book(tmp_path / "x", [[1, 2], [3], [4, 5, 6], [7]], "H", 8)
    raw = (tmp_path / "x.idx").read_bytes()
    head = raw[:9] + struct.pack("<QBQQ", 1, 8, 4, 3)
    (tmp_path / "x.idx").write_bytes(head + raw[34 : 34 + 12 * 4] + struct.pack("<3q", 0, 2, 4))
    file = TokenFile(tmp_path / "x")
    assert file.num_documents == 2
    assert file.document_offsets.tolist() == [0, 3, 7]
    assert file.starts_within(np.array([1]), 6)[1].tolist() == [2]


def changed(prefix: Path, at: int, value: bytes) -> None:
    content = bytearray(prefix.with_suffix(".idx").read_bytes())
    content[at : at + len(value)] = value
    prefix.with_suffix(".idx").write_bytes(bytes(content))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    by_the_book(tmp_path / "x", [[1, 2, 3], [4, 5]], "H", 8)
    return tmp_path / "x"


def test_a_truncated_bin_is_refused_with_both_sizes(sound: Path) -> None:
    path = sound.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        UserError, match=r"x\.bin is truncated: it has 7 bytes, but x\.idx lists 5 tokens = 10 bytes"
    ):
        TokenFile(sound)


def test_a_bin_of_another_index_is_refused(sound: Path) -> None:
    with sound.with_suffix(".bin").open("ab") as file:
        file.write(b"12")
    with pytest.raises(UserError, match="does not belong to its index: it has 12 bytes"):
        TokenFile(sound)


def test_an_index_of_another_version_is_refused(sound: Path) -> None:
    changed(sound, 9, struct.pack("<Q", 2))
    with pytest.raises(UserError, match="index version 2, but only version 1"):
        TokenFile(sound)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"TNTIDX\x00\x00", "older format"),
        (0, b"GARBAGE\x00\x00", "not a Megatron-core index"),
        (17, b"\x07", "dtype code 7"),
        (18, struct.pack("<Q", 3), "truncated or damaged"),
        (26, struct.pack("<Q", 0), "empty document_indices"),
        (34 + 24 + 16, struct.pack("<q", 9), "document_indices"),
        (34 + 8 + 8, struct.pack("<q", -8), "overflowed"),
    ],
)
def test_a_damaged_index_is_refused(sound: Path, at: int, value: bytes, said: str) -> None:
    changed(sound, at, value)
    with pytest.raises(UserError, match=said):
        TokenFile(sound)


def test_a_truncated_index_is_refused(sound: Path) -> None:
    path = sound.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated or damaged"):
        TokenFile(sound)


def test_a_missing_file_is_named(sound: Path) -> None:
    sound.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"x\.idx does not exist: make it with 'llmjp prepare'"):
        TokenFile(sound)


def test_a_full_reading_finds_a_wrong_offset_in_the_middle(sound: Path) -> None:
    changed(sound, 34 + 8, struct.pack("<q", 2))
    assert TokenFile(sound).problems() == ["sequence 0 begins at byte 2, not at 0"]


def test_ids_outside_the_vocabulary_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="holds id 100, but the vocabulary has 100"),
        TokenFileWriter(tmp_path / "x", 100) as w,
    ):
        w.add([1, 100])
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_it_is_complete(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "x", 100)
    writer.add([1, 2])
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin.part"}
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", "x.idx"}


def test_the_fingerprint_sees_one_changed_token_in_a_small_file(sound: Path) -> None:
    before = TokenFile(sound).fingerprint
    content = bytearray(sound.with_suffix(".bin").read_bytes())
    content[4] ^= 1
    sound.with_suffix(".bin").write_bytes(bytes(content))
    assert TokenFile(sound).fingerprint != before
