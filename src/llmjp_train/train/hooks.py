"""Everything periodic, as hooks that the loop calls in a stated order.

A hook runs on every rank, since most have something collective to do; only the leader writes.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from llmjp_train.config.derive import flops_per_token
from llmjp_train.config.phases import phase_at
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.stream import ValidationStream
from llmjp_train.engine.result import StepResult
from llmjp_train.parallel.layout import START_MINUTES
from llmjp_train.train.metrics import (
    ImpossibleRateError,
    memory_gib,
    model_flops_utilisation,
    stated_peak,
)
from llmjp_train.train.run import Run
from llmjp_train.train.spikes import look

Inspector: TypeAlias = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Row:
    """A step's figures as the loop hands them to hooks."""

    result: StepResult
    lr: float
    step_s: float
    """Seconds from asking for data to the end of the optimizer step."""
    data_wait_s: float


class Hook:
    """Does something at some steps. Subclasses override what they need."""

    def start(self, run: Run) -> None:
        """Before the first step of this start."""

    def inspect_gradients(self, run: Run) -> Inspector | None:
        """What wants to see the squared norms of the next step's gradients, if anything does."""
        return None

    def after_step(self, run: Run, row: Row) -> None:
        """After each step that was taken, or left out (``result.applied``); ``run.step`` counts it already."""

    def settle(self, run: Run) -> None:
        """Before the run goes back to a checkpoint, after which ``start`` is called again: end what is in flight."""

    def end(self, run: Run, *, saved: bool) -> None:
        """After the last step of this start; ``saved``: whether its state may be saved."""


class Metrics(Hook):
    """Rows of steps for metrics.jsonl and the trackers, and a line on the terminal."""

    def __init__(self, *, line_seconds: float = 2.0) -> None:
        self._line_seconds = line_seconds
        self._norms: dict[str, float] = {}
        self._began, self._first, self._printed = 0.0, 0, 0.0

    def start(self, run: Run) -> None:
        self._began, self._first = time.monotonic(), run.step

    def inspect_gradients(self, run: Run) -> Inspector | None:
        every = run.config.metrics.grad_norm_every
        return self._measure if every and (run.step + 1) % every == 0 else None

    def _measure(self, gradients: dict[str, float]) -> None:
        squares: dict[str, float] = {}
        for name, square in gradients.items():
            group = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.split(".")[0]
            squares[group] = squares.get(group, 0.0) + square
        self._norms = {group: square**0.5 for group, square in squares.items()}

    def after_step(self, run: Run, row: Row) -> None:
        result, every = row.result, run.config.metrics.every
        score = look(run, result)
        if not run.layout.leader:
            return
        figures = self._figures(run, row, score)
        if every and run.step % every == 0:
            run.log(**figures)
        if time.monotonic() - self._printed > self._line_seconds or run.step == run.schedule.total_steps:
            self._print(run, row, figures)

    def _figures(self, run: Run, row: Row, score: float | None) -> dict[str, Any]:
        result = row.result
        phase = phase_at(run.phases, run.step - 1)  # of the step that was taken, not of the one to come
        rate = phase.global_batch * phase.sequence_length / row.step_s
        flops = rate * flops_per_token(run.config.model, phase.sequence_length)
        figures: dict[str, Any] = {
            "samples": run.samples,
            "loss": result.loss,
            "lr": row.lr,
            "grad_norm": result.grad_norm,
            "z_loss": result.z_loss,
            "tokens_per_s": rate,
            "tflops": flops / 1e12 / run.layout.size,
            "mfu": self._mfu(run, flops),
            "memory_gib": memory_gib(run.layout.device),
            "data_wait_s": row.data_wait_s,
            "step_s": row.step_s,
            "forward_backward_s": result.forward_backward_s,
            "optimizer_s": result.optimizer_s,
            "spike_score": score,
            "sources": {
                name: {"tokens": count, "loss": loss if count else None}
                for name, (count, loss) in zip(run.stream.source_names, result.sources, strict=True)
            },
        }
        if not result.applied:
            figures["applied"] = False
        if self._norms:
            figures["grad_norms"], self._norms = self._norms, {}
        return figures

    @staticmethod
    def _mfu(run: Run, flops: float) -> float | None:
        """A share above a stated peak stops the run: whatever was wrong, the figures would be published."""
        stated = stated_peak(run.config.cluster, run.config.precision.dtype) is not None
        try:
            return model_flops_utilisation(flops, run.peak_flops, stated=stated)
        except ImpossibleRateError as error:
            run.record_fault(f"step {run.step}: {error}")
            return None

    def _print(self, run: Run, row: Row, figures: dict[str, Any]) -> None:
        self._printed = time.monotonic()
        total = run.schedule.total_steps
        rate = (run.step - self._first) / max(1e-9, self._printed - self._began)
        left = (total - run.step) / rate
        print(
            f"step {run.step:>{len(str(total))}}/{total}  loss {row.result.loss:.4f}  lr {row.lr:.2e}  "
            f"norm {row.result.grad_norm:.2f}  {figures['tokens_per_s']:,.0f} tokens/s  {_minutes(left)} left",
            flush=True,
        )

    def end(self, run: Run, *, saved: bool) -> None:
        for tracker in tuple(run.trackers):
            try:
                tracker.close()
            except Exception as error:
                run.drop_tracker(tracker, error)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class ShortWaits(Hook):
    """What comes first may take long (communicators, compilation), and so may loading a checkpoint; after it a rank
    that waits is in trouble."""

    def __init__(self) -> None:
        self._limited = False

    def start(self, run: Run) -> None:
        self.settle(run)  # DeepSpeed has made groups of its own, with torch's limit

    def settle(self, run: Run) -> None:
        if run.layout.size > 1:
            run.layout.limit_waits(START_MINUTES)
        self._limited = False

    def after_step(self, run: Run, row: Row) -> None:
        if not self._limited and run.layout.size > 1:
            run.layout.limit_waits(run.config.cluster.collective_minutes)
            self._limited = True


