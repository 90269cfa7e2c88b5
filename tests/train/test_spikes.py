"""What is done about a loss spike or a step that is not finite. Bad samples lie in the data, as they do in life."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import events, losses, state, train
from hypothesis import given
from hypothesis import strategies as st

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed
from llmjp_train.config.validate import problems
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train import loop
from llmjp_train.train.run import in_stream
from llmjp_train.train.spikes import leave_out

BATCH, LENGTH = 6, 40
SPIKE = 31
"""The step whose samples are bad, in the order in which they are read at first."""


def spoiled(*steps: int, junk: bool = True) -> Callable[[int, Any], None]:
    """Makes the samples of some steps junk, or their loss not finite."""

    def inject(rank: int, config: Any) -> None:
        from llmjp_train.data.stream import TrainingStream
        from llmjp_train.engine.flat import FlatEngine

        batch, step = TrainingStream.batch, FlatEngine.step
        seen = Path(config.run_dir).parent / "read.txt"

        def bad(self: Any, first: int, count: int, length: int) -> Any:
            found = batch(self, first, count, length)
            if rank == 0:
                with seen.open("a") as file:
                    file.write(f"{first}\n")
            if first // BATCH + 1 in steps:
                if junk:
                    found.tokens.copy_((found.tokens * 7 + 13) % 400)
                    found.targets.copy_((found.targets * 11 + 17) % 400)
                else:
                    found.positions.fill_(-1)
            return found

        def not_finite(self: Any, batches: Any, *args: Any, **kwargs: Any) -> Any:
            if junk or all(int(b.positions.max()) >= 0 for b in batches):
                return step(self, batches, *args, **kwargs)
            for one in batches:
                one.positions.fill_(0)
            norm = self._engine.module.decoder.norm
            handle = norm.register_forward_hook(lambda m, i, out: out * math.nan)
            result = step(self, batches, *args, **kwargs)
            handle.remove()
            return result

        TrainingStream.batch = bad  # type: ignore[method-assign]  # in the forked rank alone
        FlatEngine.step = not_finite  # type: ignore[method-assign]

    return inject


@pytest.fixture
def run(overrides: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """Trains in a folder of the test, with the policy and more; a second start of the same name goes on."""

    def start(
        name: str, policy: str, *more: str, world: int = 1, steps: tuple[int, ...] = (SPIKE,), **how: Any
    ) -> Any:
        words = overrides(
            tmp_path / name / "run", f"spikes.policy={policy}", "spikes.rewind_steps=5", f"schedule.length={LENGTH}",
            "metrics.spike_sigma=2", "checkpoint.every_steps=4", "checkpoint.keep_last=20",
            "evaluation.validation_every=null", *more,
        )  # fmt: skip
        junk = how.pop("junk", True)
        return train(world, words, inject=spoiled(*steps, junk=junk), **how)

    return start


def read_again(folder: Path) -> list[int]:
    """The first sample of each micro batch of rank 0, in the order in which they were made."""
    return [int(line) for line in (folder / "read.txt").read_text().split()]


def test_a_spike_is_noted_and_its_update_taken(run: Any, tmp_path: Path) -> None:
    assert run("a", "note") == [exit_codes.OK]
    (spike,) = events(tmp_path / "a" / "run", "spike")[:1]
    assert spike["step"] == SPIKE
    assert spike["score"] > 2
    assert "action" not in spike


@pytest.mark.parametrize("junk", [True, False])
def test_stop_ends_with_the_weights_from_before(run: Any, tmp_path: Path, junk: bool) -> None:
    assert run("a", "stop", junk=junk) == [exit_codes.UNHEALTHY]
    (fault,) = events(tmp_path / "a" / "run", "fault")
    assert f"step {SPIKE}: " in fault["message"]
    assert f"the weights are those of step {SPIKE - 1}" in fault["message"]
    assert committed(tmp_path / "a" / "run")[-1].step == 28


@pytest.mark.parametrize(("world", "zero", "junk"), [(1, 0, True), (2, 1, False), (2, 3, True)])
def test_skip_leaves_the_update_out_and_resumes_exactly(
    run: Any, tmp_path: Path, world: int, zero: int, junk: bool
) -> None:
    more = (f"parallel.zero={zero}", f"checkpoint.keep_steps=[{SPIKE - 1},{SPIKE}]")
    assert run("whole", "skip", *more, world=world, junk=junk) == [exit_codes.OK] * world
    whole = tmp_path / "whole" / "run"
    (spike,) = [event for event in events(whole, "spike") if event.get("action")]
    assert (spike["step"], spike["samples"]) == (SPIKE, [(SPIKE - 1) * BATCH, SPIKE * BATCH])
    rows = {row["step"]: row for row in RunRecord(whole).read_metrics() if "loss" in row}
    assert [step for step, row in rows.items() if row.get("applied") is False] == [SPIKE]
    before, after = state(whole, SPIKE - 1), state(whole, SPIKE)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    how = {"world": world, "junk": junk}
    assert run("parts", "skip", *more, stop_after=SPIKE + 2, **how) == [exit_codes.STOPPED] * world
    assert run("parts", "skip", *more, **how) == [exit_codes.OK] * world
    assert losses(tmp_path / "parts" / "run") == losses(whole)
    last, other = state(whole, LENGTH), state(tmp_path / "parts" / "run", LENGTH)
    assert all(torch.equal(tensor, other[name]) for name, tensor in last.items())


def test_rewind_goes_back_and_leaves_the_samples_out(run: Any, tmp_path: Path) -> None:
    world, more = 2, ("checkpoint.asynchronous=true",)
    assert run("whole", "rewind", *more, world=world) == [exit_codes.OK] * world
    whole = tmp_path / "whole" / "run"
    (spike,) = [event for event in events(whole, "spike") if event.get("action")]
    assert spike["action"].startswith("went back to step-00000024")
    assert "samples of steps 27 to 31" in spike["action"]
    assert spike["lost_steps"] == 6
    (rewind,) = events(whole, "rewind")
    assert (rewind["step"], rewind["left_out"]) == (24, [[26 * BATCH, 5 * BATCH]])
    assert rewind["left"] == ["left-step-00000028.epoch-0001"]
    every = [row for row in RunRecord(whole).read_metrics(latest=False) if "loss" in row]
    taken = [row["step"] for row in every]
    assert taken == [*range(1, SPIKE), *range(25, LENGTH + 1)]
    again = {row["step"]: row["loss"] for row in every[SPIKE - 1 :]}
    first = {row["step"]: row["loss"] for row in every[: SPIKE - 1]}
    assert [again[25], again[26]] == [first[25], first[26]], "their own samples, once more"
    assert again[27] != first[27]
    read = read_again(tmp_path / "whole")
    back = len(read) - 1 - read[::-1].index(24 * BATCH)
    steps = sorted({sample // BATCH + 1 for sample in read[back:]})
    assert steps == [25, 26, *range(32, LENGTH + 6)]
    assert run("parts", "rewind", *more, world=world, stop_after=29) == [exit_codes.STOPPED] * world
    assert run("parts", "rewind", *more, world=world) == [exit_codes.OK] * world
    assert losses(tmp_path / "parts" / "run") == losses(whole)
    assert (
        run("late", "rewind", *more, world=world, steps=(33,), stop_after=34) == [exit_codes.STOPPED] * world
    )
    assert run("late", "rewind", *more, world=world, steps=(33,)) == [exit_codes.OK] * world
    assert [event["step"] for event in events(tmp_path / "late" / "run", "rewind")] == [28]


def test_a_run_that_dies_after_a_rewind_does_not_read_the_samples_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint holds yet what the rewind left out: the record does."""
    assert run("whole", "rewind") == [exit_codes.OK]

    def dies(one: Any, *args: Any) -> Any:
        if one.step == 26 and any(event["kind"] == "rewind" for event in one.record.read_events()):
            raise RuntimeError("the node is gone")
        return take_step(one, *args)

    take_step = loop.take_step
    with monkeypatch.context() as hurt:
        hurt.setattr(loop, "take_step", dies)
        with pytest.raises(RuntimeError, match="the node is gone"):
            run("parts", "rewind")
    parts = tmp_path / "parts" / "run"
    assert committed(parts)[-1].step == 24
    assert run("parts", "rewind") == [exit_codes.OK]
    assert len(events(parts, "rewind")) == 1
    assert losses(parts) == losses(tmp_path / "whole" / "run")


