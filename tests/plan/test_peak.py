"""The whole account of a rank against the most that the real engine's tensors held, on a CPU."""

import pytest
from helpers.ranks import run_ranks
from helpers.toy import small_config

from llmjp_train.plan.job import job_from
from llmjp_train.plan.memory import memory

LENGTH, MICRO, VOCABULARY = 128, 2, 500
NEAR = 0.03
"""How far a plan may be from what was held, either way; docs/planner.md says how far they are."""
SIZES = (
    "model.num_layers=6",
    "model.hidden_size=64",
    "model.ffn_size=192",
    "model.num_heads=4",
    "model.num_kv_heads=4",
    "model.head_size=16",
    f"model.vocab_size={VOCABULARY}",
    f"model.max_positions={LENGTH}",
    f"batch.sequence_length={LENGTH}",
    f"batch.micro_batch={MICRO}",
    "parallel.loss_chunk=32",
    "parallel.bucket_mb=1",
    "data.document_mask=false",
)


def most_held(rank: int, world: int, overrides: tuple[str, ...]) -> int:
    """Peak of the bytes of tensors over two steps of two micro batches, the second step's."""
    import torch
    from helpers.allocations import Allocations
    from helpers.engines import build

    from llmjp_train.data.stream import MicroBatch

    config = small_config(*SIZES, *overrides)
    tokens = torch.randint(0, VOCABULARY, (MICRO, LENGTH))
    positions = torch.arange(LENGTH).expand(MICRO, -1)
    sources = torch.zeros(MICRO, dtype=torch.int64)
    batch = MicroBatch(tokens, tokens, torch.zeros_like(tokens), positions, sources)
    count = config.batch.global_batch // MICRO // config.parallel.data
    with Allocations() as seen:
        _, engine = build(config)
        engine.step([batch] * count, lr=1e-3)
        seen.peak = seen.now
        engine.step([batch] * count, lr=1e-3)
    engine.close()
    return seen.peak


CASES = [
    # tensor, pipeline, data, sequence parallel, ZeRO stage, recompute, of the model and the run
    (1, 1, 1, False, 1, "selective", ()),
    (1, 1, 1, False, 3, "selective", ()),
    (1, 1, 2, False, 2, "selective", ()),
    (2, 1, 1, False, 1, "none", ()),
    (2, 1, 1, True, 1, "none", ()),
    (1, 3, 1, False, 1, "full", ()),
    (2, 2, 1, True, 1, "none", ()),
]
UNTIED = ("model.tied_embeddings=false",)
GPT = ("model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh", "model.bias=all")
MORE = [
    (1, 1, 1, False, 1, "none", ()),
    (1, 1, 1, False, 1, "full", ()),
    (1, 1, 1, False, 2, "none", ()),
    (1, 1, 2, False, 1, "none", ()),
    (1, 1, 2, False, 1, "full", ()),
    (1, 1, 2, False, 3, "none", ()),
    (2, 1, 1, True, 1, "selective", ()),
    (2, 1, 1, True, 1, "full", ()),
    (1, 2, 1, False, 1, "none", ()),
    (1, 3, 1, False, 1, "selective", ()),
    (1, 1, 1, False, 1, "none", UNTIED),
    (1, 2, 1, False, 1, "full", UNTIED),
    (2, 1, 1, True, 2, "none", GPT),
    (2, 2, 1, False, 1, "selective", GPT),
    (1, 1, 1, False, 2, "none", ("model.qk_norm=true", "model.num_kv_heads=2")),
    (1, 2, 1, False, 1, "selective", ("precision=fp32",)),
    (1, 3, 1, False, 1, "none", ("model.vocab_size=4000",)),
    (1, 2, 1, False, 1, "none", ("model.vocab_size=4000", "optimizer.z_loss=1e-4")),
    # no more micro batches than there are stages
    (1, 1, 1, False, 1, "none", ("batch.global_batch=2",)),
    (1, 3, 1, False, 1, "none", ("batch.global_batch=6",)),
    (1, 2, 1, False, 1, "full", ("batch.global_batch=4", "precision=fp32")),
]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "data", "sequence", "zero", "recompute", "form"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE)],
)
def test_the_peak_is_what_the_planner_says(
    tensor: int, pipeline: int, data: int, sequence: bool, zero: int, recompute: str, form: tuple[str, ...]
) -> None:
    overrides = (
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.data={data}",
        f"parallel.sequence={str(sequence).lower()}",
        f"batch.global_batch={(pipeline + 1) * MICRO * data}",
        f"parallel.zero={zero}",
        f"parallel.recompute={recompute}",
        *(() if "precision=fp32" in form else ("precision=bf16",)),
        *form,
    )
    planned = memory(job_from(small_config(*SIZES, *overrides))).ranks
    held = run_ranks(most_held, tensor * pipeline * data, overrides)
    for rank, most in enumerate(held):
        stage = planned[rank // (tensor * data)]
        apart = stage.bytes / most - 1
        assert abs(apart) < NEAR, f"rank {rank}, fullest moment: {stage.moment}, {apart:+.1%}"
