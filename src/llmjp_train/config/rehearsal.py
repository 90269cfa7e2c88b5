"""`scale=rehearsal`: an experiment's form at sizes that train here in under two minutes."""

import math
import os
from dataclasses import replace
from pathlib import Path

from llmjp_train.config.data import SourceConfig, TokenizerConfig
from llmjp_train.config.derive import derived
from llmjp_train.config.evaluation import EvaluationConfig
from llmjp_train.config.machine import ClusterConfig, Device, ParallelConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.phases import phases, steps_for
from llmjp_train.config.root import Scale, TrainConfig
from llmjp_train.config.training import (
    BatchConfig,
    ChangeConfig,
    CheckpointConfig,
    Dtype,
    PrecisionConfig,
    ScheduleConfig,
    SpikePolicy,
    SpikesConfig,
    Unit,
)

STEPS = 40
SEQUENCE_LENGTH = 128
VOCABULARY = 4096


def make_commands(folder: str) -> str:
    """What makes the text and tokenizer of rehearsals in a folder, from the project's own prose."""
    return (
        f"llmjp tokenizer train 'input=[llmjp-small-ja]' output={folder}/tokenizer vocab_size=1536 "
        "character_coverage=0.98 && "
        f"llmjp prepare 'input=[llmjp-small-ja]' output={folder}/data tokenizer.path={folder}/tokenizer"
    )


def rehearsal_folder() -> str:
    """Where rehearsals find text and tokenizer: LLMJP_REHEARSAL, or rehearsal/ here."""
    return os.environ.get("LLMJP_REHEARSAL", "rehearsal")


def rehearsal(config: TrainConfig) -> TrainConfig:
    """The same choices (architecture, precision where the machine has it, schedule's shape, mixture's
    form, checkpoint cadence as a share of the run), small sizes; one process, or two ranks on each axis."""
    total = derived(config).steps
    share = STEPS / total
    folder, given = rehearsal_folder(), config.tokenizer.path not in ("", "???")
    notes = [f"rehearsal of {total:,} steps in {STEPS}: same form, small sizes"]
    if not given:
        notes.append(f"text and tokenizer are those of {folder}/, made once; another with LLMJP_REHEARSAL")
    return replace(
        config,
        name=f"{config.name}-rehearsal",
        run_dir=f"{config.run_dir}-rehearsal",
        model=small_model(config.model),
        batch=_small_batch(config, share),
        schedule=_small_schedule(config, share),
        optimizer=replace(config.optimizer, lr=config.optimizer.lr * _lr_factor(config)),
        precision=_precision(config),
        parallel=_small_layout(config),
        cluster=_this_machine(),
        tokenizer=config.tokenizer if given else TokenizerConfig("rehearsal", f"{folder}/tokenizer"),
        data=config.data if given else replace(config.data, sources=_small_sources(config, f"{folder}/data")),
        checkpoint=_small_checkpoint(config.checkpoint, share),
        evaluation=_small_evaluation(config.evaluation),
        spikes=_small_spikes(config.spikes, share),
        changes=[_small_change(change, config, share) for change in config.changes],
        notes=notes,
    )


