"""Which rank is slow: all wait for it in each step, so that step times alone show nobody."""

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmjp_train.train.hooks import Hook, Row
from llmjp_train.train.metrics import synchronize
from llmjp_train.train.run import Run

SLOW = 0.7
"""Score below which a rank is slow."""
IN_A_ROW = 3
"""Checks in a row after which it is told."""
PROBE_SECONDS = 0.02
"""Long against the time slice of an operating system, so that a shared core shows."""
DATA_SHARE = 0.05
"""Share of its time that a rank may wait for data and not be slow, whatever the others do."""
PHASES = ("compute", "data")


@dataclass(frozen=True)
class Pace:
    """What a rank says of itself since the last check."""

    rate: float
    """Matrix products a second that its device does alone, outside of any step."""
    data_share: float
    """Share of its steps in which it waited for data."""
    host: str


class Stragglers(Hook):
    """Compares the ranks' devices and data on a cadence, and tells of one that stays behind."""

    def __init__(self) -> None:
        self._waited, self._stepped = 0.0, 0.0
        self._behind: dict[tuple[int, str], int] = {}

    def after_step(self, run: Run, row: Row) -> None:
        every = run.config.metrics.stragglers_every
        self._waited += row.data_wait_s
        self._stepped += row.step_s
        if not every or run.layout.size == 1 or run.step % every:
            return
        began = time.perf_counter()
        mine = Pace(matmul_rate(run.layout.device), self._waited / self._stepped, socket.gethostname())
        self._waited, self._stepped = 0.0, 0.0
        paces = run.layout.gather(mine)
        if run.layout.leader:
            self._tell(run, paces, (time.perf_counter() - began) / every * 1e6)

    def _tell(self, run: Run, paces: Sequence[Pace], cost: float) -> None:
        found = scores(paces)
        slowest = min(found, key=lambda key: found[key])
        figures = {"rank": slowest[0], "phase": slowest[1], "score": found[slowest], "us_per_step": cost}
        run.log(slowest=figures)
        for key, score in found.items():
            behind = self._behind[key] = self._behind.get(key, 0) + 1 if score < SLOW else 0
            if behind == IN_A_ROW:
                rank, phase = key
                pace = paces[rank]
                told = (
                    f"its device does {score:.0%} of the median rank's matrix products"
                    if phase == "compute"
                    else f"it waits for data in {pace.data_share:.0%} of its time"
                )
                evidence = f"rank {rank} on {pace.host} was slow in {IN_A_ROW} checks in a row: {told}"
                run.record.event(
                    "straggler", step=run.step, rank=rank, node=pace.host, phase=phase, score=score,
                    evidence=evidence, action="noted",
                )  # fmt: skip
                print(f"  {evidence}", flush=True)


def scores(paces: Sequence[Pace]) -> dict[tuple[int, str], float]:
    """Score of each rank in each phase: 1 is as fast as the median (the faster of two), 0.5 half as fast."""
    usual = statistics.median_high(pace.rate for pace in paces)
    working = statistics.median_high(1 - pace.data_share for pace in paces)
    found = {}
    for rank, pace in enumerate(paces):
        found[rank, "compute"] = pace.rate / usual
        waits = pace.data_share > DATA_SHARE
        found[rank, "data"] = min(1.0, (1 - pace.data_share) / working) if waits else 1.0
    return found


def matmul_rate(device: torch.device, seconds: float = PROBE_SECONDS) -> float:
    """Matrix products a second of one size and format, the same on all ranks, over ``seconds``."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    left = torch.ones(size, size, dtype=dtype, device=device)
    torch.mm(left, left)
    synchronize(device)
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        torch.mm(left, left)
        synchronize(device)
        count += 1
    return count / took
