"""Every metric against an implementation of others, on strings made to trip it."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sklearn import metrics as sklearn_metrics

from llmjp_train.evaluate import resampling, text_metrics
from llmjp_train.evaluate.answers import characters, faulty_number, first_part, last_number, normalised

SIGNS = "東京都大阪あいうアイａｂAB12１２。、「」『』・ー é\u3000_"
TEXTS = st.text(alphabet=SIGNS, max_size=20)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("「東京」", "東京"),
        ("  ＴＯＫＹＯ　Tower。", "tokyo tower"),
        ("ｶﾞﾗｽ", "ガラス"),
        ("か\u3099", "が"),
        ("「A」と「B」", "「a」と「b」"),
        ("『「東京」』。", "東京"),
        ("「」", "「」"),
        ("。", "。"),
        ("", ""),
        ("①", "1"),
        ("3.14", "3.14"),
        ("(笑)", "笑"),
        ("\n東京\n\n", "東京"),
    ],
)
def test_normalisation(text: str, wanted: str) -> None:
    assert normalised(text) == wanted
    assert normalised(wanted) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("答えは18です。", 18),
        ("答えは−５です", -5),
        ("－1.5", -1.5),
        ("1,234,567円", 1234567),
        ("2〜3", 3),
        ("10-3", 3),
        ("3 - -4", -4),
        ("１２．５％", 12.5),
        ("5+6=11。答えは11です。", 11),
        (".5", 0.5),
        ("なし", None),
        ("", None),
    ],
)
def test_the_last_number_keeps_its_sign(text: str, wanted: float | None) -> None:
    assert last_number(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("-1.5", 1.5), ("2〜3", 23.0), ("なし", -2.0), ("1.2.3", -2.0), ("3点", 3.0)]
)
def test_llm_jp_eval_s_faulty_reading_is_reproduced(text: str, wanted: float) -> None:
    assert faulty_number(text) == wanted


def test_the_output_is_cut_at_the_first_blank_line() -> None:
    assert first_part("　Ａ \n\nB") == "A"
    assert first_part("A\nB") == "A\nB"


def test_llm_jp_eval_s_char_f1_is_fuzzywuzzy_s(root: Path) -> None:
    """Values of fuzzywuzzy 0.18.0 with python-Levenshtein 0.27.5 on these pairs."""
    pairs = json.loads((root / "tests/golden/fuzzywuzzy.json").read_text("utf-8"))
    assert len(pairs) > 400
    wrong = [
        (a, b, wanted) for a, b, wanted in pairs if text_metrics.llm_jp_eval_char_f1(a, b) != wanted / 100
    ]
    assert wrong == []


def counted_f1(prediction: str, gold: str) -> float:
    """SQuAD's F1 written out: each gold character is used up once."""
    found, left = characters(prediction), characters(gold)
    size, hits = len(left), 0
    for sign in found:
        if sign in left:
            left.remove(sign)
            hits += 1
    if not found or not size:
        return float(not found and not size)
    precision, recall = hits / len(found), hits / size
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_char_f1_is_the_best_over_the_golds(prediction: str, golds: list[str]) -> None:
    wanted = max(counted_f1(prediction, gold) for gold in golds)
    assert text_metrics.char_f1(prediction, golds) == pytest.approx(wanted)
    assert text_metrics.exact_match(prediction, [prediction]) == 1.0


@given(st.lists(st.sampled_from(["東京", "「東京」", "大阪 正", "京都。", " "]), max_size=5),
       st.lists(st.sampled_from(["東京", "大阪 正", "京都", "奈良"]), max_size=4))  # fmt: skip
def test_set_f1_is_scikit_learn_s(found: list[str], wanted: list[str]) -> None:
    first = {normalised(x) for x in found if x.strip()}
    second = {normalised(x) for x in wanted if x.strip()}
    every = sorted(first | second)
    expected = (
        float(not first and not second)
        if not first or not second
        else sklearn_metrics.f1_score([x in second for x in every], [x in first for x in every])
    )
    assert text_metrics.set_f1("\n".join(found), "\n".join(wanted)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_scipy_s(seed: int) -> None:
    draw = np.random.default_rng(seed)
    golds = draw.integers(0, 6, 200 + seed) / (1 + seed)
    predictions = golds + draw.normal(size=len(golds)).round(seed % 2)  # with ties
    pairs = list(zip(golds.tolist(), predictions.tolist(), strict=True))
    assert text_metrics.pearson(pairs) == pytest.approx(scipy.stats.pearsonr(golds, predictions)[0])
    assert text_metrics.spearman(pairs) == pytest.approx(scipy.stats.spearmanr(golds, predictions)[0])


def test_a_constant_has_no_correlation_and_no_nan() -> None:
    pairs = [(float(i), 0.1 + 0.2) for i in range(9)]
    assert text_metrics.pearson(pairs) == 0.0
    assert text_metrics.spearman(pairs) == 0.0


def test_classes_are_scored_as_scikit_learn_does() -> None:
    draw = random.Random(0)
    pairs = [(draw.randrange(3), draw.randrange(3)) for _ in range(90)]
    golds, found = zip(*pairs, strict=True)
    assert text_metrics.macro_f1(pairs) == pytest.approx(
        sklearn_metrics.f1_score(golds, found, average="macro")
    )
    two = [(gold % 2, prediction % 2) for gold, prediction in pairs]
    golds, found = zip(*two, strict=True)
    assert resampling.matthews(two) == pytest.approx(sklearn_metrics.matthews_corrcoef(golds, found))


class CharacterTokenizer:
    """For rouge_score: a character is a word."""

    def tokenize(self, text: str) -> list[str]:
        return characters(text)


@given(TEXTS, TEXTS)
def test_rouge_is_google_s_on_characters(prediction: str, gold: str) -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=CharacterTokenizer())
    wanted = scorer.score(gold, prediction)
    assert text_metrics.rouge(prediction, gold, 1) == pytest.approx(wanted["rouge1"].fmeasure)
    assert text_metrics.rouge(prediction, gold, 2) == pytest.approx(wanted["rouge2"].fmeasure)
    assert text_metrics.rouge_l(prediction, gold) == pytest.approx(wanted["rougeL"].fmeasure)


