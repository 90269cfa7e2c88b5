"""Which files an input means."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from datasets import Dataset, DatasetDict

from llmjp_train.data.inputs import find_files, survey
from llmjp_train.data.reading import parse, records
from llmjp_train.errors import UserError

TEXTS = ["一つ目", "二つ目", "三つ目"]
LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)


def test_files_are_found_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_files([str(tmp_path / "b.jsonl"), str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.jsonl", "a.jsonl.gz", "sub/c.txt"]


def test_the_same_file_by_another_path_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert find_files(["a.jsonl", str(tmp_path / "a.jsonl"), "sub/../a.jsonl", "."]) == [Path("a.jsonl")]


def test_names_in_any_case_and_folders_of_datasets_are_found_in_folders(tmp_path: Path) -> None:
    names = ("a.json.gz", "b.json.zst", "c.ndjson", "D.JSONL", "E.JSONL.GZ", "F.Txt")
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(LINES) if name.lower().endswith("gz") else LINES)
    (tmp_path / "b.json.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES))
    Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved" / "here"))
    found = find_files([str(tmp_path)])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in found) == sorted([*names, "saved/here"])
    for path in found:
        count = 1 if path.suffix == ".Txt" else len(TEXTS)
        assert [parse(r, "text")[1] for r, _ in records(path, "text")] == [""] * count


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "LICENSE.txt", "README.md", "sub/table.csv", "x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    found = survey([str(tmp_path)])
    assert found.passed_over == ["README.md", "sub/table.csv", "x.json"]
    assert found.remarks() == [
        "passed over, of no kind that is read: 3 (README.md, sub/table.csv, x.json)",
        "taken as documents, though they lie beside other kinds: 1 (LICENSE.txt)",
    ]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("一つ")
    assert survey([str(tmp_path / "texts")]).remarks() == []


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*absent does not exist"):
        find_files([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="no input: give files or folders"):
        find_files([])
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        find_files([str(tmp_path)])
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.docx is of no known kind"):
        find_files([str(tmp_path / "x.docx")])
    DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(UserError, match=r"holds several splits: name them, e\.g\. input=\[.*train\]"):
        find_files([str(tmp_path / "dict")])
