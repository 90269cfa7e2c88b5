"""Tensor and sequence parallelism, put onto the plain decoder from outside.

`split` changes modules that lie on the meta device: their parameters shrink to this rank's part, and the exchanges
of `collectives` go to the blocks' ends. `mark`, after the memory exists, says to autograd and DeepSpeed what each
parameter is. The network itself never asks for a rank.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmjp_train.config.model import ModelConfig
from llmjp_train.model.attention import Attention
from llmjp_train.model.decoder import FeedForward
from llmjp_train.model.loss import Head, VocabularyPart
from llmjp_train.model.shapes import split_dimension
from llmjp_train.parallel import collectives
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.places import place

_NORMS = ("attention_norm", "mlp_norm", "norm")


class RowLinear(nn.Linear):
    """A linear layer that holds some of its input features: partial results are summed, then the bias is added."""

    def __init__(self, inner: nn.Linear, leave: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.weight, self.bias = inner.weight, inner.bias
        self._leave = leave

    def forward(self, input: Tensor) -> Tensor:
        """(..., local input features) to (..., output features)."""
        whole = self._leave(nn.functional.linear(input, self.weight))
        return whole if self.bias is None else whole + self.bias


class VocabularyEmbedding(nn.Module):
    """An embedding that holds rows ``first`` onwards of the vocabulary; other tokens come from other ranks."""

    def __init__(self, inner: nn.Embedding, first: int, leave: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = inner.weight
        self._first, self._leave = first, leave

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Ids (B, T) to vectors (B, T or this rank's share of it, H)."""
        index = tokens_BT - self._first
        mine = (index >= 0) & (index < self.weight.shape[0])
        rows = nn.functional.embedding(index.where(mine, 0), self.weight)
        return self._leave(rows.masked_fill(~mine[..., None], 0.0))


def split(module: nn.Module, model: ModelConfig, layout: Layout, prefix: str = "") -> nn.Module:
    """Give a decoder, or a piece of one, this rank's part; in place, on the meta device.

    Args:
        prefix: what the logical names of its parameters begin with, e.g. ``layers.3.``.

    Returns:
        The module, or what takes its place.
    """
    if layout.tensor == 1:
        return module
    ends = _Ends(layout)
    for name, inner in list(module.named_modules()):
        for kind, parameter in list(inner.named_parameters(recurse=False)):
            full = f"{prefix}{name}.{kind}" if name else f"{prefix}{kind}"
            held = place(model, full, tuple(parameter.shape), layout.tensor, layout.tensor_rank).held
            if held != tuple(parameter.shape):
                assert parameter.is_meta, f"{full} is split before it has memory"
                setattr(inner, kind, nn.Parameter(parameter.new_empty(held)))
        if isinstance(inner, Attention | FeedForward | Head):
            inner.register_forward_pre_hook(ends.begin)
        if isinstance(inner, Head):
            inner.part = _vocabulary_part(model, layout)
        changed = _replacement(f"{prefix}{name}".rstrip("."), inner, model, layout, ends)
        if changed is not None and not name:
            return changed
        if changed is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, changed)
    return module


def _replacement(
    full: str, inner: nn.Module, model: ModelConfig, layout: Layout, ends: "_Ends"
) -> nn.Module | None:
    if isinstance(inner, nn.Linear) and split_dimension(f"{full}.weight") == 1:
        return RowLinear(inner, ends.leave)
    if isinstance(inner, nn.Embedding) and split_dimension(f"{full}.weight") == 0:
        return VocabularyEmbedding(inner, _vocabulary_part(model, layout).first, ends.leave)
    if isinstance(inner, nn.Embedding) and layout.sequence:
        inner.register_forward_pre_hook(ends.take_own)
    return None


class _Ends:
    """The exchanges at the two ends of a block, for the layout at hand."""

    def __init__(self, layout: Layout) -> None:
        assert layout.tensor_group is not None
        self._group, self._sequence = layout.tensor_group, layout.sequence

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of what begins with column-parallel layers."""
        exchange = collectives.gather_sequence if self._sequence else collectives.enter
        return exchange(args[0], self._group), *args[1:]

    def leave(self, x_BTH: Tensor) -> Tensor:
        """Sum of partial results: whole, or this rank's tokens of it."""
        exchange = collectives.scatter_sequence if self._sequence else collectives.leave
        return exchange(x_BTH, self._group)

    def take_own(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of what adds to this rank's tokens alone, such as learned positions."""
        return collectives.own_tokens(args[0], self._group), *args[1:]


def _vocabulary_part(model: ModelConfig, layout: Layout) -> VocabularyPart:
    shape = (model.vocab_size, 1)
    found = place(model, "head.weight", shape, layout.tensor, layout.tensor_rank)
    group = layout.tensor_group

    def join(log_z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """log(Z) over all parts from each part's own, and the sum of what each has of the target's logit."""
        largest = log_z.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        sums = torch.stack(((log_z - largest).exp(), target))
        dist.all_reduce(sums, group=group)
        return largest + sums[0].log(), sums[1]

    return VocabularyPart(found.offset[0], found.shape[0], join)


def partial_gradient(name: str, *, sequence: bool) -> bool:
    """Whether each tensor-parallel rank has only a part of an unsplit parameter's gradient.

    The norms of queries and keys see this rank's heads. With sequence parallelism, norms, biases of row-parallel
    layers and learned positions see this rank's tokens.
    """
    *_, module, kind = name.split(".")
    if split_dimension(name) is not None:
        return False
    if module in ("query_norm", "key_norm"):
        return True
    return sequence and (module in _NORMS or module == "positions" or kind == "bias")


def mark(name: str, parameter: nn.Parameter, layout: Layout) -> None:
    """Tell autograd and DeepSpeed what a parameter is; after its memory exists, before DeepSpeed sees it.

    DeepSpeed counts an unmarked parameter once in the gradient norm: a split one without its mark gives a wrong
    norm without a word. A partial gradient is summed by a hook on the parameter, which autograd runs before it
    hands the gradient on to ZeRO's.
    """
    if layout.tensor == 1:
        return
    if split_dimension(name) is not None:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    elif partial_gradient(name, sequence=layout.sequence):
        parameter.register_hook(lambda gradient: _summed(gradient, layout))  # type: ignore[no-untyped-call]


def _summed(gradient: Tensor, layout: Layout) -> Tensor:
    # These are vectors: a sum in fp32 costs nothing and rounds once.
    whole = gradient.to(torch.float32, copy=True).contiguous()
    dist.all_reduce(whole, group=layout.tensor_group)
    return whole.to(gradient.dtype)
