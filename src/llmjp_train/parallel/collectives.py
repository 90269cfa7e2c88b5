"""The four exchanges of tensor parallelism, each with the backward pass that belongs to it.

Column-parallel layers come first in a block and row-parallel ones last (Shoeybi et al., 2019), so that a block
begins with an `enter` and ends with a `leave`. With sequence parallelism (Korthikanti et al., 2022) the same places
gather the sequence and scatter it again, and what lies between two blocks holds a part of the tokens.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


def enter(x: Tensor, group: Group) -> Tensor:
    """The same values; the gradient is the sum over the ranks, each of which used them for its part."""
    return _apply(_Enter, x, group)


def leave(x: Tensor, group: Group) -> Tensor:
    """Sum of partial results over the ranks; each passes the whole gradient to its part."""
    return _apply(_Leave, x, group)


def gather_sequence(x_BSH: Tensor, group: Group) -> Tensor:
    """All tokens (B, T, H) from each rank's S = T / ranks of them; the gradient is summed and scattered."""
    return _apply(_Gather, x_BSH, group)


def scatter_sequence(x_BTH: Tensor, group: Group) -> Tensor:
    """This rank's tokens (B, S, H) of the sum of partial results; the gradient is gathered."""
    return _apply(_Scatter, x_BTH, group)


def own_tokens(x_BT: Tensor, group: Group) -> Tensor:
    """This rank's tokens of something that every rank has whole, e.g. positions."""
    return x_BT.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)]


def _apply(function: Any, x: Tensor, group: Group) -> Tensor:
    result: Tensor = function.apply(x, group)
    return result


def _sum(x: Tensor, group: Group) -> Tensor:
    whole = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=group)
    return whole


def _gather(x_BSH: Tensor, group: Group) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = x_BSH.new_empty(ranks, *x_BSH.shape)
    dist.all_gather_into_tensor(parts.flatten(0, 1), x_BSH.contiguous(), group=group)
    return torch.cat(parts.unbind(0), dim=1)


def _scatter(x_BTH: Tensor, group: Group) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = torch.cat(x_BTH.chunk(ranks, dim=1))
    mine = x_BTH.new_empty(x_BTH.shape[0], x_BTH.shape[1] // ranks, *x_BTH.shape[2:])
    dist.reduce_scatter_tensor(mine, parts, group=group)
    return mine


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _sum(grads[0], ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _scatter(grads[0], ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _scatter(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _gather(grads[0], ctx.group), None
