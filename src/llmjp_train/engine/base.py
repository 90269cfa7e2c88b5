"""What both engines share: building, initial values, fragments of the state, and the figures of a step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine.result import StepResult
from llmjp_train.engine.state import EngineState, Held
from llmjp_train.model.initial import initial_value
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.places import place

DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16}

Squares = dict[str, float]
"""Squared norm of each parameter's gradient over the whole model, by logical name."""


class Engine(ABC):
    """Optimizer steps, log-probabilities and state of a model that ranks share."""

    _engine: Any
    _state: EngineState

    def __init__(self, config: TrainConfig, layout: Layout, num_sources: int) -> None:
        self._config, self._layout, self._num_sources = config, layout, num_sources

    def _leave_alone_what_is_alone(self) -> None:
        """Without replicas there is nothing to add: DeepSpeed would lay all gradients flat and copy them back.

        That path is ZeRO-0's and, in bf16, ZeRO-1's; the others divide their gradients on the way.
        """
        if self._layout.data == 1:
            self._engine.buffered_allreduce_fallback = lambda **kwargs: None

    @abstractmethod
    def step(
        self,
        batches: Sequence[MicroBatch],
        lr: float,
        *,
        interrupted: Callable[[], bool] = lambda: False,
        inspect_gradients: Callable[[Squares], None] | None = None,
        refuse: Callable[[float], str] = lambda loss: "",
    ) -> StepResult | None:
        """One optimizer step over this rank's micro batches of the global batch. Collective.

        Every target token of the global batch weighs the same, however ragged micro batches and ranks
        are. A loss or gradient that is not finite, or a loss that is refused, leaves weights and optimizer
        untouched and drops the gradients: the next step can be taken.

        Args:
            batches: as many on every rank; the same on ranks that share a model.
            lr: learning rate of this step.
            interrupted: asked between micro batches, with the same answer on all ranks; if true the step
                is given up and the result is None. A pipeline cannot be interrupted and does not ask.
            inspect_gradients: called on every rank with the squared norms of the gradients before clipping.
            refuse: called on every rank with the batch's mean loss; says why the update is not to be taken.
        """

    @abstractmethod
    def token_nll(self, batch: MicroBatch) -> Tensor:
        """Cross-entropy of each target in nats, (B, T) fp32, 0 where there is none; on every rank that shares
        the model. Collective over those ranks, and over all under ZeRO-3."""

    def fragments(self, *, owned: bool = False) -> list[Fragment]:
        """Views of masters and moments held here; ``owned``: each element on one rank alone, for saving."""
        return list(self._state.fragments(owned=owned))

    def restore(self, step: int) -> None:
        """After fragments were loaded: ``step`` steps have been taken, and the weights follow the masters."""
        self._state.set_step(step)
        self._state.refresh_weights()

    def weights(self) -> list[tuple[str, Tensor]]:
        """Weights that every rank with the same name for them holds alike; none under ZeRO-3."""
        if self._config.parallel.zero == 3:
            return []
        part = f" part {self._layout.tensor_rank} of {self._layout.tensor}"
        return [(held.name + part * held.place.split, held.parameter.detach()) for held in self._state.held]

    def close(self) -> None:
        """Free DeepSpeed's buffers and hooks."""
        self._engine.destroy()

    def _held(self, named: dict[str, nn.Parameter], copies: frozenset[str] = frozenset()) -> list[Held]:
        """Parameters with their places; ``copies`` are tied weights that another stage saves."""
        layout, shapes = self._layout, parameter_shapes(self._config.model)
        found = []
        for name, parameter in named.items():
            where = place(self._config.model, name, shapes[name], layout.tensor, layout.tensor_rank)
            writes = (where.split or layout.tensor_rank == 0) and name not in copies
            found.append(Held(name, parameter, where, writes))
        return found

    def _fill(self) -> None:
        """Initial values into the fp32 masters: DeepSpeed would make those from rounded bf16 weights."""
        model = self._config.model
        shapes = parameter_shapes(model)
        for fragment in self.fragments():
            kind, _, name = fragment.name.partition(".")
            if kind == "master":
                value = initial_value(model, name, shapes[name], self._config.seed)
                for box in fragment.rectangles():
                    slices = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
                    box.view.copy_(value[slices])
        self._state.refresh_weights()

    def _counts(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Target tokens of the global batch per source, on the CPU."""
        counts = torch.zeros(self._num_sources, dtype=torch.int64, device=self._layout.device)
        for batch in batches:
            counts.index_add_(0, batch.sources, (batch.targets >= 0).sum(1))
        return self._layout.sum_data(counts).cpu()

    def _documents(self, batch: MicroBatch) -> Tensor | None:
        return batch.documents if self._config.data.document_mask else None

    def _refused(self, loss: float, z_loss: float, refuse: Callable[[float], str]) -> str:
        """Why no update may follow from these losses; empty when one may."""
        if not math.isfinite(loss) or not math.isfinite(z_loss):
            return f"the loss is {loss}"
        return refuse(loss)

    def _set_lr(self, lr: float) -> None:
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = lr


def adamw(config: TrainConfig, named: dict[str, nn.Parameter], groups: list[dict[str, Any]]) -> Any:
    """torch's AdamW over the parameters at hand; every rank has the same groups, since DeepSpeed reduces by group."""
    settings = config.optimizer
    chosen = [
        {"params": [named[n] for n in g["names"] if n in named], "weight_decay": g["weight_decay"]}
        for g in groups
    ]
    assert all(group["params"] for group in chosen), (
        "a rank without parameters in a group would stop the others"
    )
    return torch.optim.AdamW(
        chosen, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )


def source_losses(counts: Tensor, sums: Tensor) -> list[tuple[int, float]]:
    """Target tokens and mean loss of each source."""
    return [
        (int(count), float(total / count) if count else math.nan)
        for count, total in zip(counts, sums, strict=True)
    ]


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The batch in a device's memory."""
    if batch.tokens.device == device:
        return batch
    return MicroBatch(
        batch.tokens.to(device, non_blocking=True),
        batch.targets.to(device, non_blocking=True),
        batch.documents.to(device, non_blocking=True),
        batch.positions.to(device, non_blocking=True),
        batch.sources.to(device, non_blocking=True),
    )


def padded(batch: MicroBatch, multiple: int) -> MicroBatch:
    """The batch with its sequences filled up to a multiple, in a document of their own and without targets."""
    extra = -batch.tokens.shape[1] % multiple
    if not extra:
        return batch

    def widened(values: Tensor, fill: int) -> Tensor:
        return nn.functional.pad(values, (0, extra), value=fill)

    own = int(batch.documents.max()) + 1
    return MicroBatch(
        widened(batch.tokens, 0),
        widened(batch.targets, -100),
        widened(batch.documents, own),
        widened(batch.positions, 0),
        batch.sources,
    )
