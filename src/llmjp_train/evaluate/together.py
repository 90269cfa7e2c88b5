"""Several processes that evaluate one model: each has a part of the items, the first one scores and reports."""

import os
from datetime import timedelta

from llmjp_train.evaluate.likelihood import Share, over_ranks
from llmjp_train.parallel.world import rank_environment, world

LONGEST_WAIT = timedelta(hours=12)
"""The first process may run programs or translate counts while the others wait for the next task."""


def join() -> Share:
    """Meet the processes that torchrun, srun or mpirun started, and get this one's part; alone without any.

    With GPUs, each process takes the one of its place on the node.

    Raises:
        UserError: the launcher set some of its variables but not all.
    """
    place = world()
    if place.size == 1:
        return Share()
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    os.environ.update(rank_environment(place.rank, place.size, place.local_rank, place.address, place.port))
    # Scores and texts are gathered as objects, on the CPU whatever runs the model.
    dist.init_process_group("gloo", rank=place.rank, world_size=place.size, timeout=LONGEST_WAIT)
    return over_ranks(place.rank, place.size)


def leave(share: Share) -> None:
    """Part from the other processes."""
    if share.ranks > 1:
        import torch.distributed as dist

        # One that ends while another still talks to it takes that one down.
        dist.barrier()
        dist.destroy_process_group()
