"""Layouts by arithmetic alone: which are possible, the nearest ones to one that is not, and who sits where."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from llmjp_train.config.machine import Device
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.phases import phases, phases_from
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype

SHARED = ("num_kv_heads", "ffn_size")
"""Sizes of the model that tensor-parallel ranks divide among themselves; query heads follow the key heads."""


class Coordinates(NamedTuple):
    """A rank's place on each axis."""

    pipeline: int
    data: int
    tensor: int


def coordinates(rank: int, tensor: int, data: int) -> Coordinates:
    """Place of a rank: tensor-parallel ranks are neighbours, so that they share a node; then data, then stages.

    DeepSpeed's PipeModelDataParallelTopology has the same order.
    """
    return Coordinates(rank // (tensor * data), rank // tensor % data, rank % tensor)


def layout_problems(config: TrainConfig, step: int = 0) -> list[str]:
    """What makes the layout impossible from ``step`` on, each with key, value and remedy, and the nearest possible
    layouts."""
    parallel, cluster = config.parallel, config.cluster
    size = parallel.tensor * parallel.pipeline * parallel.data
    axes = axis_problems(config.model, parallel.tensor, parallel.pipeline)
    found = [*axes, *_stages_of_zero(config), *_sequence(config, step)]
    ranks, per_node = size, cluster.devices_per_node
    if per_node and cluster.nodes and cluster.nodes * per_node != size:
        ranks = cluster.nodes * per_node
        found.append(
            f"the layout needs {size} ranks, but cluster.nodes={cluster.nodes} x cluster.devices_per_node="
            f"{per_node} gives {ranks}: change parallel.data or cluster.nodes"
        )
    elif per_node and not cluster.nodes and size > per_node and size % per_node:
        ranks = -(-size // per_node) * per_node
        found.append(
            f"the layout's {size} ranks do not fill nodes of cluster.devices_per_node={per_node}: "
            "change parallel.data"
        )
    if ranks != size or axes:
        near = nearest(config, ranks, step=step)
        said = "; ".join(f"tensor={t} pipeline={p} data={d}" for t, p, d in near)
        found.append(
            f"possible on {ranks} rank{'s' * (ranks != 1)}, nearest first: {said or 'none with this model and batch'}"
        )
    return found


def axis_problems(model: ModelConfig, tensor: int, pipeline: int) -> list[str]:
    """Axes longer than what they share."""
    found = []
    if pipeline > model.num_layers:
        found.append(
            f"parallel.pipeline={pipeline} is more than model.num_layers={model.num_layers}: each stage holds "
            f"a layer at least; take {model.num_layers} or fewer"
        )
    for key in SHARED:
        size = getattr(model, key)
        if size % tensor:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            near = sorted(divisors, key=lambda d: abs(math.log(d / tensor)))[:2]
            fewer = "more ranks than key heads: " if key == "num_kv_heads" and size < tensor else ""
            found.append(
                f"parallel.tensor={tensor} does not divide model.{key}={size}: {fewer}take "
                f"{' or '.join(map(str, sorted(near)))}"
            )
    return found


def _stages_of_zero(config: TrainConfig) -> list[str]:
    parallel, dtype = config.parallel, config.precision.dtype
    found = []
    if parallel.zero not in (0, 1, 2, 3):
        found.append(f"parallel.zero={parallel.zero} must be 0, 1, 2 or 3")
    if parallel.zero == 0 and (dtype is not Dtype.fp32 or parallel.pipeline > 1):
        found.append(
            "parallel.zero=0 means fp32 without pipelines: take parallel.zero=1, which costs no more"
        )
    if parallel.zero >= 2 and parallel.pipeline > 1:
        found.append(
            f"parallel.zero={parallel.zero} does not go with parallel.pipeline={parallel.pipeline}: "
            "take parallel.zero=1"
        )
    if dtype is Dtype.fp16 and config.cluster.device is Device.cpu:
        found.append(
            "precision=fp16 needs a GPU: DeepSpeed has no fp16 on a CPU; take precision=bf16 or fp32"
        )
    if parallel.compile and parallel.tensor * parallel.pipeline > 1:
        found.append(
            f"parallel.compile=true goes with parallel.tensor=1 and parallel.pipeline=1, not {parallel.tensor} and "
            f"{parallel.pipeline}: exchanges inside a compiled layer were not tried; take compile=false"
        )
    return found


def _sequence(config: TrainConfig, step: int) -> list[str]:
    tensor = config.parallel.tensor
    if not config.parallel.sequence:
        return []
    if tensor == 1:
        return [
            "parallel.sequence=true has no effect with parallel.tensor=1: tensor ranks share the tokens; remove it"
        ]
    return [
        f"sequence length {phase.sequence_length} (from step {phase.first_step}) does not divide by parallel.tensor="
        f"{tensor}, which parallel.sequence=true needs: take {max(1, round(phase.sequence_length / tensor)) * tensor}"
        for phase in phases_from(config, step)
        if phase.sequence_length % tensor
    ]


def nearest(config: TrainConfig, ranks: int, count: int = 3, step: int = 0) -> list[tuple[int, int, int]]:
    """Possible (tensor, pipeline, data) of ``ranks`` ranks from ``step`` on, those with the nearest ratios first."""
    parallel = config.parallel

    def distance(layout: tuple[int, int, int]) -> float:
        asked = (parallel.tensor, parallel.pipeline, parallel.data)
        return sum(abs(math.log(a / b)) for a, b in zip(layout, asked, strict=True))

    return sorted(_possible(config, ranks, step), key=lambda layout: (distance(layout), layout))[:count]


def _possible(config: TrainConfig, ranks: int, step: int) -> Iterator[tuple[int, int, int]]:
    sizes = [getattr(config.model, key) for key in SHARED]
    ahead = phases_from(config, step)
    batches = {phase.global_batch for phase in ahead}
    lengths = {phase.sequence_length for phase in ahead} if config.parallel.sequence else set()
    for tensor in range(1, ranks + 1):
        if ranks % tensor or any(value % tensor for value in (*sizes, *lengths)):
            continue
        for pipeline in range(1, min(config.model.num_layers, ranks // tensor) + 1):
            data, rest = divmod(ranks // tensor, pipeline)
            if rest or any(batch % (config.batch.micro_batch * data) for batch in batches):
                continue
            if pipeline == 1 or config.parallel.zero == 1:
                yield tensor, pipeline, data


def layout_warnings(config: TrainConfig) -> list[str]:
    """Layouts that run but waste."""
    parallel, cluster = config.parallel, config.cluster
    found = []
    if cluster.devices_per_node and cluster.devices_per_node % parallel.tensor:
        found.append(
            f"parallel.tensor={parallel.tensor} does not divide cluster.devices_per_node={cluster.devices_per_node}: "
            "ranks that share each matrix lie on two nodes, and every layer waits for the network"
        )
    micro = min(phase.global_batch for phase in phases(config)) // (config.batch.micro_batch * parallel.data)
    if parallel.pipeline > 1 and micro < parallel.pipeline:
        idle = (parallel.pipeline - 1) / (micro + parallel.pipeline - 1)
        found.append(
            f"{micro} micro batches a step fill a pipeline of {parallel.pipeline} stages badly: {idle:.0%} of the time "
            "is spent waiting; take a smaller batch.micro_batch or parallel.data"
        )
    return found


def rank_table(config: TrainConfig) -> list[str]:
    """One line a rank: rank, node, device, and its place on each axis."""
    per_node = _per_node(config)
    lines = ["rank  node  device  tensor  pipeline  data"]
    for rank, place in enumerate(_places(config)):
        lines.append(
            f"{rank:4}  {rank // per_node:4}  {rank % per_node:6}  {place.tensor:6}  {place.pipeline:8}  {place.data:4}"
        )
    return lines


def node_lines(config: TrainConfig, most: int = 12) -> list[str]:
    """One line a node: which stages and replicas its devices hold; the middle of a long list is left out."""
    per_node, places = _per_node(config), _places(config)
    lines = []
    for node in range(-(-len(places) // per_node)):
        mine = range(node * per_node, min(len(places), (node + 1) * per_node))
        parts = []
        for (pipeline, data), ranks in groupby(mine, key=lambda rank: places[rank][:2]):
            held = list(ranks)
            devices = _span([rank % per_node for rank in held])
            parts.append(
                f"device {devices}: stage {pipeline}, data {data}, tensor {_span([places[r].tensor for r in held])}"
            )
        lines.append(f"node {node}: ranks {_span(list(mine))}: " + "; ".join(parts))
    if len(lines) > most:
        left = len(lines) - 4
        lines = [*lines[:3], f"... {left} nodes more (all ranks: --ranks)", lines[-1]]
    return lines


def _span(values: list[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _per_node(config: TrainConfig) -> int:
    return config.cluster.devices_per_node or len(_places(config))


def _places(config: TrainConfig) -> list[Coordinates]:
    parallel = config.parallel
    size = parallel.tensor * parallel.pipeline * parallel.data
    return [coordinates(rank, parallel.tensor, parallel.data) for rank in range(size)]
