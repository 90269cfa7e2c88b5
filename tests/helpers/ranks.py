"""Real gloo processes for tests, forked from a parent that imported torch and DeepSpeed once.

A cold rank spends 3 to 26 s on imports; a forked one starts in milliseconds (docs/lab-notes.md).
"""

import functools
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import queue
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def _warm() -> None:
    """Import what ranks need before they are forked, and keep the collector away from it."""
    import torch

    import llmjp_train.engine.deepspeed_setup as setup

    torch.set_num_threads(1)
    setup.prepare()
    # What a run imports besides: ten seconds on a busy machine, otherwise spent by each rank anew.
    for name in (
        "deepspeed.runtime.zero.muon.muon_optimizer",  # compiles nothing, but imports the compiler
        "deepspeed.runtime.zero.stage_1_and_2",
        "deepspeed.runtime.zero.stage3",
        "deepspeed.runtime.bf16_optimizer",
        "llmjp_train.config.compose",
        "llmjp_train.train.loop",
        "llmjp_train.train.setup",
        "transformers",
    ):
        importlib.import_module(name)

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    gc.collect()
    gc.freeze()


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    results: Any,
    log: Path,
    args: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with log.open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", rank=rank, world_size=world)
        value = function(rank, world, *args)
        # By value: torch would hand over a tensor's memory, which is gone with the process.
        results.put((rank, True, pickle.dumps(value)))
        if dist.is_initialized():  # a whole training run leaves the group itself
            dist.barrier()
    except BaseException:  # DCP's CheckpointException is not an Exception
        results.put((rank, False, traceback.format_exc()))
    results.close()
    results.join_thread()
    sys.stdout.flush()
    os._exit(0)


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Run ``function(rank, world_size, *args)`` on forked gloo ranks and return their values in rank order.

    Raises:
        RuntimeError: a rank failed (its traceback) or took longer than ``timeout`` seconds.
    """
    _warm()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(world_size)]
        processes = [
            context.Process(target=_rank, args=(function, rank, world_size, port, results, logs[rank], args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        values: dict[int, Any] = {}
        failure = ""
        end = time.monotonic() + timeout
        while len(values) < world_size and not failure:
            try:
                rank, ok, value = results.get(timeout=1)
            except queue.Empty:
                dead = [r for r, p in enumerate(processes) if r not in values and p.exitcode is not None]
                if dead and results.empty():
                    failure = f"rank {dead[0]} died with exit code {processes[dead[0]].exitcode}"
                elif time.monotonic() > end:
                    failure = (
                        f"no result from ranks {sorted(set(range(world_size)) - set(values))} in {timeout} s"
                    )
                continue
            if not ok:
                failure = f"rank {rank} failed:\n{value}"
            else:
                values[rank] = pickle.loads(value)
        for process in processes:
            if failure:
                process.kill()
            process.join()
        if failure:
            tails = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs if log.exists())
            raise RuntimeError(f"{failure}\n{tails}")
    return [values[rank] for rank in range(world_size)]
