"""`llmjp prepare`: killed runs, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig, Unicode
from llmjp_train.data import prepare as module
from llmjp_train.data import shards
from llmjp_train.data.prepare import prepare
from llmjp_train.data.reading import Block
from llmjp_train.data.verify import problems
from llmjp_train.errors import UserError

Preparing = Callable[..., PrepareConfig]
Writing = Callable[[Path, list[str]], Path]


class TestMalformed:
    @pytest.fixture
    def path(self, tmp_path: Path, texts: list[str], jsonl: Writing) -> Path:
        """The documents, two malformed lines and a blank one among them."""
        path = jsonl(tmp_path / "x.jsonl", texts)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines.insert(7, '{"text": "cut of\n')
        lines.insert(20, '{"body": "no text"}\n')
        lines.insert(30, "\n")
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def test_few_are_counted_and_located(self, preparing: Preparing, path: Path) -> None:
        manifest = prepare(preparing(input=[str(path)], max_malformed=0.02))
        assert (manifest["malformed"]["count"], manifest["malformed"]["records"]) == (2, 203)
        first, second = manifest["malformed"]["located"]
        assert first.startswith(f"{path}:8: no JSON")
        assert second == f"{path}:21: no field 'text'"
        assert manifest["empty"] == 1
        assert manifest["input"][0]["malformed"] == 2
        assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 200

    def test_too_many_are_an_error_that_keeps_the_work(
        self, preparing: Preparing, path: Path, tmp_path: Path
    ) -> None:
        said = r"2 of 203 records are malformed, more than max_malformed=0\.001"
        with pytest.raises(UserError, match=said) as raised:
            prepare(preparing(input=[str(path)]))
        assert f"{path}:8: no JSON" in str(raised.value)
        assert not (tmp_path / "prepared" / "manifest.json").exists()
        assert prepare(preparing(input=[str(path)], max_malformed=0.01))["malformed"]["count"] == 2


def kept_shards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards that are made from now on are added to the list."""
    made: list[int] = []
    real = shards.Shards.make

    def make(self: shards.Shards, block: Block) -> dict[str, Any]:
        made.append(block.number)
        return real(self, block)

    monkeypatch.setattr(shards.Shards, "make", make)
    return made


