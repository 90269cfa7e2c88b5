"""Stops at any moment, and checks that stop a run: what is saved, what is recorded, which code is given."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import events, losses, state, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed, latest
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.runlog.record import RunRecord

Overrides = Callable[..., list[str]]


def validations(run_dir: Path) -> list[tuple[int, float]]:
    return [
        (r["step"], r["validation"]["loss"]) for r in RunRecord(run_dir).read_metrics() if "validation" in r
    ]


def signal_in_validation(rank: int, config: Any) -> None:
    """SIGTERM comes to rank 1 at the first batch of the first validation."""
    from llmjp_train.train import hooks

    validate = hooks.validate

    def wrapped(run: Any) -> Any:
        if rank == 1 and run.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(run)

    hooks.validate = wrapped


def test_a_stop_in_a_validation_cuts_it_short_and_the_next_start_does_it_first(
    overrides: Overrides, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(2, overrides(whole)) == [exit_codes.OK] * 2
    assert train(2, overrides(parts), inject=signal_in_validation) == [exit_codes.STOPPED] * 2
    assert latest(parts).step == 10
    assert validations(parts) == []
    assert events(parts, "stop")[0]["reason"] == "SIGTERM", "the leader was not the one that was asked"
    assert train(2, overrides(parts)) == [exit_codes.OK] * 2
    assert validations(parts) == validations(whole)
    assert [step for step, _ in validations(parts)] == [10, 20]
    assert losses(parts) == losses(whole)


def signal_in_save(rank: int, config: Any) -> None:
    """SIGUSR1 comes to rank 1 when it begins to save."""
    from llmjp_train.train import saving

    save = saving.save

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return save(*args, **kwargs)

    saving.save = wrapped


def test_a_stop_in_a_save_ends_after_that_save_and_saves_no_second_time(
    overrides: Overrides, tmp_path: Path
) -> None:
    assert (
        train(2, overrides(tmp_path / "run", "checkpoint.every_steps=5"), inject=signal_in_save)
        == [exit_codes.STOPPED] * 2
    )
    assert [info.step for info in committed(tmp_path / "run")] == [5]
    assert CheckpointReader(latest(tmp_path / "run").path).verify() > 0
    assert [event["step"] for event in events(tmp_path / "run", "save")] == [5]


def test_the_first_ctrl_c_after_another_request_does_not_cost_the_save(
    overrides: Overrides, tmp_path: Path
) -> None:
    def ctrl_c_in_save(rank: int, config: Any) -> None:
        from llmjp_train.train import saving

        save = saving.save

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return save(*args, **kwargs)

        saving.save = wrapped

    run_dir = tmp_path / "run"
    codes = train(1, overrides(run_dir), stop_after=3, inject=ctrl_c_in_save)
    assert codes == [exit_codes.STOPPED]
    assert latest(run_dir).step == len(losses(run_dir))
    assert events(run_dir, "stop")[-1]["reason"] == "SIGTERM"


def signal_in_evaluation(rank: int, config: Any) -> None:
    """SIGTERM comes to rank 0 at the third call of the scorer of the first evaluation."""
    from llmjp_train.evaluate import models

    score = models.TokenLogprobsLM.__init__

    def wrapped(self: Any, tokenizer: Any, scorer: Any, *args: Any, **kwargs: Any) -> None:
        calls = iter(range(10**6))

        def counted(batch: Any) -> Any:
            if rank == 0 and next(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return scorer(batch)

        score(self, tokenizer, counted, *args, **kwargs)

    models.TokenLogprobsLM.__init__ = wrapped  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_stop_in_an_evaluation_cuts_it_short_and_the_next_start_does_it_first(
    overrides: Overrides, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    more = ("evaluation.every=8", "evaluation.limit=2", "evaluation.batch_size=2", "schedule.length=10")
    assert train(2, overrides(run_dir, *more), inject=signal_in_evaluation) == [exit_codes.STOPPED] * 2
    assert latest(run_dir).step == 8
    assert events(run_dir, "evaluation") == []
    assert train(2, overrides(run_dir, *more)) == [exit_codes.OK] * 2
    assert [event["step"] for event in events(run_dir, "evaluation")] == [8]
    assert list(RunRecord(run_dir).read_evaluations()) == ["step-00000008-in-loop"]


def signal_at_start(rank: int, config: Any) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_during_start_up_takes_no_step(overrides: Overrides, tmp_path: Path) -> None:
    assert train(2, overrides(tmp_path / "run"), inject=signal_at_start) == [exit_codes.STOPPED] * 2
    assert losses(tmp_path / "run") == []
    assert [(e["kind"], e["step"]) for e in events(tmp_path / "run")] == [("start", 0), ("stop", 0)]
    assert train(2, overrides(tmp_path / "run")) == [exit_codes.OK] * 2
    assert len(losses(tmp_path / "run")) == 20


def test_a_limit_counts_from_the_start_of_the_process() -> None:
    import time

    from llmjp_train.train.stops import Stops

    stops = Stops()
    time.sleep(0.02)
    stops.watch(None, 0.01 / 60)
    assert stops.stop
    assert stops.reason == "time limit"
    patient = Stops()
    patient.watch(None, 1.0)
    assert not patient.stop


def break_a_replica(rank: int, config: Any) -> None:
    """From step 3 on, rank 1 has other weights."""
    from llmjp_train.engine.flat import FlatEngine

    step = FlatEngine.step
    count = iter(range(10**6))

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        if rank == 1 and next(count) >= 2:
            for _, weight in self.weights():
                weight.view(-1)[0] += 1e-3
        return result

    FlatEngine.step = wrapped  # type: ignore[method-assign]


def test_replicas_that_disagree_stop_the_run_without_a_save(overrides: Overrides, tmp_path: Path) -> None:
    more = ("checkpoint.every_steps=2", "metrics.agreement_every=4", "evaluation.validation_every=null")
    assert train(2, overrides(tmp_path / "run", *more), inject=break_a_replica) == [exit_codes.UNHEALTHY] * 2
    (fault,) = events(tmp_path / "run", "fault")
    assert "step 4: ranks hold different weights: " in fault["message"]
    assert " on ranks 0, 1: " in fault["message"]
    assert latest(tmp_path / "run").step == 2, "what the check doubts is not saved"
    assert events(tmp_path / "run")[-1]["outcome"] == "unhealthy"


def test_more_than_a_stated_peak_stops_the_run(overrides: Overrides, tmp_path: Path) -> None:
    more = overrides(tmp_path / "run", "cluster.peak_tflops_fp32=1e-9")
    assert train(2, more) == [exit_codes.UNHEALTHY] * 2
    (fault,) = events(tmp_path / "run", "fault")
    assert "MFU would be" in fault["message"]
    assert "cluster.peak_tflops_*" in fault["message"]
    assert committed(tmp_path / "run") == []


def see_everything(rank: int, config: Any) -> None:
    """Attention forgets where documents begin."""
    from dataclasses import replace

    from llmjp_train.model import decoder

    make = decoder.make_context
    decoder.make_context = lambda *args, **more: replace(make(*args, **more), segments=None, mask=None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mask_that_leaks_stops_the_run_before_its_first_step(
    precision: str, overrides: Overrides, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    more = (f"precision={precision}", "model.init_std=0.2")
    assert train(1, overrides(run_dir, *more), inject=see_everything) == [exit_codes.UNHEALTHY]
    assert "attention crosses documents" in events(run_dir, "fault")[0]["message"]
    assert losses(run_dir) == []
    assert train(1, overrides(tmp_path / "sound", *more, "schedule.length=4")) == [exit_codes.OK]


def take_over(rank: int, config: Any) -> None:
    """After step 3 somebody else takes the run directory."""
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.runlog.lease import Lease

    step = FlatEngine.step
    count = iter(range(10**6))

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 0 and next(count) == 3:
            Lease.acquire(Path(config.run_dir), takeover=True)
        return step(self, *args, **kwargs)

    FlatEngine.step = wrapped  # type: ignore[method-assign]


def test_who_lost_the_directory_ends_at_its_next_save_and_writes_nothing_more(
    overrides: Overrides, tmp_path: Path
) -> None:
    more = overrides(tmp_path / "run", "checkpoint.every_steps=5", "evaluation.validation_every=null")
    assert train(2, more, inject=take_over) == [exit_codes.FAILED] * 2
    assert committed(tmp_path / "run") == []
    assert [event["kind"] for event in events(tmp_path / "run")] == ["start"]
    assert not (tmp_path / "run" / "lease" / "alive-0001").exists()
    assert (tmp_path / "run" / "lease" / "alive-0002").exists(), "the other's sign of life is its own"


def fail_in_data(rank: int, config: Any) -> None:
    from llmjp_train.data.stream import TrainingStream

    batch = TrainingStream.batch

    def wrapped(self: Any, first: int, *args: Any) -> Any:
        if first >= 30:
            raise OSError(5, "Input/output error")
        return batch(self, first, *args)

    TrainingStream.batch = wrapped  # type: ignore[method-assign]


def test_an_error_in_mid_run_is_recorded(overrides: Overrides, tmp_path: Path) -> None:
    from llmjp_train.runlog.reading import run_state

    with pytest.raises(RuntimeError, match="Input/output error"):
        train(1, overrides(tmp_path / "run", "checkpoint.every_steps=2"), inject=fail_in_data)
    found = events(tmp_path / "run")
    assert found[-1]["outcome"] == "failed"
    assert "OSError: [Errno 5] Input/output error" in found[-1]["reason"]
    assert run_state(tmp_path / "run", found) == ("failed", found[-1]["reason"])
    assert latest(tmp_path / "run").step == 4


def fail_in_leak_test(rank: int, config: Any) -> None:
    from llmjp_train.train import setup

    def failing(*args: Any) -> float:
        raise RuntimeError("no compiler")

    setup.leaks = failing


def test_an_error_before_the_first_step_is_recorded(overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no compiler"):
        train(1, overrides(tmp_path / "run"), inject=fail_in_leak_test)
    found = events(tmp_path / "run")
    assert [event["kind"] for event in found] == ["start", "stop"]
    assert (found[-1]["step"], found[-1]["outcome"]) == (0, "failed")
    assert found[-1]["reason"] == "RuntimeError: no compiler"


def stop_between_micro_batches(rank: int, config: Any) -> None:
    """SIGTERM comes to rank 1 inside the third micro batch of the sixth step."""
    from llmjp_train.model.decoder import Decoder

    forward = Decoder.forward
    calls = iter(range(10**6))

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # two calls of the leak test, then three micro batches a step
        if rank == 1 and torch.is_grad_enabled() and next(calls) == 5 * 3 + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)

    Decoder.forward = wrapped  # type: ignore[method-assign]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_stop_between_micro_batches_drops_the_step_and_the_resumed_run_takes_it_again(
    zero: int, overrides: Overrides, tmp_path: Path
) -> None:
    more = (f"parallel.zero={zero}", "schedule.length=10", "evaluation.validation_every=null")
    assert train(2, overrides(tmp_path / "whole", *more)) == [exit_codes.OK] * 2
    assert (
        train(2, overrides(tmp_path / "parts", *more), inject=stop_between_micro_batches)
        == [exit_codes.STOPPED] * 2
    )
    assert latest(tmp_path / "parts").step == 5
    assert len(losses(tmp_path / "parts")) == 5
    assert train(2, overrides(tmp_path / "parts", *more)) == [exit_codes.OK] * 2
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = state(tmp_path / "whole", 10), state(tmp_path / "parts", 10)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_rank_that_waits_for_one_that_hangs_gives_up(overrides: Any, tmp_path: Path) -> None:
    """Without a supervisor too: after the first step collectives may not take the half hour of a start."""

    def hang(rank: int, config: Any) -> None:
        from llmjp_train.train import loop

        take_step = loop.take_step

        def late(run: Any, *args: Any) -> Any:
            if rank == 1 and run.step == 3:
                time.sleep(60)
            return take_step(run, *args)

        loop.take_step = late

    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)rank 0.*[Tt]imed out"):
        train(2, overrides(tmp_path / "run", "cluster.collective_minutes=0.05"), inject=hang)
    assert time.monotonic() - began < 50
    assert len(losses(tmp_path / "run")) == 3
