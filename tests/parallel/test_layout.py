"""Groups of a layout."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from helpers.ranks import run_ranks

from llmjp_train.config.machine import ParallelConfig
from llmjp_train.parallel import layout as layouts
from llmjp_train.parallel.world import world
from llmjp_train.train.hooks import ShortWaits


def waits(rank: int, size: int) -> list[timedelta]:
    def limit(group: Any) -> timedelta:
        found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
        return found

    made = layouts.start(ParallelConfig(tensor=2), world(), cuda=False, timeout_minutes=7)
    groups = (made.saving, made.tensor_group, made.data_group, made.pipeline_group)
    before = [limit(group) for group in groups]
    made.limit_waits(2)
    after = [limit(group) for group in groups]
    later: Any = dist.new_group()  # as DeepSpeed makes them, with torch's limit
    run: Any = SimpleNamespace(
        layout=made, config=SimpleNamespace(cluster=SimpleNamespace(collective_minutes=3))
    )
    hook, told = ShortWaits(), []
    row: Any = None
    for act in (
        hook.start,
        lambda run: hook.after_step(run, row),
        hook.settle,
        lambda run: hook.after_step(run, row),
    ):
        act(run)
        told.append(limit(later))
    return [*before, *after, *told]


def test_each_group_takes_the_limit_that_it_is_given_and_then_a_shorter_one() -> None:
    """Left to torch, NCCL's groups would give up after ten minutes, in a first step that compiles too."""
    first, second, start, short = (timedelta(minutes=minutes) for minutes in (7, 2, 30, 3))
    changed = [start, short, start, short]  # before a start, after its step, before a rewind, after its step
    assert run_ranks(waits, 2) == [[first] * 4 + [first, second, second, second] + changed] * 2
