"""Figures of a step: throughput, MFU, memory, and how unusual a loss is."""

import functools
import math
import os
import time
from dataclasses import asdict, dataclass

import psutil
import torch

from llmjp_train.config.machine import ClusterConfig, known
from llmjp_train.config.training import Dtype


def stated_peak(cluster: ClusterConfig, dtype: Dtype) -> float | None:
    """TFLOP/s of one device as the cluster file says."""
    return known(cluster.peak_tflops_fp32 if dtype is Dtype.fp32 else cluster.peak_tflops_bf16)


def peak_flops(cluster: ClusterConfig, dtype: Dtype, device: torch.device) -> float | None:
    """Peak of one rank's device in FLOP/s: as the cluster file says, measured on a CPU, else unknown."""
    stated = stated_peak(cluster, dtype)
    if stated is not None:
        return stated * 1e12
    if device.type != "cpu":
        return None
    return measured_flops(torch.float32 if dtype is Dtype.fp32 else torch.bfloat16)


def measured_flops(
    dtype: torch.dtype, size: int = 1024, seconds: float = 0.15, device: torch.device | None = None
) -> float:
    """Best rate of ``size``-cubed matrix products in FLOP/s over about ``seconds``; the CPU's by default."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(left, right)
        synchronize(left.device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ImpossibleRateError(RuntimeError):
    """More FLOP/s than the device's stated peak."""


def model_flops_utilisation(flops: float, peak: float | None, *, stated: bool) -> float | None:
    """Share of the peak; none when the peak is unknown, or was measured too low because the machine was busy.

    Args:
        flops: model FLOP/s of all ranks.
        peak: FLOP/s of all devices.
        stated: whether the peak is the cluster file's.

    Raises:
        ImpossibleRateError: more than a stated peak cannot be: the peak, the device or the count of FLOPs is wrong.
    """
    if peak is None or (flops > peak and not stated):
        return None
    if flops > peak:
        raise ImpossibleRateError(
            f"MFU would be {flops / peak:.0%}: the cluster file's peak ({peak / 1e12:.4g} TFLOP/s in all) is not this "
            "device's; correct cluster.peak_tflops_*"
        )
    return flops / peak


def memory_gib(device: torch.device) -> float:
    """Peak memory of this rank in GiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(_process(os.getpid()).memory_info().rss) / 2**30


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    """Looked up once: it takes longer than the question."""
    return psutil.Process(pid)


@dataclass
class SpikeScore:
    """How many standard deviations a loss lies above its running mean (exponential, over about 50 steps)."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    decay: float = 0.98

    def score(self, loss: float) -> float | None:
        """Score of ``loss`` against what came before; none in the first 20 steps."""
        if self.count < 20 or self.variance <= 0:
            return None
        return (loss - self.mean) / math.sqrt(self.variance)

    def update(self, loss: float) -> None:
        """Count a loss towards the mean; a spike no more than three deviations of it."""
        if self.score(loss) is not None:
            loss = min(loss, self.mean + 3 * math.sqrt(self.variance))
        self.count += 1
        keep = min(self.decay, 1 - 1 / self.count)
        delta = loss - self.mean
        self.mean += (1 - keep) * delta
        self.variance = keep * (self.variance + (1 - keep) * delta * delta)

    def state(self) -> dict[str, float]:
        """JSON state."""
        return asdict(self)
