"""The project's own text: enough of it, all of it different, every document well formed."""

import json
import re
import unicodedata
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from llmjp_train.data import catalogue

KINDS = {
    "dialogue": 20_000,
    "encyclopedia": 40_000,
    "narrative": 15_000,
    "sketches": 10_000,
    "technical": 30_000,
}
"""Files, and the UTF-8 bytes of text that each has at least."""
SMALLEST = 150 * 1024
"""Bytes of text that the whole has at least."""


@pytest.fixture(scope="module")
def files() -> dict[str, list[dict[str, Any]]]:
    """Documents of each file."""
    folder = catalogue.get(catalogue.OWN_CORPUS)
    return {
        path.stem: [json.loads(line) for line in path.open(encoding="utf-8")] for path in folder.glob("*")
    }


@pytest.fixture(scope="module")
def documents(files: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All of them."""
    return [document for found in files.values() for document in found]


def size(documents: list[dict[str, Any]]) -> int:
    return sum(len(document["text"].encode()) for document in documents)


def test_there_is_enough_of_every_kind(files: dict[str, list[dict[str, Any]]]) -> None:
    assert set(files) == set(KINDS)
    assert {kind: size(files[kind]) for kind, least in KINDS.items() if size(files[kind]) < least} == {}
    assert sum(map(size, files.values())) >= SMALLEST


def test_ids_are_unique_and_in_order(files: dict[str, list[dict[str, Any]]]) -> None:
    for kind, found in files.items():
        stem = kind.removesuffix("es")
        assert [document["id"] for document in found] == [f"{stem}-{n:04d}" for n in range(1, len(found) + 1)]


def test_every_document_has_its_fields_and_a_sensible_length(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        assert set(document) == {"id", "title", "text"}, document["id"]
        assert 350 <= len(document["text"]) <= 1200, document["id"]
        assert 1 <= len(document["title"]) <= 20, document["id"]


def test_no_document_line_or_sentence_comes_twice(documents: list[dict[str, Any]]) -> None:
    def repeated(parts: list[str]) -> list[str]:
        return [part for part, times in Counter(parts).items() if times > 1]

    assert repeated([document["text"] for document in documents]) == []
    assert repeated([document["title"] for document in documents]) == []
    assert repeated([line for document in documents for line in document["text"].split("\n") if line]) == []
    sentences = [s for d in documents for s in re.findall(r"[^。\n「」]+。", d["text"]) if len(s) > 12]
    assert len(sentences) > 1000
    assert repeated(sentences) == []


def test_no_two_documents_share_much(documents: list[dict[str, Any]]) -> None:
    """A template would show: any two documents share less than a twentieth of their ten-character pieces."""
    pieces = [{d["text"][at : at + 10] for at in range(len(d["text"]) - 9)} for d in documents]
    for number, found in enumerate(pieces):
        for other, less in enumerate(pieces[:number]):
            shared = len(found & less) / min(len(found), len(less))
            assert shared < 0.05, (documents[number]["id"], documents[other]["id"], shared)


def test_it_is_clean_japanese(documents: list[dict[str, Any]]) -> None:
    kana_or_kanji = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff々]")
    for document in documents:
        text = document["text"]
        assert text == unicodedata.normalize("NFC", text), document["id"]
        assert text == text.strip(), document["id"]
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u3000\ufffd]|  |\n\n\n|[ \t]\n", text), document["id"]
        assert len(kana_or_kanji.findall(text)) > 0.9 * sum(map(str.isalnum, text)), document["id"]
        assert [text.count(sign) for sign in "「『"] == [text.count(sign) for sign in "」』"], document["id"]
        assert text[-1] in "。」", document["id"]


def test_paragraphs_are_not_stubs(documents: list[dict[str, Any]]) -> None:
    """Explaining texts have paragraphs; each begins otherwise than the one before."""
    for document in documents:
        if document["id"].startswith(("encyclopedia", "technical")):
            paragraphs = document["text"].split("\n\n")
            assert len(paragraphs) >= 3, document["id"]
            assert min(map(len, paragraphs)) >= 30, document["id"]
            assert all(a[:6] != b[:6] for a, b in pairwise(paragraphs)), document["id"]
