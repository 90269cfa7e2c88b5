"""When checkpoints are written, and what they hold besides tensors."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo
from llmjp_train.checkpoint.retention import LOG_SPACED, prune
from llmjp_train.checkpoint.store import save
from llmjp_train.errors import UserError
from llmjp_train.parallel.layout import Layout
from llmjp_train.runlog.lease import LeaseLostError
from llmjp_train.train.background import Background
from llmjp_train.train.early_stop import best_is_saved, ended_before, return_to_best
from llmjp_train.train.hooks import Hook, Row
from llmjp_train.train.run import Run


class Saving(Hook):
    """Checkpoints by steps, by time, on request, at the best validation loss, and at the end."""

    def __init__(self) -> None:
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._background = Background()
        self._pending = _Pending(-1, "", 0.0)
        self._again = False
        """Whether a save in the background failed and is to be tried again at once."""

    def start(self, run: Run) -> None:
        self._saved_step, self._saved_at = run.step, time.monotonic()

    def after_step(self, run: Run, row: Row) -> None:
        reason = self._due(run)
        # Clocks and files are seen by each rank at its own time: the leader decides.
        asked = run.layout.leader and (self._late(run) or run.stops.save or self._ended_badly(run))
        asked, fault = run.layout.any([asked, bool(run.fault)])
        if (reason or asked) and not fault:  # what a check doubts must not become the newest checkpoint
            self._save(run, reason or "request or time")

    def _ended_badly(self, run: Run) -> bool:
        """Leader: take note of a save in the background that has ended; whether it failed."""
        if self._background.done:
            self._finish(run)
            return self._again
        return False

    def _due(self, run: Run) -> str:
        config, step = run.config.checkpoint, run.step
        best = run.memory.get("validation", {})
        if config.every_steps and step % config.every_steps == 0:
            return "cadence"
        if step in config.keep_steps:
            return "keep_steps"
        if config.log_spaced and step in LOG_SPACED:
            return "log_spaced"
        if run.config.evaluation.stop_at_best is not None and best.get("step") == step:
            return "best validation"
        return ""

    def _late(self, run: Run) -> bool:
        minutes = run.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def settle(self, run: Run) -> None:
        self._finish(run)

    def end(self, run: Run, *, saved: bool) -> None:
        self._finish(run)
        at_best = saved and bool(run.ended) and not ended_before(run) and best_is_saved(run)
        wanted = run.config.checkpoint.save_final or run.step < run.schedule.total_steps
        missing = run.step != self._saved_step or self._again
        if saved and wanted and not at_best and missing and run.step > 0:
            self._save(run, "end")
            self._finish(run)
        if at_best:
            check_lease(run)  # another writer's checkpoints must not be set aside
            if run.layout.leader:
                return_to_best(run)
        if run.layout.leader:
            run.stops.done()

    def _save(self, run: Run, reason: str) -> None:
        check_lease(run)
        self._finish(run)  # one save at a time
        began = time.monotonic()
        self._pending = _Pending(run.step, reason, began)
        self._saved_step, self._again = run.step, False
        fragments, state = run.engine.fragments(owned=True), run_state(run)
        write = partial(
            save,
            run.record.path,
            run.step,
            state=state,
            epoch=run.epoch,
            process_group=run.layout.saving,
        )
        if run.config.checkpoint.asynchronous:
            write.keywords["state"] = copy.deepcopy(state)  # hooks go on changing theirs
            write.keywords["fragments"] = self._background.staged(fragments)
            self._background.start(write)
            self._pending.stall_s = time.monotonic() - began
        else:
            self._close(run, lambda: write(fragments=fragments))

    def _finish(self, run: Run) -> None:
        """Wait for the save in flight, if there is one, and tell how it ended."""
        if self._background.busy:
            self._close(run, self._background.end)

    def _close(self, run: Run, result: Callable[[], CheckpointInfo]) -> None:
        pending = self._pending
        try:
            info = result()
        except UserError as error:
            # A full disk must not cost the training: say so, go on, try again at the next save.
            run.unsaved = str(error)
            self._again = run.config.checkpoint.asynchronous
            if run.layout.leader:
                run.record.event("save_failed", step=pending.step, message=str(error))
                print(f"  checkpoint at step {pending.step} FAILED: {error}", flush=True)
            return
        finally:
            self._saved_at = time.monotonic()
        run.unsaved = ""
        if run.layout.leader:
            self._saved(run, pending, info)

    def _saved(self, run: Run, pending: "_Pending", info: CheckpointInfo) -> None:
        """Record a save that succeeded, and remove what retention does not keep."""
        seconds = time.monotonic() - pending.began
        more = (
            {"stall_s": pending.stall_s, "staging_bytes": self._background.bytes} if pending.stall_s else {}
        )
        run.record.event(
            "save",
            step=pending.step,
            folder=info.path.name,
            sha256=info.sha256,
            bytes=info.bytes,
            seconds=seconds,
            reason=pending.reason,
            **more,
        )
        stalled = f", training waited {pending.stall_s:.2f} s" if pending.stall_s else ""
        print(
            f"  saved {info.path.name} ({info.bytes / 2**20:.0f} MiB, {seconds:.1f} s{stalled})", flush=True
        )
        (run.record.path / "save").unlink(missing_ok=True)
        protected = {run.memory.get("validation", {}).get("step")} - {None}
        removed, left = prune(run.record.path, run.config.checkpoint, run.epoch, protect=protected)
        if removed or left:
            run.record.event("prune", step=pending.step, removed=removed, left=left)
        if left:
            print(f"  not removed, tried again at the next save: {', '.join(left)}", flush=True)


@dataclass
class _Pending:
    """A save that was begun."""

    step: int
    reason: str
    began: float
    stall_s: float = 0.0
    """How long training waited for the copy of the state; 0: it waited for the save itself."""


def check_lease(run: Run) -> None:
    """Collective.

    Raises:
        LeaseLostError: on every rank: another process has become the writer of the run directory.
    """
    lost = ""
    if run.lease is not None:
        try:
            run.lease.check()
        except LeaseLostError as error:
            lost = str(error)
    lost = run.layout.from_leader(lost)
    if lost:
        raise LeaseLostError(lost)


def run_state(run: Run) -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    return {
        "schema": 1,
        "step": run.step,
        "samples": run.samples,
        "tokens": run.tokens,
        "layout": layout_sizes(run.layout),
        "fingerprints": run.fingerprints,
        "memory": run.memory,
        "origin": run.origin,
    }


def layout_sizes(layout: Layout) -> dict[str, int]:
    """The layout as JSON."""
    return {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "data": layout.data,
        "zero": layout.zero,
    }
