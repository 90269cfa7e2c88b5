"""DeepSpeed's fp32 masters and Adam's moments as fragments: all that is known of where a ZeRO stage keeps them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmjp_train.parallel.fragment import Fragment
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.places import Place

KINDS = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Held:
    """A parameter of this rank and what it is of the whole model."""

    name: str
    parameter: nn.Parameter
    place: Place
    writes: bool
    """Whether this rank, or those that share its batch, save it: others may hold the same."""


class EngineState:
    """Views of the optimizer state of a DeepSpeed engine."""

    def __init__(self, engine: Any, zero: int, layout: Layout, held: list[Held]) -> None:
        self._engine, self._zero, self._layout = engine, zero, layout
        self.held = held
        for flat in self._flats():
            state = engine.basic_optimizer.state[flat]
            if not state:  # torch would make it at the first step; a load needs it before
                step = torch.zeros((), dtype=torch.float32, device=flat.device)
                state.update(step=step, exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))

    def _flats(self) -> list[Tensor]:
        """The fp32 tensors that the torch optimizer steps on."""
        optimizer = self._engine.optimizer
        for attribute in (
            "single_partition_of_fp32_groups",  # stages 1 and 2
            "fp32_groups_flat_partition",  # stage 1 in bf16 with fp32 accumulation
            "fp32_partitioned_groups_flat",  # stage 3
        ):
            if hasattr(optimizer, attribute):
                return list(getattr(optimizer, attribute))
        return [p for group in optimizer.param_groups for p in group["params"]]

    def fragments(self, *, owned: bool) -> Iterator[Fragment]:
        """This rank's part of masters and moments.

        With ``owned`` each element is given by one rank alone (for saving); without, by every rank
        that holds it (for loading).
        """
        if owned and self._zero == 0 and self._layout.data_rank != 0:
            return
        for held in self.held:
            found = self._views(held.parameter) if held.writes or not owned else None
            if found is None:
                continue
            start, views = found
            where = held.place
            count = min(views[0].numel(), prod(where.shape) - start)  # padding lies at the end
            if count <= 0:
                continue
            for kind, view in zip(KINDS, views, strict=True):
                name = f"{kind}.{held.name}"
                yield Fragment(name, where.logical, where.shape, where.offset, start, view[:count])

    def _views(self, parameter: nn.Parameter) -> tuple[int, tuple[Tensor, Tensor, Tensor]] | None:
        """First flat element held here and the three views; none when nothing is."""
        state = self._engine.basic_optimizer.state
        if self._zero == 0:
            moments = state[parameter]
            whole = (parameter.data, moments["exp_avg"], moments["exp_avg_sq"])
            return 0, cast(tuple[Tensor, Tensor, Tensor], tuple(tensor.view(-1) for tensor in whole))
        if self._zero == 3:
            return self._partition(parameter)
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        flat = self._flats()[mapping.param_group_index]
        place = mapping.hp_fragment_address
        moments = tuple(state[flat][kind].narrow(0, place.start, place.numel) for kind in KINDS[1:])
        return mapping.lp_fragment_address.start, (mapping.hp_fragment.detach(), *moments)

    def _partition(self, parameter: Any) -> tuple[int, tuple[Tensor, Tensor, Tensor]] | None:
        optimizer = self._engine.optimizer
        length = parameter.ds_tensor.ds_numel  # padded, equal on all ranks
        start = length * dist.get_rank(optimizer.dp_process_group)
        live = max(0, min(length, parameter.ds_numel - start))
        if live == 0:
            return None
        views = (
            optimizer.get_local_fp32_param(parameter),
            optimizer.get_local_fp32_param(parameter, "exp_avg"),
            optimizer.get_local_fp32_param(parameter, "exp_avg_sq"),
        )
        return start, cast(tuple[Tensor, Tensor, Tensor], tuple(view[:live].detach() for view in views))

    def set_step(self, step: int) -> None:
        """Tell Adam and DeepSpeed that ``step`` steps have been taken."""
        for flat in self._flats():
            self._engine.basic_optimizer.state[flat]["step"].fill_(float(step))
        self._engine.global_steps = step
        self._engine.micro_steps = step  # one accumulation boundary a step: see ds_config

    def refresh_weights(self) -> None:
        """Make the weights of the forward pass anew from the masters."""
        optimizer = self._engine.optimizer
        if self._zero in (1, 2):
            optimizer.update_lp_params()
        elif self._zero == 3:
            for index in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            persistent = optimizer.persistent_parameters
            if persistent:
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)

    def spoil_gradients(self) -> None:
        """Make DeepSpeed skip the step that follows and clean up after it, as it does for a gradient that overflowed.

        Each ZeRO stage accumulates elsewhere, and only DeepSpeed knows all the places. Not for ZeRO-0.
        """
        from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

        for held in self.held:
            parameter: Any = held.parameter
            if self._zero == 3:
                safe_set_local_grad(parameter, torch.full_like(safe_get_local_grad(parameter), torch.nan))
            elif parameter._hp_mapping is not None:
                fragment = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
                fragment.fill_(torch.nan)

    def gradient_squares(self) -> dict[str, float]:
        """Squared norm of each parameter's gradient over the whole model, on every rank. Collective.

        Between the last backward pass and the step, after the gradients were averaged over the batch.
        """
        from deepspeed.utils import safe_get_full_grad

        mine: dict[str, float] = {}
        for held in self.held:
            gradient = held.parameter.grad if self._zero == 0 else safe_get_full_grad(held.parameter)
            assert gradient is not None
            if held.writes and self._layout.data_rank == 0:
                mine[held.name] = float(gradient.float().square().sum())
        whole: dict[str, float] = {}
        for part in self._layout.gather(mine):
            for name, square in part.items():
                whole[name] = whole.get(name, 0.0) + square
        return whole
