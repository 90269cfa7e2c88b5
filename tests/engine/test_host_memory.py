"""Host memory that a rank takes while it builds its part of a 13B, whose layout does not fit here as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plans import experiment
from helpers.ranks import run_ranks

LAYOUT = ("parallel.tensor=4", "parallel.pipeline=20", "parallel.data=2", "parallel.sequence=false")
RANKS = 160


def built(rank: int, world: int, overrides: tuple[str, ...]) -> tuple[int, int]:
    """Bytes that this process grew by at most, and by in the end, as the first rank of many; exchanges go nowhere."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from llmjp_train.engine.make import make_engine
    from llmjp_train.parallel import layout as layouts
    from llmjp_train.parallel.world import World
    from llmjp_train.train.optimizer import parameter_groups

    config = experiment(*overrides)
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    new_group = dist.new_group
    dist.new_group = lambda ranks=None, *args, **kwargs: new_group(ranks, backend="fake")  # type: ignore[misc]
    layout = layouts.start(config.parallel, World(size=RANKS), cuda=False)
    groups = parameter_groups(config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _held("VmRSS")
    engine = make_engine(config, layout, 1, groups)
    found = _held("VmHWM") - before, _held("VmRSS") - before
    assert sum(fragment.view.numel() for fragment in engine.fragments()) > 0
    dist.destroy_process_group()
    return found


def _held(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


@pytest.mark.full
def test_a_rank_of_a_13b_never_holds_more_than_its_state_and_one_whole_tensor() -> None:
    """Its first stage, which has the embedding of 99,584 rows: a whole model would be 55 GB in fp32."""
    from llmjp_train.plan.job import job_from
    from llmjp_train.plan.stages import stages
    from llmjp_train.plan.state import gradient_terms, state_terms

    overrides: Any = ("experiment=llm-jp-3-13b", "cluster=local", *LAYOUT)
    config = experiment(*overrides)
    one = job_from(config)
    stage = stages(one)[0]
    planned = sum(
        term.bytes
        for term in [*state_terms(one, stage), *gradient_terms(one, stage)]
        if term.name != "gradients of a micro batch"  # there is none yet
    )
    whole = config.model.vocab_size * config.model.hidden_size * torch.float32.itemsize
    ((peak, after),) = run_ranks(built, 1, overrides, timeout=300)
    little = 0.05 * planned
    assert planned - little < after < planned + little
    assert peak < planned + whole + little
