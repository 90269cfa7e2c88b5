"""Every number that follows from a configuration, by arithmetic alone."""

from dataclasses import dataclass

from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.config.phases import Phase, phase_at, phases, steps_for
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import CheckpointConfig

MASTER_AND_MOMENTS = 12
"""Bytes of a checkpoint per parameter: fp32 master and two fp32 moments."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model."""

    total: int
    embeddings: int
    """Token and position embeddings and an untied head."""
    non_embedding: int


def parameter_count(model: ModelConfig, vocab_size: int | None = None) -> Counts:
    """Exact parameter count, with another vocabulary where given.

    For a Llama form: L (2 h H d + 2 h K d + 3 h f + 2 h) + h without embeddings, 2 V h embeddings
    (L layers, h hidden, H heads, K key-value heads, d head size, f feed-forward size, V vocabulary).
    """
    hidden, ffn = model.hidden_size, model.ffn_size
    queries, keys = model.num_heads * model.head_size, model.num_kv_heads * model.head_size
    norm = hidden * (2 if model.norm is Norm.layernorm else 1)
    attention = 2 * hidden * queries + 2 * hidden * keys
    mlp = (3 if model.mlp is Mlp.swiglu else 2) * hidden * ffn
    if model.bias is not Bias.none:
        attention += queries + 2 * keys
    if model.bias is Bias.all:
        attention += hidden
        mlp += ffn * (2 if model.mlp is Mlp.swiglu else 1) + hidden
    if model.qk_norm:
        attention += 2 * model.head_size
    non_embedding = model.num_layers * (attention + mlp + 2 * norm) + norm
    vocab = model.vocab_size if vocab_size is None else vocab_size
    embeddings = vocab * hidden * (1 if model.tied_embeddings else 2)
    if model.position is Position.learned:
        embeddings += model.max_positions * hidden
    return Counts(non_embedding + embeddings, embeddings, non_embedding)


