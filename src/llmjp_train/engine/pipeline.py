"""The engine with pipelines: DeepSpeed's PipelineModule and schedule, ZeRO-1."""

import contextlib
import io
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmjp_train.config.model import Position
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine import deepspeed_setup
from llmjp_train.engine.base import Engine, Squares, adamw, padded, source_losses, to_device
from llmjp_train.engine.ds_config import ds_config
from llmjp_train.engine.pieces import (
    Contexts,
    HeadPiece,
    LayerPiece,
    NormPiece,
    Piece,
    PositionPiece,
    StageLoss,
    TokenPiece,
)
from llmjp_train.engine.result import StepResult
from llmjp_train.engine.state import EngineState
from llmjp_train.model.decoder import Block
from llmjp_train.model.loss import Head
from llmjp_train.model.norm import make_norm
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.stages import layer_bounds
from llmjp_train.parallel.tensor import split

TIED = "embedding"


class PipelineEngine(Engine):
    """A model whose layers are dealt out to the stages of a pipeline."""

    def __init__(
        self, config: TrainConfig, layout: Layout, num_sources: int, groups: list[dict[str, Any]]
    ) -> None:
        """Build this stage, give its weights their initial values, and hand them to DeepSpeed."""
        super().__init__(config, layout, num_sources)
        deepspeed_setup.prepare()
        import deepspeed
        from deepspeed.runtime.pipe import schedule

        assert config.parallel.zero == 1, "validation lets ZeRO-1 alone go with pipelines"
        deepspeed.init_distributed(
            "nccl" if layout.device.type == "cuda" else "gloo", auto_mpi_discovery=False
        )
        self._loss = StageLoss(config.optimizer.z_loss, num_sources, layout.device)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its stages and seeds
            module = _module(config, layout, self._loss)
        named, copies = _named(module)
        if layout.last_stage:
            self._loss.head = _head(config, layout, module)
        held = self._held(named, copies)
        count = sum(p.numel() for p in named.values())
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=adamw(config, named, groups), config=ds_config(config, count)
            )
        self._take_step = self._engine._INSTRUCTION_MAP[schedule.OptimizerStep]
        self._engine._INSTRUCTION_MAP = {
            **self._engine._INSTRUCTION_MAP,
            schedule.OptimizerStep: lambda engine, **kwargs: self._optimizer_step(),
        }
        self._leave_alone_what_is_alone()
        self._state = EngineState(self._engine, 1, layout, held)
        self._shape: tuple[int, ...] = ()
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
        self._loss.begin(self._layout.data / max(1, tokens))
        self._tokens, self._inspect, self._reason, self._middle = tokens, inspect_gradients, "", began
        self._refuse = refuse
        self._set_lr(lr)
        self._engine.module.train()
        self._run(batches, self._engine._train_schedule, len(batches))
        loss, z = (self._sums[:2] / max(1, tokens)).tolist()
        norm = math.nan if self._reason else float(self._engine.get_global_grad_norm())
        if not self._reason and not self._engine.was_step_applied():
            norm, self._reason = math.inf, "a gradient is not finite: DeepSpeed skipped the step"
        return StepResult(
            loss,
            z,
            norm,
            tokens,
            not self._reason,
            self._reason,
            source_losses(counts, self._sums[2:]),
            forward_backward_s=self._middle - began,
            optimizer_s=time.perf_counter() - self._middle,
        )

    def _run(self, batches: Sequence[MicroBatch], make: Callable[[], Any], count: int) -> None:
        """Send micro batches through DeepSpeed's schedule. All have one shape."""
        shape = tuple(batches[0].tokens.shape)
        if shape != self._shape:
            self._engine.reset_activation_shape()
            self._shape = shape
        items = [((b.tokens, b.documents, b.positions, b.targets, b.sources), ()) for b in batches]
        self._engine.set_dataiterator(iter(items))
        self._engine.micro_batches = count
        self._engine.total_loss, self._engine._compute_loss = None, True
        self._engine._exec_schedule(make())

    def _optimizer_step(self) -> None:
        """The schedule's last instruction: look at the loss of the whole batch, then let DeepSpeed take the step."""
        mine = self._loss.sums.clone()
        if not (self._layout.last_stage and self._layout.tensor_rank == 0):
            mine.zero_()  # the others hold nothing, or the same
        self._sums = self._layout.sum(mine).cpu()
        self._middle = time.perf_counter()
        loss, z = (self._sums[:2] / max(1, self._tokens)).tolist()
        self._reason = self._refused(loss, z, self._refuse)
        if self._reason:
            self._state.spoil_gradients()
        elif self._inspect is not None:
            self._inspect(self._state.gradient_squares())
        self._take_step(self._engine)

    def token_nll(self, batch: MicroBatch) -> Tensor:
        """See `Engine.token_nll`."""
        shape = batch.tokens.shape
        batch = to_device(batch, self._layout.device)
        if self._layout.sequence:
            batch = padded(batch, self._layout.tensor)
        self._engine.module.eval()
        with torch.no_grad():
            self._run([batch], partial(self._engine._inference_schedule, 1), 1)
        self._engine.module.train()
        found = self._loss.token_nll
        if found is None or not self._layout.last_stage:
            found = torch.empty(batch.tokens.shape, dtype=torch.float32, device=self._layout.device)
        return self._layout.from_last_stage(found)[:, : shape[1]]


