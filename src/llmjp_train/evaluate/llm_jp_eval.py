"""llm-jp-eval 1.3's tasks: its prompts from the data catalogue, its scoring with its known faults.

The prompt texts are read from the catalogue entry ``llm-jp-eval-1.3-prompts`` and are not part of this
project. What is scored is its definition: the output up to the first blank line, stripped, NFKC.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from llmjp_train.data import catalogue
from llmjp_train.errors import UserError
from llmjp_train.evaluate.answers import faulty_number, first_part, nfkc
from llmjp_train.evaluate.japanese import Doc, in_form
from llmjp_train.evaluate.tasks import MissingDataError
from llmjp_train.evaluate.text_metrics import llm_jp_eval_char_f1, pearson, set_f1, spearman

PROMPTS = "llm-jp-eval-1.3-prompts"
_PLACE = re.compile(r"\{[^{}]*\}")


@cache
def prompts() -> dict[str, Any]:
    """The catalogue's file of prompts.

    Raises:
        MissingDataError: it is not on this machine.
    """
    if catalogue.located(PROMPTS) is None:
        raise MissingDataError(
            f"the prompts of llm-jp-eval ({PROMPTS}) are not here: set LLMJP_DATA to a data root that holds them"
        )
    found: dict[str, Any] = json.loads(catalogue.get(PROMPTS).read_text(encoding="utf-8"))
    return found


def fill(pattern: str, values: Sequence[str]) -> str:
    """``pattern`` with its places filled in their order; values are taken as they are, braces too.

    Raises:
        UserError: another number of places than values: the prompt file has another form.
    """
    places = _PLACE.findall(pattern)
    if len(places) != len(values):
        raise UserError(f"{PROMPTS}: {pattern!r} has {len(places)} places, {len(values)} are known here")
    rest = iter(values)
    return _PLACE.sub(lambda match: next(rest), pattern)


def _prepared(docs: Any, name: str, asked: Callable[[Doc], tuple[Sequence[str], str]]) -> Any:
    """Items with ``head`` (the frame up to the examples), ``ask`` (the item) and ``said`` (its answer)."""
    whole = prompts()
    task, frame = whole["tasks"][name], whole["template"]["frame"]
    before, after = frame.split("{fewshots}")
    head = before.replace("{instruction}", task["instruction"])

    def change(doc: Doc) -> Doc:
        values, said = asked(doc)
        item = fill(task["input"][0], values)
        return doc | {"head": head, "ask": after.replace("{input}", item), "said": said}

    return in_form(docs, change)


def _choices(doc: Doc) -> tuple[Sequence[str], str]:
    return [doc["question"], *(doc[f"choice{i}"] for i in range(5))], str(doc["label"])


def _pair(doc: Doc) -> tuple[Sequence[str], str]:
    return [doc["sentence1"], doc["sentence2"]], str(doc["label"])


jcommonsenseqa_docs = partial(_prepared, name="jcommonsenseqa", asked=_choices)
jnli_docs = partial(_prepared, name="jnli", asked=_pair)
jsts_docs = partial(_prepared, name="jsts", asked=_pair)
jcola_docs = partial(_prepared, name="jcola", asked=lambda doc: ([doc["sentence"]], str(doc["label"])))
janli_docs = partial(
    _prepared,
    name="janli",
    asked=lambda doc: ([doc["sentence_A_Ja"], doc["sentence_B_Ja"]], doc["entailment_label_Ja"]),
)
jemhopqa_docs = partial(_prepared, name="jemhopqa", asked=lambda doc: ([doc["question"]], doc["answer"]))
niilc_docs = partial(_prepared, name="niilc", asked=lambda doc: ([doc["question"]], ",".join(doc["answers"])))
jmmlu_docs = partial(
    _prepared, name="jmmlu", asked=lambda doc: ([doc["question"], *doc["choices"]], "ABCD"[doc["answer"]])
)
jsquad_docs = partial(
    _prepared, name="jsquad", asked=lambda doc: ([doc["context"], doc["question"]], doc["answers"][0])
)
mawps_docs = partial(
    _prepared,
    name="mawps",
    asked=lambda doc: (
        [doc["question"].removeprefix("問題：").removesuffix("\n解答：")],
        str(doc["answer"]),
    ),
)


jamp_docs = partial(
    _prepared, name="jamp", asked=lambda doc: ([doc["premise"], doc["hypothesis"]], doc["gold_label"])
)
jsem_docs = partial(
    _prepared, name="jsem", asked=lambda doc: ([doc["premise"], doc["hypothesis"]], doc["answer"])
)
jsick_docs = partial(
    _prepared,
    name="jsick",
    asked=lambda doc: ([doc["sentence_A_Ja"], doc["sentence_B_Ja"]], doc["entailment_label_Ja"]),
)
chabsa_docs = partial(
    _prepared, name="chabsa", asked=lambda doc: ([doc["sentence"]], "\n".join(doc["opinions"]))
)


def mawps_examples(docs: Any) -> Any:
    """MAWPS's examples: each ends in 答えは…です."""

    def change(doc: Doc) -> Doc:
        question, _, answer = doc["shot_example"].strip().partition("\n解答：")
        return {"question": question, "answer": answer.removeprefix("答えは").removesuffix("です。")}

    return mawps_docs(in_form(docs, change))


def exact_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Exact match of the first part of the output."""
    return {"exact_match": float(first_part(results[0]) == nfkc(doc["said"].strip()))}


def char_f1_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Its ``char_f1`` against one gold."""
    return {"char_f1": llm_jp_eval_char_f1(first_part(results[0]), nfkc(doc["said"].strip()))}


def set_f1_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Its ``set_f1`` over the lines of the output."""
    return {"set_f1": set_f1(first_part(results[0]), nfkc(doc["said"].strip()))}


def jsts_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """(gold, prediction) as it reads numbers; a failure counts as -2.0."""
    pair = (faulty_number(str(doc["label"])), faulty_number(first_part(results[0])))
    return {"pearson": pair, "spearman": pair}


__all__ = ["pearson", "spearman"]  # task files name them here