def killed_after(config: PrepareConfig, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a child that is killed, as by SIGKILL from outside, when it has made so many shards."""
    child = os.fork()
    if child == 0:
        real = shards.Shards.make

        def make(self: shards.Shards, block: Block) -> dict[str, Any]:
            if block.number == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, block)

        monkeypatch.setattr(shards.Shards, "make", make)
        prepare(config)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_killed_run_goes_on_where_it_was(
    prepared: Path,
    preparing: Preparing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    monkeypatch.setattr(module, "_MB", 1500)
    killed_after(preparing(), 4, monkeypatch)
    assert not (tmp_path / "prepared" / "manifest.json").exists()
    made = kept_shards(monkeypatch)
    prepare(preparing())
    assert made == list(range(4, made[-1] + 1))
    assert contents(tmp_path / "prepared") == contents(prepared)


def test_a_damaged_shard_of_a_killed_run_is_made_again(
    prepared: Path,
    preparing: Preparing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    monkeypatch.setattr(module, "_MB", 1500)
    killed_after(preparing(), 4, monkeypatch)
    damaged = tmp_path / "prepared" / "parts" / "0000002.ids"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\x01\x00")
    made = kept_shards(monkeypatch)
    prepare(preparing())
    assert made[:2] == [2, 4]
    assert contents(tmp_path / "prepared") == contents(prepared)


def test_the_work_of_other_settings_is_not_mixed_in(
    preparing: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MB", 1500)
    killed_after(preparing(), 4, monkeypatch)
    with pytest.raises(UserError, match=r"unfinished run with another unicode \(none -> nfkc\): "):
        prepare(preparing(unicode=Unicode.nfkc))
    settings = tmp_path / "prepared" / "parts" / "settings.json"
    older = json.loads(settings.read_text("utf-8"))
    older["shard_mb"] = older.pop("work")["shard_mb"]  # as it was written once
    older["tokenizer"]["name"] = "called something else"
    settings.write_text(json.dumps(older), encoding="utf-8")
    made = kept_shards(monkeypatch)
    prepare(preparing())
    assert 0 not in made, "what was done is kept"
    assert problems(tmp_path / "prepared" / "train") == []


SCRIPT = """
import sys
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig
from llmjp_train.data import prepare as module
module._MB = 20_000
module.prepare(PrepareConfig(input=[sys.argv[1]], output=sys.argv[2], workers=2,
    tokenizer=TokenizerConfig(name="toy", path=sys.argv[3])))
"""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_a_run_with_workers_survives_sigkill_and_leaves_no_process(
    preparing: Preparing,
    tokenizer_folder: Path,
    tmp_path: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    jsonl: Writing,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    path = jsonl(tmp_path / "large.jsonl", [f"{n}番。{text}" for n in range(100) for text in texts])
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), str(out), str(tokenizer_folder)])
    try:
        until = time.monotonic() + 60
        while len(list(out.glob("parts/*.json"))) < 6 and time.monotonic() < until:
            time.sleep(0.005)
        workers = children(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(workers) == 2
    assert not (out / "manifest.json").exists(), "it was done before it could be killed"
    until = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    monkeypatch.setattr(module, "_MB", 20_000)
    common = {"input": [str(path)], "validation_share": 0.02}
    prepare(preparing(**common, output=str(out)))
    prepare(preparing(**common, output=str(tmp_path / "whole"), workers=2))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_worker_that_is_killed_is_reported(
    preparing: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: shards.Shards, block: Block) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    monkeypatch.setattr(shards.Shards, "make", die)
    with pytest.raises(UserError, match="a worker was killed, perhaps for want of memory"):
        prepare(preparing(workers=2))


def test_a_second_run_finds_all_done_and_other_settings_are_refused(
    preparing: Preparing, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, jsonl: Writing
) -> None:
    path = jsonl(tmp_path / "x.jsonl", texts)
    first = prepare(preparing(input=[str(path)]))
    made = kept_shards(monkeypatch)
    assert prepare(preparing(input=[str(path)], workers=2, shard_mb=3)) == first
    assert made == []
    with pytest.raises(
        UserError, match=r"was prepared with another seed \(1234 -> 5\): choose another output"
    ):
        prepare(preparing(input=[str(path)], seed=5))
    jsonl(path, [*texts[:-1], texts[-1][::-1]])
    with pytest.raises(UserError, match="was prepared with another input"):
        prepare(preparing(input=[str(path)]))


def test_a_tokenizer_that_does_not_match_is_refused(
    preparing: Preparing, tmp_path: Path, texts: list[str], tokenizer_folder: Path
) -> None:
    from llmjp_train.data.sentencepieces import train_unigram

    other = tmp_path / "other"
    train_unigram(texts, 390, 0.999).save_pretrained(str(other))
    prepare(preparing())
    with pytest.raises(UserError, match="was prepared with another fingerprint"):
        prepare(preparing(tokenizer=TokenizerConfig(name="toy", path=str(other))))
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size is 500, but"):
        prepare(preparing(tokenizer=TokenizerConfig(name="toy", path=str(tokenizer_folder), vocab_size=500)))


def test_files_of_others_are_not_overwritten(preparing: Preparing, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "train.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds train\.bin without a manifest"):
        prepare(preparing())
    assert (tmp_path / "prepared" / "train.bin").read_bytes() == b"precious"


def test_two_runs_do_not_share_an_output(preparing: Preparing, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    with (
        module._only_one(tmp_path / "prepared"),
        pytest.raises(UserError, match="another 'llmjp prepare' is writing"),
    ):
        prepare(preparing())
    assert prepare(preparing())["schema"] == 1


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n{"text": " \\n"}\n'])
def test_an_empty_corpus_is_an_error(preparing: Preparing, tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match="the input holds no document"):
        prepare(preparing(input=[str(tmp_path / "x.jsonl")]))
    assert not list((tmp_path / "prepared").glob("train*"))


def test_a_missing_file_is_an_error(preparing: Preparing, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*absent\.jsonl does not exist"):
        prepare(preparing(input=[str(tmp_path / "absent.jsonl")]))


def test_work_without_a_document_stands_in_nobodys_way(
    preparing: Preparing, tmp_path: Path, texts: list[str], jsonl: Writing
) -> None:
    """Who followed the advice of an error gives another text_key: nothing that was done is worth a refusal."""
    path = jsonl(tmp_path / "x.jsonl", texts)
    with pytest.raises(UserError, match="200 of 200 records are malformed"):
        prepare(preparing(input=[str(path)], text_key="body"))
    assert prepare(preparing(input=[str(path)]))["malformed"]["count"] == 0


def test_the_same_files_under_other_names_are_the_same(
    preparing: Preparing, tmp_path: Path, texts: list[str], jsonl: Writing
) -> None:
    (tmp_path / "in").mkdir()
    both = [str(jsonl(tmp_path / "in" / f"{n}.jsonl", texts[n::2])) for n in range(2)]
    first = prepare(preparing(input=both, licence="CC0 1.0"))
    assert prepare(preparing(input=[str(tmp_path / "in")])) == first
    again = prepare(preparing(input=[str(tmp_path / "in")], origin="here"))
    assert [(each["licence"], each["origin"]) for each in again["statements"]] == [("CC0 1.0", "here")] * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is damaged .*: remove .*prepared"),
        (b"\xff", "is damaged .*: remove .*prepared"),
        (b"[]", "is no manifest of 'llmjp prepare'"),
        (b'{"name": "an extension"}', "is no manifest of 'llmjp prepare'"),
        (b'{"tokenizer": "x", "input": [3]}', "is no manifest of 'llmjp prepare'"),
        (b'{"tokenizer": 3, "input": [], "train": {}, "settings": []}', "is no manifest of 'llmjp prepare'"),
    ],
)
def test_a_manifest_that_is_damaged_or_foreign_is_named(
    preparing: Preparing, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        prepare(preparing())


def test_what_a_folder_holds_besides_is_told(
    preparing: Preparing, tmp_path: Path, texts: list[str], jsonl: Writing, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "x.jsonl", texts)
    (tmp_path / "in" / "table.csv").write_text("a,b")
    (tmp_path / "in" / "LICENSE.txt").write_text("as is")
    manifest = prepare(preparing(input=[str(tmp_path / "in")]))
    assert manifest["passed_over"] == {"count": 1, "files": ["table.csv"]}
    assert manifest["texts_beside_other_kinds"] == {"count": 1, "files": ["LICENSE.txt"]}
    assert "note: passed over, of no kind that is read: 1 (table.csv)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation_share": 1.0}, r"validation_share=1\.0"),
        ({"max_malformed": 2.0}, r"max_malformed=2\.0"),
        ({"workers": -1}, "workers=-1"),
        ({"shard_mb": -1}, "shard_mb=-1"),
        ({"seed": 2**64}, "must fit into 64 bits"),
    ],
)
def test_values_out_of_range_are_refused(preparing: Preparing, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(preparing(**changes))


def test_a_full_disk_is_named_and_the_work_kept(
    prepared: Path,
    preparing: Preparing,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    monkeypatch.setattr(module, "_MB", 1500)
    disk = small_disk("80k")
    with pytest.raises(UserError, match=r"No space left on device\. What was done is kept"):
        prepare(preparing(output=str(disk / "out")))
    kept = len(list(disk.glob("out/parts/0*.json")))
    assert kept > 1
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    made = kept_shards(monkeypatch)
    prepare(preparing(output=str(disk / "out")))
    assert made[0] == kept
    assert contents(disk / "out") == contents(prepared)


def test_a_disk_that_fills_up_at_the_end_leaves_no_half_output(
    prepared: Path,
    preparing: Preparing,
    small_disk: Callable[[str], Path],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    """Every shard fits, the merged files do not."""
    disk = small_disk("64k")
    with pytest.raises(UserError, match="No space left on device"):
        prepare(preparing(output=str(disk / "out")))
    assert list(disk.glob("out/parts/0*.json"))
    assert not list(disk.glob("out/*.idx")) + list(disk.glob("out/manifest*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    prepare(preparing(output=str(disk / "out")))
    assert contents(disk / "out") == contents(prepared)


def test_an_output_that_cannot_be_written_is_named(preparing: Preparing, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        prepare(preparing(output=str(tmp_path / "file" / "out")))
