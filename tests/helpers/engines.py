"""Engines of small models in any layout, and what they hold, put together from all ranks."""

from typing import Any

import torch
from helpers.toy import ragged_batches, small_config

STEPS, SAMPLES, LR = 3, 8, 1e-3

FORMS: dict[str, tuple[str, ...]] = {
    "llama": ("model.num_heads=8", "model.num_kv_heads=4", "model.head_size=4", "model.num_layers=4"),
    "gpt": (
        "model.position=learned",
        "model.norm=layernorm",
        "model.mlp=gelu_tanh",
        "model.bias=all",
        "model.num_kv_heads=4",
        "model.num_layers=4",
    ),
    "neox": (
        "model.norm=layernorm",
        "model.mlp=gelu",
        "model.bias=all",
        "model.num_kv_heads=4",
        "model.rope_fraction=0.25",
        "model.tied_embeddings=true",
        "model.num_layers=4",
    ),
    "qwen3": (
        "model.qk_norm=true",
        "model.num_heads=8",
        "model.num_kv_heads=4",
        "model.head_size=4",
        "model.num_layers=4",
    ),
}
"""Every way in which a parameter can be split, replicated or shared."""


def sizes(tensor: int = 1, pipeline: int = 1, data: int = 1, zero: int = 1) -> tuple[str, ...]:
    """Overrides of a layout."""
    return (
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.data={data}",
        f"parallel.zero={zero}",
        f"batch.global_batch={SAMPLES}",
    )


def build(config: Any, sources: int = 2) -> Any:
    """Layout and engine of this rank."""
    from llmjp_train.engine.make import make_engine
    from llmjp_train.parallel import layout as layouts
    from llmjp_train.parallel.world import world
    from llmjp_train.train.optimizer import parameter_groups

    layout = layouts.start(config.parallel, world(), cuda=False)
    return layout, make_engine(config, layout, sources, parameter_groups(config))


def whole(engine: Any, kinds: tuple[str, ...] = ("master",)) -> dict[str, torch.Tensor]:
    """Every whole tensor of the state, from the fragments that each rank owns; NaN where none was given."""
    import torch.distributed as dist

    mine = [
        (f.name, f.shape, box.offset, box.view.clone())
        for f in engine.fragments(owned=True)
        if f.name.split(".")[0] in kinds
        for box in f.rectangles()
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape, offset, values in (item for rank in found for item in rank):
        tensor = tensors.setdefault(name, torch.full(shape, torch.nan))
        place = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
        assert torch.isnan(tensor[place]).all(), f"{name} is given twice at {offset}"
        tensor[place] = values
    return tensors


def run_steps(rank: int, world: int, overrides: tuple[str, ...], steps: int = STEPS) -> Any:
    """Results of some steps, the whole masters after them, the first gradients, and the second moments of each step.

    Gradients are as the optimizer got them; second moments are corrected for their start.
    """
    config = small_config(*overrides)
    layout, engine = build(config)
    beta1, beta2 = config.optimizer.beta1, config.optimizer.beta2
    results, gradients, squares = [], {}, []
    for step in range(steps):
        batches = ragged_batches(config, SAMPLES, seed=step)
        results.append(engine.step(batches[layout.data_rank :: layout.data], lr=LR))
        if step == 0:
            gradients = {bare(n): value / (1 - beta1) for n, value in whole(engine, ("exp_avg",)).items()}
        seen = whole(engine, ("exp_avg_sq",))
        squares.append({bare(n): value / (1 - beta2 ** (step + 1)) for n, value in seen.items()})
    found = results, {bare(n): value for n, value in whole(engine).items()}, gradients, squares
    engine.close()
    return found


def bare(name: str) -> str:
    """A parameter's name without the kind of its state."""
    return name.partition(".")[2]
