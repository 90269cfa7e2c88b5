"""The planner's activation bytes against what autograd really saves, at true sizes, under fake tensors."""

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

DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16}


def saved_bytes(one: Any, *, mask: bool = False) -> int:
    """Unique storages that a decoder layer saves, without weights and what all layers share."""
    from llmjp_train.model.attention import make_context
    from llmjp_train.model.decoder import Block

    dtype = DTYPES[one.dtype]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            block = Block(one.model, one.recompute)
            x = torch.randn(one.micro_batch, one.sequence_length, one.model.hidden_size, requires_grad=True)
            positions = torch.arange(one.sequence_length)[None].expand(one.micro_batch, -1)
            context = make_context(one.model, None, positions)
            if mask:  # as a GPU gets it; a CPU loops over documents
                length = one.sequence_length
                context = replace(
                    context, mask=torch.ones(one.micro_batch, 1, length, length, dtype=torch.bool)
                )
            known = [p.untyped_storage()._cdata for p in block.parameters()]
            known += [
                t.untyped_storage()._cdata for t in (context.cos, context.sin, context.mask) if t is not None
            ]
            found: dict[int, Any] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                found[storage._cdata] = storage  # held, so that no address is used twice
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                block(x, context)
    finally:
        torch.set_default_dtype(before)
    return sum(storage.nbytes() for key, storage in found.items() if key not in known)


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
