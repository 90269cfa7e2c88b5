"""Measures of free answers, against a count by hand and on answers whose order is plain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjp_train.evaluate.free_text import answer_scores, discount, fluency, helpfulness, truthfulness
from llmjp_train.evaluate.tasks import find_tasks

REFERENCES = ["水は零度で凍ります。", "水は、零度で氷になります。", "零度になると水は凍ります。"]


def test_truthfulness_is_the_share_of_letters_in_known_trigrams() -> None:
    assert truthfulness("水は零度で凍ります。", REFERENCES) == 1.0
    # 水は零 is known, は零百 and 零百度 are not, 百度で is not: 3 of 6 letters.
    assert truthfulness("水は零百度で", REFERENCES) == pytest.approx(3 / 6)
    assert truthfulness("犬が走る。", REFERENCES) == 0.0
    assert truthfulness("", REFERENCES) == 0.0


def test_fluency_is_relative_to_what_references_share_with_each_other() -> None:
    two = ["ab", "ac"]
    # Each shares "a" with the other: 1. The answer "a" has it of both: 1. "b" is in one of two: 0.5.
    assert fluency("a", two) == 1.0
    assert fluency("b", two) == 0.5
    assert fluency("x", two) == 0.0
    assert fluency("a", ["a"]) == 0.0, "one reference says nothing of what is usual"


def test_helpfulness_counts_wanted_things_in_any_wording() -> None:
    wanted = [["零度", "0度"], ["凍"], ["気圧"]]
    assert helpfulness("水は0度で凍る", wanted) == pytest.approx(2 / 3)
    assert helpfulness("水", wanted) == 0.0
    late = "あ" * 120 + "気圧"
    assert helpfulness(late, [["気圧"]]) == pytest.approx(discount(122))
    assert helpfulness("気圧" + "あ" * 200, [["気圧"]]) == 1.0, "what was said early stays said"


@given(st.text(max_size=220))
def test_measures_are_shares_of_anything(text: str) -> None:
    doc = {"references": REFERENCES, "wanted": [["零度"], ["凍"]]}
    assert all(0.0 <= value <= 1.0 for value in answer_scores(doc, [text]).values())


def test_a_good_answer_is_ahead_of_a_vague_one_and_that_of_another_question_s() -> None:
    docs = find_tasks()["own_answers"].scored()
    for doc, other in zip(docs, [*docs[1:], docs[0]], strict=True):
        good = answer_scores({**doc, "references": doc["references"][1:]}, [doc["references"][0]])[
            "free_text"
        ]
        vague = answer_scores(doc, ["それはとても大切なことです。よく調べてみましょう。"])["free_text"]
        elsewhere = answer_scores(doc, [other["references"][0]])["free_text"]
        assert good > 0.5 > max(vague, elsewhere), doc["id"]
