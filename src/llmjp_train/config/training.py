"""The groups that say how a run optimises: batch, optimizer, schedule, precision, checkpoints, metrics."""

from dataclasses import dataclass, field
from enum import Enum


class Unit(Enum):
    """Unit of a schedule's lengths."""

    steps = "steps"
    samples = "samples"
    tokens = "tokens"


class ScheduleKind(Enum):
    """Form of the learning rate over the run."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    wsd = "wsd"


class DecayForm(Enum):
    """Form of the decay of a warmup-stable-decay schedule."""

    linear = "linear"
    cosine = "cosine"
    minus_sqrt = "minus_sqrt"


class Dtype(Enum):
    """Number format of weights and activations in the step; masters are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SpikePolicy(Enum):
    """What is done about a loss spike (a score above metrics.spike_sigma) or a step that is not finite."""

    note = "note"
    """A spike is recorded; a step that is not finite stops the run."""
    stop = "stop"
    """Either stops the run, with the weights from before it."""
    skip = "skip"
    """Its update is left out; the schedule and the data go on."""
    rewind = "rewind"
    """The run goes back to a checkpoint and leaves out what it read last."""


@dataclass
class BatchConfig:
    """Sizes of a step."""

    global_batch: int = 8
    """Sequences per optimizer step, over all ranks."""
    micro_batch: int = 1
    """Sequences per rank and forward pass."""
    sequence_length: int = 256
    """Tokens per sequence."""
    ramp_start: int | None = None
    """Global batch at step 0 of a batch-size ramp; none: no ramp."""
    ramp_increment: int | None = None
    """Sequences added at each stage of the ramp."""
    ramp_steps: int | None = None
    """Steps over which the ramp reaches global_batch, in equal stages."""


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019)."""

    name: str = "adamw"
    """Name of the optimizer's file in the optimizer group."""
    lr: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment. 1e-5 ruined a 172B (docs/metrics.md, eps_dominated)."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; vectors (norms, biases) are not decayed."""
    decay_embeddings: bool = True
    """Whether embeddings are decayed as other matrices are."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 (PaLM, Chowdhery et al., 2022); logged apart from the loss."""


@dataclass
class ScheduleConfig:
    """Learning rate as a pure function of the step."""

    name: str = "???"
    """Name of the schedule's file in the schedule group."""
    kind: ScheduleKind = ScheduleKind.cosine
    """Form after the warm-up."""
    unit: Unit = Unit.steps
    """Unit of length, warmup and decay."""
    length: int = 100
    """Length of the run."""
    warmup: int = 10
    """Linear warm-up from 0, part of the length."""
    decay: int | None = None
    """Cosine and linear: where the decay ends, counted from the start and warm-up included (none: at the
    end of the run). WSD: length of the decay at the end of the run."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay and after it."""
    decay_form: DecayForm = DecayForm.minus_sqrt
    """Form of a WSD decay."""


@dataclass
class PrecisionConfig:
    """Number formats."""

    name: str = "fp32"
    """Name of the precision's file in the precision group."""
    dtype: Dtype = Dtype.fp32
    """Format of weights and activations."""


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int | None = 100
    """Save after this many steps; none: not by steps."""
    every_minutes: float | None = None
    """Save when this many minutes have passed since the last save."""
    log_spaced: bool = False
    """Also save at 1, 2, 5, 10, 20, 50, ... for early training dynamics, and keep these."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Keep each checkpoint whose step is a multiple of this, for good."""
    keep_steps: list[int] = field(default_factory=list)
    """Steps that are saved and kept for good."""
    asynchronous: bool = False
    """Write in the background from a copy of the state: training waits for the copy alone. The copy takes 12 bytes a
    parameter of host memory over all ranks."""
    save_final: bool = True
    """Save at the end of the run."""


@dataclass
class MetricsConfig:
    """What is measured and how often, in steps."""

    every: int = 1
    """Steps between rows of metrics.jsonl."""
    grad_norm_every: int = 50
    """Steps between gradient norms per layer group."""
    health_every: int = 50
    """Steps between checks of the optimizer's health (share of updates where eps dominates)."""
    agreement_every: int = 100
    """Steps between sampled checks that replicated parameters agree over ranks."""
    stragglers_every: int = 100
    """Steps between checks which rank is slower than the others, in its device or in its data."""
    tensorboard: bool = True
    """Also write TensorBoard files into the run directory."""
    trackers: list[str] = field(default_factory=list)
    """Trackers of your own, as ``module:Class`` (docs/metrics.md)."""
    spike_sigma: float = 6.0
    """A loss above the running mean by this many standard deviations is recorded as a spike."""


@dataclass
class SpikesConfig:
    """What is done about loss spikes and steps that are not finite (docs/faults.md)."""

    policy: SpikePolicy = SpikePolicy.note
    """note, stop, skip (leave the update out), or rewind (go back and leave out what was read)."""
    rewind_steps: int = 100
    """rewind: least age in steps of the checkpoint to go back to; as many steps' samples are left out."""
    most: int = 5
    """skip and rewind: spikes within 1,000 steps that are answered so; one more stops the run."""


@dataclass
class ChangeConfig:
    """A declared change in mid-run, effective from ``step`` (0-based: that step is the first to have it)."""

    step: int = 0
    """First step with the change."""
    lr: float | None = None
    """New peak learning rate; the form of the schedule stays."""
    global_batch: int | None = None
    """New global batch, in sequences."""
    sequence_length: int | None = None
    """New sequence length, in tokens."""
    weights: dict[str, float] = field(default_factory=dict)
    """New weights of the sources; sources that are not named get 0."""
    reason: str = ""
    """Why, for the chronicle."""


@dataclass
class ForkConfig:
    """Start from a checkpoint of another run, e.g. for a WSD decay branch."""

    run: str = ""
    """Run directory to fork from; empty: no fork. On the command line: ``fork.run=RUN``."""
    step: int | None = None
    """Step of the checkpoint to fork from; none: the newest."""
