"""Several processes that evaluate one model: whole on each, or in parts; the first one scores and reports."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch

from llmjp_train.config.evaluation import SharingConfig
from llmjp_train.config.machine import ParallelConfig
from llmjp_train.errors import UserError
from llmjp_train.evaluate.likelihood import Share, over_ranks
from llmjp_train.parallel import layout as layouts
from llmjp_train.parallel.world import World, rank_environment

LONGEST_WAIT = timedelta(hours=12)
"""The first process may run programs or translate counts while the others wait for the next task."""


@dataclass(frozen=True)
class Party:
    """This process among those that evaluate one model."""

    share: Share
    """Its part of the items."""
    size: int = 1
    """Processes in all."""
    first: bool = True
    """Whether it scores and reports."""
    layout: layouts.Layout | None = None
    """Which part of the model it holds; none: all of it."""


def in_parts(sharing: SharingConfig) -> bool:
    """Whether several processes hold one model."""
    return sharing.tensor * sharing.pipeline > 1


def sizes(sharing: SharingConfig, place: World) -> ParallelConfig:
    """The layout that is asked for, on the processes that are there or are to be started.

    Raises:
        UserError: a size is not positive, or a launcher started another number of processes.
    """
    asked = {"tensor": sharing.tensor, "pipeline": sharing.pipeline, "data": sharing.data}
    for name, size in asked.items():
        if size is not None and size < 1:
            raise UserError(f"parallel.{name}={size}: give 1 or more")
    model = sharing.tensor * sharing.pipeline
    data = sharing.data or max(1, place.size // model)
    if place.launcher and data * model != place.size:
        raise UserError(
            f"parallel.tensor={sharing.tensor} x parallel.pipeline={sharing.pipeline} x parallel.data={data} needs "
            f"{data * model} processes, but {place.launcher} started {place.size}: start as many, or change one of them"
        )
    return ParallelConfig("evaluate", sharing.tensor, sharing.pipeline, data)


def join(parallel: ParallelConfig, place: World, device: torch.device) -> Party:
    """Meet the other processes and get this one's part; alone where there are none.

    With GPUs, each process takes the one of its place on the node.
    """
    if parallel.tensor * parallel.pipeline > 1:
        layout = layouts.start(parallel, place, cuda=device.type == "cuda")
        return Party(Share(), layout.size, layout.leader, layout)
    if place.size == 1:
        return Party(Share())
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    os.environ.update(rank_environment(place.rank, place.size, place.local_rank, place.address, place.port))
    # Scores and texts are gathered as objects, on the CPU whatever runs the model.
    dist.init_process_group("gloo", rank=place.rank, world_size=place.size, timeout=LONGEST_WAIT)
    return Party(over_ranks(place.rank, place.size), place.size, place.rank == 0)


def leave(party: Party) -> None:
    """Part from the other processes."""
    if party.size > 1:
        import torch.distributed as dist

        # One that ends while another still talks to it takes that one down.
        if party.layout is not None:
            party.layout.barrier()
        else:
            dist.barrier()
        dist.destroy_process_group()
