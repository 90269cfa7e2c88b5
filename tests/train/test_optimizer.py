"""Weight decay by rule, as the engine applies it."""

from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

from llmjp_train.train.optimizer import parameter_groups


def test_every_parameter_is_in_one_group() -> None:
    from llmjp_train.model.shapes import parameter_shapes

    config = small_config("optimizer.decay_embeddings=false")
    groups = parameter_groups(config)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(parameter_shapes(config.model))
    assert "embedding.weight" in groups[1]["names"]
    (only,) = parameter_groups(small_config("optimizer.weight_decay=0"))
    assert only["weight_decay"] == 0.0


def step_without_gradients(rank: int, world: int, zero: int) -> dict[str, float]:
    """Weights over their initial values after a step in which the moments are all but frozen by a huge epsilon."""
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world as place

    config = small_config(
        f"parallel.data={world}",
        f"parallel.zero={zero}",
        "batch.global_batch=6",
        "optimizer.eps=1e12",
        "optimizer.weight_decay=0.5",
        "model.qk_norm=true",
    )
    started = layout.start(config.parallel, place(), cuda=False)
    engine = FlatEngine(config, started, 2, parameter_groups(config))
    before = {f.name: f.view.clone() for f in engine.fragments() if f.name.startswith("master.")}
    engine.step(ragged_batches(config, 6)[rank::world], lr=0.1)
    after = {f.name: f.view.clone() for f in engine.fragments() if f.name.startswith("master.")}
    engine.close()
    return {
        name.removeprefix("master."): float((after[name] / value).median())
        for name, value in before.items()
        if bool((value != 0).all())
    }


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_engine_decays_matrices_alone(zero: int) -> None:
    ratios: dict[str, float] = {}
    for found in run_ranks(step_without_gradients, 2, zero):
        ratios |= found
    assert any("norm" in name for name in ratios)
    for name, value in ratios.items():
        assert value == pytest.approx(1.0 if "norm" in name else 1 - 0.1 * 0.5, rel=1e-5), name


def engine_kind(rank: int, world: int) -> Any:
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world as place

    config = small_config()
    engine = FlatEngine(
        config, layout.start(config.parallel, place(), cuda=False), 1, parameter_groups(config)
    )
    optimizer = engine._engine.basic_optimizer
    return type(optimizer) is torch.optim.AdamW, [group["fused"] for group in optimizer.param_groups]


def test_adamw_is_torchs_fused_one() -> None:
    assert run_ranks(engine_kind, 1) == [(True, [True, True])]
