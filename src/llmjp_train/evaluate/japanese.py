"""What the task files in eval/tasks/japanese call: items in their form, answers scored by our definitions.

The harness calls ``…_docs`` with a split and ``…_scores`` with an item and the model's results.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from llmjp_train.data.converters import JSEM_ANSWERS
from llmjp_train.evaluate import text_metrics
from llmjp_train.evaluate.answers import last_number, normalised

Doc = dict[str, Any]
THREE = ["entailment", "contradiction", "neutral"]


def in_form(docs: Any, change: Callable[[Doc], Doc | None]) -> Any:
    """Each item changed, those of none left out; a list from a list, else a dataset as the harness wants it."""
    rows = [row for doc in docs if (row := change(dict(doc))) is not None]
    if isinstance(docs, list):
        return type(docs)(rows)
    import datasets

    return datasets.Dataset.from_list(rows)


def in_turn(docs: Any, label: str) -> Any:
    """Examples of each class in turn, so that the first n are balanced."""
    classes: dict[Any, list[Doc]] = {}
    for doc in docs:
        classes.setdefault(doc[label], []).append(dict(doc))
    # By label, not by appearance: the order must not hang on the file's first lines.
    lines = [classes[key] for key in sorted(classes, key=str, reverse=True)]
    ordered = iter([line[turn] for turn in range(min(map(len, lines))) for line in lines])
    # As many as there are, in their new order.
    return in_form(docs, lambda doc: next(ordered, None))


def jnli_examples(docs: Any) -> Any:
    """JNLI's examples, the three classes in turn."""
    return in_turn(docs, "label")


def janli_examples(docs: Any) -> Any:
    """JaNLI's examples, the two classes in turn."""
    return in_turn(docs, "entailment_label_Ja")


def jcola_examples(docs: Any) -> Any:
    """JCoLA's examples, acceptable and not in turn."""
    return in_turn(docs, "label")


def jnli_docs(docs: Any) -> Any:
    """JNLI with the photograph that a pair describes: pairs of one photograph are not independent."""
    return in_form(docs, lambda doc: doc | {"photograph": doc["yjcaptions_id"].split("-")[0].split("_")[0]})


def jsts_docs(docs: Any) -> Any:
    """JSTS with its similarity rounded half up, which examples show, and its photograph."""
    return in_form(
        docs,
        lambda doc: (
            doc
            | {
                "rounded": math.floor(doc["label"] + 0.5),
                "photograph": doc["yjcaptions_id"].split("-")[0].split("_")[0],
            }
        ),
    )


def jsts_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """(gold, prediction) of a pair; the prediction is the mean of 0 to 5 under the choices' probabilities.

    Shifted by the greatest log-likelihood before the exponential: unshifted, long answers give 0/0 (T10).
    """
    lls = [result[0] for result in results]
    weights = [math.exp(ll - max(lls)) for ll in lls]
    prediction = sum(value * weight for value, weight in enumerate(weights)) / sum(weights)
    pair = (float(doc["label"]), prediction)
    return {"pearson": pair, "spearman": pair}


def class_scores(doc: Doc, results: Sequence[tuple[float, bool]], gold: int) -> dict[str, Any]:
    """Accuracy and macro F1's (gold, prediction) of a classification scored by likelihood; ties to the first."""
    lls = [result[0] for result in results]
    prediction = max(range(len(lls)), key=lls.__getitem__)
    return {"acc": float(prediction == gold), "macro_f1": (gold, prediction)}


def jnli_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of JNLI's three classes."""
    return class_scores(doc, results, THREE.index(doc["label"]))


def janli_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of JaNLI's two classes."""
    return class_scores(doc, results, ["entailment", "non-entailment"].index(doc["entailment_label_Ja"]))


def jamp_examples(docs: Any) -> Any:
    """Jamp's examples, the three classes in turn."""
    return in_turn(docs, "gold_label")


def jamp_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of Jamp's three classes."""
    return class_scores(doc, results, THREE.index(doc["gold_label"]))