def _module(config: TrainConfig, layout: Layout, loss: StageLoss) -> Any:
    """DeepSpeed's module with the pieces of this stage built and the others only named."""
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    model = config.model
    contexts = Contexts(config)

    def embedding() -> nn.Module:
        return nn.Embedding(model.vocab_size, model.hidden_size)

    tokens = ("embedding.", embedding, config, layout)
    specs = [
        TiedLayerSpec(TIED, TokenPiece, *tokens, tied_weight_attr="inner.weight")
        if model.tied_embeddings
        else LayerSpec(TokenPiece, *tokens)
    ]
    if model.position is Position.learned:
        table = partial(nn.Embedding, model.max_positions, model.hidden_size)
        specs.append(LayerSpec(PositionPiece, "positions.", table, config, layout))
    first = len(specs)
    for index in range(model.num_layers):
        block = partial(Block, model, config.parallel.recompute)
        specs.append(LayerSpec(LayerPiece, f"layers.{index}.", block, config, layout, contexts))
    specs.append(LayerSpec(NormPiece, "norm.", partial(make_norm, model), config, layout))
    head = partial(Head, model.hidden_size, model.vocab_size, config.parallel.loss_chunk)
    specs.append(
        TiedLayerSpec(
            TIED,
            TokenPiece,
            *tokens,
            tied_weight_attr="inner.weight",
            forward_fn=lambda module, passed: loss(passed),
        )
        if model.tied_embeddings
        else LayerSpec(HeadPiece, "head.", head, config, layout, loss)
    )
    inner = layer_bounds(model, layout.pipeline, config.batch.sequence_length)[1:-1]
    bounds = [0, *(first + bound for bound in inner), len(specs)]

    class Stages(PipelineModule):  # type: ignore[misc]
        """DeepSpeed's own balancing would build every layer on every rank; it takes no bounds as an argument."""

        def _partition_layers(self, method: str = "") -> None:
            self.parts = bounds
            self._set_bounds(bounds[layout.pipeline_rank], bounds[layout.pipeline_rank + 1])

    return Stages(
        layers=specs,
        topology=PipeModelDataParallelTopology(layout.pipeline, layout.tensor, layout.data),
        activation_checkpoint_interval=0,
    )


def _named(module: nn.Module) -> tuple[dict[str, nn.Parameter], frozenset[str]]:
    """Parameters by logical name, and which of them are a later stage's copies of tied ones."""
    named, copies = {}, set()
    for piece in module.modules():
        if isinstance(piece, Piece):
            for name, parameter in piece.inner.named_parameters():
                named[f"{piece.prefix}{name}"] = parameter
                if parameter.ds_pipe_replicated:  # type: ignore[attr-defined]
                    copies.add(f"{piece.prefix}{name}")
    return named, frozenset(copies)


def _head(config: TrainConfig, layout: Layout, module: Any) -> Head:
    """The head of the last stage; a tied one takes this stage's copy of the embedding."""
    if not config.model.tied_embeddings:
        piece = next(piece for piece in module.modules() if isinstance(piece, HeadPiece))
        assert isinstance(piece.inner, Head)
        return piece.inner
    with torch.device("meta"):
        head = Head(config.model.hidden_size, config.model.vocab_size, config.parallel.loss_chunk)
    split(head, config.model, layout, "head.")
    head.weight = module.tied_modules[TIED].inner.weight
    return head
