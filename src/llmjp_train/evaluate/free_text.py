"""Answers of a few sentences against several written by people: pfgen-bench's three measures, on our own prompts.

After Preferred Networks' pfgen-bench: fluency and truthfulness from character n-grams, helpfulness from what the
question wants to hear; text beyond 100 characters counts less and less, none beyond 150. Ours has three references
where it has hundreds, so each is measured against the others and not against itself too, and every wanted thing
counts alike: figures of the two cannot be compared.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from llmjp_train.evaluate.answers import nfkc

FULL, MOST = 100, 150
"""Characters that count in full, and at all."""
LONGEST = 10
"""Longest n-gram of fluency."""


def discount(length: int) -> float:
    """Weight of an answer of ``length`` characters: 1 up to FULL, 0 from MOST."""
    return max(0.0, 1.0 - max(length - FULL, 0) / (MOST - FULL))


def fluency(answer: str, references: Sequence[str]) -> float:
    """Sum over the answer's distinct n-grams of the share of references that have each, relative to the references'.

    The best over the answer's beginnings, as each further character adds n-grams and may cost weight; at most 1.
    """
    baseline = [
        _overlap(text, [*references[:i], *references[i + 1 :]])[-1]
        for i, text in enumerate(references)
        if len(references) > 1
    ]
    usual = sum(baseline) / len(baseline) if baseline else 0.0
    if not usual:
        return 0.0
    sums = _overlap(answer, references)
    return min(1.0, max((s * discount(n) / usual for n, s in enumerate(sums)), default=0.0))


def _overlap(text: str, references: Sequence[str]) -> list[float]:
    """For each beginning of ``text``, the sum of its n-grams' shares among the references."""
    having: Counter[str] = Counter()
    for reference in references:
        having.update({gram for grams in _grams(reference) for gram in grams})
    seen: set[str] = set()
    total, sums = 0.0, [0.0]
    for grams in _grams(text[:MOST]):
        new = set(grams) - seen
        seen |= new
        total += sum(having[gram] for gram in new) / len(references)
        sums.append(total)
    return sums


def _grams(text: str) -> Iterator[list[str]]:
    """For each character, the n-grams that end with it."""
    for end in range(1, len(text) + 1):
        yield [text[end - size : end] for size in range(1, min(LONGEST, end) + 1)]


def truthfulness(answer: str, references: Sequence[str], size: int = 3) -> float:
    """Share of the answer's letters that lie in a trigram of some reference; beyond FULL, the best beginning's."""
    known = {text[i : i + size] for text in references for i in range(len(text) - size + 1)}
    text = answer[:MOST]
    covered = [False] * len(text)
    for start in range(len(text) - size + 1):
        if text[start : start + size] in known:
            covered[start : start + size] = [True] * size
    letters = hits = 0
    best = share = 0.0
    for place, sign in enumerate(text, 1):
        if unicodedata.category(sign)[0] not in "PZ":
            letters, hits = letters + 1, hits + covered[place - 1]
        share = hits / letters if letters else 0.0
        if place >= FULL:
            best = max(best, share * discount(place))
    return max(best, share * discount(len(text)))


def helpfulness(answer: str, wanted: Sequence[Sequence[str]]) -> float:
    """Share of the wanted things that are said, each in one of its wordings; the best over the answer's beginnings."""
    if not wanted:
        return 0.0
    text = answer[:MOST]
    ends = [
        min((text.find(w) + len(w) for w in wordings if w in text), default=MOST + 1) for wordings in wanted
    ]
    return max(sum(e <= end for e in ends) / len(wanted) * discount(end) for end in {len(text), *ends})


def answer_scores(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The three measures of an answer and their mean."""
    answer = nfkc(results[0].strip())
    references = [nfkc(text) for text in doc["references"]]
    wanted = [[nfkc(wording) for wording in wordings] for wordings in doc["wanted"]]
    found = {
        "fluency": fluency(answer, references),
        "truthfulness": truthfulness(answer, references),
        "helpfulness": helpfulness(answer, wanted),
    }
    return {"free_text": sum(found.values()) / 3, **found}
