"""Ranks forked from a process that has imported everything: started in milliseconds, for many short layouts.

For the CPU: a process that has used CUDA cannot be forked.
"""

import gc
import multiprocessing
import os
import pickle
import queue
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmjp_train.launch.local import free_port


def warm() -> None:
    """Import what ranks need, once, and keep the collector away from it."""
    import torch

    from llmjp_train.engine import deepspeed_setup

    torch.set_num_threads(1)
    deepspeed_setup.prepare()
    gc.collect()
    gc.freeze()


def run_forked(function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 300) -> list[Any]:
    """Values of ``function(rank, ranks, *args)`` on gloo ranks, in their order.

    Raises:
        RuntimeError: a rank failed (its traceback), died, or took longer than ``timeout`` seconds.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llmjp-") as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(ranks)]
        processes: list[Any] = [
            context.Process(target=_rank, args=(function, rank, ranks, port, results, logs[rank], args))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        try:
            return _collect(results, processes, timeout)
        except RuntimeError as error:
            tails = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs if log.exists())
            raise RuntimeError(f"{error}\n{tails}") from None
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(results: Any, processes: list[Any], timeout: float) -> list[Any]:
    values: dict[int, Any] = {}
    end = time.monotonic() + timeout
    while len(values) < len(processes):
        try:
            rank, failed, value = results.get(timeout=1)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if r not in values and p.exitcode is not None]
            if dead and results.empty():
                raise RuntimeError(
                    f"rank {dead[0]} died with exit code {processes[dead[0]].exitcode}"
                ) from None
            if time.monotonic() > end:
                raise RuntimeError(f"ranks gave no result in {timeout:g} s") from None
            continue
        if failed:
            raise RuntimeError(f"rank {rank} failed:\n{value}")
        values[rank] = pickle.loads(value)
    for process in processes:
        process.join()
    return [values[rank] for rank in range(len(processes))]


def _rank(
    function: Callable[..., Any], rank: int, ranks: int, port: int, results: Any, log: Path, args: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with log.open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        value = function(rank, ranks, *args)
        # By value: torch would hand over a tensor's memory, which is gone with the process.
        results.put((rank, False, pickle.dumps(value)))
        if dist.is_initialized():  # a whole training run leaves the group itself
            dist.barrier()
    except BaseException:  # DCP's CheckpointException is not an Exception
        results.put((rank, True, traceback.format_exc()))
    results.close()
    results.join_thread()
    sys.stdout.flush()
    os._exit(0)  # what the parent wants done at its own end is not done here
