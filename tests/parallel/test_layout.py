"""Groups of a layout."""

from datetime import timedelta
from typing import Any

import torch
from helpers.ranks import run_ranks

from llmjp_train.config.machine import ParallelConfig
from llmjp_train.parallel import layout as layouts
from llmjp_train.parallel.world import world


def waits(rank: int, size: int) -> list[timedelta]:
    def limit(group: Any) -> timedelta:
        found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
        return found

    made = layouts.start(ParallelConfig(tensor=2), world(), cuda=False, timeout_minutes=7)
    groups = (made.saving, made.tensor_group, made.data_group, made.pipeline_group)
    before = [limit(group) for group in groups]
    made.limit_waits(2)
    return [*before, *map(limit, groups)]


def test_each_group_takes_the_limit_that_it_is_given_and_then_a_shorter_one() -> None:
    """Left to torch, NCCL's groups would give up after ten minutes, in a first step that compiles too."""
    first, second = (timedelta(minutes=minutes) for minutes in (7, 2))
    assert run_ranks(waits, 2) == [[first] * 4 + [first, second, second, second]] * 2
