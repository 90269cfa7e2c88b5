"""A checkpoint of any layout loads in any other: the state is bit-equal at each hop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engines import FORMS, LR, SAMPLES, build, run_steps, sizes, whole
from helpers.layouts import within
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

KINDS = ("master", "exp_avg", "exp_avg_sq")


def hop(
    rank: int, world: int, run_dir: str, overrides: tuple[str, ...], before: int | None, steps: int = 1
) -> Any:
    """Load, take steps, save: the whole state as loaded, as saved, and the losses."""
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.checkpoint.store import load, save

    config = small_config(*overrides)
    layout, engine = build(config)
    loaded: dict[str, torch.Tensor] = {}
    if before is not None:
        load(choose(Path(run_dir), before).path, engine.fragments())
        engine.restore(before)
        loaded = whole(engine, KINDS)
    losses = []
    for step in range(before or 0, (before or 0) + steps):
        batches = ragged_batches(config, SAMPLES, seed=step)
        losses.append(engine.step(batches[layout.data_rank :: layout.data], lr=LR).loss)
    saved = whole(engine, KINDS)
    save(Path(run_dir), (before or 0) + steps, engine.fragments(owned=True), {}, epoch=0)
    engine.close()
    return loaded, saved, losses


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert not torch.isnan(value).any(), name
        assert torch.equal(value, right[name]), name


def ring(run_dir: Path, form: str, hops: list[tuple[tuple[str, ...], int]]) -> list[float]:
    """Each layout loads what the one before saved and takes a step; the losses."""
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.checkpoint.store import CheckpointReader

    losses, before, state = [], None, {}
    for overrides, world in hops:
        loaded, saved, found = run_ranks(hop, world, str(run_dir), (*overrides, *FORMS[form]), before)[0]
        if before is not None:
            equal(state, loaded)
        state, before = saved, (before or 0) + 1
        losses += found
        reader = CheckpointReader(choose(run_dir, before).path)
        equal(state, {name: reader.read(name) for name in reader.names()})
    return losses


@pytest.mark.slow
def test_ranks_come_and_go(tmp_path: Path) -> None:
    hops = [(sizes(2), 2), (sizes(), 1), (sizes(2, data=2, zero=3), 4), (sizes(2, 2), 4)]
    found = ring(tmp_path, "neox", hops)
    _, _, plain = run_ranks(hop, 1, str(tmp_path / "plain"), (*sizes(), *FORMS["neox"]), None, 4)[0]
    assert found == pytest.approx(plain, rel=2e-6)


RING = [
    (sizes(2, 2), 4),
    (sizes(), 1),
    (sizes(data=2, zero=3), 2),
    (sizes(2, data=2, zero=2), 4),
    (sizes(1, 4), 4),
    (sizes(4, zero=0), 4),
    (sizes(1, 2, 2), 4),
    (sizes(data=4, zero=2), 4),
    (sizes(2, 2, 2), 8),
    (sizes(zero=0), 1),
    (sizes(2, zero=3), 2),
    (sizes(4, 2), 8),
    (sizes(data=2, zero=1), 2),
]
"""Each changes the number of processes, the ZeRO stage, tensor or pipeline ranks."""


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["neox"])
def test_a_ring_of_layouts_ends_where_the_unbroken_run_does(form: str, tmp_path: Path) -> None:
    found = ring(tmp_path, form, RING)
    steps = len(RING)
    plain = run_ranks(run_steps, 1, (*sizes(), *FORMS[form]), steps)[0]
    assert found == pytest.approx([result.loss for result in plain[0]], rel=5e-6)
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.checkpoint.store import CheckpointReader

    reader = CheckpointReader(choose(tmp_path, steps).path)
    within({name: reader.read(f"master.{name}") for name in plain[1]}, plain)
