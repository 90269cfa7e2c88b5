"""How a run goes on from a checkpoint."""

from pathlib import Path
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo, offer
from llmjp_train.checkpoint.storage import DamagedError
from llmjp_train.checkpoint.store import load, read_state
from llmjp_train.errors import UserError
from llmjp_train.train.fingerprints import comparable, differences
from llmjp_train.train.run import ANSWERED, LEFT_OUT, NOT_APPLIED, Run


def resume(run: Run, checkpoint: CheckpointInfo, *, fork: bool) -> None:
    """Take masters, moments, step and hook state from a checkpoint of any layout. Collective.

    Raises:
        UserError: model, tokenizer or data differ from what the checkpoint was trained with, and
            ``allow_changed`` does not name them.
    """
    # First what says more: the difference in the model, not in the shape of a tensor.
    before = read_state(checkpoint.path)["fingerprints"]
    check_fingerprints(before, run.fingerprints, run.config.allow_changed, checkpoint.path)
    try:
        state = load(checkpoint.path, run.engine.fragments())
    except DamagedError as error:
        raise UserError(f"{error}. {offer(checkpoint, 'fork.step=' if fork else 'resume=')}") from None
    run.step = state["step"]
    _check_position(run, state, checkpoint.path)
    inherited = (LEFT_OUT, NOT_APPLIED) if fork else state["memory"]
    run.memory = {key: state["memory"][key] for key in inherited if key in state["memory"]}
    if not fork:
        run.memory |= run.layout.from_leader(_rewound(run) if run.layout.leader else {})
    run.engine.restore(run.updates)
    run.origin = {
        "checkpoint": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "step": run.step,
        "layout": state["layout"],
    }
    if fork:
        run.origin["fork_of"] = str(run.config.fork.run)


def _check_position(run: Run, state: dict[str, Any], path: Path) -> None:
    """Refuse sizes that were not the past's: the data order would leave samples out or take some twice."""
    if (state["samples"], state["tokens"]) == (run.samples, run.tokens):
        return
    batch = run.config.batch
    raise UserError(
        f"{path.name} was reached with {state['samples']:,} samples ({state['tokens']:,} tokens); by the present "
        f"settings of batch and changes it would be {run.samples:,} ({run.tokens:,}).\nGive batch.global_batch, "
        f"batch.sequence_length, batch.ramp_* and changes as they were, and declare what is new from here on: "
        f"'changes=[{{step:{run.step},global_batch:{batch.global_batch},sequence_length:{batch.sequence_length}}}]'."
    )


def _rewound(run: Run) -> dict[str, Any]:
    """What the newest rewind to this step or a later one left out: no checkpoint from before it can know."""
    rewinds = [event for event in run.record.read_events() if event["kind"] == "rewind"]
    if not rewinds or rewinds[-1]["step"] < run.step:
        return {}
    return {key: rewinds[-1][key] for key in (LEFT_OUT, ANSWERED) if key in rewinds[-1]}


def check_fingerprints(before: dict[str, Any], now: dict[str, Any], allowed: list[str], path: Path) -> None:
    """Refuse to go on with another model, tokenizer or data unless told to."""
    before, now = comparable(before, now)
    changed = {key: differences(before[key], now[key]) for key in before}
    refused = {key: lines for key, lines in changed.items() if lines and key not in allowed}
    if refused:
        lines = "\n".join(f"  {key}: {line}" for key, found in refused.items() for line in found)
        raise UserError(
            f"{path.name} was trained with another {' and '.join(refused)}:\n{lines}\n"
            f"Restore them, start a new run directory, or allow it with 'allow_changed=[{','.join(refused)}]'."
        )
