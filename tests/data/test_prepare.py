"""`llmjp prepare`: what comes out, and that workers and shards do not change it."""

import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard
from datasets import Dataset

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig, Unicode
from llmjp_train.data import prepare as module
from llmjp_train.data import shards
from llmjp_train.data.prepare import prepare
from llmjp_train.data.token_files import TokenFile
from llmjp_train.data.tokenizers import load_tokenizer
from llmjp_train.data.verify import problems

Preparing = Callable[..., PrepareConfig]
Writing = Callable[[Path, list[str]], Path]
FILES = ("train.bin", "train.idx", "validation.bin", "validation.idx", "manifest.json")


def documents(prefix: Path, tokenizer: Any) -> list[str]:
    file = TokenFile(prefix)
    offsets = file.document_offsets.tolist()
    found = []
    for start, end in pairwise(offsets):
        ids = file.read(start, end - start).tolist()
        assert ids[-1] == tokenizer.eod_id
        found.append(tokenizer.decode(ids[:-1]))
    return found


def test_every_document_comes_out_once_shuffled(prepared: Path, texts: list[str], tokenizer: Any) -> None:
    train, validation = (documents(prepared / name, tokenizer) for name in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts)
    assert train != [text for text in texts if text in set(train)]
    assert set(train).isdisjoint(validation)
    assert 8 <= len(validation) <= 40
    assert not (prepared / "parts").exists()
    assert sorted(path.name for path in prepared.iterdir()) == sorted(FILES)


def test_the_manifest_tells_what_was_made(
    prepared: Path, corpus: Path, texts: list[str], tokenizer: Any
) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert manifest["settings"]["append_eod"] is True
    assert (manifest["settings"]["unicode"], manifest["settings"]["newlines"]) == ("none", "kept")
    source = manifest["input"][0]
    assert (source["file"], source["records"], source["malformed"]) == ("small.jsonl", 200, 0)
    assert source["sha256"] == hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert source["bytes"] == corpus.stat().st_size
    total = 0
    for name in ("train", "validation"):
        part, file = manifest[name], TokenFile(prepared / name)
        assert (part["documents"], part["tokens"]) == (file.num_documents, file.num_tokens)
        assert part["text_bytes"] == sum(len(text.encode()) for text in documents(prepared / name, tokenizer))
        assert part["sha256"][".bin"] == hashlib.sha256((prepared / f"{name}.bin").read_bytes()).hexdigest()
        assert problems(prepared / name) == []
        total += part["text_bytes"]
    assert total == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"workers": 3, "shard_mb": 1}, {"shard_mb": 5}])
