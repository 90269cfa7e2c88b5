"""How fast ranks reach each other: a few megabytes around a ring, within nodes and from node to node."""

import time

import torch
import torch.distributed as dist

from llmjp_train.parallel.layout import Layout

BYTES = {"cpu": 2**20, "cuda": 2**26}
_ROUNDS = 3


def measure_links(layout: Layout, per_node: int) -> dict[str, list[float]]:
    """GB/s (10^9 bytes a second) at which each rank receives, by rank; collective.

    All ranks send and receive at the same time, so that a node's adapters are in use together.

    Args:
        per_node: ranks of a node, which follow one another.

    Returns:
        ``node``: from the rank before it in its node, around; absent where a node has one rank. ``network``:
        from the same place of the node before it; absent where there is one node.
    """
    rank, found = layout.world.rank, {}
    first, place = rank - rank % per_node, rank % per_node
    if per_node > 1:
        neighbours = first + (place + 1) % per_node, first + (place - 1) % per_node
        found["node"] = layout.gather(_rate(layout, *neighbours))
    if layout.size > per_node:
        neighbours = (rank + per_node) % layout.size, (rank - per_node) % layout.size
        found["network"] = layout.gather(_rate(layout, *neighbours))
    return found


def _rate(layout: Layout, to: int, source: int) -> float:
    """Best of a few rounds; the first opens the connection."""
    size = BYTES[layout.device.type]
    sent = torch.zeros(size, dtype=torch.uint8, device=layout.device)
    received = torch.empty_like(sent)
    best = float("inf")
    for _ in range(1 + _ROUNDS):
        layout.barrier()
        began = time.perf_counter()
        pairs = [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, source)]
        for work in dist.batch_isend_irecv(pairs):
            work.wait()
        if layout.device.type == "cuda":
            torch.cuda.synchronize(layout.device)
        best = min(best, time.perf_counter() - began)
    return float(f"{size / best / 1e9:.3g}")
