"""One device against this machine's CPU: what the model computes there, and through which attention."""

import re
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmjp_train.config.training import Dtype
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine.base import DTYPES, Engine
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.initial import fill
from llmjp_train.model.loss import LossSums
from llmjp_train.train.leak_test import leaks
from llmjp_train.verify.spec import FORMS

BOUNDS = {Dtype.fp32: 2e-5, Dtype.bf16: 5e-2, Dtype.fp16: 2e-2}
"""Largest distance from fp32 on the CPU, of logits and of every gradient in the 2-norm, relative to the reference.
A sum rounded in fp32 is off by some 2^-24 of its terms; bf16 rounds each value to 2^-9 of it (0.021 was seen on a CPU),
fp16 to 2^-12, and loses small gradients, since nothing scales the loss here (0.006 was seen)."""
_LENGTH = 48
_KERNEL = re.compile(r"_scaled_dot_product_(?:(\w+?)_attention(?:_for_cpu)?|attention_(math)\w*)")


class _Kernels(TorchDispatchMode):
    """Notes the attention kernels that torch calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if match := _KERNEL.fullmatch(func.overloadpacket.__name__):
            self.found.add(match[1] or match[2])
        return func(*args, **(kwargs or {}))


class Alone:
    """A decoder on one device, with no engine around it."""

    def __init__(self, form: str, device: torch.device, dtype: Dtype) -> None:
        self.model = Decoder(FORMS[form])
        fill(self.model, FORMS[form], seed=0)
        self.model = self.model.to(device, DTYPES[dtype])
        self.device = device

    def token_nll(self, batch: MicroBatch) -> Tensor:
        """Loss of each token (B, T); 0 where it has no target. As `Engine.token_nll`, for `leaks`."""
        with torch.no_grad():
            logits = self.model(
                *(t.to(self.device) for t in (batch.tokens, batch.documents, batch.positions))
            )
        return torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), batch.targets.to(self.device), reduction="none", ignore_index=-100
        )

    def figures(self) -> dict[str, Tensor]:
        """Logits, and the gradient of the loss by each parameter, in fp32 on the CPU."""
        tokens, documents, positions = _batch(self.model.config.vocab_size)
        inputs = [t.to(self.device) for t in (tokens, documents, positions)]
        with torch.no_grad():
            logits = self.model(*inputs)
        sums = cast(LossSums, self.model(*inputs, targets_BT=tokens.roll(-1, 1).to(self.device)))
        torch.autograd.backward(sums.nll / tokens.numel())
        found = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {
            "logits": logits.float().cpu(),
            **{name: grad.float().cpu() for name, grad in found.items() if grad is not None},
        }


def _batch(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two sequences of three documents each."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary, (2, _LENGTH), generator=generator)
    documents = (torch.arange(_LENGTH) * 3 // _LENGTH).expand(2, -1).contiguous()
    return tokens, documents, torch.arange(_LENGTH) % (_LENGTH // 3) + torch.zeros_like(tokens)


def distance(form: str, device: torch.device, dtype: Dtype) -> tuple[float, str]:
    """Largest relative distance of a figure from fp32 on the CPU, and which one."""
    reference = Alone(form, torch.device("cpu"), Dtype.fp32).figures()
    found = Alone(form, device, dtype).figures()
    # What cancels to nothing (a key bias's gradient) is held to the largest of its kind.
    floor = 1e-3 * max(float(value.norm()) for name, value in reference.items() if name != "logits")
    distances = {
        name: float((found[name] - value).norm() / max(float(value.norm()), floor))
        for name, value in reference.items()
    }
    worst = max(distances, key=lambda name: distances[name])
    return distances[worst], worst


def attention_kernels(device: torch.device, dtype: Dtype) -> dict[str, list[str]]:
    """Kernels that torch really chose, for one document a sequence and for several."""
    model = Alone("llama", device, dtype).model
    tokens, documents, positions = (t.to(device) for t in _batch(model.config.vocab_size))
    found = {}
    for what, inputs in (("causal", (tokens,)), ("documents", (tokens, documents, positions))):
        with torch.no_grad(), _Kernels() as seen:
            model(*inputs)
        # torch's plain implementation is no kernel of its own: it falls apart into products before it is seen.
        found[what] = sorted(seen.found) or ["math"]
    return found


def leak(form: str, device: torch.device, dtype: Dtype) -> float:
    """What `leaks` finds of a form on a device, in nats."""
    alone = Alone(form, device, dtype)
    return leaks(cast(Engine, alone), FORMS[form].vocab_size, _LENGTH)
