"""Bytes of weights, masters and moments against what the real engine allocates, layout by layout."""

from typing import Any

import pytest
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

from llmjp_train.plan.job import job_from
from llmjp_train.plan.saves import staged
from llmjp_train.plan.stages import stages
from llmjp_train.plan.state import gradient_terms, state_terms

LAYOUTS = [
    # tensor, pipeline, data, sequence parallel, ZeRO stage, precision
    (1, 1, 2, False, 0, "fp32"),
    (1, 1, 2, False, 1, "bf16"),
    (1, 1, 2, False, 2, "bf16"),
    (1, 1, 2, False, 3, "bf16"),
    (2, 1, 1, False, 1, "bf16"),
    (2, 1, 2, True, 3, "bf16"),
    (1, 2, 1, False, 1, "fp32"),
    (2, 2, 1, True, 1, "bf16"),
]
MORE = [
    (1, 1, 1, False, 1, "bf16"),
    *[(1, 1, 2, False, zero, "fp32") for zero in (1, 2, 3)],
    (2, 1, 1, True, 1, "bf16"),
    (2, 1, 2, False, 3, "bf16"),
    (2, 2, 1, False, 1, "bf16"),
    (1, 2, 2, False, 1, "bf16"),
    (2, 2, 2, True, 1, "bf16"),
]
ODD = ("model.ffn_size=46", "model.vocab_size=401", "model.num_layers=5", "model.tied_embeddings=true")
"""Sizes that need ZeRO's padding and stages that differ."""


Layout = tuple[int, int, int, bool, int, str]


def overrides_of(layout: Layout) -> tuple[str, ...]:
    tensor, pipeline, data, sequence, zero, precision = layout
    return (
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.data={data}",
        f"parallel.sequence={str(sequence).lower()}",
        f"parallel.zero={zero}",
        f"precision={precision}",
        "batch.global_batch=4",
        *ODD,
    )


def allocated(rank: int, world: int, overrides: tuple[str, ...]) -> dict[str, int]:
    """Bytes of unique storages behind this rank's weights, masters, moments and lasting gradients."""
    import torch
    from helpers.engines import build

    config = small_config(*overrides)
    layout, engine = build(config)
    engine.step(ragged_batches(config, 4)[layout.data_rank :: layout.data], lr=1e-3)

    def size(tensors: Any) -> int:
        held = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
        return sum(storage.nbytes() for storage in held.values())

    inner = engine._engine
    flats = engine._state._flats()
    weights = [p.ds_tensor if hasattr(p, "ds_tensor") else p for p in inner.module.parameters()]
    states = [inner.basic_optimizer.state[flat] for flat in flats]
    found = {
        "weights": size(weights),
        "staged": sum(f.view.numel() * f.view.element_size() for f in engine.fragments(owned=True)),
        "moments": size([state[kind] for state in states for kind in ("exp_avg", "exp_avg_sq")]),
    }
    if config.parallel.zero:
        found["masters"] = size(flats)
    sums = getattr(inner.optimizer, "fp32_groups_gradients_flat", None)
    if sums is not None:
        assert all(flat.dtype is torch.float32 for flat in sums)
        found["gradients"] = size(sums)
    engine.close()
    return found


@pytest.mark.parametrize(
    "layout",
    [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.full) for layout in MORE)],
    ids=lambda layout: "-".join(map(str, layout)),
)
def test_every_rank_holds_what_the_planner_says(layout: Layout) -> None:
    overrides = overrides_of(layout)
    tensor, pipeline, data, *_ = layout
    one = job_from(small_config(*overrides))
    found = run_ranks(allocated, tensor * pipeline * data, overrides)
    # what a save in the background copies; the plan counts padding too, and the tied head that the last stage
    # has but the first one saves
    most = max(bytes_of.pop("staged") for bytes_of in found)
    assert (0.75 if pipeline > 1 else 0.95) * staged(one) < most <= staged(one)
    for rank, bytes_of in enumerate(found):
        stage = stages(one)[rank // (tensor * data)]
        planned = {term.name: term.bytes for term in [*state_terms(one, stage), *gradient_terms(one, stage)]}
        assert bytes_of == {name: planned[name] for name in bytes_of}, f"rank {rank}"
