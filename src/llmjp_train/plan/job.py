"""What a plan is made for: sizes, layout and engine of one run, from our configuration or from a published one."""

from dataclasses import dataclass, replace
from functools import cached_property

from llmjp_train.config.derive import padded_vocab
from llmjp_train.config.machine import ClusterConfig, Device, ParallelConfig, Recompute, known
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.phases import phase_at, phases
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype
from llmjp_train.errors import UserError

ITEM_BYTES = {Dtype.fp32: 4, Dtype.bf16: 2, Dtype.fp16: 2}
FIGURES = {
    "device_memory_gib": "memory of a device in GiB",
    "peak_tflops_bf16": "dense bf16 peak in TFLOP/s",
    "peak_tflops_fp32": "fp32 peak in TFLOP/s",
    "memory_gbs": "bandwidth of a device's memory in GB/s",
    "node_link_gbs": "bandwidth between devices of a node in GB/s",
    "network_gbs": "bandwidth of a node's network in GB/s",
    "storage_gbs": "rate of writing checkpoints in GB/s",
}


@dataclass(frozen=True)
class Engine:
    """How an engine differs from ours where that changes time or memory. The defaults are ours."""

    name: str = "llmjp-train"
    sequence_parallel: bool = False
    """Norms and residuals are split over tensor-parallel ranks (Korthikanti et al., 2022)."""
    interleave: int = 1
    """Model chunks a pipeline stage (Narayanan et al., 2021)."""
    data_overlap: bool = False
    """Gradient reduction and weight gathering hide behind the backward and forward passes."""
    fused: bool = False
    """Norms, rotation, activation and softmax run in fused kernels or under torch.compile."""
    flash: bool = True
    """Attention never writes the score matrix."""


@dataclass(frozen=True)
class Job:
    """Everything that memory and time depend on."""

    model: ModelConfig
    cluster: ClusterConfig
    tensor: int
    pipeline: int
    data: int
    zero: int
    recompute: Recompute
    dtype: Dtype
    micro_batch: int
    global_batch: int
    sequence_length: int
    loss_chunk: int = 1024
    bucket_mb: int = 128
    z_loss: bool = False
    decay_embeddings: bool = True
    document_mask: bool = True
    compile: bool = False
    engine: Engine = Engine()
    stage_layers: tuple[int, ...] = ()
    """Layers of each stage where they are known; empty: balanced (`plan.stages`)."""

    @property
    def ranks(self) -> int:
        """Devices of the run."""
        return self.tensor * self.pipeline * self.data

    @property
    def nodes(self) -> int:
        """Nodes of the run."""
        return -(-self.ranks // (self.cluster.devices_per_node or self.ranks))

    @property
    def micro_batches(self) -> int:
        """Micro batches of a rank and step."""
        return max(1, self.global_batch // (self.micro_batch * self.data))

    @property
    def item(self) -> int:
        """Bytes of a weight or activation."""
        return ITEM_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of a micro batch on one rank."""
        return self.micro_batch * self.sequence_length

    @property
    def peak_flops(self) -> float | None:
        """Dense peak of a device in FLOP/s for this dtype; none: unknown."""
        cluster = self.cluster
        value = known(cluster.peak_tflops_fp32 if self.dtype is Dtype.fp32 else cluster.peak_tflops_bf16)
        return None if value is None else value * 1e12

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embedding over all tensor-parallel ranks, padding included."""
        return padded_vocab(self.model, self.tensor) if self.tensor > 1 else self.model.vocab_size

    def layout(self) -> str:
        """The layout in a few words."""
        sequence = ", sequence parallel" * (self.engine.sequence_parallel and self.tensor > 1)
        return (
            f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}{sequence}, ZeRO-{self.zero}, "
            f"recompute {self.recompute.name}, micro batch {self.micro_batch}"
        )


def job_from(config: TrainConfig) -> Job:
    """The job of a training configuration, in its last phase (the one that most of a run is in)."""
    parallel = config.parallel
    table = phases(config)
    last = phase_at(table, max(phase.first_step for phase in table))
    return Job(
        model=config.model,
        cluster=config.cluster,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        zero=parallel.zero,
        recompute=parallel.recompute,
        dtype=config.precision.dtype,
        micro_batch=config.batch.micro_batch,
        global_batch=last.global_batch,
        sequence_length=max(phase.sequence_length for phase in table),
        loss_chunk=parallel.loss_chunk,
        bucket_mb=parallel.bucket_mb,
        z_loss=config.optimizer.z_loss > 0,
        decay_embeddings=config.optimizer.decay_embeddings,
        document_mask=config.data.document_mask,
        compile=parallel.compile,
        engine=Engine(sequence_parallel=parallel.sequence and parallel.tensor > 1),
    )


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse a cluster that says nothing of what a plan needs.

    Raises:
        UserError: a figure is neither given nor ``unknown``, is not positive, or there are no nodes.
    """
    if cluster.nodes is not None and cluster.nodes < 1:
        raise UserError(f"cluster.nodes={cluster.nodes}: a run needs at least one node; set cluster.nodes=N")
    if cluster.device is Device.cpu:
        return
    if not cluster.devices_per_node:
        raise UserError(f"cluster {cluster.name} lacks devices_per_node: say how many GPUs a node has")
    for key, meaning in FIGURES.items():
        value = getattr(cluster, key)
        if value is None:
            raise UserError(f"cluster {cluster.name} lacks {key}, the {meaning}: give a figure or 'unknown'")
        if isinstance(value, str) and value != "unknown":
            raise UserError(f"cluster {cluster.name}: {key}={value!r} is neither a number nor 'unknown'")
        if not isinstance(value, str) and value <= 0:
            raise UserError(f"cluster {cluster.name}: {key}={value} must be above 0, or 'unknown'")


def with_layout(config: TrainConfig, parallel: ParallelConfig, micro_batch: int) -> TrainConfig:
    """The configuration with another layout."""
    return replace(config, parallel=parallel, batch=replace(config.batch, micro_batch=micro_batch))
