"""No special token slips in, continuations are scored whole, windows score each token once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness
from llmjp_train.evaluate.encoding import Encoder, Row
from llmjp_train.evaluate.likelihood import make_encoder
from llmjp_train.evaluate.suites import choose


def pieces(vocabulary: list[str]) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    """A greedy longest-match tokenizer over ``vocabulary``; unknown characters get ids of their own."""

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        while text:
            best = max((piece for piece in vocabulary if text.startswith(piece)), key=len, default="")
            ids.append(vocabulary.index(best) if best else 1000 + ord(text[0]))
            text = text[len(best) or 1 :]
        return ids

    def decode(ids: list[int]) -> str:
        return "".join(vocabulary[i] if i < 1000 else chr(i - 1000) for i in ids)

    return encode, decode


def test_the_tokenizers_habit_of_appending_eod_is_known(tokenizer: Any) -> None:
    assert tokenizer.hf("東京")["input_ids"][-1] == tokenizer.eod_id  # the trap is set
    row = make_encoder(tokenizer, bos=False).pair("首都は東京都", "千代田区")
    assert tokenizer.eod_id not in row.context + row.continuation
    assert tokenizer.bos_id not in row.context + row.continuation
    assert tokenizer.decode(list(row.context)) == "首都は東京都"
    assert tokenizer.decode(list(row.continuation)) == "千代田区"


def test_bos_stands_first_where_it_is_asked_for(tokenizer: Any) -> None:
    encoder = make_encoder(tokenizer, bos=True)
    row = encoder.pair("答え：", "はい")
    assert row.context[0] == tokenizer.bos_id
    assert row.context.count(tokenizer.bos_id) == 1
    assert encoder.rolling("はい", 8)[0].context == (tokenizer.bos_id,)
    assert make_encoder(tokenizer, bos=False).rolling("はい", 8)[0].context == (tokenizer.eod_id,)


def test_a_token_across_the_boundary_does_not_shorten_the_continuation() -> None:
    encode, decode = pieces(["答え", "：", "：東", "京", "東"])
    encoder = Encoder(encode, decode, prefix_id=0)
    assert encode("答え：東京") == [0, 2, 3]  # jointly, the first character would belong to the context
    row = encoder.pair("答え：", "東京")
    assert decode(list(row.context)) == "答え："
    assert decode(list(row.continuation)) == "東京"
    assert encoder.counts.joined_tokens == 1


def test_a_continuation_swallowed_by_the_contexts_last_token_is_still_scored() -> None:
    encode, decode = pieces(["答え", "：", "：東", "東"])
    row = Encoder(encode, decode, prefix_id=0).pair("答え：", "東")
    assert decode(list(row.continuation)) == "東"


def test_choices_share_the_same_context() -> None:
    encode, decode = pieces(["答え", "：", "：東", "東", "京", "大阪"])
    encoder = Encoder(encode, decode, prefix_id=0)
    contexts = {encoder.pair("答え：", choice).context for choice in ("東京", "大阪", "京")}
    assert len(contexts) == 1


def test_white_space_at_the_end_of_a_context_goes_to_the_continuation() -> None:
    encode, decode = pieces(["A", ":", " B", " ", "B"])
    row = Encoder(encode, decode, prefix_id=9).pair("A: ", "B")
    assert (row.context, row.continuation) == ((0, 1), (2,))


def test_empty_texts(tokenizer: Any) -> None:
    encoder = make_encoder(tokenizer, bos=False)
    assert encoder.pair("", "はい").context == (tokenizer.eod_id,)
    assert encoder.rolling("", 8) == []
    with pytest.raises(UserError, match="empty continuation"):
        encoder.pair("答え：", "")


def test_a_long_input_is_cut_from_the_left() -> None:
    row = Row(tuple(range(10)), (50, 51))
    assert row.window(5) == ([6, 7, 8, 9, 50, 51], 2)
    with pytest.raises(UserError, match="3 tokens is longer than the model's 2"):
        Row((1,), (1, 2, 3)).window(2)


@given(st.integers(0, 60), st.integers(1, 17))
def test_rolling_windows_are_the_harness_s(length: int, max_length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(100, 100 + length))
    encoder = Encoder(lambda text: tokens, lambda ids: "", prefix_id=7)
    rows = encoder.rolling("text", max_length)
    wanted = map(make_disjoint_window, get_rolling_token_windows(tokens, 7, max_length, 1))
    assert [(list(row.context), list(row.continuation)) for row in rows] == list(wanted)
    assert [token for row in rows for token in row.continuation] == tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llmjp-ver2.2-50k", "llmjp-ver3.0-100k"])
def test_our_items_have_clean_boundaries_in_llm_jp_s_tokenizers(name: str, llmjp_data: Path) -> None:
    from llmjp_train.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(TokenizerConfig(name=name, path=str(llmjp_data / "tokenizer" / name)))
    encoder = make_encoder(tokenizer, bos=False)
    chosen, _ = choose("quick", ["own_choice", "own_reading", "jcommonsenseqa"], limit=60)
    for entry in chosen:
        task = harness.load_task(entry, [])
        task.build_all_requests(limit=entry.limit)
        for request in task.instances:
            row = encoder.pair(*request.args)
            assert tokenizer.decode(list(row.continuation)) == request.args[1]
            assert tokenizer.eod_id not in row.context + row.continuation
    assert encoder.counts.requests > 500
    assert encoder.counts.joined_tokens == 0


def test_every_choice_of_our_items_is_scored_whole_by_a_small_tokenizer(tokenizer: Any, root: Path) -> None:
    encoder = make_encoder(tokenizer, bos=False)
    rows = [
        json.loads(line) for line in (root / "eval/items/own_choice.jsonl").read_text("utf-8").splitlines()
    ]
    for row in rows:
        contexts = set()
        for choice in row["choices"]:
            pair = encoder.pair(f"質問：{row['question']}\n答え：", choice)
            assert tokenizer.decode(list(pair.continuation)) == choice
            contexts.add(pair.context)
        assert len(contexts) == 1, row["id"]