def padded_vocab(model: ModelConfig, tensor: int, multiple: int = 128) -> int:
    """Vocabulary rounded up as Megatron-LM does, to a multiple of 128 times the tensor-parallel ranks."""
    step = multiple * tensor
    return -(-model.vocab_size // step) * step


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """FLOPs of forward and backward passes per token, recomputation not counted.

    Each matrix element costs 2 in the forward and 4 in the backward pass; attention scores and their
    use cost 12 T H d a layer and token, halved since a causal token sees half the sequence on average
    (PaLM's appendix B, Chowdhery et al., 2022, with the causal half). Embedding look-ups are free.
    """
    hidden = model.hidden_size
    width = model.num_heads * model.head_size
    attention = 2 * hidden * width + 2 * hidden * model.num_kv_heads * model.head_size
    mlp = (3 if model.mlp is Mlp.swiglu else 2) * hidden * model.ffn_size
    matrices = model.num_layers * (attention + mlp) + model.vocab_size * hidden
    return 6.0 * matrices + 6.0 * model.num_layers * sequence_length * width


def flops_until(model: ModelConfig, table: list[Phase], steps: int) -> float:
    """Model FLOPs of the first ``steps`` steps of a run, each at the sequence length of its phase."""
    total = 0.0
    for phase in table:
        end = steps if phase.last_step is None else min(steps, phase.last_step)
        if end > phase.first_step:
            tokens = phase.tokens_at(end) - phase.first_token
            total += tokens * flops_per_token(model, phase.sequence_length)
    return total


def saved_steps(total: int, config: CheckpointConfig) -> list[int]:
    """Steps at which a run of ``total`` steps saves, as far as steps decide."""
    steps = {step for step in config.keep_steps if step <= total}
    if config.every_steps:
        steps |= set(range(config.every_steps, total + 1, config.every_steps))
    if config.log_spaced:
        steps |= {d * 10**p for p in range(12) for d in (1, 2, 5) if d * 10**p <= total}
    if config.save_final:
        steps.add(total)
    return sorted(steps)


def kept_steps(total: int, config: CheckpointConfig) -> list[int]:
    """Steps whose checkpoints are there at the end of the run."""
    saved = saved_steps(total, config)
    newest = set(saved[-max(1, config.keep_last) :])
    log_spaced = {d * 10**p for p in range(12) for d in (1, 2, 5)} if config.log_spaced else set()
    return [
        step
        for step in saved
        if step in newest
        or step in config.keep_steps
        or step in log_spaced
        or (config.keep_every and step % config.keep_every == 0)
    ]


@dataclass(frozen=True)
class Derived:
    """What follows from a training configuration."""

    parameters: int
    parameters_without_embeddings: int
    parameters_padded: int
    """With the vocabulary padded for the layout; never in a checkpoint."""
    vocab_padded: int
    world_size: int
    nodes: int
    steps: int
    samples: int
    tokens: int
    tokens_per_step: int
    """At the end of the run."""
    micro_batches: int
    """Per rank and step (gradient accumulation), at the end of the run."""
    warmup_steps: int
    warmup_tokens: int
    epochs: dict[str, float]
    """Passes over each source whose size is known."""
    flops_per_token: float
    """At the end of the run."""
    flops_total: float
    checkpoint_bytes: int
    checkpoints_kept: int
    kept_checkpoints_bytes: int
    export_bytes: int
    """Hugging Face folder in bf16, or in fp32 for a run in fp32."""


def nodes_of(config: TrainConfig) -> int:
    """Nodes of the run: those stated, or as many as the ranks fill; 1 on a machine of unknown size."""
    cluster, parallel = config.cluster, config.parallel
    if cluster.nodes is not None or cluster.devices_per_node is None:
        return cluster.nodes or 1
    return -(-parallel.tensor * parallel.pipeline * parallel.data // cluster.devices_per_node)


def derived(config: TrainConfig) -> Derived:
    """All derived numbers of a run; nothing is read but the configuration."""
    model, parallel = config.model, config.parallel
    table = phases(config)
    steps = steps_for(table, config.schedule.length, config.schedule.unit)
    warmup = steps_for(table, config.schedule.warmup, config.schedule.unit)
    last = phase_at(table, max(0, steps - 1))
    counts = parameter_count(model)
    vocab = padded_vocab(model, parallel.tensor)
    tokens = last.tokens_at(steps)
    kept = kept_steps(steps, config.checkpoint)
    per_token = flops_per_token(model, last.sequence_length)
    size = counts.total * MASTER_AND_MOMENTS
    micro = max(1, config.batch.micro_batch * parallel.data)
    return Derived(
        parameters=counts.total,
        parameters_without_embeddings=counts.non_embedding,
        parameters_padded=parameter_count(model, vocab).total,
        vocab_padded=vocab,
        world_size=parallel.tensor * parallel.pipeline * parallel.data,
        nodes=nodes_of(config),
        steps=steps,
        samples=last.samples_at(steps),
        tokens=tokens,
        tokens_per_step=last.global_batch * last.sequence_length,
        micro_batches=last.global_batch // micro,
        warmup_steps=warmup,
        warmup_tokens=phase_at(table, warmup).tokens_at(warmup),
        epochs=_epochs(config, tokens),
        flops_per_token=per_token,
        flops_total=flops_until(model, table, steps),
        checkpoint_bytes=size,
        checkpoints_kept=len(kept),
        kept_checkpoints_bytes=size * len(kept),
        export_bytes=counts.total * (4 if config.precision.dtype.value == "fp32" else 2),
    )


def _epochs(config: TrainConfig, tokens: int) -> dict[str, float]:
    sources = config.data.sources
    sizes = {name: source.tokens for name, source in sources.items() if source.tokens}
    if len(sizes) != len(sources):
        return {}
    if any(source.weight is not None for source in sources.values()):
        shares = {name: source.weight or 0.0 for name, source in sources.items()}
    else:
        shares = {name: size * (sources[name].epochs or 1.0) for name, size in sizes.items()}
    total = sum(shares.values())
    return {name: tokens * share / total / sizes[name] for name, share in shares.items()}


def table(numbers: Derived) -> list[tuple[str, str]]:
    """Names and values for a person."""
    rows = [
        (
            "parameters",
            f"{numbers.parameters:,} ({numbers.parameters_without_embeddings:,} without embeddings)",
        ),
        ("padded for the layout", f"{numbers.parameters_padded:,} (vocabulary {numbers.vocab_padded:,})"),
        ("ranks", f"{numbers.world_size:,} on {numbers.nodes:,} node{'s' * (numbers.nodes > 1)}"),
        (
            "steps",
            f"{numbers.steps:,} of {numbers.tokens_per_step:,} tokens, {numbers.micro_batches:,} micro batches a rank",
        ),
        ("tokens", f"{numbers.tokens:,} in {numbers.samples:,} sequences"),
        ("warm-up", f"{numbers.warmup_steps:,} steps, {numbers.warmup_tokens:,} tokens"),
        ("FLOPs", f"{numbers.flops_per_token:.4g} a token, {numbers.flops_total:.4g} in all"),
        (
            "checkpoint",
            f"{human(numbers.checkpoint_bytes)}; {numbers.checkpoints_kept} kept, "
            f"{human(numbers.kept_checkpoints_bytes)}",
        ),
        ("export", human(numbers.export_bytes)),
    ]
    if numbers.epochs:
        rows.append(("epochs", ", ".join(f"{name} {value:.3g}" for name, value in numbers.epochs.items())))
    return rows


def human(size: float) -> str:
    """Bytes in a fitting unit, powers of ten as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} PB"
