"""Fit the time model's constants on published runs: ``python -m llmjp_train.plan.fit`` rewrites constants.json.

Least squares on the logarithm of step times, with a weak pull to what such hardware is known to do, so that a
constant that no row informs stays sensible. Prints each row's error when it is left out of the fit, the tables
of docs/planner.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmjp_train.config.derive import flops_per_token, parameter_count
from llmjp_train.config.machine import ClusterConfig, Device, Recompute
from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.config.training import Dtype
from llmjp_train.plan.constants import FILE, NAMES, Constants
from llmjp_train.plan.job import Engine, Job
from llmjp_train.plan.stages import bounds
from llmjp_train.plan.timing import step_time

ROWS = Path(__file__).with_name("published.yaml")
PRIOR_WIDTH = 0.5
"""Standard deviation, in log units, of the pull of a constant to its default; a row's error has 0.1."""
ROW_WIDTH = 0.1


@dataclass(frozen=True)
class Row:
    """A published run and its step time."""

    name: str
    job: Job
    seconds: float
    figure: str
    """As published, with its unit."""
    source: str
    held_out: bool


def rows() -> list[Row]:
    """All rows of published.yaml."""
    table = _table()
    found = []
    for kind in ("runs", "held_out"):
        for name, values in table[kind].items():
            found.append(_row(table, name, values, kind == "held_out"))
    return found


@cache
def _table() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    return loaded


def _row(table: dict[str, Any], name: str, values: Sequence[Any], held_out: bool) -> Row:
    (
        model,
        device,
        engine,
        gpus,
        tensor,
        pipeline,
        zero,
        micro,
        batch,
        length,
        recompute,
        figure,
        unit,
        source,
    ) = values
    job = Job(
        model=_model(model, table["models"][model], length),
        cluster=_cluster(table["devices"][device], gpus),
        tensor=tensor,
        pipeline=pipeline,
        data=gpus // (tensor * pipeline),
        zero=zero,
        recompute=Recompute[recompute],
        dtype=Dtype.bf16,
        micro_batch=micro,
        global_batch=batch,
        sequence_length=length,
        document_mask=False,
        engine=Engine(name=engine, **table["engines"][engine]),
        stage_layers=_megatron_stages(table["models"][model][0], pipeline),
    )
    job = replace(job, stage_layers=bounds(job))  # cut once, not at each of the fit's thousands of questions
    return Row(name, job, _seconds(job, figure, unit), f"{figure} {unit}", table["sources"][source], held_out)


def _megatron_stages(layers: int, pipeline: int) -> tuple[int, ...]:
    """Megatron-LM gives every stage as many layers, with the ends on top, where they divide."""
    return () if layers % pipeline else (layers // pipeline,) * pipeline


def _model(name: str, values: Sequence[Any], length: int) -> ModelConfig:
    layers, hidden, ffn, heads, kv_heads, vocabulary, form = values
    common = ModelConfig(name, layers, hidden, ffn, heads, kv_heads, hidden // heads, vocabulary, length)
    if form == "llama":
        return common
    return replace(
        common,
        position=Position.learned,
        norm=Norm.layernorm,
        mlp=Mlp.gelu,
        tied_embeddings=True,
        bias=Bias.all if form == "gpt" else Bias.none,
    )


def _cluster(device: dict[str, Any], gpus: int) -> ClusterConfig:
    return ClusterConfig(
        name="published",
        device=Device.cuda,
        device_name=device["name"],
        devices_per_node=8,
        nodes=gpus // 8,
        device_memory_gib=device["memory_gib"],
        peak_tflops_bf16=device["peak"],
        memory_gbs=device["memory"],
        node_link_gbs=device["link"],
        network_gbs=device["network"],
        storage_gbs="unknown",
    )


def _seconds(job: Job, figure: float, unit: str) -> float:
    tokens = job.global_batch * job.sequence_length
    if unit == "s/step":
        return figure
    if unit == "tokens/s/gpu":
        return tokens / (figure * job.ranks)
    assert unit == "tflops/gpu"
    # Megatron-LM's formula counts attention whole: twice the causal half of ours
    causal = 6.0 * job.model.num_layers * job.sequence_length * job.model.num_heads * job.model.head_size
    return tokens * (flops_per_token(job.model, job.sequence_length) + causal) / (figure * 1e12 * job.ranks)


def fit(table: Sequence[Row], near: Constants | None = None) -> Constants:
    """Constants of least squared log error over ``table`` (Gauss-Newton with a numerical Jacobian).

    Args:
        near: where to begin; none: at the defaults, to which the constants are pulled in any case.
    """
    start = np.log([getattr(Constants(), name) for name in NAMES])
    theta = start if near is None else np.log([getattr(near, name) for name in NAMES])
    for _ in range(25):
        base = _residuals(table, theta, start)
        columns = []
        for index in range(len(theta)):
            moved = theta.copy()
            moved[index] += 1e-4
            columns.append((_residuals(table, moved, start) - base) / 1e-4)
        step = np.linalg.lstsq(np.stack(columns, axis=1), -base, rcond=None)[0]
        theta = theta + np.clip(step, -0.3, 0.3)
        if float(np.abs(step).max()) < 1e-6:
            break
    return _constants(theta)


def _constants(theta: Any, digits: int | None = 4) -> Constants:
    values = [float(value) for value in np.exp(theta)]
    if digits is not None:
        values = [round(value, digits) for value in values]
    named: dict[str, Any] = dict(zip(NAMES, values, strict=True))
    return Constants(**named)


def _residuals(table: Sequence[Row], theta: Any, start: Any) -> Any:
    constants = _constants(theta, None)
    found = [np.log(predicted(row, constants) / row.seconds) / ROW_WIDTH for row in table]
    return np.array([*found, *((theta - start) / PRIOR_WIDTH)])


def predicted(row: Row, constants: Constants) -> float:
    """The model's step time of a row."""
    time = step_time(row.job, constants)
    assert time is not None
    return time.seconds


def errors() -> list[tuple[Row, float, float, float]]:
    """Row, predicted seconds, relative error with all rows fitted, and with this row left out."""
    table = rows()
    fitted = [row for row in table if not row.held_out]
    constants = fit(fitted)
    found = []
    for row in table:
        apart = constants if row.held_out else fit([other for other in fitted if other is not row], constants)
        inside = predicted(row, constants)
        found.append((row, inside, inside / row.seconds - 1, predicted(row, apart) / row.seconds - 1))
    return found


def markdown(found: Sequence[tuple[Row, float, float, float]]) -> str:
    """The error table of docs/planner.md, from `errors`."""
    lines = [
        "| run | what ran | published | step, s | planned, s | error when left out |",
        "|---|---|---|---|---|---|",
    ]
    for row, inside, _, apart in found:
        size = parameter_count(row.job.model).total / 1e9
        name = f"{row.name} (never fitted)" if row.held_out else row.name
        job = row.job
        where = f"{job.ranks} x {job.cluster.device_name}, T {job.sequence_length}"
        what = f"{size:.3g}B, {where}, {job.layout()}"
        lines.append(f"| {name} | {what} | {row.figure} | {row.seconds:.3g} | {inside:.3g} | {apart:+.1%} |")
    return "\n".join(lines)


def main() -> int:
    """Refit, write constants.json, print the table."""
    constants = fit([row for row in rows() if not row.held_out])
    FILE.write_text(constants.to_json(), encoding="utf-8")
    print(constants.to_json() + "\n" + markdown(errors()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
