"""The layout: how many ranks share the work, which part this one has, and every process group of ours."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from llmjp_train.config.layouts import Coordinates, coordinates
from llmjp_train.config.machine import ParallelConfig
from llmjp_train.errors import UserError
from llmjp_train.parallel.world import World

T = TypeVar("T")
START_MINUTES = 30.0
"""What a collective may take before the first step, and where a checkpoint is loaded: torch's own limit for NCCL is a
third of it."""


@dataclass(frozen=True)
class Layout:
    """Tensor x pipeline x data ranks and the ZeRO stage, seen from one rank. Immutable."""

    tensor: int
    pipeline: int
    data: int
    zero: int
    world: World
    device: torch.device
    control: "dist.ProcessGroup | None" = field(repr=False, default=None)
    """Every rank, over gloo: for decisions, apart from the gradients' traffic."""
    saving: "dist.ProcessGroup | None" = field(repr=False, default=None)
    """Every rank, over gloo: for saves in the background, which must not meet decisions."""
    sequence: bool = False
    """Sequence parallelism: between blocks each tensor-parallel rank holds its share of the tokens."""
    tensor_group: "dist.ProcessGroup | None" = field(repr=False, default=None)
    """Ranks that share each matrix; none with data parallelism alone."""
    data_group: "dist.ProcessGroup | None" = field(repr=False, default=None)
    """Ranks that hold the same part of the model and share the batch; none with data parallelism alone: all."""
    pipeline_group: "dist.ProcessGroup | None" = field(repr=False, default=None)
    """Stages of one pipeline, first to last; none with data parallelism alone."""

    def __str__(self) -> str:
        named = {"tensor": self.tensor, "pipeline": self.pipeline, "data": self.data}
        sizes = [f"{axis} {size}" for axis, size in named.items() if size > 1]
        return ", ".join([*sizes, *["sequence parallel"] * self.sequence, f"ZeRO-{self.zero}"])

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.tensor * self.pipeline * self.data

    @property
    def tensor_rank(self) -> int:
        """Which part of each matrix this rank holds."""
        return coordinates(self.world.rank, self.tensor, self.data).tensor

    @property
    def data_rank(self) -> int:
        """Which share of the batch this rank computes."""
        return coordinates(self.world.rank, self.tensor, self.data).data

    @property
    def pipeline_rank(self) -> int:
        """Which stage of the pipeline this rank is."""
        return coordinates(self.world.rank, self.tensor, self.data).pipeline

    @property
    def last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pipeline_rank == self.pipeline - 1

    @property
    def data_ranks(self) -> list[int]:
        """Ranks of the world that hold the same part of the model."""
        first = self.world.rank - self.data_rank * self.tensor
        return [first + index * self.tensor for index in range(self.data)]

    @property
    def leader(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.world.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_data(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks that share the batch, in place: what others hold of it is the same."""
        if self.data > 1:
            dist.all_reduce(values, group=self.data_group)
        return values

    def from_last_stage(self, values: torch.Tensor) -> torch.Tensor:
        """The last stage's values on every stage of this pipeline, in place."""
        if self.pipeline > 1:
            ranks = self.tensor * self.data
            source = self.world.rank + (self.pipeline - 1 - self.pipeline_rank) * ranks
            dist.broadcast(values, src=source, group=self.pipeline_group)
        return values

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Element-wise "some rank says so"; the same answer on every rank."""
        votes = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        if self.size > 1:
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def from_leader(self, value: T) -> T:
        """The leader's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return [item for item in found if item is not None]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def limit_waits(self, minutes: float) -> None:
        """Let a collective of any group that this rank has now, DeepSpeed's among them, fail after so long.

        Not of the group that saves: there ranks wait for the slowest disk.
        """
        for group in tuple(distributed_c10d._world.pg_map):
            if group is not self.saving:
                distributed_c10d._set_pg_timeout(timedelta(minutes=minutes), group)


def start(
    config: ParallelConfig, world: World, *, cuda: bool, timeout_minutes: float = START_MINUTES
) -> Layout:
    """Join the other ranks and give the layout that this rank has in ``config``.

    Args:
        timeout_minutes: what a collective may take until `Layout.limit_waits`, in groups of any backend.

    Raises:
        UserError: the number of processes is not what the layout asks for.
    """
    wanted = config.tensor * config.pipeline * config.data
    if wanted != world.size:
        raise UserError(
            f"the layout tensor={config.tensor} x pipeline={config.pipeline} x data={config.data} needs {wanted} "
            f"processes, but {world.launcher or 'this'} started {world.size}: change parallel.data or start {wanted}"
        )
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    # DeepSpeed reads these itself, whatever launcher started us.
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port),
    )
    control, timeout = None, timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if world.size == 1 and not world.launcher:
            # Alone: a store in memory, so that no port can be taken by another run.
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=timeout)
    if cuda:
        control = dist.new_group(backend="gloo", timeout=timeout)
    groups = {
        axis: _group(config, world.rank, axis, timeout) if config.tensor * config.pipeline > 1 else None
        for axis in ("tensor", "data", "pipeline")
    }
    return Layout(
        config.tensor,
        config.pipeline,
        config.data,
        config.zero,
        world,
        device,
        control,
        saving=dist.new_group(backend="gloo", timeout=timeout),
        sequence=config.sequence and config.tensor > 1,
        tensor_group=groups["tensor"],
        data_group=groups["data"],
        pipeline_group=groups["pipeline"],
    )


def _group(config: ParallelConfig, rank: int, axis: str, timeout: timedelta) -> "dist.ProcessGroup | None":
    """This rank's group along an axis. Every rank makes every group, in the same order."""
    places = [coordinates(r, config.tensor, config.data) for r in range(dist.get_world_size())]
    lines: dict[tuple[int, ...], list[int]] = {}
    for other, place in enumerate(places):
        key = tuple(value for name, value in zip(Coordinates._fields, place, strict=True) if name != axis)
        lines.setdefault(key, []).append(other)
    mine = None
    for ranks in lines.values():
        group = dist.new_group(ranks, timeout=timeout)
        if rank in ranks:
            mine = group
    return mine


def stop() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()
