"""The decoder as a sequence of pieces, one of which passes its tensors on to the next, across stages."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmjp_train.config.root import TrainConfig
from llmjp_train.model.attention import Context, make_context
from llmjp_train.model.loss import Head, LossSums
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.tensor import mark, split

Passed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Tokens or hidden states, documents, positions, targets, sources. All but hidden states travel as integers: DeepSpeed
wants a gradient of each floating-point tensor, and a mask is made where it is used."""


class Piece(nn.Module):
    """A part of the decoder with this rank's share of its parameters, in memory."""

    def __init__(
        self, prefix: str, make: Callable[[], nn.Module], config: TrainConfig, layout: Layout
    ) -> None:
        """
        Args:
            prefix: what the logical names of its parameters begin with.
            make: builds it whole; called on the meta device.
        """
        from llmjp_train.engine.base import DTYPES

        super().__init__()
        self.prefix = prefix
        with torch.device("meta"):
            inner = make()
        inner = split(inner, config.model, layout, prefix)
        self.inner = inner.to(DTYPES[config.precision.dtype]).to_empty(device=layout.device)
        for name, parameter in self.inner.named_parameters():
            nn.init.zeros_(parameter)
            mark(f"{prefix}{name}", parameter, layout)


class TokenPiece(Piece):
    """The embedding."""

    def forward(self, passed: Passed) -> Passed:
        """Ids to hidden states."""
        return self.inner(passed[0]), *passed[1:]


class PositionPiece(Piece):
    """Learned positions."""

    def forward(self, passed: Passed) -> Passed:
        """Add to hidden states."""
        return passed[0] + self.inner(passed[2]), *passed[1:]


class Contexts:
    """Mask and rotary tables of the micro batch at hand, made once for all layers of a stage."""

    def __init__(self, config: TrainConfig) -> None:
        self._model, self._mask = config.model, config.data.document_mask
        self._made: tuple[Tensor, Tensor, Context] | None = None

    def of(self, documents: Tensor, positions: Tensor) -> Context:
        """The context; the tensors are kept, so that none of another micro batch is taken for them."""
        if self._made is None or self._made[0] is not documents or self._made[1] is not positions:
            context = make_context(self._model, documents if self._mask else None, positions)
            self._made = documents, positions, context
        return self._made[2]


class LayerPiece(Piece):
    """A decoder layer."""

    def __init__(
        self,
        prefix: str,
        make: Callable[[], nn.Module],
        config: TrainConfig,
        layout: Layout,
        contexts: Contexts,
    ) -> None:
        super().__init__(prefix, make, config, layout)
        self._contexts = contexts

    def forward(self, passed: Passed) -> Passed:
        """Hidden states to hidden states."""
        return self.inner(passed[0], self._contexts.of(passed[1], passed[2])), *passed[1:]


class NormPiece(Piece):
    """The final norm."""

    def forward(self, passed: Passed) -> Passed:
        """Hidden states to hidden states."""
        return self.inner(passed[0]), *passed[1:]


class StageLoss:
    """The loss at the last stage, as this micro batch's part of the mean over the global batch.

    Computed inside the module's forward pass and not by DeepSpeed's ``loss_fn``: with bf16 DeepSpeed clears gradients
    when the backward pass reaches the module's output, and with them those of a head that lies after it.
    """

    def __init__(self, z_weight: float, num_sources: int, device: torch.device) -> None:
        self.head: Head | None = None
        self.sums = torch.zeros(2 + num_sources, dtype=torch.float64, device=device)
        """Cross-entropy, log(Z)^2, and cross-entropy by source, over the micro batches since `begin`."""
        self.token_nll: Tensor | None = None
        """Of the last micro batch."""
        self._z_weight, self._scale = z_weight, 1.0

    def begin(self, scale: float) -> None:
        """Before a step: what a target token's loss weighs."""
        self._scale = scale
        self.sums.zero_()

    def __call__(self, passed: Passed) -> Tensor:
        """Loss of a micro batch from the final hidden states, its targets and its sources."""
        assert self.head is not None
        hidden_BTH, _, _, targets, sources = passed
        sums = self.head(hidden_BTH, targets, self._z_weight > 0)
        assert isinstance(sums, LossSums)
        self.token_nll = sums.token_nll
        self.sums[0] += sums.nll.detach()
        self.sums[1] += sums.z.detach()
        self.sums[2:].index_add_(0, sources, sums.token_nll.sum(1, dtype=torch.float64))
        loss = sums.nll * self._scale
        if self._z_weight > 0:
            loss = loss + sums.z * (self._scale * self._z_weight)
        return loss


class HeadPiece(Piece):
    """The output matrix and the loss."""

    def __init__(
        self,
        prefix: str,
        make: Callable[[], nn.Module],
        config: TrainConfig,
        layout: Layout,
        loss: StageLoss,
    ) -> None:
        super().__init__(prefix, make, config, layout)
        self._loss = loss

    def forward(self, passed: Passed) -> Tensor:
        """Hidden states to the loss."""
        return self._loss(passed)
