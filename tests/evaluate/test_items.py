"""The project's own items are well formed, balanced, and their examples are not scored."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CHOICE = ["own_choice", "own_choice_fewshot", "own_reading", "own_reading_fewshot"]
SIZES = {
    "own_choice": 48,
    "own_reading": 24,
    "own_choice_fewshot": 4,
    "own_reading_fewshot": 4,
    "own_texts": 12,
}
BENCHMARKS = ["jcommonsense", "jglue", "jmmlu", "jnli", "jsquad", "mmlu", "jcola", "mgsm"]


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / f"eval/items/{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes_and_ids(root: Path, name: str, size: int) -> None:
    ids = [row["id"] for row in rows(root, name)]
    assert len(ids) == size
    assert len(set(ids)) == size
    assert not any(benchmark in i for i in ids for benchmark in BENCHMARKS)


@pytest.mark.parametrize("name", CHOICE)
def test_choices_are_four_distinct_and_of_similar_length(root: Path, name: str) -> None:
    for row in rows(root, name):
        assert row["question"].endswith("。"), row["id"]
        assert len(set(row["choices"])) == 4, row["id"]
        assert row["answer"] in range(4), row["id"]
        lengths = [len(choice) for choice in row["choices"]]
        assert max(lengths) - min(lengths) <= 3, row["id"]
        assert max(lengths) <= 2 * min(lengths), row["id"]
        assert all(choice == choice.strip() and choice for choice in row["choices"]), row["id"]


@pytest.mark.parametrize("name", CHOICE)
def test_answers_are_spread_evenly(root: Path, name: str) -> None:
    found = Counter(row["answer"] for row in rows(root, name))
    assert set(found.values()) == {SIZES[name] // 4}


@pytest.mark.parametrize("name", ["own_choice", "own_reading"])
def test_length_does_not_give_the_answer_away(root: Path, name: str) -> None:
    items = rows(root, name)
    for extreme in (min, max):
        hits = 0
        for row in items:
            lengths = [len(choice) for choice in row["choices"]]
            hits += lengths.count(extreme(lengths)) == 1 and lengths[row["answer"]] == extreme(lengths)
        assert hits <= len(items) / 4


@pytest.mark.parametrize("name", ["own_reading", "own_reading_fewshot"])
def test_passages_are_short(root: Path, name: str) -> None:
    for row in rows(root, name):
        assert 150 <= len(row["passage"]) <= 250, (row["id"], len(row["passage"]))


def test_texts_are_prose_of_a_paragraph(root: Path) -> None:
    for row in rows(root, "own_texts"):
        assert len(row["text"]) >= 300, row["id"]
        assert row["text"][-1] in "。」", row["id"]


@pytest.mark.parametrize("name", ["own_choice", "own_reading"])
def test_examples_are_not_scored(root: Path, name: str) -> None:
    def keys(file: str) -> set[str]:
        return {
            text for row in rows(root, file) for text in (row["question"], row.get("passage", ""), row["id"])
        }

    assert keys(name) & keys(f"{name}_fewshot") <= {""}


def test_no_question_is_asked_twice(root: Path) -> None:
    questions = [row["question"] for row in rows(root, "own_choice")]
    passages = [row["passage"] for row in rows(root, "own_reading")]
    assert len(set(questions)) == len(questions)
    assert len(set(passages)) == len(passages)


def test_licence_names_every_file(root: Path) -> None:
    licence = (root / "eval/items/LICENSE.md").read_text("utf-8")
    assert "CC0 1.0" in licence
    for path in (root / "eval/items").glob("*.jsonl"):
        assert f"`{path.name}`" in licence


def test_questions_for_free_answers_have_three_answers_that_say_what_is_wanted(root: Path) -> None:
    found = rows(root, "own_answers")
    assert [len(row["references"]) for row in found] == [3] * 12
    asked = {row["question"] for row in found}
    assert len(asked) == 12
    assert not asked & {row["question"] for row in rows(root, "own_answers_fewshot")}
    for row in found:
        assert 3 <= len(row["wanted"]) <= 4, row["id"]
        assert all(40 <= len(text) <= 100 for text in row["references"]), row["id"]
        said = [
            sum(any(w in text for w in wordings) for text in row["references"]) for wordings in row["wanted"]
        ]
        assert min(said) >= 2, row["id"]