class Changes(Hook):
    """Records where a declared change or a stage of the batch-size ramp takes effect."""

    def after_step(self, run: Run, row: Row) -> None:
        phase = run.phase
        if run.layout.leader and run.step and phase.first_step == run.step:
            reasons = [
                change.reason for change in run.config.changes if change.step == run.step and change.reason
            ]
            run.record.event(
                "change",
                step=run.step,
                global_batch=phase.global_batch,
                sequence_length=phase.sequence_length,
                lr=phase.lr,
                weights=phase.weights,
                reason="; ".join(reasons),
            )


OWED = "owed"
"""Key in ``Run.memory`` of what a stop cut short: the next start does it first, before any step."""


class Validation(Hook):
    """Validation loss on a cadence, and an early stop when it no longer falls."""

    def start(self, run: Run) -> None:
        if "validation" in run.memory.get(OWED, []):
            run.memory[OWED].remove("validation")
            self._validate(run)

    def after_step(self, run: Run, row: Row) -> None:
        every = run.config.evaluation.validation_every
        if every and (run.step % every == 0 or run.step == run.schedule.total_steps):
            self._validate(run)

    def _validate(self, run: Run) -> None:
        if run.validation is None:
            return
        began = time.perf_counter()
        figures = validate(run)
        if figures is None:
            run.memory.setdefault(OWED, []).append("validation")
            return
        figures["seconds"] = time.perf_counter() - began
        best = run.memory.setdefault("validation", {"best": None, "step": 0, "since": 0})
        improved = best["best"] is None or figures["loss"] < best["best"]
        if improved:
            best.update(best=figures["loss"], step=run.step, since=0)
        else:
            best["since"] += 1
        patience = run.config.evaluation.stop_at_best
        if patience is not None and best["since"] >= patience:
            run.ended = f"validation loss was best ({best['best']:.4f}) at step {best['step']}"
        if run.layout.leader:
            run.log(validation=figures)
            if improved:
                run.record.event("validation_best", step=run.step, loss=figures["loss"])
            bits = figures["bits_per_byte"]
            print(
                f"  validation at step {run.step}: {figures['loss']:.4f} nats a token"
                + (f", {bits:.4f} bits a byte" if bits else ""),
                flush=True,
            )


def validation_samples(config: TrainConfig, stream: ValidationStream) -> int:
    """Of how many of the stream's first samples the validation loss is the mean."""
    return min(stream.num_samples, config.evaluation.validation_batches * config.batch.global_batch)


