"""Metrics for Japanese that lm-evaluation-harness lacks: character F1, set F1, correlations, ROUGE, BLEU, chrF.

Each comes in the definition that we publish. Where llm-jp-eval 1.3 has another one, ``llm_jp_eval_…`` is
that one with its faults, so that published figures can be set beside ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from llmjp_train.evaluate.answers import characters, normalised

_LATIN1 = dict.fromkeys(range(128, 256))
_NO_LETTER = re.compile(r"\W")


def exact_match(prediction: str, golds: Iterable[str]) -> float:
    """1.0 where the normalised answer is one of the golds, else 0.0."""
    return float(normalised(prediction) in {normalised(gold) for gold in golds})


def char_f1(prediction: str, golds: Iterable[str]) -> float:
    """Best F1 over the golds, on the multisets of characters without spaces and punctuation.

    SQuAD's F1 (Rajpurkar et al., 2016) with a character in the place of a word, as JGLUE has it for JSQuAD.
    """
    return max((_overlap_f1(characters(prediction), characters(gold)) for gold in golds), default=0.0)


def _overlap_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(not found and not wanted)
    common: int = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def set_f1(prediction: str, gold: str, separator: str = "\n") -> float:
    """F1 of the sets of answers (lines by default), each normalised."""
    found, wanted = (_set(text, separator) for text in (prediction, gold))
    if not found or not wanted:
        return float(not found and not wanted)
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def _set(text: str, separator: str) -> set[str]:
    return {normalised(part) for part in text.split(separator) if part.strip()}


def llm_jp_eval_char_f1(prediction: str, gold: str) -> float:
    """llm-jp-eval 1.3's ``char_f1``: fuzzywuzzy's token_sort_ratio over 100, with its faults (T3).

    It is no F1 but an edit similarity in whole per cents, of one gold: lower-cased, punctuation made blank,
    words sorted; the signs U+0080 to U+00FF vanish; two answers of punctuation alone are equal. The ratio is
    python-Levenshtein's (twice the longest common subsequence over both lengths), which llm-jp-eval asks for;
    fuzzywuzzy without it takes difflib's.
    """
    first, second = _sorted_words(prediction), _sorted_words(gold)
    if first == second:
        return 1.0
    if not first or not second:
        return 0.0
    return round(200 * _common(first, second) / (len(first) + len(second))) / 100


def _sorted_words(text: str) -> str:
    kept = _NO_LETTER.sub(" ", text.translate(_LATIN1))
    return " ".join(sorted(kept.lower().strip().split()))


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation of (gold, prediction) pairs; 0.0 where one side does not vary."""
    golds, predictions = np.asarray(pairs, dtype=np.float64).T
    golds, predictions = golds - golds.mean(), predictions - predictions.mean()
    spread = float(np.sqrt((golds**2).sum() * (predictions**2).sum()))
    # Rounding leaves a constant with a tiny spread.
    if spread <= 1e-12 * max(1.0, len(pairs)):
        return 0.0
    return float(np.clip((golds * predictions).sum() / spread, -1.0, 1.0))


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties at their mean rank."""
    golds, predictions = np.asarray(pairs, dtype=np.float64).T
    return pearson(list(zip(_ranks(golds), _ranks(predictions), strict=True)))


def _ranks(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts - 1) / 2
    return [float(rank) for rank in middle[place]]


def rouge(prediction: str, gold: str, size: int = 2) -> float:
    """ROUGE-N F1 (Lin, 2004) on the characters of both texts: no word splitter decides the score."""
    found, wanted = (_grams(characters(text), size) for text in (prediction, gold))
    total = found.total() + wanted.total()
    return float(2 * (found & wanted).total() / total) if total else 0.0


def rouge_l(prediction: str, gold: str) -> float:
    """ROUGE-L F1 (Lin, 2004), the longest common subsequence of characters."""
    first, second = characters(prediction), characters(gold)
    if not first or not second:
        return 0.0
    return 2 * _common(first, second) / (len(first) + len(second))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for sign in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            kept = row[place]
            row[place] = diagonal + 1 if sign == other else max(row[place], row[place - 1])
            diagonal = kept
    return row[-1]


def _grams(signs: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(signs[i : i + size]) for i in range(len(signs) - size + 1))


def bleu(pairs: Sequence[tuple[str, str]], tokenizer: str = "char") -> float:
    """Corpus BLEU of (gold, prediction) pairs by sacrebleu, 0 to 100.

    Args:
        tokenizer: sacrebleu's name, part of the figure: ``char`` for Japanese without a word splitter,
            ``ja-mecab`` where MeCab is installed, ``13a`` for English.
    """
    import sacrebleu

    golds, predictions = [gold for gold, _ in pairs], [prediction for _, prediction in pairs]
    return float(sacrebleu.corpus_bleu(predictions, [golds], tokenize=tokenizer).score)


def chrf(pairs: Sequence[tuple[str, str]]) -> float:
    """Corpus chrF (Popović, 2015) of (gold, prediction) pairs by sacrebleu, 0 to 100."""
    import sacrebleu

    golds, predictions = [gold for gold, _ in pairs], [prediction for _, prediction in pairs]
    return float(sacrebleu.corpus_chrf(predictions, [golds]).score)


TRANSLATION = ("chrf", "bleu_char", "bleu_13a")
"""Corpus metrics by sacrebleu; BLEU's name ends in its tokenizer: char for Japanese, 13a for English."""


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF() if name == "chrf" else BLEU(tokenize=name.removeprefix("bleu_"))


def translation_counts(prediction: str, gold: str, name: str) -> list[int]:
    """What a sentence adds to a corpus metric: kept for each item, so that intervals need no second counting."""
    found: list[int] = _sacrebleu(name)._extract_corpus_statistics([prediction], [[gold]])[0]
    return found


def of_counts(counts: Sequence[Sequence[int]], name: str) -> float:
    """The corpus metric, 0 to 100, from each sentence's counts."""
    return float(_sacrebleu(name)._aggregate_and_compute([list(each) for each in counts]).score)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that one of ``k`` programs drawn from ``samples`` is right (Chen et al., 2021, equation 1)."""
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Mean over the classes of (gold, prediction) pairs of each one's F1; a class without either scores 0."""
    golds, predictions = zip(*pairs, strict=True)
    scores: list[float] = []
    for label in sorted({*golds, *predictions}):
        both = sum(g == label == p for g, p in pairs)
        scores.append(2 * both / (golds.count(label) + predictions.count(label)))
    return sum(scores) / len(scores)
