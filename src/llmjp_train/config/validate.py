"""Errors that no single value shows, all at once, before anything heavy is imported."""

import re
from pathlib import Path

from llmjp_train.config.effect import idle, without_effect
from llmjp_train.config.files import compiler_problems, file_problems, tokenizer_size
from llmjp_train.config.layouts import layout_problems, layout_warnings
from llmjp_train.config.model import Mlp, ModelConfig, Norm, Position
from llmjp_train.config.phases import phases, phases_from, steps_for
from llmjp_train.config.ranges import out_of_range
from llmjp_train.config.rehearsal import make_commands, rehearsal_folder
from llmjp_train.config.root import Scale, TrainConfig
from llmjp_train.config.training import BatchConfig, ChangeConfig, ScheduleKind, SpikePolicy

MAY_CHANGE = ("model", "tokenizer", "data")
"""What `allow_changed` takes."""
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def problems(config: TrainConfig, *, starting: bool = False, step: int = 0) -> list[str]:
    """What is wrong, each with key, value and remedy.

    Args:
        starting: also refuse what is not given yet, is not on this machine, or what this version cannot run;
            a dry run shows it all the same.
        step: that the start goes on from (`checkpoint.listing.first_step`); phases that are over need not fit the
            layout.
    """
    if config.spikes.policy is SpikePolicy.rewind:
        step = 0  # it may go back into a phase that is over
    found = out_of_range(config)
    if found:  # no arithmetic on these: what needs none is told with them
        return [*found, *_model(config.model), *_data(config), *_words(config)]
    return [
        *_model(config.model),
        *_batch(config, step),
        *_schedule(config),
        *_changes(config),
        *_spikes(config),
        *layout_problems(config, step),
        *_data(config),
        *_fork(config),
        *_words(config),
        *without_effect(config),
        *(not_startable(config) if starting else ()),
    ]


def not_startable(config: TrainConfig) -> list[str]:
    """What a dry run shows but a start on this machine, with this version, cannot do."""
    found = []
    if config.tokenizer.path == "???":
        found.append(
            "tokenizer.path must be given: tokenizer.path=FOLDER ('llmjp tokenizer train' makes one), or a name of "
            "the catalogue with tokenizer=NAME"
        )
    found += [
        f"data.sources.{name}.path must be given: data.sources.{name}.path=FOLDER ('llmjp prepare' makes one)"
        for name, source in config.data.sources.items()
        if source.path == "???"
    ]
    absent = file_problems(config)
    if absent and config.scale is not Scale.full:
        absent.append(
            f"a rehearsal's text and tokenizer are made once with: {make_commands(rehearsal_folder())}"
        )
    return [*found, *absent, *compiler_problems(config)]


def _model(model: ModelConfig) -> list[str]:
    found = []
    if model.num_kv_heads > 0 and model.num_heads % model.num_kv_heads:
        found.append(
            f"model.num_heads={model.num_heads} is not a multiple of model.num_kv_heads={model.num_kv_heads}: "
            "each key head serves as many query heads; change one of them"
        )
    rotated = int(model.head_size * model.rope_fraction)
    if not 0 < model.rope_fraction <= 1:
        found.append(
            f"model.rope_fraction={model.rope_fraction} must be above 0 and at most 1, the whole head"
        )
    elif model.position is Position.rope and (rotated % 2 or rotated < 2):
        found.append(
            f"model.rope_fraction={model.rope_fraction} rotates {rotated} of model.head_size={model.head_size} "
            "features; rotation needs pairs: change it or model.head_size"
        )
    return found


