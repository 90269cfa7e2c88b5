"""A run that ended at its best validation loss: that checkpoint is its newest, and the run stays ended."""

from typing import Any

from llmjp_train.checkpoint.listing import committed, set_aside
from llmjp_train.config.compose import plain
from llmjp_train.train.run import Run


def best_is_saved(run: Run) -> bool:
    """Whether the run directory holds the checkpoint of the best validation loss. Collective."""
    best = run.memory["validation"]["step"]
    saved = run.layout.leader and any(info.step == best for info in committed(run.record.path))
    return bool(run.layout.from_leader(saved))


def return_to_best(run: Run) -> None:
    """Leader, at an early stop: take what was saved after the best step out of the count, and record it.

    The best checkpoint becomes the newest: what exports, evaluations and reports take.
    """
    best = run.memory["validation"]["step"]
    if run.step == best:
        return  # it had ended before this start
    left = set_aside(run.record.path, best)
    info = committed(run.record.path)[-1]
    run.record.event(
        "early_stop",
        step=best,
        ended_at=run.step,
        folder=info.path.name,
        left=left,
        reason=run.ended,
        settings=_settings(run),
    )
    print(f"the checkpoint of the best step, {info.path.name}, is the run's newest", flush=True)
    if left:
        print(f"later ones no longer count and may be removed: {', '.join(left)}", flush=True)


def ended_before(run: Run) -> str:
    """Why this start takes no step: the checkpoint is the best one of an early stop under the same settings.

    Empty where there is more to train. Collective.
    """
    found = ""
    if run.layout.leader and run.config.evaluation.stop_at_best is not None and not run.config.allow_changed:
        stops = [event for event in run.record.read_events() if event["kind"] == "early_stop"]
        settings = _settings(run)
        for event in stops:
            if event.get("folder") == run.origin.get("checkpoint") and event.get("settings") == settings:
                found = (
                    f"{event['reason']}, and the run ended at step {event['ended_at']}; to train on from there, "
                    "change evaluation.stop_at_best, the schedule or the optimizer"
                )
    return str(run.layout.from_leader(found))


def _settings(run: Run) -> dict[str, Any]:
    """What another course of training, or another patience, would differ in."""
    config = run.config
    return {
        "stop_at_best": config.evaluation.stop_at_best,
        "validation_every": config.evaluation.validation_every,
        "schedule": plain(config.schedule),
        "optimizer": plain(config.optimizer),
        "changes": plain(config.changes),
    }
