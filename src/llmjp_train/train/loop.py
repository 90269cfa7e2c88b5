"""The training loop."""

import time
from collections.abc import Sequence
from functools import partial

from llmjp_train.data.prefetch import Prefetcher
from llmjp_train.data.stream import MicroBatch
from llmjp_train.train.hooks import OWED, Hook, Row
from llmjp_train.train.run import NOT_APPLIED, Outcome, Run
from llmjp_train.train.spikes import answer, refuse


def train(run: Run, hooks: Sequence[Hook]) -> Outcome:
    """Take steps until the schedule, a stop or a failed check ends the run; every rank calls it."""
    outcome: Outcome | None = Outcome.rewind
    while outcome is Outcome.rewind:
        loader = run.loader()
        for hook in hooks:
            hook.start(run)
        outcome = verdict(run)  # a stop that came during start-up
        while outcome is None and run.step < run.schedule.total_steps and not run.ended:
            outcome = take_step(run, loader, hooks)
        loader.close()
    done = (run.step >= run.schedule.total_steps and not run.memory.get(OWED)) or bool(run.ended)
    if outcome is None or (outcome is Outcome.stopped and done):
        outcome = Outcome.finished
    for hook in hooks:
        hook.end(run, saved=outcome is not Outcome.unhealthy)
    return outcome


def take_step(run: Run, loader: Prefetcher[MicroBatch], hooks: Sequence[Hook]) -> Outcome | None:
    """Data, optimizer step, safety check, hooks in the order given, and whether to stop.

    Returns how the run ends, if it does.
    """
    began, waited = time.perf_counter(), loader.wait_seconds
    batches = [next(loader) for _ in range(run.micro_batches())]
    lr = run.schedule.lr(run.step)
    inspect = next((i for hook in hooks if (i := hook.inspect_gradients(run)) is not None), None)
    refused = partial(refuse, run)
    result = run.engine.step(
        batches, lr, interrupted=run.interrupted, inspect_gradients=inspect, refuse=refused
    )
    if result is None:
        return Outcome.stopped
    if not result.applied:
        if (outcome := answer(run, result, hooks)) is not None:
            return outcome
        run.memory[NOT_APPLIED] = run.memory.get(NOT_APPLIED, 0) + 1
    run.step += 1
    row = Row(result, lr, time.perf_counter() - began, loader.wait_seconds - waited)
    for hook in hooks:
        hook.after_step(run, row)
    return verdict(run)


def verdict(run: Run) -> Outcome | None:
    """How the run must end now, if it must: some rank's check failed, or some rank was asked to stop. Collective."""
    fault, stop = run.layout.any([bool(run.fault), run.stops.stop])
    if fault:
        return Outcome.unhealthy
    return Outcome.stopped if stop else None
