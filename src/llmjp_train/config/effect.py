"""Settings that would be read by nobody: errors that name them, or warnings where a run may well hold them."""

from llmjp_train.config.derive import saved_steps
from llmjp_train.config.evaluation import EvaluationConfig
from llmjp_train.config.model import Position
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import DecayForm, ScheduleKind, SpikePolicy, SpikesConfig


def without_effect(config: TrainConfig) -> list[str]:
    """Settings that would be read by nobody."""
    model, evaluation = config.model, config.evaluation
    found = _schedule_without_effect(config)
    if model.position is Position.learned and (model.rope_theta != 10000.0 or model.rope_fraction != 1.0):
        found.append(
            f"model.rope_theta={model.rope_theta} and model.rope_fraction={model.rope_fraction} have no effect with "
            "model.position=learned: remove them"
        )
    if evaluation.stop_at_best is not None and not evaluation.validation_every:
        found.append(
            f"evaluation.stop_at_best={evaluation.stop_at_best} has no effect without "
            "evaluation.validation_every: give that, or remove it"
        )
    for key in ("tasks", "num_fewshot"):
        value = getattr(evaluation, key)
        if evaluation.every is None and value not in (None, []):
            found.append(f"evaluation.{key}={value} has no effect without evaluation.every=STEPS: give it")
    if (config.cluster.nodes or 1) > 1 and config.cluster.devices_per_node is None:
        found.append(
            f"cluster.nodes={config.cluster.nodes} has no effect without cluster.devices_per_node: choose a cluster"
        )
    every, keep = config.checkpoint.every_steps, config.checkpoint.keep_every
    if keep is not None and (every is None or keep % every):
        found.append(
            f"checkpoint.keep_every={keep} keeps nothing unless it is a multiple of checkpoint.every_steps={every}: "
            "change one of them"
        )
    if config.parallel.compile and config.parallel.zero == 3:
        found.append(
            "parallel.compile=true does not go with parallel.zero=3, whose hooks gather weights inside the layers: "
            "take parallel.zero=2 or compile=false"
        )
    return found


def idle(config: TrainConfig, total: int) -> list[str]:
    """Settings that a run of ``total`` steps does not come to.

    Warnings: experiments and runs hold them for whoever changes the other key, or the run's length.
    """
    evaluation = config.evaluation
    found = []
    if evaluation.every is None:
        for told in _changed(evaluation, EvaluationConfig(), "suite", "limit", "batch_size"):
            found.append(f"evaluation.{told} has no effect without evaluation.every=STEPS")
    elif evaluation.every > total:
        found.append(
            f"evaluation.every={evaluation.every} lies beyond the run of {total} steps: nothing is evaluated"
        )
    if evaluation.validation_every is None:
        for told in _changed(evaluation, EvaluationConfig(), "validation_batches"):
            found.append(f"evaluation.{told} has no effect with evaluation.validation_every=null")
    elif evaluation.stop_at_best is not None:
        times = -(-total // evaluation.validation_every)
        if times <= evaluation.stop_at_best:
            found.append(
                f"evaluation.stop_at_best={evaluation.stop_at_best} never ends this run: evaluation.validation_every="
                f"{evaluation.validation_every} makes {times} validations in its {total} steps"
            )
    return [*found, *_idle_spikes(config), *_nothing_kept(config, total)]


def _idle_spikes(config: TrainConfig) -> list[str]:
    policy = config.spikes.policy
    keys = {SpikePolicy.rewind: (), SpikePolicy.skip: ("rewind_steps",)}.get(policy, ("rewind_steps", "most"))
    changed = _changed(config.spikes, SpikesConfig(), *keys)
    return [f"spikes.{told} has no effect with spikes.policy={policy.name}" for told in changed]


def _nothing_kept(config: TrainConfig, total: int) -> list[str]:
    checkpoint = config.checkpoint
    sometimes = checkpoint.every_minutes is not None or config.evaluation.stop_at_best is not None
    if sometimes or saved_steps(total, checkpoint):
        return []
    return [
        f"checkpoint.save_final={str(checkpoint.save_final).lower()} and checkpoint.every_steps="
        f"{'null' if checkpoint.every_steps is None else checkpoint.every_steps}: this run saves only when it is "
        "stopped; nothing is kept of one that ends"
    ]


def _changed(settings: object, default: object, *keys: str) -> list[str]:
    """``key=value`` of each key that is not at its default."""
    return [
        f"{key}={getattr(settings, key)}" for key in keys if getattr(settings, key) != getattr(default, key)
    ]


def _schedule_without_effect(config: TrainConfig) -> list[str]:
    schedule = config.schedule
    found = []
    if schedule.kind is ScheduleKind.constant and (schedule.decay is not None or schedule.min_lr):
        found.append(
            f"schedule.decay={schedule.decay} and schedule.min_lr={schedule.min_lr:g} have no effect with "
            "schedule.kind=constant: remove them"
        )
    if schedule.kind is not ScheduleKind.wsd and schedule.decay_form is not DecayForm.minus_sqrt:
        found.append(
            f"schedule.decay_form={schedule.decay_form.name} has no effect with schedule.kind={schedule.kind.name}: "
            "remove it, or take schedule=wsd"
        )
    if schedule.kind is ScheduleKind.wsd and schedule.decay == 0 and schedule.min_lr:
        found.append(
            f"schedule.min_lr={schedule.min_lr:g} has no effect with schedule.decay=0: give the decay a length"
        )
    return found
