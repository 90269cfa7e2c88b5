"""The evaluation group: what is measured in the loop and beside it."""

from dataclasses import dataclass, field


@dataclass
class EvaluationConfig:
    """Validation loss and benchmark tasks."""

    name: str = "???"
    """Name of the evaluation's file in the evaluation group."""
    suite: str = "quick"
    """Suite of tasks, a file in eval/suites."""
    tasks: list[str] = field(default_factory=list)
    """Tasks; empty: the suite's."""
    num_fewshot: int | None = None
    """Fixed examples before each item; none: the task's own number."""
    limit: int | None = None
    """First items of each task only; none: all."""
    batch_size: int = 16
    """Sequences per forward pass."""
    every: int | None = None
    """In training: steps between evaluations of likelihood tasks; none: never."""
    validation_every: int | None = 50
    """In training: steps between validation losses; none: never."""
    validation_batches: int = 8
    """Global batches of the validation files per validation loss (always the same ones)."""
    stop_at_best: int | None = None
    """End the run when this many validations in a row were no better than the best; none: never."""


@dataclass
class SharingConfig:
    """Processes that evaluate one model together."""

    tensor: int = 1
    """Processes that share each matrix of a run's model: for one that a device does not hold. Likelihood tasks only."""
    pipeline: int = 1
    """Stages that share its layers. Likelihood tasks only."""
    data: int | None = None
    """Models, each on one process or on tensor x pipeline, that share the items; none: as many as were started."""


@dataclass
class EvaluateConfig:
    """Root configuration of `llmjp evaluate`."""

    suite: str = "quick"
    """Suite of tasks, a file in eval/suites or in one of ``include``."""
    tasks: list[str] = field(default_factory=list)
    """Tasks by name; empty: the suite's."""
    num_fewshot: int | None = None
    """Fixed examples before each item, for tasks that show any; none: the task's own number."""
    limit: int | None = None
    """First items of each task only; none: all, or the suite's own limits."""
    licences: str = "all"
    """all, or commercial: leave out tasks whose items do not allow commercial use, and say which."""
    runner: str = "fast"
    """fast: shared examples run once, all choices of an item in one pass, the same scores. harness:
    lm-evaluation-harness's own class (folders), or ours without sharing (runs)."""
    batch_tokens: int = 4096
    """Tokens per forward pass of the fast runner, padding included; halved whenever memory runs out."""
    batch_size: int = 16
    """Sequences per forward pass of runner=harness."""
    resume: bool = True
    """Take up the scores that a killed evaluation of the same model left beside its result."""
    parallel: SharingConfig = field(default_factory=SharingConfig)
    """Processes: started here, or by torchrun, srun or mpirun."""
    include: list[str] = field(default_factory=list)
    """Further folders of task files and suites, in lm-evaluation-harness's format."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    dtype: str = "float32"
    """Format of the weights: float32 or bfloat16."""
    max_length: int | None = None
    """Longest input in tokens, cut from the left; none: what the model states."""
    chat: bool = False
    """Write each item in the tokenizer's chat template, its examples as earlier turns; the template writes BOS then."""
    bos: bool | None = None
    """Put the tokenizer's BOS before each input. None: as in training for our runs and exports (no BOS), and as
    the tokenizer does by itself for other Hugging Face folders. EOD is never appended to an input."""


@dataclass
class FollowConfig:
    """Root configuration of `llmjp follow`."""

    do: list[str] = field(default_factory=lambda: ["evaluate"])
    """What is done with each new complete checkpoint, in this order: evaluate; export (a release of each step that
    retention keeps for good, and of the last one) and publish (of these)."""
    to: str = ""
    """Where releases are published: a target of ``llmjp publish``."""
    licence: str | None = None
    """The models' licence, stated in the releases, e.g. apache-2.0; none: listed as missing."""
    languages: list[str] = field(default_factory=lambda: ["ja"])
    """Languages of the models, stated in the releases."""
    suite: str = "japanese"
    """Suite of tasks."""
    tasks: list[str] = field(default_factory=list)
    """Tasks by name; empty: the suite's."""
    num_fewshot: int | None = None
    """Fixed examples before each item; none: the task's own number."""
    limit: int | None = None
    """First items of each task only; none: all, or the suite's own limits."""
    licences: str = "all"
    """all, or commercial."""
    batch_tokens: int = 4096
    """Tokens per forward pass, padding included."""
    parallel: SharingConfig = field(default_factory=SharingConfig)
    """Processes that evaluate a checkpoint together, started here."""
    include: list[str] = field(default_factory=list)
    """Further folders of task files and suites."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    dtype: str = "float32"
    """Format of the weights: float32 or bfloat16."""
    seconds: float = 30.0
    """Seconds between two looks at the run."""
    attempts: int = 3
    """Times that a checkpoint is tried before it is given up."""
