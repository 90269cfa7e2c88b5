"""The parallel and cluster groups: how ranks share the work, and what machine they run on."""

from dataclasses import dataclass, field
from enum import Enum


class Recompute(Enum):
    """Activation checkpointing: nothing, whole layers, or the feed-forward block alone."""

    none = "none"
    full = "full"
    selective = "selective"


class Scheduler(Enum):
    """What starts the processes."""

    local = "local"
    slurm = "slurm"
    pbs = "pbs"
    grid_engine = "grid_engine"
    hosts = "hosts"


class Device(Enum):
    """Kind of device that a rank drives."""

    cpu = "cpu"
    cuda = "cuda"


class Launcher(Enum):
    """What starts a process on each node of a job."""

    none = "none"
    srun = "srun"
    mpirun = "mpirun"
    ssh = "ssh"


class Container(Enum):
    """How ``cluster.image`` is run: not at all, by Apptainer, or by Slurm's pyxis (enroot)."""

    none = "none"
    apptainer = "apptainer"
    pyxis = "pyxis"


@dataclass
class ParallelConfig:
    """The layout: tensor x pipeline x data ranks, and the ZeRO stage."""

    name: str = "???"
    """Name of the layout's file in the parallel group."""
    tensor: int = 1
    """Ranks that share each matrix."""
    pipeline: int = 1
    """Stages that share the layers."""
    data: int = 1
    """Replicas that share the batch."""
    zero: int = 1
    """ZeRO stage: 0 (fp32 alone), 1 optimizer state, 2 and gradients, 3 and weights."""
    sequence: bool = False
    """Sequence parallelism: norms and residuals hold a share of the tokens on each tensor-parallel rank."""
    recompute: Recompute = Recompute.none
    """Activation checkpointing."""
    compile: bool = False
    """torch.compile for each decoder layer."""
    loss_chunk: int = 1024
    """Tokens whose logits are held at a time in the loss."""
    bucket_mb: int = 128
    """Size of DeepSpeed's reduce and all-gather buckets, in MiB of fp32."""


@dataclass
class NetworkConfig:
    """Variables that the network between nodes wants (files: configs/cluster/network/)."""

    name: str = "none"
    """Name of the profile's file."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every node, set where a job has more than one."""
    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Further variables by shell pattern of host names, such as ``a*``; the first that fits a node counts."""


@dataclass
class ClusterConfig:
    """A cluster's hardware and scheduler."""

    name: str = "local"
    """Name of the cluster's file in the cluster group."""
    successor: str | None = None
    """Cluster file of what took this one's place when it closed; ``llmjp plan`` then shows the run there as well."""
    scheduler: Scheduler = Scheduler.local
    """Scheduler that starts the processes."""
    device: Device = Device.cpu
    """Kind of device."""
    device_name: str = "CPU"
    """Device as its maker names it."""
    devices_per_node: int | None = None
    """Devices (ranks) per node; none: whatever this machine has."""
    nodes: int | None = None
    """Nodes of the run; none: as many as the layout's ranks fill."""
    device_memory_gib: int | float | str | None = None
    """Memory of one device in GiB. Here and below ``unknown`` is a value (the plan then gives bounds), and none
    means that nobody has said anything, which the plan refuses for a cluster of GPUs."""
    peak_tflops_bf16: int | float | str | None = None
    """Dense bf16 peak of one device in TFLOP/s; none on a CPU: measured."""
    peak_tflops_fp32: int | float | str | None = None
    """fp32 (TF32 not counted) peak of one device in TFLOP/s; none on a CPU: measured."""
    memory_gbs: int | float | str | None = None
    """Bandwidth of a device's memory in GB/s (10^9 bytes a second)."""
    node_link_gbs: int | float | str | None = None
    """Bandwidth between devices of a node in GB/s, one direction, of one device."""
    network_gbs: int | float | str | None = None
    """Bandwidth of a node's training network in GB/s, one direction, all adapters of the node's devices together."""
    storage_gbs: int | float | str | None = None
    """Rate at which all nodes together write checkpoints, in GB/s."""
    launcher: Launcher = Launcher.none
    """What starts the processes on the nodes of a job."""
    account: str = ""
    """Account, project or group that pays: Slurm's -A, PBS's -P, Grid Engine's -g."""
    partition: str = ""
    """Slurm's partition, PBS's queue, or Grid Engine's resource of a whole node (rt_AF)."""
    options: list[str] = field(default_factory=list)
    """Further options of the job, as the scheduler's command takes them, each with its value: ``--exclusive``."""
    hosts: list[str] = field(default_factory=list)
    """Host names of the nodes, for scheduler=hosts."""
    max_nodes: int | None = None
    """Most nodes that the site gives a job; none: no limit known."""
    time_limit: int | None = None
    """Minutes that a job asks for; none: it asks for no limit."""
    max_time_limit: int | None = None
    """Most minutes that the site gives a job; none: no limit known."""
    signal_lead: int = 300
    """Seconds before the time limit at which a job is told to save and end: one step and one save must fit."""
    max_restarts: int = 3
    """Times that a job's ranks are started again after faults with no new checkpoint in between."""
    hang_seconds: int = 120
    """Least seconds without a logged row or event after which ranks are taken to hang; a slower run gets more."""
    preflight: bool = True
    """Measure each node (devices, driver, file system, links) before the first step of each attempt of a job: 0.3 s on
    a CPU; at least as long as nvidia-smi takes on GPUs."""
    collective_minutes: float = 10.0
    """Minutes that a collective may take once the first step is taken, before its rank fails; those of saves keep the
    half hour of a start."""
    module_init: str = ""
    """Script that defines the `module` command, where a job's shell lacks it."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load, in this order."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every job."""
    venv: str = ""
    """Virtual environment on the nodes; empty: the Python that submits the job."""
    container: Container = Container.none
    """How the image is run."""
    image: str = ""
    """Image that holds Python and its packages."""
    interface: str = ""
    """Network interface on whose address the ranks meet; empty: that of the host's name."""
    shared: list[str] = field(default_factory=list)
    """Folders that every node sees; the run directory must lie in one of them."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Variables of the network between nodes."""


def known(value: int | float | str | None) -> float | None:
    """A cluster's figure, or none where it is unknown."""
    return None if value is None or isinstance(value, str) else float(value)