def validate(run: Run) -> dict[str, Any] | None:
    """Mean cross-entropy over the first batches of the validation files; none where a stop cut it short.

    Collective.
    """
    import math

    assert run.validation is not None
    size, ranks, rank = run.config.batch.micro_batch, run.layout.data, run.layout.data_rank
    samples = validation_samples(run.config, run.validation)
    names = run.validation.source_names
    sums = torch.zeros(2, len(names), dtype=torch.float64, device=run.layout.device)
    for first in range(0, samples, size * ranks):
        if run.interrupted():
            return None
        start = first + rank * size
        batch = run.validation.batch(min(start, samples - 1), max(1, min(size, samples - start)))
        if start >= samples:  # every rank makes the same number of calls (ZeRO-3); this one's do not count
            batch.targets.fill_(-100)
        token_nll = run.engine.token_nll(batch)
        sources = batch.sources.to(sums.device)
        sums[0].index_add_(0, sources, token_nll.sum(1, dtype=torch.float64))
        sums[1].index_add_(0, sources, (batch.targets >= 0).sum(1).to(sums))
    totals, counts = run.layout.sum_data(sums).cpu()
    loss = float(totals.sum() / counts.sum())
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / run.bytes_per_token if run.bytes_per_token else None,
        "tokens": int(counts.sum()),
        "sources": {
            name: {"tokens": int(count), "loss": float(total / count) if count else None}
            for name, total, count in zip(names, totals, counts, strict=True)
        },
    }


class InterruptedEvaluationError(Exception):
    """A stop was asked for inside an evaluation; raised by its scorer, on all ranks at the same call."""


class Evaluation(Hook):
    """Likelihood tasks on a cadence; what to evaluate is handed in by the command."""

    def __init__(self, evaluate: Callable[[Run], dict[str, Any]]) -> None:
        self._evaluate = evaluate

    def start(self, run: Run) -> None:
        if "evaluation" in run.memory.get(OWED, []):
            run.memory[OWED].remove("evaluation")
            self._store(run)

    def after_step(self, run: Run, row: Row) -> None:
        every = run.config.evaluation.every
        if every and run.step % every == 0:
            self._store(run)

    def _store(self, run: Run) -> None:
        try:
            payload = self._evaluate(run)
        except InterruptedEvaluationError:
            run.memory.setdefault(OWED, []).append("evaluation")
            return
        if not run.layout.leader:
            return
        try:
            run.record.write_evaluation(f"step-{run.step:08d}-in-loop", payload)
            run.record.event("evaluation", step=run.step, suite=run.config.evaluation.suite)
        except OSError as error:  # a full disk must not cost the training
            run.record.event("save_failed", step=run.step, message=f"the evaluation was not stored: {error}")


class Health(Hook):
    """Checks that cost little and find what otherwise costs weeks."""

    def after_step(self, run: Run, row: Row) -> None:
        metrics = run.config.metrics
        if metrics.health_every and run.step % metrics.health_every == 0:
            share = eps_dominated(run)
            if run.layout.leader:
                run.log(eps_dominated=share)
        if metrics.agreement_every and run.layout.size > 1 and run.step % metrics.agreement_every == 0:
            began = time.perf_counter()
            name = disagreement(run, run.step // metrics.agreement_every)
            if run.layout.leader:
                # Spread over the steps in between: what the check costs a step.
                cost = (time.perf_counter() - began) / metrics.agreement_every * 1e6
                run.log(agreement_us_per_step=cost)
            if name:
                run.record_fault(
                    f"step {run.step}: ranks hold different weights: {name}: a device or link computes wrongly; "
                    "go on from a checkpoint before the last check that passed"
                )


def eps_dominated(run: Run) -> float:
    """Share of parameters whose Adam update is damped by more than half by epsilon: eps > sqrt(v_hat). Collective.

    Near 1 the optimizer is plain momentum with a tiny step: what eps = 1e-5 did to a 172B.
    """
    settings = run.config.optimizer
    correction = 1 - settings.beta2**run.updates
    counts = torch.zeros(2, dtype=torch.float64, device=run.layout.device)
    for fragment in run.engine.fragments(owned=True):
        if fragment.name.startswith("exp_avg_sq."):
            counts[0] += (fragment.view < settings.eps**2 * correction).sum()
            counts[1] += fragment.view.numel()
    small, total = run.layout.sum(counts).tolist()
    return float(small / total)


def disagreement(run: Run, turn: int) -> str:
    """Sampled weight that differs between ranks that should hold the same, and on which; or nothing. Collective.

    Another one each ``turn``. With pipelines each stage looks at one of its own.
    """
    named = run.engine.weights()
    if not named:
        return ""
    name, weight = named[turn % len(named)]
    sums: dict[str, dict[int, float]] = {}
    for rank, (key, value) in enumerate(run.layout.gather((name, float(weight.double().sum())))):
        sums.setdefault(key, {})[rank] = value
    for key, found in sums.items():
        usual, count = Counter(found.values()).most_common(1)[0]
        if count < len(found):
            # Without a majority nobody can say who left.
            left = [r for r, value in found.items() if value != usual or 2 * count <= len(found)]
            return f"{key} on rank{'s' * (len(left) > 1)} {', '.join(map(str, left))}"
    return ""
