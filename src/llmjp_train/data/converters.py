"""From a source's own file to the form that the project reads: JSON lines, one record each."""

import ast
import gzip
import json
import random
from collections.abc import Callable, Sequence
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


def jamp(content: bytes) -> Rows:
    """Pairs of a table with a head (Jamp)."""
    return _table(content, "num")


def jsick(content: bytes) -> Rows:
    """The same of JSICK, whose English half and annotations are left out."""
    left_out = ("data", "original_caption", "semtag_short", "semtag_long")
    return [
        {key: value for key, value in row.items() if key not in left_out and not key.endswith("_En")}
        for row in _table(content, "pair_ID")
    ]


def _table(content: bytes, number: str) -> Rows:
    """Rows of a table with a head; the column called ``number`` becomes the id."""
    head, *lines = content.decode("utf-8").splitlines()
    names = ["id" if name == number else name for name in head.split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines if line.strip()]


JSEM_ANSWERS = ("yes", "no", "unknown", "undef")
"""Other answers of JSeM say that a pair is no question (infelicitous, unacceptable, ...)."""


def jsem(content: bytes) -> Rows:
    """Problems of an XML file whose answer is one of four (JSeM); several premises become one text."""
    return [
        {
            "id": problem.get("jsem_id"),
            "premise": "".join((p.findtext("script") or "").strip() for p in problem.iterfind("p")),
            "hypothesis": (problem.findtext("h/script") or "").strip(),
            "answer": problem.get("answer"),
        }
        for problem in ElementTree.fromstring(content).iterfind("problem")
        if problem.get("answer") in JSEM_ANSWERS
    ]


def chabsa(content: bytes) -> Rows:
    """Sentences of a report that have opinions, with their targets and polarities (chABSA)."""
    report = json.loads(content)
    name = report["header"]["document_id"]
    return [
        {
            "id": f"{name}-{sentence['sentence_id']}",
            "report": name,
            "sentence": sentence["sentence"],
            "opinions": [f"{opinion['target']} {opinion['polarity']}" for opinion in sentence["opinions"]],
        }
        for sentence in report["sentences"]
        if sentence["opinions"]
    ]


def alt(japanese: bytes, english: bytes, articles: bytes) -> Rows:
    """Sentences that both languages have, of the articles that a split lists (ALT: data_ja, data_en, URL-test)."""
    listed = {line.split("\t")[0].removeprefix("URL.") for line in articles.decode("utf-8").splitlines()}
    texts = [
        dict(line.split("\t", 1) for line in content.decode("utf-8").splitlines() if "\t" in line)
        for content in (japanese, english)
    ]
    return [
        {"id": key, "article": key.split(".")[1], "ja": ja.strip(), "en": texts[1][key].strip()}
        for key, ja in texts[0].items()
        if key in texts[1] and key.split(".")[1] in listed
    ]


CONVERTERS: dict[str, Callable[[bytes], Rows]] = {
    "rows": rows,
    "question_and_number": question_and_number,
    "mgsm_examples": mgsm_examples,
    "squad": squad,
    "niilc": niilc,
    "janli_test": janli_test,
    "janli_examples": janli_examples,
    "jamp": jamp,
    "jsick": jsick,
    "jsem": jsem,
    "chabsa": chabsa,
}


def convert(content: bytes, name: str, first: int | None) -> bytes:
    """The content in the project's form; the first records alone where ``first`` says so."""
    found = CONVERTERS[name](content)[:first]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()


def convert_files(contents: Sequence[bytes], name: str) -> bytes:
    """Several files of a source as one: ALT's three, else each converted and put one after the other."""
    one = CONVERTERS.get(name)
    found = alt(*contents) if one is None else [row for content in contents for row in one(content)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
