"""How a run goes on from a checkpoint."""

from pathlib import Path
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo, offer
from llmjp_train.checkpoint.storage import DamagedError
from llmjp_train.checkpoint.store import load, read_state
from llmjp_train.errors import UserError
from llmjp_train.train.fingerprints import differences
from llmjp_train.train.run import LEFT_OUT, NOT_APPLIED, Run


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
        raise UserError(f"{error}. {offer(checkpoint)}") from None
    run.step = state["step"]
    inherited = (LEFT_OUT, NOT_APPLIED) if fork else state["memory"]
    run.memory = {key: state["memory"][key] for key in inherited if key in state["memory"]}
    run.engine.restore(run.updates)
    run.origin = {
        "checkpoint": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "step": run.step,
        "layout": state["layout"],
    }
    if fork:
        run.origin["fork_of"] = str(run.config.fork.run)


def check_fingerprints(before: dict[str, Any], now: dict[str, Any], allowed: list[str], path: Path) -> None:
    """Refuse to go on with another model, tokenizer or data unless told to."""
    changed = {key: differences(before[key], now[key]) for key in before}
    refused = {key: lines for key, lines in changed.items() if lines and key not in allowed}
    if refused:
        lines = "\n".join(f"  {key}: {line}" for key, found in refused.items() for line in found)
        raise UserError(
            f"{path.name} was trained with another {' and '.join(refused)}:\n{lines}\n"
            f"Restore them, start a new run directory, or allow it with 'allow_changed=[{','.join(refused)}]'."
        )