def test_the_output_is_the_same_for_any_workers_and_shards(
    prepared: Path,
    preparing: Preparing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    monkeypatch.setattr(module, "_MB", 1500)  # so that this small corpus has many shards
    monkeypatch.setattr(shards, "STRETCH", 700)  # and is merged in several stretches
    made: list[int] = []
    real = shards.Shards.make
    if changes.get("workers", 1) == 1:
        monkeypatch.setattr(
            shards.Shards, "make", lambda self, block: made.append(block.number) or real(self, block)
        )
    prepare(preparing(**changes))
    assert contents(tmp_path / "prepared") == contents(prepared)
    assert changes.get("workers", 1) > 1 or len(made) > 3


def as_jsonl(path: Path, texts: list[str]) -> None:
    """JSON lines, compressed as the name says."""
    opened = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def as_texts(path: Path, texts: list[str]) -> None:
    """A folder of a file a document."""
    path.mkdir()
    for number, text in enumerate(texts):
        (path / f"{number}.txt").write_bytes(text.encode())


KINDS: dict[str, Callable[[Path, list[str]], object]] = {
    "x.jsonl.gz": as_jsonl,
    "x.jsonl.xz": as_jsonl,
    "x.jsonl.zst": as_jsonl,
    "texts": as_texts,
    "x.parquet": lambda path, texts: pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path),
    "saved": lambda path, texts: Dataset.from_dict({"text": texts}).save_to_disk(str(path)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_token_files(
    prepared: Path, preparing: Preparing, tmp_path: Path, texts: list[str], kind: str
) -> None:
    KINDS[kind](tmp_path / kind, texts)
    manifest = prepare(preparing(input=[str(tmp_path / kind)]))
    assert sum(source["documents"] for source in manifest["input"]) == 200
    for name in FILES[:4]:
        assert (tmp_path / "prepared" / name).read_bytes() == (prepared / name).read_bytes()


def test_the_order_does_not_depend_on_files_but_on_the_seed(
    prepared: Path, preparing: Preparing, tmp_path: Path, texts: list[str], tokenizer: Any, jsonl: Writing
) -> None:
    halves = [jsonl(tmp_path / "b" / "x.jsonl", texts[100:]), jsonl(tmp_path / "a" / "y.jsonl", texts[:100])]
    prepare(preparing(input=[str(path) for path in halves], output=str(tmp_path / "halves")))
    for name in FILES[:4]:
        assert (tmp_path / "halves" / name).read_bytes() == (prepared / name).read_bytes()
    prepare(preparing(seed=99, output=str(tmp_path / "other")))
    other = documents(tmp_path / "other" / "train", tokenizer)
    first = documents(prepared / "train", tokenizer)
    assert other != first
    assert sorted(other) == sorted(first), "the seed moves documents between training and validation"


def test_the_same_text_twice_is_never_in_both_parts(
    preparing: Preparing, tmp_path: Path, texts: list[str], jsonl: Writing
) -> None:
    path = jsonl(tmp_path / "twice.jsonl", texts + texts)
    manifest = prepare(preparing(input=[str(path)], validation_share=0.4))
    assert manifest["validation"]["documents"] % 2 == 0
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 400


@pytest.mark.parametrize(
    ("written", "share", "expected"),
    [
        (["春。"], 0.5, (1, 0)),
        (["春。", "春。"], 0.5, (2, 0)),
        (["春。", "夏。"], 0.0001, (1, 1)),
        (["春。", "夏。", "秋。"], 0.9999999, (1, 2)),
        (["春。", "夏。", "秋。"], 0.0, (3, 0)),
    ],
)
def test_small_corpora_have_both_parts(
    preparing: Preparing,
    tmp_path: Path,
    written: list[str],
    share: float,
    expected: tuple[int, int],
    jsonl: Writing,
) -> None:
    manifest = prepare(preparing(input=[str(jsonl(tmp_path / "x.jsonl", written))], validation_share=share))
    assert (manifest["train"]["documents"], manifest["validation"]["documents"]) == expected


def test_text_policies_are_explicit(
    preparing: Preparing, tmp_path: Path, tokenizer: Any, jsonl: Writing
) -> None:
    path = jsonl(tmp_path / "x.jsonl", ["一\r\n二\r三\n\n ＡＢｶﾞ か\u3099"])

    def made(**changes: Any) -> str:
        out = tmp_path / "-".join(map(str, changes.values()))
        prepare(preparing(input=[str(path)], output=str(out), **changes))
        return documents(out / "train", tokenizer)[0]

    assert made(unify_newlines=True) == "一\n二\n三\n\n ＡＢｶﾞ か\u3099"
    assert made(unify_newlines=False) == "一\r\n二\r三\n\n ＡＢｶﾞ か\u3099"
    assert made(unicode=Unicode.nfc) == "一\n二\n三\n\n ＡＢｶﾞ が"
    assert made(unicode=Unicode.nfkc) == "一\n二\n三\n\n ABガ が"


def test_special_tokens_spelled_in_the_text_stay_text(
    preparing: Preparing, tmp_path: Path, tokenizer: Any, jsonl: Writing
) -> None:
    text = "終わりは</s>と書く。<0x41>と<pad>も。"
    manifest = prepare(preparing(input=[str(jsonl(tmp_path / "x.jsonl", [text]))]))
    assert manifest["special_tokens_in_text"] == 0
    assert documents(tmp_path / "prepared" / "train", tokenizer) == [text]
    without = prepare(
        preparing(input=[str(tmp_path / "x.jsonl")], append_eod=False, output=str(tmp_path / "no"))
    )
    assert without["train"]["tokens"] == manifest["train"]["tokens"] - 1
    assert without["special_tokens_in_text"] == 0


def test_special_tokens_that_a_tokenizer_cannot_help_are_counted(
    preparing: Preparing, tmp_path: Path, texts: list[str], jsonl: Writing
) -> None:
    """In a converted SentencePiece model the piece </s> matches text, whatever is asked of the library."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(texts).splitlines()),
        model_prefix=str(tmp_path / "x"),
        vocab_size=500,
        byte_fallback=True,
        minloglevel=2,
    )
    path = jsonl(tmp_path / "x.jsonl", ["終わりは</s>と書く。", "春。"])
    tokenizer = TokenizerConfig(name="x", path=str(tmp_path / "x.model"))
    manifest = prepare(preparing(input=[str(path)], tokenizer=tokenizer))
    assert manifest["special_tokens_in_text"] == 1


def test_progress_tells_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    from llmjp_train.data.progress import Progress

    with Progress("tokenising", 4e6, "MB", 1e6, every=0.0) as progress:
        progress.add(1e6, worked=False)
        progress.add(1e6, "3.0 M tokens")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("tokenising: 2 of 4 MB, ")
    assert "3.0 M tokens" in lines[1]
    assert lines[1].endswith(" s left")


def test_a_tokenizer_by_name_is_used(preparing: Preparing, llmjp_data: Path) -> None:
    manifest = prepare(preparing(tokenizer=TokenizerConfig(name="llm-jp-v2.2-50k")))
    assert manifest["tokenizer"]["name"] == "llm-jp-v2.2-50k"
    assert manifest["tokenizer"]["habit"] == "appends <EOD|LLM-jp>"
    assert manifest["train"]["dtype"] == "uint16"
    wanted = load_tokenizer(TokenizerConfig(name="llm-jp-v2.2-50k"))
    assert manifest["tokenizer"]["eod_id"] == wanted.eod_id == 7


def test_licence_and_origin_are_stated_at_any_time_and_never_taken_back(
    preparing: Preparing, corpus: Path, tmp_path: Path
) -> None:
    said = [{"input": corpus.name, "licence": "CC0-1.0", "origin": "here", "filters": None}]
    nothing = [{"input": corpus.name, "licence": None, "origin": None, "filters": None}]
    assert prepare(preparing())["statements"] == nothing
    before = (tmp_path / "prepared" / "train.bin").stat().st_mtime_ns
    assert prepare(preparing(licence="CC0-1.0", origin="here"))["statements"] == said
    assert prepare(preparing())["statements"] == said
    said[0]["filters"] = "near duplicates"
    assert prepare(preparing(filters="near duplicates"))["statements"] == said
    assert (tmp_path / "prepared" / "train.bin").stat().st_mtime_ns == before
    own = prepare(preparing(input=["llmjp-small-ja"], output=str(tmp_path / "own")))["statements"]
    assert own == [
        {"input": "llmjp-small-ja", "licence": "CC0 1.0", "origin": "this package", "filters": None}
    ]
