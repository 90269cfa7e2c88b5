"""From a source's own file to the form that the project reads: JSON lines, one record each."""

import ast
import gzip
import json
import random
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

GZIP_MAGIC = b"\x1f\x8b"
JANLI_EXAMPLES, JANLI_SEED = 200, 7
"""How many training pairs of JaNLI are examples, and the seed of their choice."""

Rows = list[dict[str, Any]]


def rows(content: bytes) -> Rows:
    """Records of a JSON array or of JSON lines."""
    if content[:2] == GZIP_MAGIC:
        content = gzip.decompress(content)
    text = content.decode("utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def question_and_number(content: bytes) -> Rows:
    """Lines of a question, a tab and a whole number (MGSM)."""
    found = []
    for number, line in enumerate(content.decode("utf-8").splitlines()):
        question, answer = line.rsplit("\t", 1)
        found.append({"id": number, "question": question, "answer_number": int(answer.replace(",", ""))})
    return found


def mgsm_examples(content: bytes) -> Rows:
    """The Japanese ones of MGSM's examples, which are literals of a Python file; the file is not run."""
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(content).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    examples = values["MGSM_EXEMPLARS"]["ja"].items()
    numbers = values["EXEMPLAR_NUMBER_ANSWERS"]
    return [
        {"id": name, "question": example["q"], "answer": example["a"], "answer_number": number}
        for (name, example), number in zip(examples, numbers, strict=True)
    ]


def squad(content: bytes) -> Rows:
    """A record a question, of articles that hold paragraphs that hold questions (JSQuAD)."""
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": [answer["text"] for answer in question["answers"]],
            "answer_starts": [answer["answer_start"] for answer in question["answers"]],
            "is_impossible": question["is_impossible"],
        }
        for article in json.loads(content)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def niilc(content: bytes) -> Rows:
    """Questions of an XML file with the text of their answers (NIILC)."""
    return [
        {
            "id": question.get("id"),
            "question": question.findtext("text"),
            "answers": [answer.text for answer in question.iterfind("answers/answer")],
        }
        for question in ElementTree.fromstring(content).iterfind("question")
    ]


def janli_test(content: bytes) -> Rows:
    """Pairs of the test split."""
    return _janli(content, "test")


def janli_examples(content: bytes) -> Rows:
    """Pairs drawn from the training split."""
    return random.Random(JANLI_SEED).sample(_janli(content, "train"), JANLI_EXAMPLES)


def _janli(content: bytes, split: str) -> Rows:
    """Pairs of a split, from a table whose first column, without a name, is the number of the pair."""
    head, *lines = content.decode("utf-8").split("\n")
    names = head.split("\t")[1:]
    cells = (line.split("\t") for line in lines if line)
    found = ({**dict(zip(names, values, strict=True)), "id": number} for number, *values in cells)
    return [row for row in found if row["split"] == split]


CONVERTERS: dict[str, Callable[[bytes], Rows]] = {
    "rows": rows,
    "question_and_number": question_and_number,
    "mgsm_examples": mgsm_examples,
    "squad": squad,
    "niilc": niilc,
    "janli_test": janli_test,
    "janli_examples": janli_examples,
}


def convert(content: bytes, name: str, first: int | None) -> bytes:
    """The content in the project's form; the first records alone where ``first`` says so."""
    found = CONVERTERS[name](content)[:first]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
