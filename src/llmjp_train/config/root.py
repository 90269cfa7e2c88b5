"""Root configuration of `llmjp train`."""

from dataclasses import dataclass, field
from enum import Enum

from llmjp_train.config.data import DataConfig, TokenizerConfig
from llmjp_train.config.evaluation import EvaluationConfig
from llmjp_train.config.machine import ClusterConfig, ParallelConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.training import (
    BatchConfig,
    ChangeConfig,
    CheckpointConfig,
    ForkConfig,
    MetricsConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    SpikesConfig,
)


class Scale(Enum):
    """Full size, or a rehearsal of the same form that a small machine trains in minutes."""

    full = "full"
    rehearsal = "rehearsal"
    rehearsal_layout = "rehearsal_layout"
    """A rehearsal with two ranks on each axis of the layout that the experiment has above one."""


@dataclass
class TrainConfig:
    """Everything that a run is made of; written resolved to config.yaml in the run directory."""

    name: str = "run"
    """Name of the run, used in reports and cards."""
    run_dir: str = "runs/${name}"
    """Run directory: created by the first start, resumed by later ones."""
    seed: int = 1
    """Seed of the initial weights."""
    scale: Scale = Scale.full
    """full, rehearsal (the experiment's form at sizes that train here, on one process), or rehearsal_layout (two
    ranks on each axis that it has above one)."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of this configuration (where history is corrected, say)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape and choices of the network (group model)."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """What turns text into ids (group tokenizer)."""
    data: DataConfig = field(default_factory=DataConfig)
    """Sources and their mixture (group data)."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Sizes of a step, in sequences and tokens."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and the peak learning rate (group optimizer)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run, and the run's length (group schedule)."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats (group precision)."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How ranks share the work (group parallel)."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The machine (group cluster)."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured beside the training loss (group evaluation)."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save and what to keep."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """What is logged and how often."""
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    """What is done about a loss spike or a step that is not finite."""
    changes: list[ChangeConfig] = field(default_factory=list)
    """Changes in mid-run, by step."""
    fork: ForkConfig = field(default_factory=ForkConfig)
    """A branch of another run."""
    resume: str = "latest"
    """Checkpoint that a second start goes on from: ``latest``, ``latest-valid`` (skips damaged ones) or a step."""
    allow_changed: list[str] = field(default_factory=list)
    """What may differ from the checkpoint at resume, among model, tokenizer and data; it is recorded."""
    time_limit: float | None = None
    """Minutes after which the run saves and stops by itself; none: no limit of its own."""
