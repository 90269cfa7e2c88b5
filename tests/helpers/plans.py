"""Jobs and configurations for tests of the planner."""

from dataclasses import replace
from functools import cache
from typing import Any

from llmjp_train.config.compose import compose
from llmjp_train.config.machine import ClusterConfig, Recompute
from llmjp_train.config.training import Dtype
from llmjp_train.plan.job import Job

PATHS = ("tokenizer.path=none", "data.sources.small.path=none")


@cache
def experiment(*overrides: str) -> Any:
    """A composed training configuration; no file of data is needed. Do not change it in place."""
    return compose("train", list(overrides))


def job(model: str, **changes: Any) -> Job:
    """A job on this machine's CPU with a shipped model."""
    config = experiment("experiment=tiny-cpu", *PATHS, f"model={model}")
    plain = Job(
        model=config.model,
        cluster=ClusterConfig(),
        tensor=1,
        pipeline=1,
        data=1,
        zero=1,
        recompute=Recompute.none,
        dtype=Dtype.bf16,
        micro_batch=1,
        global_batch=64,
        sequence_length=2048,
    )
    return replace(plain, **changes)