def _small_evaluation(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Validation alone."""
    small = EvaluationConfig(
        evaluation.name, stop_at_best=evaluation.stop_at_best, validation_every=evaluation.validation_every
    )
    if evaluation.validation_every is None:
        return small
    return replace(small, validation_every=10, validation_batches=2)


def _small_spikes(spikes: SpikesConfig, share: float) -> SpikesConfig:
    if spikes.policy is not SpikePolicy.rewind:
        return spikes
    return replace(spikes, rewind_steps=max(1, math.floor(spikes.rewind_steps * share)))


def _small_layout(config: TrainConfig) -> ParallelConfig:
    parallel = replace(config.parallel, compile=False, loss_chunk=512)
    if config.scale is Scale.rehearsal_layout:
        return replace(
            parallel,
            tensor=min(2, parallel.tensor),
            pipeline=min(2, parallel.pipeline),
            data=min(2, parallel.data),
        )
    return replace(parallel, tensor=1, pipeline=1, data=1, sequence=False)


def _steps(value: int | None, share: float) -> int | None:
    return None if value is None else max(1, round(value * share))


def _small_batch(config: TrainConfig, share: float) -> BatchConfig:
    batch = config.batch
    ramp = batch.ramp_start is not None
    micro = 2 if ramp else 4
    return replace(
        batch,
        global_batch=8,
        micro_batch=1 if config.scale is Scale.rehearsal_layout else micro,
        sequence_length=SEQUENCE_LENGTH,
        ramp_start=2 if ramp else None,
        ramp_increment=2 if ramp else None,
        ramp_steps=max(3, _steps(batch.ramp_steps, share) or 0) if ramp else None,
    )


def _small_schedule(config: TrainConfig, share: float) -> ScheduleConfig:
    table, settings = phases(config), config.schedule

    def scaled(value: int | None) -> int | None:
        return _steps(steps_for(table, value, settings.unit), share) if value else value

    return replace(
        settings,
        unit=Unit.steps,
        length=STEPS,
        warmup=min(STEPS // 4, scaled(settings.warmup) or 0),
        decay=scaled(settings.decay),
        min_lr=settings.min_lr * _lr_factor(config),
    )


def _small_checkpoint(checkpoint: CheckpointConfig, share: float) -> CheckpointConfig:
    every, keep = _steps(checkpoint.every_steps, share), checkpoint.keep_every
    every = None if every is None else max(5, every)
    return replace(
        checkpoint,
        every_steps=every,
        keep_every=None if keep is None or every is None else every * 2,
        keep_steps=sorted({max(1, round(step * share)) for step in checkpoint.keep_steps}),
    )


def small_model(model: ModelConfig) -> ModelConfig:
    """At most 4 layers and about 128 wide, with the same ratios and choices."""
    head = 16
    heads = max(2, min(8, model.num_heads))
    group = max(1, model.num_heads // model.num_kv_heads)
    # Two at least where there were several, so that grouped queries stay and tensor ranks can share them.
    kv_heads = max(min(2, model.num_kv_heads), heads // min(group, heads))
    heads -= heads % kv_heads
    ratio = model.num_heads * model.head_size / model.hidden_size
    hidden = max(head * 2, round(heads * head / ratio / 16) * 16)
    return replace(
        model,
        num_layers=min(4, model.num_layers),
        hidden_size=hidden,
        ffn_size=max(16, math.ceil(model.ffn_size / model.hidden_size * hidden / 8) * 8),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head,
        vocab_size=VOCABULARY,
        max_positions=max(SEQUENCE_LENGTH, 256),
    )


def _this_machine() -> ClusterConfig:
    """One CUDA device where there is a driver for one, else the CPU."""
    cuda = Path("/proc/driver/nvidia/version").exists()
    return ClusterConfig(device=Device.cuda, device_name="CUDA device") if cuda else ClusterConfig()


def _small_sources(config: TrainConfig, path: str) -> dict[str, SourceConfig]:
    """Every source of the mixture from one small text, weights and epochs as they were."""
    return {
        name: replace(source, path=path, validation="", tokens=None)
        for name, source in config.data.sources.items()
    }


def _lr_factor(config: TrainConfig) -> float:
    """Small models want higher rates: the inverse of the width's ratio, bounded (Yang et al., 2022)."""
    return min(16.0, max(1.0, config.model.hidden_size / 256))


def _precision(config: TrainConfig) -> PrecisionConfig:
    """fp16 becomes bf16 where no device has fp16; the fp32 and bf16 forms run everywhere."""
    if config.precision.dtype is Dtype.fp16:
        return replace(config.precision, dtype=Dtype.bf16)
    return config.precision


def _small_change(change: ChangeConfig, config: TrainConfig, share: float) -> ChangeConfig:
    batch = None
    if change.global_batch is not None:
        batch = max(4, 4 * round(2 * change.global_batch / config.batch.global_batch))
    length = None
    if change.sequence_length is not None:
        longer = change.sequence_length >= config.batch.sequence_length
        length = SEQUENCE_LENGTH if longer else SEQUENCE_LENGTH // 2
    return replace(
        change,
        step=min(STEPS - 1, max(1, round(change.step * share))),
        global_batch=batch,
        sequence_length=length,
        lr=None if change.lr is None else change.lr * _lr_factor(config),
    )
