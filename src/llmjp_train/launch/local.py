"""Several processes on this machine, as `llmjp train parallel.data=2` and `llmjp evaluate` ask for."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from llmjp_train import exit_codes

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
PARENT = "LLMJP_PARENT"
"""Environment variable: process that the one it is given to dies with."""


def start_processes(
    command: Sequence[str], count: int, *, grace_seconds: float = 5, asked: Callable[[], bool] = lambda: False
) -> int:
    """Run ``command`` as ``count`` ranks, pinned to their share of the cores; the worst exit code.

    Signals are passed on to all. They are blocked while a rank starts, until it unblocks them itself
    (`Stops.install`, `take_signals`), so that one which comes before a rank can handle it waits and does not kill it.
    When one rank fails the others are asked to end and, after ``grace_seconds``, killed: they would wait
    for it for ever.

    Args:
        asked: whether a stop was asked for before signals were blocked; then nothing is started.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if asked():
            return exit_codes.STOPPED
        ranks = _start(command, count)
        before = {number: signal.signal(number, _forward_to(ranks)) for number in _SIGNALS}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return _wait(ranks, grace_seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in ranks:
            if process.poll() is None:
                process.kill()


def _start(command: Sequence[str], count: int) -> "list[subprocess.Popen[bytes]]":
    cores = sorted(os.sched_getaffinity(0))
    port = free_port()
    ranks = []
    for rank in range(count):
        share = cores[rank * len(cores) // count : (rank + 1) * len(cores) // count] or cores
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(share))),
            "LLMJP_CORES": ",".join(map(str, share)),
            PARENT: str(os.getpid()),
        }
        ranks.append(subprocess.Popen(list(command), env=environment, start_new_session=True))
    return ranks


def _forward_to(ranks: "list[subprocess.Popen[bytes]]") -> Callable[[int, FrameType | None], None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    return forward


def _wait(ranks: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    failed_at = 0.0
    reported = False
    while True:
        codes = [process.poll() for process in ranks]
        bad = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0, exit_codes.STOPPED)]
        if all(code is not None for code in codes):
            return exit_codes.worst(code for code in codes if code is not None)
        if bad and not reported:
            rank, code = bad[0]
            print(f"rank {rank} ended with {_said(code)}; ending the others", file=sys.stderr, flush=True)
            failed_at, reported = time.monotonic(), True
            # A rank that failed by itself tells why; one that was killed leaves the others waiting for it.
            for process in ranks:
                if process.poll() is None:
                    process.terminate()
        if reported and time.monotonic() - failed_at > grace_seconds:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)


def _said(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def take_place() -> None:
    """Keep this rank on the cores that `start_processes` gave it, and let it end with that process."""
    cores = os.environ.get("LLMJP_CORES")
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    end_with_parent()


def end_with_parent() -> None:
    """Let this process die with the one that started it, where that one wants it so (`PARENT` in the environment)."""
    parent = os.environ.pop(PARENT, None)  # not for what this process starts itself
    if parent:
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Let the kernel kill this process when ``parent``, which started it, dies; also when it is dead already."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(exit_codes.FAILED)


def keep_memory() -> None:
    """Let glibc keep what this process frees, for its next tensor, instead of giving it back to the kernel.

    A training step on CPUs frees and takes the same large tensors again, and each page of them that comes from the
    kernel is mapped and zeroed anew (docs/benchmarks.md gives the cost). The process then holds its peak between steps
    too. Does nothing where the user has own settings (``MALLOC_…``, ``GLIBC_TUNABLES``), or without glibc.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)  # mapped blocks alone always go back
        mallopt(_M_TRIM_THRESHOLD, -1)


def take_signals() -> None:
    """Let signals through again that `start_processes` blocked, in a rank without handlers of its own."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def free_port() -> int:
    """A port that is free now on all of this machine's addresses, at which torch listens."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