def _batch(config: TrainConfig, step: int) -> list[str]:
    batch = config.batch
    found = _ramp(batch)
    if found:
        return found
    unit = batch.micro_batch * config.parallel.data
    longest = max(phase.sequence_length for phase in phases(config))
    for phase in phases(config):
        if longest % phase.sequence_length:
            found.append(
                f"sequence length {phase.sequence_length} (from step {phase.first_step}) does not divide the run's "
                f"longest, {longest}, whose windows hold the data: take lengths that do"
            )
    for phase in phases_from(config, step):
        where = f" (from step {phase.first_step})" if phase.first_step else ""
        if phase.global_batch % unit:
            nearest = max(unit, round(phase.global_batch / unit) * unit)
            found.append(
                f"batch.global_batch={phase.global_batch}{where} is not a multiple of batch.micro_batch="
                f"{batch.micro_batch} x parallel.data={config.parallel.data}: take {nearest}, or another micro batch"
            )
        if phase.sequence_length > config.model.max_positions:
            found.append(
                f"batch.sequence_length={phase.sequence_length}{where} is longer than "
                f"model.max_positions={config.model.max_positions}: shorten it, or raise model.max_positions"
            )
    return found


def _spikes(config: TrainConfig) -> list[str]:
    """A run can go back only where a checkpoint is kept, and count on only where samples keep their length."""
    spikes, checkpoint = config.spikes, config.checkpoint
    if spikes.policy is not SpikePolicy.rewind:
        return []
    found = []
    every, kept = checkpoint.every_steps, checkpoint.keep_last
    if every is None:
        found.append("spikes.policy=rewind needs checkpoints by steps: give checkpoint.every_steps")
    elif (kept - 1) * every < spikes.rewind_steps - 1:
        needed = -(-(spikes.rewind_steps - 1) // every) + 1
        found.append(
            f"spikes.rewind_steps={spikes.rewind_steps} is more than checkpoint.keep_last={kept} checkpoints every "
            f"{every} steps reach back: take checkpoint.keep_last={needed}, or fewer steps"
        )
    if len({phase.sequence_length for phase in phases(config)}) > 1:
        found.append(
            "spikes.policy=rewind does not go with a change of sequence_length, since samples move to later steps: "
            "take spikes.policy=skip"
        )
    return found


def _ramp(batch: BatchConfig) -> list[str]:
    start, increment, steps = batch.ramp_start, batch.ramp_increment, batch.ramp_steps
    if start is None and increment is None and steps is None:
        return []
    if start is None or increment is None or steps is None:
        return [
            f"a batch-size ramp needs all three: batch.ramp_start={start}, batch.ramp_increment={increment}, "
            f"batch.ramp_steps={steps}; give the missing ones, or set all to null"
        ]
    if start >= batch.global_batch:
        return [
            f"batch.ramp_start={start} is not below batch.global_batch={batch.global_batch}, where the ramp ends: "
            "lower it, or set all three batch.ramp_… to null"
        ]
    stages = -(-(batch.global_batch - start) // increment)
    if stages > steps:
        return [
            f"batch.ramp_steps={steps} is shorter than the ramp's {stages} stages: raise it or batch.ramp_increment"
        ]
    return []


def _schedule(config: TrainConfig) -> list[str]:
    settings = config.schedule
    found = []
    if settings.warmup > settings.length:
        found.append(
            f"schedule.warmup={settings.warmup} is longer than schedule.length={settings.length}, the run: shorten it"
        )
    if settings.kind is ScheduleKind.wsd:
        if settings.decay is None:
            found.append(
                "schedule.decay=null: schedule.kind=wsd needs the length of its last part (0: none yet)"
            )
        elif settings.decay + settings.warmup > settings.length >= settings.warmup:
            found.append(
                f"schedule.warmup={settings.warmup} and schedule.decay={settings.decay} together are longer than "
                f"schedule.length={settings.length}, the run: shorten one of them"
            )
    elif settings.kind is not ScheduleKind.constant and settings.decay is not None:
        if settings.decay <= settings.warmup:
            found.append(
                f"schedule.decay={settings.decay} ends within schedule.warmup={settings.warmup}: "
                "it is counted from the start of the run; raise it"
            )
        elif settings.decay > settings.length:
            found.append(
                f"schedule.decay={settings.decay} is longer than schedule.length={settings.length}, the run, which "
                "would end before schedule.min_lr: shorten it, or keep the length and stop the run early"
            )
    if settings.kind is not ScheduleKind.constant and settings.min_lr > config.optimizer.lr:
        found.append(
            f"schedule.min_lr={settings.min_lr:g} is above optimizer.lr={config.optimizer.lr:g}: lower it"
        )
    ramp = config.batch.ramp_steps
    if ramp is not None and not _ramp(config.batch):
        total = steps_for(phases(config), settings.length, settings.unit)
        if ramp >= total:
            found.append(f"batch.ramp_steps={ramp} is not shorter than the run of {total} steps: shorten it")
    return found


def _changes(config: TrainConfig) -> list[str]:
    """Changes in mid-run: each within the run, alone at its step, and of something."""
    if not config.changes or _ramp(config.batch):
        return []
    total = steps_for(phases(config), config.schedule.length, config.schedule.unit)
    found = []
    steps = [change.step for change in config.changes]
    for step in sorted({step for step in steps if steps.count(step) > 1}):
        found.append(f"changes: {steps.count(step)} of them are at step {step}: write them as one")
    for index, change in enumerate(config.changes):
        found += [f"changes.{index} at step {change.step} {told}" for told in _change(config, change, total)]
    return found


def _change(config: TrainConfig, change: ChangeConfig, total: int) -> list[str]:
    found = []
    if change.step >= total:
        found.append(f"lies beyond the run of {total} steps: it would never happen")
    if (change.lr, change.global_batch, change.sequence_length) == (None, None, None) and not change.weights:
        found.append("changes nothing: give lr, global_batch, sequence_length or weights")
    unknown = sorted(set(change.weights) - set(config.data.sources))
    if unknown:
        found.append(
            f"gives weight to {', '.join(unknown)}, which data.sources has not; it has "
            f"{', '.join(config.data.sources)}"
        )
    if change.weights and not any(change.weights.values()):
        found.append("gives every source the weight 0: one must be above it")
    if change.lr is not None and config.schedule.kind is not ScheduleKind.constant:
        floor = config.schedule.min_lr
        if change.lr < floor:
            found.append(f"sets lr={change.lr:g}, below schedule.min_lr={floor:g}: raise it")
    ramp = config.batch.ramp_steps
    if change.global_batch is not None and ramp is not None and change.step < ramp:
        found.append(
            f"sets global_batch while the batch-size ramp goes on until batch.ramp_steps={ramp}: move it behind"
        )
    return found


def _data(config: TrainConfig) -> list[str]:
    found = _vocabulary(config)
    if not config.data.sources:
        found.append(
            "data.sources={} is empty: choose data=NAME, or name one with data.sources.NAME.path=FOLDER"
        )
    weighted = {name for name, source in config.data.sources.items() if source.weight is not None}
    counted = {name for name, source in config.data.sources.items() if source.epochs is not None}
    every = set(config.data.sources)
    if weighted and counted:
        found.append(
            "data.sources mixes weights and epochs: give every source a weight, or every source epochs"
        )
    for kind, having in (("weight", weighted), ("epochs", counted)):
        if having and having != every and not (weighted and counted):
            found.append(
                f"data.sources: {', '.join(sorted(every - having))} has no {kind}, the others have: give it one"
            )
    if every and weighted == every and not any(source.weight for source in config.data.sources.values()):
        found.append("data.sources: every weight is 0: one must be above it")
    return found


def _vocabulary(config: TrainConfig) -> list[str]:
    """The tokenizer's ids, as stated or as its files say where they are here, against the model's rows."""
    tokenizer, rows = config.tokenizer, config.model.vocab_size
    path = tokenizer.path
    size = tokenizer_size(Path(path)) if path not in ("", "???") else None
    if size is not None and tokenizer.vocab_size not in (None, size):
        return [
            f"tokenizer.vocab_size={tokenizer.vocab_size}, but tokenizer.path={path} has {size} ids: it is another "
            "tokenizer than the configuration means; correct one of them"
        ]
    size = tokenizer.vocab_size if size is None else size
    if size is None or size <= rows:
        return []
    whose = f"tokenizer.path={path}" if path not in ("", "???") else f"tokenizer {tokenizer.name}"
    return [f"{whose} has {size} ids, more than model.vocab_size={rows}: set model.vocab_size={size}"]


def _fork(config: TrainConfig) -> list[str]:
    fork, found = config.fork, []
    if not fork.run:
        if fork.step is not None:
            found.append(
                f"fork.step={fork.step} has no effect without fork.run=RUN: name the run, or remove it"
            )
        return found
    if Path(fork.run).resolve() == Path(config.run_dir).resolve():
        found.append(
            f"fork.run={fork.run} is run_dir itself: name another run_dir for the branch, or go on with "
            f"'llmjp train {fork.run}'"
        )
    total = steps_for(phases(config), config.schedule.length, config.schedule.unit)
    if fork.step is not None and fork.step >= total:
        found.append(
            f"fork.step={fork.step} is not below the branch's {total} steps: schedule.length counts from the start "
            "of the run that it branches from; raise it"
        )
    return found


def _words(config: TrainConfig) -> list[str]:
    """Settings that are one of a few words, or must be some."""
    given = {"name": config.name, "run_dir": config.run_dir}
    found = [
        f"{key}={value!r} is empty: give one, or leave it out for the default"
        for key, value in given.items()
        if not value.strip()
    ]
    if config.resume not in ("latest", "latest-valid") and not config.resume.isdigit():
        found.append(f"resume={config.resume} must be latest, latest-valid, or the step of a checkpoint")
    unknown = [word for word in config.allow_changed if word not in MAY_CHANGE]
    if unknown:
        found.append(f"allow_changed={unknown}: only {', '.join(MAY_CHANGE)} can be allowed to change")
    bad = [name for name in config.metrics.trackers if not _CLASS.fullmatch(name)]
    if bad:
        found.append(
            f"metrics.trackers={bad}: a tracker is named module:Class, e.g. my_package.trackers:Mine"
        )
    return found


def warnings(config: TrainConfig) -> list[str]:
    """What runs but is likely not meant."""
    found = layout_warnings(config)
    if config.optimizer.eps >= 1e-6:
        found.append(
            f"optimizer.eps={config.optimizer.eps:g}: at 1e-5 Adam's updates of a large model are mostly damped away; "
            "a 172B was lost to it. 1e-8 is usual; watch eps_dominated in the metrics"
        )
    if not config.data.document_mask:
        found.append("data.document_mask=false: attention crosses documents")
    fork, schedule = config.fork, config.schedule
    total = steps_for(phases(config), schedule.length, schedule.unit)
    late = [step for step in config.checkpoint.keep_steps if step > total]
    if late:
        found.append(f"checkpoint.keep_steps={late} lie beyond the run of {total} steps")
    found += idle(config, total)
    filled = schedule.decay and schedule.warmup + schedule.decay >= schedule.length
    if schedule.kind is ScheduleKind.wsd and filled and not fork.run:  # a branch may be all decay
        found.append(
            f"schedule.warmup={schedule.warmup} and schedule.decay={schedule.decay} fill schedule.length="
            f"{schedule.length}: no stable stage is left. Under wsd the decay is counted back from the end of the "
            "run; under cosine and linear from its start, to where it ends"
        )
    if fork.run and fork.step is not None and schedule.kind is ScheduleKind.wsd and schedule.decay:
        begins = steps_for(phases(config), schedule.length - schedule.decay, schedule.unit)
        if fork.step > begins:
            found.append(
                f"fork.step={fork.step} lies within the decay, which begins at step {begins}: the rate will jump"
            )
    exotic = (config.model.norm is Norm.layernorm) != (config.model.mlp is not Mlp.swiglu)
    if exotic or (config.model.qk_norm and config.model.norm is Norm.layernorm):
        found.append(
            "no transformers model has this combination of norm and feed-forward form: it cannot be exported"
        )
    return found
