"""A fault inside a rank, which no signal or file from outside could put there."""

from pathlib import Path
from typing import Any


class Poison:
    """A tracker that puts a loss which is not finite into the leader's steps: what no file outside could do.

    Beside the run directory: ``poison-now`` asks for one at the next step, ``poison-steps`` lists steps.
    """

    def __init__(self, run_dir: Path) -> None:
        from llmjp_train.train import loop

        now, listed = run_dir.parent / "poison-now", run_dir.parent / "poison-steps"
        steps = {int(word) for word in listed.read_text().split()} if listed.exists() else set()
        take_step = loop.take_step

        def poisoned(run: Any, *args: Any) -> Any:
            asked = now.exists()
            if not asked and run.step + 1 not in steps:
                return take_step(run, *args)
            now.unlink(missing_ok=True)
            norm = run.engine._engine.module.decoder.norm
            handle = norm.register_forward_hook(lambda module, given, out: out * float("nan"))
            try:
                return take_step(run, *args)
            finally:
                handle.remove()

        loop.take_step = poisoned

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
