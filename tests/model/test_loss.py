"""The chunked loss: what it computes, and what it never holds."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmjp_train.model.loss import Head

TOKENS, HIDDEN, VOCAB = 96, 16, 61


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Head, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = Head(HIDDEN, VOCAB, 10)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    hidden = torch.randn(2, TOKENS // 2, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (2, TOKENS // 2), generator=generator)
    targets[0, ::3] = -100
    targets[1, -15:] = -100  # a whole chunk without a target
    return head.to(dtype), hidden, targets


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 10, 96, 1000])
def test_sums_and_gradients_are_those_of_full_logits(z_weight: float, chunk: int) -> None:
    head, hidden, targets = inputs(torch.float32)
    head.chunk = chunk
    sums = head(hidden, targets, z_weight > 0)
    (1.7 * (sums.nll + z_weight * sums.z)).backward()
    found = hidden.grad, head.weight.grad

    wide = hidden.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    logits = wide @ weight.T
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    z = torch.logsumexp(logits, -1)[targets >= 0].square().sum()
    (1.7 * (nll + z_weight * z)).backward()
    assert float(sums.nll.detach()) == pytest.approx(float(nll.detach()), rel=1e-6)
    if z_weight:
        assert float(sums.z.detach()) == pytest.approx(float(z.detach()), rel=1e-6)
    torch.testing.assert_close(found[0].double(), wide.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].double(), weight.grad, rtol=1e-4, atol=1e-5)
    assert float(sums.token_nll.sum()) == pytest.approx(float(sums.nll.detach()), rel=1e-6)
    assert bool((sums.token_nll[targets < 0] == 0).all())


def test_the_weight_of_a_sum_is_not_rounded_to_the_gradients_type() -> None:
    """1/6007 in bf16 is off by 0.26 %."""

    def gradients(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        head, hidden, targets = inputs(torch.bfloat16)
        (head(hidden, targets, False).nll * weight).backward()
        return hidden.grad.double(), head.weight.grad.double()

    for whole, part in zip(gradients(1.0), gradients(1 / 6007), strict=True):
        factor = float((whole * part).sum() / whole.square().sum())
        assert factor * 6007 == pytest.approx(1.0, abs=5e-4)


def test_without_a_target_there_is_no_loss_and_no_gradient() -> None:
    head, hidden, targets = inputs(torch.float32)
    sums = head(hidden, torch.full_like(targets, -100), True)
    (sums.nll + sums.z).backward()
    assert float(sums.nll.detach()) == 0.0
    assert float(sums.z.detach()) == 0.0
    assert float(hidden.grad.abs().max()) == 0.0


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for value in found if isinstance(found, list | tuple) else [found]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return found


@pytest.mark.parametrize("z_loss", [False, True])
def test_full_logits_are_never_held(z_loss: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(8, 1000, 16)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    hidden = torch.randn(1, 256, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 1000, (1, 256), generator=generator)
    with Largest() as largest:
        sums = head(hidden, targets, z_loss)
        (sums.nll + 0.1 * sums.z).backward()
    assert largest.elements == 16 * 1000, "a chunk's logits are the largest tensor of the two passes"
    with Largest() as largest:
        head(hidden, None, False)
    assert largest.elements == 256 * 1000, "asked for logits, it gives them: the probe sees them"
