"""Cross-entropy from hidden states, a chunk of tokens at a time, so that full logits are never held."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LossSums(NamedTuple):
    """Sums over the target tokens of a batch, fp32."""

    nll: Tensor
    """Cross-entropy in nats, 0-d, differentiable."""
    z: Tensor
    """log(Z)^2, 0-d, differentiable; 0 when not asked for."""
    token_nll: Tensor
    """Cross-entropy of each token (B, T), detached; 0 where there is no target."""


@dataclass(frozen=True)
class VocabularyPart:
    """Rows of the vocabulary that a weight holds when others hold the rest."""

    first: int
    """First row."""
    rows: int
    """Rows that count; those after them are padding."""
    join: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """log(Z) of the whole vocabulary from that of this part, and the sum over parts of the second argument."""


class Head(nn.Module):
    """Output projection and loss. The weight may be the embedding's."""

    part: VocabularyPart | None = None
    """None: the weight holds the whole vocabulary."""

    def __init__(self, hidden_size: int, vocab_size: int, chunk: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.chunk = chunk

    def forward(self, x_BTH: Tensor, targets_BT: Tensor | None, z_loss: bool) -> Tensor | LossSums:
        """Logits (B, T, V) in fp32 without targets, else the sums of the loss."""
        if targets_BT is None:
            return nn.functional.linear(x_BTH, self.weight).float()
        apply: Any = ChunkedLoss.apply
        nll, z, token_nll = apply(
            x_BTH.flatten(0, 1), self.weight, targets_BT.flatten(), self.chunk, z_loss, self.part
        )
        return LossSums(nll, z, token_nll.view_as(targets_BT))


class ChunkedLoss(torch.autograd.Function):
    """Sums of cross-entropy and log(Z)^2 over targets that are not -100.

    Without the z-loss, gradients are made in the forward pass while a chunk's logits are at hand, so
    that each chunk costs three matrix products and not four. With it the two sums may be weighted
    differently by what follows, so the backward pass makes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        chunk: int,
        z_loss: bool,
        part: VocabularyPart | None,
    ) -> Any:
        ctx.chunk, ctx.z_loss, ctx.part = chunk, z_loss, part
        wanted = any(ctx.needs_input_grad[:2])
        token_nll = torch.zeros(len(targets_N), dtype=torch.float32, device=x_NH.device)
        token_log_z = torch.empty_like(token_nll)
        z = torch.zeros((), dtype=torch.float32, device=x_NH.device)
        eager = wanted and not z_loss
        grad_x = torch.empty_like(x_NH) if eager else None
        # Sums over chunks are kept in fp32 also where the weights are bf16.
        grad_w = torch.empty_like(weight_VH, dtype=torch.float32) if eager else None
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            x, targets = x_NH[rows], targets_N[rows]
            valid = targets >= 0
            logits, index, here = _logits(x, weight_VH, targets, part)
            target = logits.gather(1, index[:, None])[:, 0]
            # log-sum-exp and then softmax in the logits' own place: few passes over the step's largest tensor.
            greatest = logits.amax(-1)
            greatest.masked_fill_(greatest.isinf(), 0.0)
            log_z = greatest + logits.sub_(greatest[:, None]).exp_().sum(-1).log_()
            if part is not None:
                log_z, target = part.join(log_z, target.where(here, 0.0))
            token_log_z[rows] = log_z
            token_nll[rows] = (log_z - target).where(valid, 0.0)
            if z_loss:
                z += log_z.square().where(valid, 0.0).sum()
            if grad_x is not None and grad_w is not None:
                grad = logits.mul_((greatest - log_z).exp_().where(valid, 0.0)[:, None])
                grad.scatter_add_(1, index[:, None], -here.to(grad.dtype)[:, None])
                _gradients(grad, x, weight_VH, grad_x[rows], grad_w, first=start == 0)
                del grad
            del logits  # gone before the next chunk's are made
        if eager:
            ctx.save_for_backward(grad_x, grad_w)
        elif wanted:
            ctx.save_for_backward(x_NH, weight_VH, targets_N, token_log_z)
        ctx.dtype = weight_VH.dtype
        ctx.mark_non_differentiable(token_nll)
        return token_nll.sum(), z, token_nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_nll, grad_z = grads[:2]
        if not ctx.z_loss:
            grad_x, grad_w = ctx.saved_tensors
            # In place: a second backward pass is an error of autograd's and not a wrong gradient.
            _weight(grad_x, grad_nll, ctx.chunk)
            return grad_x, grad_w.mul_(grad_nll).to(ctx.dtype), None, None, None, None
        x_NH, weight_VH, targets_N, token_log_z = ctx.saved_tensors
        grad_x = torch.empty_like(x_NH)
        grad_w = torch.empty_like(weight_VH, dtype=torch.float32)
        for start in range(0, len(targets_N), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            x, targets, log_z = x_NH[rows], targets_N[rows], token_log_z[rows]
            scale = (grad_nll + 2 * grad_z * log_z).where(targets >= 0, 0.0)
            logits, index, here = _logits(x, weight_VH, targets, ctx.part)
            # d(nll)/d(logits) = p - onehot, d(log(Z)^2)/d(logits) = 2 log(Z) p
            grad = logits.sub_(log_z[:, None]).exp_().mul_(scale[:, None])
            grad.scatter_add_(1, index[:, None], -(grad_nll * here.to(grad.dtype))[:, None])
            _gradients(grad, x, weight_VH, grad_x[rows], grad_w, first=start == 0)
            del logits, grad
        return grad_x, grad_w.to(ctx.dtype), None, None, None, None


def _weight(grad_NH: Tensor, weight: Tensor, chunk: int) -> None:
    """Multiply in place by a 0-d fp32 weight that is not rounded to the gradient's own type.

    In bf16 1/6007 is off by 0.26 %: all gradients below the head would be, against the head's. A product of a bf16
    tensor with a 0-d fp32 one may round that first, depending on the device.
    """
    if grad_NH.element_size() >= weight.element_size():
        grad_NH.mul_(weight)
        return
    for start in range(0, len(grad_NH), chunk):
        rows = grad_NH[start : start + chunk]
        rows.copy_(rows.float().mul_(weight))


def _logits(
    x_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, part: VocabularyPart | None
) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 logits over the rows at hand, each target's row among them, and whether it is among them."""
    logits = nn.functional.linear(x_NH, weight_VH).float()
    if part is None:
        return logits, targets_N.clamp(min=0), targets_N >= 0
    logits[:, part.rows :] = -torch.inf
    index = targets_N - part.first
    here = (targets_N >= 0) & (index >= 0) & (index < part.rows)
    return logits, index.where(here, 0), here


def _gradients(
    grad_NV: Tensor, x_NH: Tensor, weight_VH: Tensor, grad_x_NH: Tensor, grad_w_VH: Tensor, *, first: bool
) -> None:
    """Add one chunk's part: the input's gradient into its rows, the weight's onto the sum, which the first begins."""
    grad = grad_NV.to(weight_VH.dtype)
    torch.mm(grad, weight_VH, out=grad_x_NH)
    if grad.dtype is torch.float32:
        grad_w_VH.addmm_(grad.t(), x_NH, beta=0 if first else 1)  # 0: what lies there is not looked at
    elif first:
        grad_w_VH.copy_(grad.t() @ x_NH)
    else:
        grad_w_VH.add_(grad.t() @ x_NH)
