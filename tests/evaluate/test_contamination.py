"""Planted items are found with their span; near misses and stock phrases are not; memory does not grow."""

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.evaluating import llmjp

from llmjp_train.errors import UserError
from llmjp_train.evaluate.contamination import OVERLAP, WINDOW, Index, grams, plain, search, telling
from llmjp_train.evaluate.tasks import TaskFile, find_tasks


@pytest.fixture(scope="module")
def jsquad() -> TaskFile:
    return find_tasks()["jsquad"]


@pytest.fixture(scope="module")
def index(jsquad: TaskFile, llmjp_data: Path) -> Index:
    return Index([jsquad])


def reworded(text: str) -> str:
    """Every eighth character is another one: seven of eight are kept, hardly a 13-gram is."""
    return "".join(chr(ord(c) + 1) if place % 8 == 3 else c for place, c in enumerate(text))


def test_hashes_are_those_of_the_same_thirteen_characters() -> None:
    text = "".join(chr(0x3042 + i * 7 % 80) for i in range(400)) * 2
    found = grams(text)
    assert len(found) == 800 - 12
    seen: dict[str, int] = {}
    for place, value in enumerate(found.tolist()):
        assert seen.setdefault(text[place : place + 13], value) == value
    assert len(set(seen.values())) == len(seen)
    assert len(grams("十二文字しかない文です")) == 0


def test_layout_and_width_do_not_hide_a_copy() -> None:
    assert plain("ＡＢ　Ｃ\nｶﾞ") == "abcガ"


def test_planted_items_are_found_and_near_misses_are_not(jsquad: TaskFile, index: Index) -> None:
    docs = jsquad.scored()
    passages = list(dict.fromkeys(doc["passage"] for doc in docs))
    filler = [doc["passage"] for doc in find_tasks()["jsquad"].examples()]
    planted = passages[10:60]
    near = [reworded(text) for text in passages[100:150]]
    half = [text[: len(text) // 2] for text in passages[200:250]]
    texts = []
    for i, text in enumerate(planted):
        # Inside other text, in full width, with line breaks in between.
        broken = "\n".join(text[j : j + 30] for j in range(0, len(text), 30))
        texts.append(filler[i % len(filler)] + broken.replace("1", "１") + filler[(i + 1) % len(filler)])
    report = search(index, [*texts, *near, *half, *filler])
    touched = {docs[each.index]["passage"] for each in report.touched}
    long_enough = {text for text in planted if len(plain(text)) >= 20}
    assert long_enough <= touched
    assert not touched & set(passages[100:150])
    assert not touched & set(passages[200:250])
    for each in report.touched[:20]:
        passage = plain(docs[each.index]["passage"])
        assert each.share >= 0.7
        assert each.span[:13] in passage
        assert each.span in plain(texts[each.document])
    assert report.documents == len(texts) + 100 + len(filler)
    assert report.items == {"jsquad": 4442}


def test_stock_phrases_do_not_flag_real_text(index: Index, llmjp_data: Path) -> None:
    with lzma.open(llmjp_data / "text/wikipedia_annotated_corpus.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:800]
    assert len(search(index, texts).touched) == 0
    assert len(search(index, texts, share=0.02).touched) > 0, "single shared 13-grams would flag some"


def test_a_copy_in_a_long_document_is_found_across_windows(jsquad: TaskFile, index: Index) -> None:
    passage = next(doc["passage"] for doc in jsquad.scored() if len(plain(doc["passage"])) > 200)
    filler = "".join(chr(0x4E00 + i * 31 % 9000) for i in range(WINDOW + 40000))
    for cut in (WINDOW - 100, WINDOW - OVERLAP - 100, len(filler)):
        report = search(index, [filler[:cut] + passage + filler[cut:]])
        assert {jsquad.scored()[each.index]["passage"] for each in report.touched} == {passage}


def test_memory_is_that_of_the_items_alone(index: Index) -> None:
    size = index.nbytes
    assert size < 120 * 2**20
    for text in (
        "あ" * 300_000,
        "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9000, 300_000))),
    ):
        assert list(index.found_in(text, 0.7)) == []
    assert index.nbytes == size


def test_titles_and_choices_are_too_short_to_tell(llmjp_data: Path) -> None:
    task = find_tasks()["jcommonsenseqa"]
    assert telling(task, {"question": "空は何色？", "choice0": "青", "label": 0}) == ""
    doc: dict[str, Any] = {
        "question": "電子機器で使用される最も主要な電子回路基板の事をなんと言う？",
        "label": 0,
    }
    assert telling(task, doc) == plain(doc["question"])


def test_the_command_reports_shares_spans_and_scores_without_touched_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = find_tasks()["own_reading"].scored()
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": f"前書き。{item['passage']}後書き。"} for item in items[:5]] + [
        {"text": "関係のない文。" * 9}
    ]
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    lines = [
        {"task": "own_reading", "id": i, "index": i, "metrics": {"acc": float(i < 6)}, "cluster": str(i)}
        for i in range(24)
    ]
    (tmp_path / "x.items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {"own_reading": {"main_metric": "acc"}}
    payload = {"schema": 1, "model": "m", "step": None, "tasks": tasks, "items_file": "x.items.jsonl"}
    (tmp_path / "x.json").write_text(json.dumps(payload))
    words = ("contamination", str(corpus), "tasks=[own_reading]", "--scores", str(tmp_path / "x.json"))
    assert llmjp(*words, "--output", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "6 documents" in shown
    assert "20.8%" in shown
    assert "own_reading item 0: 100% in document 0" in shown
    stored = json.loads((tmp_path / "out/contamination.json").read_text("utf-8"))
    assert [each["index"] for each in stored["touched"]] == [0, 1, 2, 3, 4]
    assert stored["scores"]["own_reading"]["all"] == 0.25
    assert stored["scores"]["own_reading"]["clean"] == pytest.approx(1 / 19)


def test_tasks_whose_items_lie_elsewhere_are_named_as_not_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "関係のない文。"}\n', "utf-8")
    assert llmjp("contamination", str(tmp_path / "corpus.jsonl"), "suite=english", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == {}
    assert "not looked for, as their items are not local files: arc_easy" in found["left_out"][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("contamination",), "name a run, text files"),
        (("contamination", "no/such"), "no/such does not exist"),
        (("contamination", "x", "--share", "1.5"), "--share 1.5"),
        (("somewhere", "else"), "one model at a time"),
    ],
)
def test_bad_requests(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        llmjp(*words)


def test_a_run_s_token_files_are_decoded(tokenizer: Any, tmp_path: Path) -> None:
    from llmjp_train.data.token_files import TokenFile, TokenFileWriter
    from llmjp_train.evaluate.training_text import decoded

    texts = [f"{number}番目の文書です。" * (1 + number % 3) for number in range(1203)]
    with TokenFileWriter(tmp_path / "train", tokenizer.vocab_size) as writer:
        for text in texts:
            writer.add([*tokenizer.encode(text), tokenizer.eod_id])
    assert list(decoded(TokenFile(tmp_path / "train"), tokenizer)) == texts
