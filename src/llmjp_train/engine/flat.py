"""The engine without pipelines: ZeRO 0 to 3 over data-parallel ranks, layers whole or split over tensor ranks."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmjp_train.config.root import TrainConfig
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine import deepspeed_setup
from llmjp_train.engine.base import DTYPES, Engine, Squares, adamw, padded, source_losses, to_device
from llmjp_train.engine.ds_config import ds_config
from llmjp_train.engine.result import StepResult
from llmjp_train.engine.state import EngineState
from llmjp_train.model.decoder import Decoder
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.mpu import Mpu
from llmjp_train.parallel.tensor import mark, split


class _Weighted(nn.Module):
    """The decoder with a loss that is already this micro batch's part of the mean over the global batch."""

    def __init__(self, decoder: nn.Module, z_weight: float) -> None:
        super().__init__()
        self.decoder = decoder
        self._z_weight = z_weight

    def forward(self, batch: MicroBatch, documents: Tensor | None, scale: float) -> tuple[Tensor, ...]:
        sums = self.decoder(
            batch.tokens, documents, batch.positions, batch.targets, z_loss=self._z_weight > 0
        )
        loss = sums.nll * scale
        if self._z_weight > 0:
            loss = loss + sums.z * (scale * self._z_weight)
        return loss, sums.nll.detach(), sums.z.detach(), sums.token_nll


class FlatEngine(Engine):
    """A model whose layers, or its part of each, all lie on every rank."""

    def __init__(
        self, config: TrainConfig, layout: Layout, num_sources: int, groups: list[dict[str, Any]]
    ) -> None:
        """Build on the meta device, give the weights their initial values, and hand them to DeepSpeed.

        Args:
            groups: parameter groups with logical names under ``names`` and their ``weight_decay``.
        """
        super().__init__(config, layout, num_sources)
        deepspeed_setup.prepare()
        import deepspeed

        self._clip, self._zero = config.optimizer.clip, config.parallel.zero
        module = _Weighted(build_decoder(config, layout), config.optimizer.z_loss)
        named = {_logical(name): p for name, p in module.named_parameters()}
        for name, parameter in named.items():
            nn.init.zeros_(parameter)  # no stray NaN in fresh memory before the masters are filled
            mark(name, parameter, layout)
        held = self._held(named)  # before ZeRO-3 takes the parameters' shapes away
        count = sum(p.numel() for p in named.values())
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(config, named, groups),
            config=ds_config(config, count),
            mpu=Mpu(layout) if layout.tensor > 1 else None,
        )
        self._leave_alone_what_is_alone()
        self._state = EngineState(self._engine, self._zero, layout, held)
        self._fill()

    def step(
        self,
        batches: Sequence[MicroBatch],
        lr: float,
        *,
        interrupted: Callable[[], bool] = lambda: False,
        inspect_gradients: Callable[[Squares], None] | None = None,
        refuse: Callable[[float], str] = lambda loss: "",
    ) -> StepResult | None:
        """See `Engine.step`."""
        began = time.perf_counter()
        batches = [to_device(batch, self._layout.device) for batch in batches]
        counts = self._counts(batches)
        tokens = int(counts.sum())
        # DeepSpeed averages gradients over data-parallel ranks; the mean is over tokens.
        scale = self._layout.data / max(1, tokens)
        sums = torch.zeros(2 + self._num_sources, dtype=torch.float64, device=self._layout.device)
        for index, batch in enumerate(batches):
            if index and interrupted():
                return None
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            loss, nll, z, token_nll = self._engine(batch, self._documents(batch), scale)
            self._engine.backward(loss, scale_wrt_gas=False)
            sums[0] += nll
            sums[1] += z
            sums[2:].index_add_(0, batch.sources, token_nll.sum(1, dtype=torch.float64))
        sums = self._layout.sum_data(sums).cpu()
        middle = time.perf_counter()
        loss_mean, z_mean = (sums[:2] / max(1, tokens)).tolist()
        norm, reason = math.nan, self._refused(loss_mean, z_mean, refuse)
        if reason:
            self._drop_gradients()
        else:
            if inspect_gradients is not None:
                inspect_gradients(self._state.gradient_squares())
            norm, reason = self._apply(lr)
        return StepResult(
            loss_mean,
            z_mean,
            norm,
            tokens,
            not reason,
            reason,
            source_losses(counts, sums[2:]),
            forward_backward_s=middle - began,
            optimizer_s=time.perf_counter() - middle,
        )

    def _apply(self, lr: float) -> tuple[float, str]:
        """Take the optimizer step: (gradient norm, why it was not taken)."""
        self._set_lr(lr)
        if self._zero == 0:
            total = self._total_norm()
            norm = float(total)
            if not math.isfinite(norm):
                self._drop_gradients()
                return norm, f"the gradient norm is {norm}"
            if self._clip > 0:
                nn.utils.clip_grads_with_norm_(self._engine.module.parameters(), self._clip, total)
        self._engine.step()
        if not self._engine.was_step_applied():
            return math.inf, "a gradient is not finite: DeepSpeed skipped the step"
        return (norm if self._zero == 0 else float(self._engine.get_global_grad_norm())), ""

    def _drop_gradients(self) -> None:
        if self._zero == 0:
            self._engine.optimizer.zero_grad()
        else:
            self._state.spoil_gradients()
            self._engine.step()

    def _total_norm(self) -> Tensor:
        """Gradient norm over the whole model, each parameter counted once."""
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for held in self._state.held:
            if held.parameter.grad is not None:
                parts[held.place.split].append(held.parameter.grad)
        norms = {split: nn.utils.get_total_norm(gradients) for split, gradients in parts.items()}
        if self._layout.tensor == 1:
            return norms[False]
        square = norms[True].square()
        dist.all_reduce(square, group=self._layout.tensor_group)
        return (square + norms[False].square()).sqrt()

    def token_nll(self, batch: MicroBatch) -> Tensor:
        """See `Engine.token_nll`."""
        length = batch.tokens.shape[1]
        batch = to_device(batch, self._layout.device)
        if self._layout.sequence:
            batch = padded(batch, self._layout.tensor)
        self._engine.eval()
        with torch.no_grad():
            token_nll: Tensor = self._engine(batch, self._documents(batch), 1.0)[3]
        self._engine.train()
        return token_nll[:, :length]


def build_decoder(config: TrainConfig, layout: Layout) -> nn.Module:
    """This rank's part of the decoder, in fresh memory of the layout's device."""
    with torch.device("meta"):
        decoder = Decoder(
            config.model, recompute=config.parallel.recompute, loss_chunk=config.parallel.loss_chunk
        )
    split(decoder, config.model, layout)
    decoder = decoder.to(DTYPES[config.precision.dtype]).to_empty(device=layout.device)
    decoder.tie()  # `to_empty` makes two parameters of a shared one
    if config.parallel.compile:
        decoder.loop_over_documents = False
        for index, layer in enumerate(decoder.layers):
            decoder.layers[index] = cast(nn.Module, torch.compile(layer))
    return decoder


def _logical(name: str) -> str:
    """Parameter name without our wrapper's and torch.compile's prefixes."""
    return name.removeprefix("decoder.").replace("_orig_mod.", "")