def jsick_examples(docs: Any) -> Any:
    """JSICK's examples, the three classes in turn."""
    return in_turn(docs, "entailment_label_Ja")


def jsick_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of JSICK's three classes."""
    return class_scores(doc, results, THREE.index(doc["entailment_label_Ja"]))


def jsem_scores(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of JSeM's four answers."""
    return class_scores(doc, results, JSEM_ANSWERS.index(doc["answer"]))


def chabsa_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """F1 of the set of lines "target polarity" of a sentence."""
    return {"set_f1": text_metrics.set_f1(results[0], "\n".join(doc["opinions"]))}


def alt_en_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Counts of a sentence put into English."""
    return _translated(results[0], doc["en"], "bleu_13a")


def alt_ja_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Counts of a sentence put into Japanese."""
    return _translated(results[0], doc["ja"], "bleu_char")


def _translated(prediction: str, gold: str, bleu: str) -> dict[str, Any]:
    names = ("chrf", bleu)
    return {name: text_metrics.translation_counts(prediction.strip(), gold, name) for name in names}


def jsquad_docs(docs: Any) -> Any:
    """JSQuAD without the "TITLE [SEP] " that every context starts with (T6)."""
    return in_form(docs, lambda doc: doc | {"passage": doc["context"].partition("[SEP]")[2].strip()})


def jsquad_examples(docs: Any) -> Any:
    """The same, one question a passage: the first ones share theirs."""
    seen: set[str] = set()

    def first(doc: Doc) -> Doc | None:
        if doc["context"] in seen:
            return None
        seen.add(doc["context"])
        return doc

    return jsquad_docs(in_form(docs, first))


def answer_scores(prediction: str, golds: Iterable[str]) -> dict[str, float]:
    """Exact match and character F1, the best over the golds."""
    wanted = list(golds)
    return {
        "exact_match": text_metrics.exact_match(prediction, wanted),
        "char_f1": text_metrics.char_f1(prediction, wanted),
    }


def jsquad_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Of a JSQuAD question, over all its golds."""
    return answer_scores(results[0], doc["answers"])


def niilc_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Of a NIILC question, over all its golds."""
    return answer_scores(results[0], doc["answers"])


def jemhopqa_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Of a JEMHopQA question; はい and いいえ count as its YES and NO."""
    said = {"はい": "YES", "いいえ": "NO"}.get(normalised(results[0]), results[0])
    return answer_scores(said, [doc["answer"]])


def mgsm_examples(docs: Any) -> Any:
    """MGSM's worked examples without their headings, which the prompt has."""
    return in_form(
        docs,
        lambda doc: {
            "question": doc["question"].removeprefix("問題："),
            "answer": doc["answer"].removeprefix("ステップごとの答え："),
        },
    )


def mgsm_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Whether the last number is the answer."""
    return {"exact_match": float(_same(last_number(results[0]), float(doc["answer_number"])))}


def mawps_docs(docs: Any) -> Any:
    """MAWPS without its headings, which the prompt has."""
    return in_form(
        docs, lambda doc: doc | {"question": doc["question"].removeprefix("問題：").removesuffix("\n解答：")}
    )


def mawps_examples(docs: Any) -> Any:
    """MAWPS's worked examples as questions and answers."""

    def split(doc: Doc) -> Doc:
        question, _, answer = doc["shot_example"].strip().removeprefix("問題：").partition("\n解答：")
        return {"question": question, "answer": answer}

    return in_form(docs, split)


def mawps_scores(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Whether the last number is the answer."""
    return {"exact_match": float(_same(last_number(results[0]), last_number(doc["answer"])))}


def _same(found: float | None, wanted: float | None) -> bool:
    return found is not None and wanted is not None and math.isclose(found, wanted, rel_tol=1e-6)


pearson = text_metrics.pearson
spearman = text_metrics.spearman
macro_f1 = text_metrics.macro_f1
chrf = partial(text_metrics.of_counts, name="chrf")
bleu_char = partial(text_metrics.of_counts, name="bleu_char")
bleu_13a = partial(text_metrics.of_counts, name="bleu_13a")
