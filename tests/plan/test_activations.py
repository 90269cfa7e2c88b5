"""The planner's activation bytes against what autograd really saves, at true sizes, under fake tensors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.plans import job
from torch._subclasses.fake_tensor import FakeTensorMode

from llmjp_train.config.machine import Device, Recompute
from llmjp_train.config.model import Bias
from llmjp_train.config.training import Dtype
from llmjp_train.plan import activations
from llmjp_train.plan.job import Engine

DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16}


def saved_by(run: Callable[[], Any], known: Iterable[torch.Tensor]) -> int:
    """Bytes of unique storages that autograd saves in ``run``, without those of ``known``."""
    left_out = {tensor.untyped_storage()._cdata for tensor in known}
    found: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for key, storage in found.items() if key not in left_out)


@contextmanager
def fake_tensors(dtype: Dtype) -> Iterator[None]:
    """Tensors have shapes and no memory, and parameters a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_default_dtype(before)


def saved_bytes(one: Any, *, mask: bool = False, layout: Any = None) -> int:
    """What a decoder layer, or a tensor-parallel rank's part of it, saves without weights and what all layers share."""
    from llmjp_train.model.attention import make_context
    from llmjp_train.model.decoder import Block
    from llmjp_train.parallel.tensor import split

    with torch.device("meta"):
        block = Block(one.model, one.recompute)
    if layout is not None:
        split(block, one.model, layout, "layers.0.")
    batch, length = one.micro_batch, one.sequence_length
    tokens = length // one.tensor if one.engine.sequence_parallel else length
    with fake_tensors(one.dtype):
        for module in block.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape)))
        x = torch.randn(batch, tokens, one.model.hidden_size, requires_grad=True)
        context = make_context(one.model, None, torch.arange(length)[None].expand(batch, -1))
        if mask:  # as a GPU gets it; a CPU loops over documents
            context = replace(context, mask=torch.ones(batch, 1, length, length, dtype=torch.bool))
        shared = [t for t in (context.cos, context.sin, context.mask) if t is not None]
        return saved_by(lambda: block(x, context), [*block.parameters(), *shared])


@pytest.mark.parametrize("recompute", list(Recompute), ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    ("model", "micro_batch", "length"),
    [("13b", 2, 4096), ("13b-v1", 1, 2048), ("13b-v2", 1, 4096), ("172b", 1, 4096), ("175b", 2, 2048)],
)
def test_a_layer_saves_what_the_planner_says(
    model: str, micro_batch: int, length: int, recompute: Recompute
) -> None:
    one = job(model, micro_batch=micro_batch, sequence_length=length, recompute=recompute)
    assert activations.layer_bytes(one) == saved_bytes(one)


@pytest.mark.parametrize("recompute", list(Recompute), ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    "changes",
    [{"qk_norm": True}, {"bias": Bias.qkv}, {"rope_fraction": 0.5}, {"num_kv_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("dtype", list(DTYPES), ids=lambda dtype: dtype.name)
def test_options_of_the_model_too(dtype: Dtype, changes: dict[str, Any], recompute: Recompute) -> None:
    one = job("tiny", micro_batch=3, sequence_length=64, recompute=recompute, dtype=dtype)
    one = replace(one, model=replace(one.model, **changes))
    assert activations.layer_bytes(one) == saved_bytes(one)


@pytest.mark.parametrize("recompute", list(Recompute), ids=lambda policy: policy.name)
def test_a_mask_of_documents_is_saved_as_a_bias_on_a_gpu(recompute: Recompute) -> None:
    one = job("13b", micro_batch=2, sequence_length=4096, recompute=recompute)
    gpu = replace(one, cluster=replace(one.cluster, device=Device.cuda))
    assert activations.layer_bytes(gpu) == saved_bytes(one, mask=True)
    assert activations.layer_bytes(replace(gpu, document_mask=False)) == saved_bytes(one)


def planned_and_saved(rank: int, world: int, cases: list[Any]) -> list[tuple[int, int]]:
    """The same for one rank of several that share a layer; their exchanges go nowhere."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from llmjp_train.parallel.layout import Layout
    from llmjp_train.parallel.world import World

    found = []
    for one in cases:
        dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=one.tensor)
        layout = Layout(
            one.tensor, 1, 1, 1, World(size=one.tensor), torch.device("cpu"),
            sequence=one.engine.sequence_parallel, tensor_group=dist.group.WORLD,
        )  # fmt: skip
        found.append((activations.layer_bytes(one), saved_bytes(one, layout=layout)))
    dist.destroy_process_group()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tensor", "micro_batch", "length"),
    [("13b-v2", 2, 1, 4096), ("13b", 2, 2, 4096), ("172b", 4, 1, 4096), ("175b", 4, 2, 2048)],
)
def test_a_layer_that_tensor_ranks_share_too(model: str, tensor: int, micro_batch: int, length: int) -> None:
    """In the layouts of history, with sequence parallelism and without."""
    from helpers.ranks import run_ranks

    plain = job(model, micro_batch=micro_batch, sequence_length=length)
    cases = [
        replace(plain, tensor=tensor, recompute=policy, engine=Engine(sequence_parallel=sequence))
        for policy in Recompute
        for sequence in (False, True)
    ]
    (found,) = run_ranks(planned_and_saved, 1, cases)
    for case, (planned, saved) in zip(cases, found, strict=True):
        assert planned == saved, case.layout()


@pytest.mark.parametrize("dtype", list(DTYPES), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("z_loss", [False, True], ids=["plain", "z-loss"])
@pytest.mark.parametrize("model", ["13b-v1", "13b", "172b", "175b"])
def test_what_lies_around_the_layers_too(model: str, z_loss: bool, dtype: Dtype) -> None:
    """Token ids, tables that layers share, the final norm and the loss on chunks of logits."""
    from llmjp_train.model.decoder import Decoder

    one = job(model, micro_batch=2, sequence_length=2048, z_loss=z_loss, dtype=dtype)
    one = replace(one, model=replace(one.model, num_layers=1))
    kept = activations.shared(one, flying=2) - activations.shared(one)  # by a micro batch that is not at hand
    saved = [*activations.head_saved(one), *activations.layer(one)]
    with fake_tensors(dtype):
        decoder = Decoder(one.model, loss_chunk=one.loss_chunk)
        tokens = torch.zeros(2, 2048, dtype=torch.int64)
        positions, targets = torch.arange(2048).repeat(2, 1), torch.zeros_like(tokens)
        found = saved_by(lambda: decoder(tokens, None, positions, targets, z_loss), decoder.parameters())
    assert sum(part.bytes for part in saved) + activations.embedding(one) + kept == found
