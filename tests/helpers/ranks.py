"""Real gloo processes for tests, forked from a parent that imported torch and DeepSpeed once.

A cold rank spends 3 to 26 s on imports; a forked one starts in milliseconds (docs/lab-notes.md).
"""

import functools
import gc
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from llmjp_train.launch.forked import run_forked, warm


@functools.cache
def _warm() -> None:
    """Import what ranks need before they are forked, and keep the collector away from it."""
    warm()
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


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """`run_forked` from a process that has imported everything.

    Raises:
        RuntimeError: a rank failed (its traceback) or took longer than ``timeout`` seconds.
    """
    _warm()
    return run_forked(function, world_size, *args, timeout=timeout)
