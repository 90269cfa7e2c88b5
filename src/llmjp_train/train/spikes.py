"""What is done about a loss spike, or a step that is not finite: note it, stop, leave the update out, or go back.

What a rank sees as a spike is one for all; the leader alone chooses the checkpoint to go back to.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from llmjp_train.checkpoint.listing import committed, set_aside
from llmjp_train.config.training import Dtype, SpikePolicy
from llmjp_train.engine.result import StepResult
from llmjp_train.train.metrics import SpikeScore
from llmjp_train.train.resuming import resume
from llmjp_train.train.run import ANSWERED, LEFT_OUT, Outcome, Run, in_stream

WINDOW = 1000
"""Steps over which answers are counted against ``spikes.most``."""
MOST_OVERFLOWS = 20
"""fp16 steps in a row whose gradients may be too large for the scale; DeepSpeed lowers it each time."""
SCORE = "spike"
OVERFLOWS = "overflows"
"""Keys in ``Run.memory``: state of the score; overflows in a row."""


class _Settles(Protocol):
    def settle(self, run: Run) -> None:
        """End what is in flight."""


def look(run: Run, result: StepResult) -> float | None:
    """Score the loss of a step and count it towards the mean; the leader records a spike whose update was taken."""
    seen = SpikeScore(**run.memory.get(SCORE, {}))
    score = seen.score(result.loss)
    if math.isfinite(result.loss):
        seen.update(result.loss)
        run.memory[SCORE] = seen.state()
    if result.applied:
        run.memory.pop(OVERFLOWS, None)
    spiked = score is not None and score > run.config.metrics.spike_sigma
    if spiked and result.applied and run.layout.leader:
        run.record.event("spike", step=run.step, loss=result.loss, score=score)
    return score


def refuse(run: Run, loss: float) -> str:
    """Why the update of a batch with this loss is not to be taken; empty where a note is enough. Collective."""
    if run.config.spikes.policy is SpikePolicy.note:
        return ""
    score = SpikeScore(**run.memory.get(SCORE, {})).score(loss) or 0.0
    # Ranks may have summed in another order: at the very threshold one must not take a step that another refuses.
    if not run.layout.any([score > run.config.metrics.spike_sigma])[0]:
        return ""
    return f"the loss {loss:.4f} is a spike, {score:.1f} deviations above its mean"


def answer(run: Run, result: StepResult, hooks: Iterable[_Settles]) -> Outcome | None:
    """What becomes of a step that was not applied: none to go on without its update, or how the loop ends.

    Collective.
    """
    spikes, answered = run.config.spikes, run.memory.get(ANSWERED, [])
    recent = sum(step > run.step - WINDOW for step in answered)
    why = f"step {run.step + 1}: {result.reason}"
    if run.config.precision.dtype is Dtype.fp16 and math.isinf(result.grad_norm):
        run.memory[OVERFLOWS] = run.memory.get(OVERFLOWS, 0) + 1
        if run.memory[OVERFLOWS] <= MOST_OVERFLOWS:
            return None
    if spikes.policy in (SpikePolicy.note, SpikePolicy.stop):
        return _stop(run, why)
    if recent >= spikes.most:
        more = f"{recent} others within {WINDOW} steps were answered before (spikes.most)"
        return _stop(run, f"{why}; {more}: look at the data and the learning rate")
    run.memory[ANSWERED] = [*answered, run.step + 1]
    if spikes.policy is SpikePolicy.skip:
        _note(run, result, "its update was left out", lost_steps=0)
        return None
    for hook in hooks:
        hook.settle(run)
    return _rewind(run, result)


def _stop(run: Run, why: str) -> Outcome:
    run.record_fault(f"{why}; the weights are those of step {run.step}")
    return Outcome.unhealthy


def _note(run: Run, result: StepResult, action: str, *, lost_steps: int) -> None:
    if not run.layout.leader:
        return
    run.record.event(
        "spike", step=run.step + 1, loss=result.loss, samples=[run.samples, run.samples_at(run.step + 1)],
        evidence=result.reason, action=action, lost_steps=lost_steps,
    )  # fmt: skip
    print(f"  step {run.step + 1}: {result.reason}; {action}", flush=True)


def _rewind(run: Run, result: StepResult) -> Outcome:
    """Load the newest checkpoint that is old enough, and leave out what the last ``rewind_steps`` steps have read.

    Steps from there up to that age are taken again with their own samples, later ones with those that follow.
    """
    spiked, back = run.step + 1, run.config.spikes.rewind_steps
    since = max(0, spiked - back)
    chosen = None
    if run.layout.leader:
        chosen = next((info for info in reversed(committed(run.record.path)) if info.step <= since), None)
    chosen = run.layout.from_leader(chosen)
    if chosen is None:
        why = f"step {spiked}: {result.reason}"
        return _stop(run, f"{why}; no checkpoint is {back} steps old (spikes.rewind_steps), to go back to")
    action = f"went back to {chosen.path.name} and left out the samples of steps {since + 1} to {spiked}"
    _note(run, result, action, lost_steps=run.step - chosen.step)
    left_out = leave_out(run.memory.get(LEFT_OUT, []), run.samples_at(since), run.samples_at(spiked))
    answered, origin = run.memory[ANSWERED], run.origin
    resume(run, chosen, fork=False)
    run.memory |= {LEFT_OUT: left_out, ANSWERED: answered}
    run.origin = origin  # where this start began
    if run.layout.leader:
        left = set_aside(run.record.path, run.step)
        run.record.event(
            "rewind",
            step=run.step,
            folder=chosen.path.name,
            left=left,
            left_out=left_out,
            spikes_answered=answered,
        )
    return Outcome.rewind


def leave_out(left_out: list[list[int]], first: int, last: int) -> list[list[int]]:
    """What is left out of the data once the samples that were read as ``first`` up to ``last`` are, too."""
    count = in_stream(left_out, last) - in_stream(left_out, first)
    before = [pair for pair in left_out if pair[0] <= first]
    after = [[start - (last - first), more] for start, more in left_out if start > last]
    return [*before, [first, count], *after]
