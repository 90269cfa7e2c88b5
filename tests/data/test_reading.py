"""Documents from every kind of file, and from damaged ones."""

import gzip
import itertools
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp_train.data.inputs import find_files
from llmjp_train.data.reading import blocks, parse, parse_all, records, texts
from llmjp_train.errors import UserError

TEXTS = ["一つ目\r\nです。", "二つ目 😀", "", "四つ目\n\n終"]
LINES = b"".join(
    json.dumps({"text": text}, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, text in enumerate(TEXTS)
)


def zstd_frames(content: bytes) -> bytes:
    half = len(content) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:]))


COMPRESSED = {
    ".jsonl": lambda content: content,
    ".jsonl.gz": lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:]),
    ".jsonl.xz": lambda content: lzma.compress(content[:50]) + lzma.compress(content[50:]),
    ".jsonl.zst": zstd_frames,
}


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_json_lines_in_every_compression(tmp_path: Path, suffix: str) -> None:
    """Of several members, streams or frames too: readers that stop after the first lose text silently."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(COMPRESSED[suffix](LINES))
    found = list(records(path, "text"))
    assert [parse(record, "text") for record, _ in found] == [(text, "") for text in TEXTS]
    assert found[-1][1] == path.stat().st_size


@pytest.mark.parametrize("suffix", [s for s in COMPRESSED if s != ".jsonl"])
def test_truncated_compressed_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(COMPRESSED[suffix](LINES)[:-9])
    with pytest.raises(UserError, match="is damaged or truncated"):
        list(records(path, "text"))
    path.write_bytes(b"nothing of the kind, but long enough for a header")
    with pytest.raises(UserError, match="is damaged or truncated"):
        list(records(path, "text"))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged or truncated \(0 bytes"):
        list(records(path, "text"))


def test_text_files_keep_their_newlines(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeff一行\r\n二行\n".encode())
    assert [record for record, _ in records(tmp_path / "x.txt", "text")] == ["一行\r\n二行\n"]
    (tmp_path / "x.txt").write_bytes("日本".encode("cp932"))
    with pytest.raises(UserError, match=r"x\.txt is not UTF-8 .* 'iconv -f cp932 -t utf-8'"):
        list(records(tmp_path / "x.txt", "text"))


def test_parquet_and_datasets(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [*TEXTS, None], "n": range(5)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "x.parquet", tmp_path / "saved"):
        assert [record for record, _ in records(path, "text")] == [*TEXTS, None]
        with pytest.raises(UserError, match="has no column 'body', only text, n: set text_key"):
            list(records(path, "body"))
    assert parse(None, "text")[1] == "field 'text' holds NoneType, not text"
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="is damaged or truncated"):
        list(records(tmp_path / "x.parquet", "text"))
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"x"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"column 'text' of .* holds bytes \(binary\), not text"):
        list(records(tmp_path / "x.parquet", "text"))


def test_tables_with_bytes_missing_are_damaged_not_a_full_disk(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["日本" * 1000] * 50})
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[20:400] = b"\xff" * 380
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"(?s)x\.parquet .*damaged.*: copy it again"):
        list(records(path, "text"))
    Dataset(table).save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"saved cannot be read, or is damaged"):
        list(records(tmp_path / "saved", "text"))


BAD = {
    b'{"text": "x"': "no JSON",
    b'["text"]': "a JSON array: write one object a line",
    b'{"body": "x"}': "no field 'text'",
    b'{"text": 3}': "field 'text' holds int, not text",
    b'{"text": null}': "field 'text' holds NoneType, not text",
    b'{"text": "\\ud800"}': "text that is no Unicode",
    b'{"text": "\xff"}': "not UTF-8",
    '{"text": "日本"}'.encode(
        "cp932"
    ): "not UTF-8 (invalid start byte at byte 11): convert it, for example with 'iconv -f cp932 -t utf-8'",
    b"\xff\xfe"
    + '{"text": "日本"}'.encode("utf-16-le"): "not UTF-8 (invalid start byte at byte 1): convert it, "
    "for example with 'iconv -f utf-16 -t utf-8'",
    b'{"text": "a"} {"text": "b"}': "no JSON",
    b"[" * 100_000: "no JSON",
    b'{"text": "a", "more": "\xff"}': "not UTF-8",
    b'{"text": "a", "more": "\xed\xa0\x80"}': "not UTF-8",
    b'{"text": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "no JSON",
    b'{"text": "a", "more": ' + b'{"x":' * 100_000 + b"0" + b"}" * 100_001: "no JSON",
    b'{"text": ' + b"9" * 5000 + b"}": "field 'text' holds int, not text",
}


@pytest.mark.parametrize("line", BAD, ids=[*map(str, range(len(BAD)))])
def test_malformed_lines_are_told_apart(line: bytes) -> None:
    text, wrong = parse(line, "text")
    assert text == ""
    assert wrong.startswith(BAD[line])
    good = b'{"text": "a"}\n'
    assert parse_all([good, line + b"\n", good], "text") == [("a", ""), (text, wrong), ("a", "")]


ODD = [
    [b'{"text": "a"} {"text":\n', b'"b"}\n'],
    [b'{"text": "a"} {"more": {}\n', b', "text": "b"}\n'],
    [b'{"text": "a", "text": "b"}\n'],
    [b'{"text": "a", "more": NaN}\n'],
    [b'\xef\xbb\xbf{"text": "a"}\r\n', b'{"text": "b"}'],
    [b' {"text": "a"} \n', b"\t\n", b'{"te\\u0078t": "a"}\n'],
    [b'{"text": "a\x00"}\n', b'{"text": "a\t"}\n'],
    [b'{"text": "a", "more": ' + b"9" * 5000 + b"}\n"],
    [b'{"text": "a", "more": -' + b"9" * 5000 + b"}\n", b"{\n"],
    [b'{"text": "' + b"[{" * 1000 + b'"}\n', b'{"text": "a", "more": ' + b"[" * 400 + b"]" * 400 + b"}\n"],
    [b'{"text": "a", "more": [1, "s"]}\n', b'{"text": "b", "more": {"y": 2}}\n'],
]


@pytest.mark.parametrize("lines", ODD, ids=[*map(str, range(len(ODD)))])
def test_the_fast_way_reads_odd_lines_the_same(lines: list[bytes]) -> None:
    """Records that break across lines while their number is right, repeated keys, byte-order marks."""
    assert parse_all(lines, "text") == [parse(line, "text") for line in lines]


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(
                st.sampled_from(["text", "id", "more"]), st.one_of(st.text(), st.integers(), st.none())
            ),
            st.fixed_dictionaries(
                {"text": st.text(), "more": st.lists(st.dictionaries(st.text(), st.text()))}
            ),
        ),
        max_size=6,
    ),
    st.booleans(),
    st.booleans(),
)
def test_the_fast_way_reads_the_same(values: list[dict[str, object]], escaped: bool, blank: bool) -> None:
    lines = [json.dumps(value, ensure_ascii=escaped).encode() + b"\n" for value in values]
    lines += [b" \n"] * blank
    assert parse_all(lines, "text") == [parse(line, "text") for line in lines]


def test_blocks_depend_on_the_input_alone_and_count_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    found = list(blocks(find_files([str(tmp_path)]), "text", 60))
    assert [block.number for block in found] == list(range(len(found)))
    assert len(found) > 2
    for name in ("a.jsonl", "b.jsonl"):
        mine = [block for block in found if block.file.name == name]
        assert [record for block in mine for record in block.records] == LINES.splitlines(keepends=True)
        assert next(block.first for block in mine) == 1
        assert all(b.first == a.first + len(a.records) for a, b in itertools.pairwise(mine))
        assert sum(block.consumed for block in mine) == len(LINES)


def test_texts_tell_what_they_pass_over(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(LINES + b"{\n")
    told: list[str] = []
    assert list(texts([tmp_path / "x.jsonl"], "text", told.append)) == [text for text in TEXTS if text]
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path / 'x.jsonl'}:5: no JSON")
