"""Layouts from a number of devices: ``nodes=N``, ``parallel=auto`` and presets."""

from dataclasses import replace

from llmjp_train.config.machine import ParallelConfig
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError
from llmjp_train.plan.constants import Constants
from llmjp_train.plan.job import Job, check_cluster, job_from
from llmjp_train.plan.search import best

AUTO = "auto"


def devices(config: TrainConfig) -> int:
    """Devices of the cluster's nodes; of the layout where nobody counts nodes.

    Raises:
        UserError: the layout is still open and so is the number of nodes.
    """
    parallel, cluster = config.parallel, config.cluster
    if cluster.devices_per_node and cluster.nodes is not None:
        return cluster.nodes * cluster.devices_per_node
    if parallel.name == AUTO and cluster.devices_per_node:
        raise UserError("parallel=auto needs to know how many nodes to fill: cluster.nodes=N")
    return parallel.tensor * parallel.pipeline * parallel.data


def with_nodes(config: TrainConfig) -> TrainConfig:
    """The configuration with as many replicas as its nodes hold.

    Raises:
        UserError: they do not hold whole replicas.
    """
    count, parallel = devices(config), config.parallel
    replica = parallel.tensor * parallel.pipeline
    if count % replica:
        raise UserError(
            f"nodes={config.cluster.nodes} is {count} devices, not a multiple of parallel.tensor={parallel.tensor} x "
            f"parallel.pipeline={parallel.pipeline} = {replica}: take another number, or parallel=auto"
        )
    return replace(config, parallel=replace(parallel, data=count // replica))


def all_devices(config: TrainConfig) -> Job:
    """A job that takes every device of the cluster's nodes, its layout still open.

    Raises:
        UserError: the cluster lacks a figure, or has no nodes.
    """
    check_cluster(config.cluster)
    return replace(job_from(config), tensor=1, pipeline=1, data=devices(config))


def with_auto(config: TrainConfig, constants: Constants | None = None) -> TrainConfig:
    """The configuration with ``parallel=auto`` replaced by the fastest layout that fits.

    Raises:
        UserError: none fits, or none divides the global batch.
    """
    if config.parallel.name != AUTO:
        return config
    job = best(all_devices(config), constants).job
    return replace(
        config,
        parallel=layout_of(job, config.parallel, AUTO),
        batch=replace(config.batch, micro_batch=job.micro_batch),
        notes=[*config.notes, f"parallel=auto: {job.layout()}"],
    )


def layout_of(job: Job, other: ParallelConfig, name: str) -> ParallelConfig:
    """A job's layout as the parallel group, the rest as in ``other``."""
    return replace(
        other,
        name=name,
        tensor=job.tensor,
        sequence=job.engine.sequence_parallel,
        pipeline=job.pipeline,
        data=job.data,
        zero=job.zero,
        recompute=job.recompute,
    )


def preset(job: Job, name: str) -> str:
    """A file of the parallel group."""
    sequence = str(job.engine.sequence_parallel).lower()
    return (
        f"# Found by llmjp plan --search for {job.model.name} on {job.nodes} nodes of {job.cluster.name};\n"
        f"# it counts on batch.micro_batch={job.micro_batch} and batch.global_batch={job.global_batch}.\n"
        f"name: {name}\ntensor: {job.tensor}\nsequence: {sequence}\npipeline: {job.pipeline}\n"
        f"data: {job.data}\nzero: {job.zero}\n"
        f"recompute: {job.recompute.name}\n"
    )