def test_spikes_that_do_not_end_stop_the_run(run: Any, tmp_path: Path) -> None:
    assert run("a", "skip", "spikes.most=2", junk=False, steps=(25, 27, 28)) == [exit_codes.UNHEALTHY]
    (fault,) = events(tmp_path / "a" / "run", "fault")
    assert "2 others within 1000 steps were answered before (spikes.most)" in fault["message"]
    assert run("b", "rewind", "spikes.rewind_steps=30", junk=False, steps=(9,)) == [exit_codes.UNHEALTHY]
    (fault,) = events(tmp_path / "b" / "run", "fault")
    assert "no checkpoint is 30 steps old (spikes.rewind_steps)" in fault["message"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("checkpoint.every_steps=null",), "needs checkpoints by steps"),
        (
            ("checkpoint.every_steps=10", "checkpoint.keep_last=2"),
            "take checkpoint.keep_last=11, or fewer steps",
        ),
        (("+changes=[{step:5,sequence_length:16}]",), "does not go with a change of sequence_length"),
        (("spikes.rewind_steps=0",), "spikes.rewind_steps"),
    ],
)
def test_a_rewind_that_could_not_be_is_refused(overrides: Any, tmp_path: Path, words: Any, told: str) -> None:
    from llmjp_train.config.compose import compose

    config = compose("train", overrides(tmp_path, "spikes.policy=rewind", *words), partial=True)
    assert any(told in line for line in problems(config))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=6))
def test_what_is_left_out_is_never_read_again(cuts: list[tuple[int, int]]) -> None:
    order, left_out = list(range(400)), []
    for first, count in cuts:
        assert [in_stream(left_out, sample) for sample in range(100)] == order[:100]
        left_out = leave_out(left_out, first, first + count)
        del order[first : first + count]
    assert [in_stream(left_out, sample) for sample in range(100)] == order[:100]