def bleu_by_hand(pairs: list[tuple[str, str]]) -> float:
    """Papineni et al. (2002) on characters that are no space, one reference; where no n-gram is hit, half, a quarter
    (and so on) of a hit counts, sacrebleu's smoothing (Lin and Och, 2004)."""
    pairs = [("".join(gold.split()), "".join(prediction.split())) for gold, prediction in pairs]
    total, smooth = 1.0, 1.0
    for size in range(1, 5):
        hits = count = 0.0
        for gold, prediction in pairs:
            left = [gold[i : i + size] for i in range(len(gold) - size + 1)]
            grams = [prediction[i : i + size] for i in range(len(prediction) - size + 1)]
            count += len(grams)
            for gram in grams:
                if gram in left:
                    left.remove(gram)
                    hits += 1
        if (size == 1 and not hits) or not count:
            return 0.0
        if not hits:
            smooth /= 2
            hits = smooth
        total *= (hits / count) ** 0.25
    golds, found = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    return 100 * total * (1.0 if found >= golds else math.exp(1 - golds / found))


ADVERSARIAL = {
    "repeated": [("猫が好きです", "猫猫猫猫猫猫が")],
    "short": [("東京都の人口は約千四百万人です", "東京都の人口")],
    "long": [("東京都", "東京都の人口は約千四百万人です")],
    "spaces": [("東京　へ 行きました", "東京へ\u3000行き ました")],
    "widths are not folded": [("ＡＢＣ１２３です", "ABC123です"), ("ガラスです", "ｶﾞﾗｽです")],
    "marks that combine": [("がぎぐげご", "か\u3099き\u3099くげご")],
    "beyond the basic plane": [("𠮷野家で👨\u200d👩\u200d👧食事", "𠮷野家で👨\u200d👩食事した")],
    "no quadruple": [("今日は晴れ", "晴れ今日は")],
    "nothing in common": [("今日は晴れ", "XYZWV")],
    "one is empty": [("今日は晴れです", ""), ("明日は雨です", "明日は雨だ")],
    "signs": [("「はい」、そうです。", "『はい』,そうです．")],
}


@pytest.mark.parametrize("pairs", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_bleu_of_characters_on_adversarial_texts(pairs: list[tuple[str, str]]) -> None:
    wanted = bleu_by_hand(pairs)
    assert text_metrics.bleu(pairs) == pytest.approx(wanted)
    counts = [text_metrics.translation_counts(prediction, gold, "bleu_char") for gold, prediction in pairs]
    assert text_metrics.of_counts(counts, name="bleu_char") == pytest.approx(wanted)  # as tasks sum it up


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_bleu_of_characters_on_any_texts(pairs: list[tuple[str, str]]) -> None:
    assert text_metrics.bleu(pairs) == pytest.approx(bleu_by_hand(pairs))


def test_bleu_and_chrf() -> None:
    pairs = [("今日は良い天気ですね", "今日はとても良い天気だ"), ("東京へ行きました", "東京へ行った")]
    assert text_metrics.bleu(pairs) == pytest.approx(bleu_by_hand(pairs))
    assert text_metrics.bleu([(gold, gold) for gold, _ in pairs]) == pytest.approx(100)
    wanted = sacrebleu.CHRF().corpus_score([p for _, p in pairs], [[g for g, _ in pairs]]).score
    assert text_metrics.chrf(pairs) == pytest.approx(wanted)


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 0, 1), (5, 2, 1), (10, 3, 5), (5, 4, 2), (7, 7, 3)])
def test_pass_at_k_counts_the_draws(samples: int, passed: int, k: int) -> None:
    wanted = 1 - math.comb(samples - passed, k) / math.comb(samples, k)
    assert text_metrics.pass_at_k(samples, passed, k) == pytest.approx(wanted)
