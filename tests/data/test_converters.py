"""Converters give, from the sources' own forms (rebuilt here, each as its source has it), the very files here."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from llmjp_train.data.converters import convert


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_array_with_indents(llmjp_data: Path) -> None:
    path = llmjp_data / "eval" / "mawps_ja" / "shot_example.jsonl"
    array = json.dumps(rows(path), ensure_ascii=False, indent=4).encode()
    assert convert(array, "rows", None) == path.read_bytes()


def test_lines_without_blanks(llmjp_data: Path) -> None:
    path = llmjp_data / "eval" / "jcola" / "in_domain_valid.jsonl"
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows(path))
    assert convert("\n".join(lines).encode(), "rows", None) == path.read_bytes()


def test_a_table_of_questions_and_numbers(llmjp_data: Path) -> None:
    path = llmjp_data / "eval" / "mgsm_ja" / "test.jsonl"
    content = "".join(f"{row['question']}\t{row['answer_number']:,}\n" for row in rows(path)).encode()
    assert convert(content, "question_and_number", None) == path.read_bytes()


def test_examples_in_a_python_file(llmjp_data: Path) -> None:
    path = llmjp_data / "eval" / "mgsm_ja" / "fewshot.jsonl"
    examples = {row["id"]: {"q": row["question"], "a": row["answer"]} for row in rows(path)}
    exemplars = ascii({"bn": {"1": {"q": "x", "a": "y"}}, "ja": examples})
    content = (
        '"""Prompts."""\nimport os\n'
        f"EXEMPLAR_NUMBER_ANSWERS = {[row['answer_number'] for row in rows(path)]}\n"
        f"MGSM_EXEMPLARS = {exemplars}\n"
        "os.abort()\n"
    )
    assert convert(content.encode(), "mgsm_examples", None) == path.read_bytes()


@pytest.mark.parametrize(("name", "first"), [("valid", None), ("fewshot", 100)])
def test_articles_of_paragraphs_of_questions(llmjp_data: Path, name: str, first: int | None) -> None:
    path = llmjp_data / "eval" / "jsquad" / f"{name}.jsonl"
    articles = []
    for title, inside in groupby(rows(path), key=lambda row: row["title"]):
        paragraphs = []
        for context, questions in groupby(inside, key=lambda row: row["context"]):
            answered = [
                {key: question[key] for key in ("question", "id", "is_impossible")}
                | {
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(question["answers"], question["answer_starts"], strict=True)
                    ]
                }
                for question in questions
            ]
            paragraphs.append({"qas": answered, "context": context})
        articles.append({"title": title, "paragraphs": paragraphs})
    articles += articles[:1] if first else []
    content = json.dumps({"data": articles}, ensure_ascii=False).encode()
    assert convert(content, "squad", first) == path.read_bytes()


@pytest.mark.parametrize(("name", "first"), [("test", None), ("fewshot", 200)])
def test_questions_in_xml(llmjp_data: Path, name: str, first: int | None) -> None:
    path = llmjp_data / "eval" / "niilc" / f"{name}.jsonl"
    parts = ["<?xml version='1.0' encoding=\"UTF-8\"?>\n<questions>\n"]
    for row in rows(path) + (rows(path)[:3] if first else []):
        answers = "".join(f"    <answer>{escape(answer)}</answer>\n" for answer in row["answers"])
        parts.append(
            f'<question id="{row["id"]}">\n  <text>{escape(row["question"])}</text>\n  <answers>\n{answers}'
            "  </answers>\n  <meta>\n    <A.3></A.3>\n  </meta>\n</question>\n"
        )
    assert convert("".join([*parts, "</questions>\n"]).encode(), "niilc", first) == path.read_bytes()


def test_a_table_of_pairs_and_a_draw_from_it(llmjp_data: Path) -> None:
    """The test split stands in the table where its numbers say; the examples are drawn from the 13,680 others."""
    folder = llmjp_data / "eval" / "janli"
    known = {int(row["id"]): row for name in ("test", "fewshot") for row in rows(folder / f"{name}.jsonl")}
    names = [key for key in known[9] if key != "id"]
    filler = {key: "train" if key == "split" else "x" for key in names}
    lines = ["\t".join(["", *names])]
    for number in range(14_400):
        row = known.get(number, filler)
        lines.append("\t".join([str(number), *(row[key] for key in names)]))
    content = ("\n".join(lines) + "\n").encode()
    assert convert(content, "janli_test", None) == (folder / "test.jsonl").read_bytes()
    assert convert(content, "janli_examples", None) == (folder / "fewshot.jsonl").read_bytes()
