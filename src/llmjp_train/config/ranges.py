"""Bounds of single values, in one table: what lies outside is told with its key."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from llmjp_train.config.root import TrainConfig

AT_LEAST_ONE = (
    "batch.global_batch",
    "batch.micro_batch",
    "batch.sequence_length",
    "batch.ramp_start",
    "batch.ramp_increment",
    "batch.ramp_steps",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.data",
    "parallel.loss_chunk",
    "parallel.bucket_mb",
    "schedule.length",
    "model.num_layers",
    "model.hidden_size",
    "model.ffn_size",
    "model.num_heads",
    "model.num_kv_heads",
    "model.head_size",
    "model.vocab_size",
    "model.max_positions",
    "tokenizer.vocab_size",
    "data.prefetch",
    "data.sources.*.tokens",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "checkpoint.keep_steps.*",
    "cluster.nodes",
    "cluster.devices_per_node",
    "cluster.max_nodes",
    "cluster.time_limit",
    "cluster.max_time_limit",
    "cluster.hang_seconds",
    "evaluation.batch_size",
    "evaluation.limit",
    "evaluation.every",
    "evaluation.validation_every",
    "evaluation.validation_batches",
    "evaluation.stop_at_best",
    "metrics.every",
    "metrics.grad_norm_every",
    "metrics.health_every",
    "metrics.agreement_every",
    "metrics.stragglers_every",
    "spikes.rewind_steps",
    "spikes.most",
    "changes.*.step",
    "changes.*.global_batch",
    "changes.*.sequence_length",
)
NOT_NEGATIVE = (
    "seed",
    "data.seed",
    "data.sources.*.weight",
    "schedule.warmup",
    "schedule.decay",
    "schedule.min_lr",
    "optimizer.weight_decay",
    "optimizer.clip",
    "optimizer.z_loss",
    "evaluation.num_fewshot",
    "fork.step",
    "cluster.signal_lead",
    "cluster.max_restarts",
    "changes.*.weights.*",
)
ABOVE_ZERO = (
    "optimizer.lr",
    "optimizer.eps",
    "model.norm_eps",
    "model.rope_theta",
    "model.init_std",
    "data.sources.*.epochs",
    "checkpoint.every_minutes",
    "metrics.spike_sigma",
    "cluster.collective_minutes",
    "cluster.device_memory_gib",
    "cluster.peak_tflops_bf16",
    "cluster.peak_tflops_fp32",
    "changes.*.lr",
    "time_limit",
)
BELOW_ONE = ("optimizer.beta1", "optimizer.beta2")
"""In [0, 1)."""
ADVICE = {
    "changes.*.step": "what holds from the start is set in batch, optimizer and data themselves",
    "checkpoint.every_steps": "null switches it off",
    "checkpoint.keep_every": "null switches it off",
    "evaluation.every": "null switches it off",
    "evaluation.validation_every": "null switches it off",
    "evaluation.limit": "null takes all",
    "optimizer.eps": "1e-8 is usual",
    "optimizer.clip": "0 switches clipping off",
    "time_limit": "in minutes; null is no limit",
}
"""What else to say of some keys."""


def out_of_range(config: TrainConfig) -> list[str]:
    """Values that no arithmetic should see, each with its key and bound."""
    found = []
    for path, value in _leaves(config, ()):
        pattern = _pattern(path)
        bound = _broken(pattern, value)
        if bound:
            advice = f": {ADVICE[pattern]}" if pattern in ADVICE else ""
            found.append(f"{'.'.join(path)}={value} must be {bound}{advice}")
    return found


def _broken(pattern: str, value: float) -> str:
    """The bound that a value breaks, or an empty text."""
    if not math.isfinite(value):
        return "a finite number"
    if pattern in AT_LEAST_ONE and value < 1:
        return "at least 1"
    if pattern in NOT_NEGATIVE and value < 0:
        return "0 or more"
    if pattern in ABOVE_ZERO and value <= 0:
        return "above 0"
    if pattern in BELOW_ONE and not 0 <= value < 1:
        return "in [0, 1)"
    return ""


_NAMED_BY_USERS = {("data", "sources"), ("changes", "*", "weights")}


def _pattern(path: tuple[str, ...]) -> str:
    """The key with * for names and numbers that a user gives."""
    said: list[str] = []
    for part in path:
        said.append("*" if part.isdigit() or tuple(said) in _NAMED_BY_USERS else part)
    return ".".join(said)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of a configuration with its key."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, str(name)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
