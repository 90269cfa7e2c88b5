"""Evaluation on the training ranks: the same scores and as many scorer calls on any number of ranks."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.errors import UserError
from llmjp_train.evaluate.in_loop import in_loop

RUN = SimpleNamespace(step=40)


class ToyScorer:
    """Log-probabilities that depend on tokens and places; collective, as the engine is under ZeRO-3."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.calls = ranks, 0

    def __call__(self, trained: Any, batch: Any) -> torch.Tensor:
        assert trained is RUN
        self.calls += 1
        if self.ranks > 1:
            torch.distributed.all_reduce(torch.ones(1))
        scores = -1.0 - ((batch.tokens * 31 + batch.targets * 17) % 97) / 50
        return scores.where(batch.targets >= 0, 0.0)


def evaluate_once(rank: int, ranks: int, tokenizer_folder: str, limit: int | None, batch_size: int) -> Any:
    from llmjp_train.data.tokenizers import load_tokenizer

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(TokenizerConfig(name="toy", path=tokenizer_folder))
    scorer = ToyScorer(ranks)
    run = in_loop(
        tokenizer, scorer, max_length=192, limit=limit, batch_size=batch_size, rank=rank, ranks=ranks
    )
    return run(RUN), scorer.calls


def figures(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: (task["metric"], task["prompts_sha256"]) for name, task in payload["tasks"].items()}


@pytest.mark.parametrize(("limit", "batch_size"), [(5, 4), (1, 16)])
def test_two_ranks_give_the_scores_of_one(tokenizer_folder: Path, limit: int, batch_size: int) -> None:
    alone, calls_alone = evaluate_once(0, 1, str(tokenizer_folder), limit, batch_size)
    results = run_ranks(evaluate_once, 2, str(tokenizer_folder), limit, batch_size)
    (first, calls_first), (second, calls_second) = results
    assert figures(first) == figures(second) == figures(alone)
    assert calls_first == calls_second
    assert calls_first < calls_alone or limit == 1
    assert alone["step"] == 40
    assert alone["tasks"]["own_choice"]["items"] == limit
    assert first["settings"]["ranks"] == 2


def test_ranks_without_a_batch_take_part(tokenizer_folder: Path) -> None:
    # One item of four choices in one batch: two of three ranks have nothing of their own.
    results = run_ranks(evaluate_once, 3, str(tokenizer_folder), 1, 16)
    assert len({calls for _, calls in results}) == 1
    assert figures(results[0][0]) == figures(evaluate_once(0, 1, str(tokenizer_folder), 1, 16)[0])


def test_the_payload_says_where_it_comes_from(tokenizer: Any) -> None:
    payload = in_loop(tokenizer, ToyScorer(1), max_length=192, tasks=["own_choice"], limit=2)(RUN)
    assert payload["settings"]["in_loop"] is True
    assert payload["suite"] == ""
    assert payload["items_file"] is None
    assert list(payload["tasks"]) == ["own_choice"]


def test_a_bad_task_is_refused_before_training_starts(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no such task"):
        in_loop(tokenizer, ToyScorer(1), max_length=192, tasks=["own_chioce"])
    with pytest.raises(UserError, match="suite=quik"):
        in_loop(tokenizer, ToyScorer(1), max_length=192, suite="quik")


def test_launcher_variables_do_not_hide_the_result(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The harness's own simple_evaluate returns nothing where LOCAL_RANK is not 0.
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "3")
    payload = in_loop(tokenizer, ToyScorer(1), max_length=192, tasks=["own_choice"], limit=2)(RUN)
    assert payload["tasks"]["own_choice"]["items"] == 2
