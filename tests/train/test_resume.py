"""Whole runs through the real loop: exact resume, stops, refusals. Ranks are real processes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import losses, state, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed, latest
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.errors import UserError
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train.resuming import check_fingerprints

CASES = [
    (1, 0, "fp32"),
    (2, 0, "fp32"),
    (2, 1, "fp32"),
    (2, 2, "fp32"),
    (2, 3, "fp32"),
    (1, 1, "bf16"),
    (2, 1, "bf16"),
    (2, 2, "bf16"),
    (2, 3, "bf16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero", "precision"), CASES)
def test_twenty_steps_equal_ten_a_stop_and_ten(
    world: int, zero: int, precision: str, overrides: Any, tmp_path: Path
) -> None:
    more = (f"parallel.zero={zero}", f"precision={precision}")
    assert train(world, overrides(tmp_path / "whole", *more)) == [exit_codes.OK] * world
    assert train(world, overrides(tmp_path / "parts", *more), stop_after=10) == [exit_codes.STOPPED] * world
    stopped = latest(tmp_path / "parts").step
    assert 10 <= stopped < 20
    assert train(world, overrides(tmp_path / "parts", *more)) == [exit_codes.OK] * world
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert [step for step, _, _ in losses(tmp_path / "whole")] == list(range(1, 21))
    whole, parts = state(tmp_path / "whole", 20), state(tmp_path / "parts", 20)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_resume_on_another_number_of_ranks_and_stage_goes_on_the_same_way(
    overrides: Any, tmp_path: Path
) -> None:
    assert train(1, overrides(tmp_path / "whole", "parallel.zero=0")) == [exit_codes.OK]
    assert (
        train(2, overrides(tmp_path / "parts", "parallel.zero=1"), stop_after=8) == [exit_codes.STOPPED] * 2
    )
    assert train(3, overrides(tmp_path / "parts", "parallel.zero=3")) == [exit_codes.OK] * 3
    for (step, loss, _), (again, other, _) in zip(
        losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True
    ):
        assert step == again
        assert other == pytest.approx(loss, rel=1e-5)
    kinds = [event["kind"] for event in RunRecord(tmp_path / "parts").read_events()]
    assert kinds[0] == "start"
    assert "resume" in kinds
    assert kinds[-1] == "end"


def test_declared_changes_and_a_ramp_are_recorded_and_resumed_exactly(overrides: Any, tmp_path: Path) -> None:
    more = (
        "+changes=[{step:12,lr:1e-3,reason:tired},{step:15,sequence_length:64,global_batch:4}]",
        "batch.ramp_start=2",
        "batch.ramp_increment=2",
        "batch.ramp_steps=6",
    )
    assert train(1, overrides(tmp_path / "whole", *more)) == [exit_codes.OK]
    assert train(1, overrides(tmp_path / "parts", *more), stop_after=11) == [exit_codes.STOPPED]
    assert train(1, overrides(tmp_path / "parts", *more)) == [exit_codes.OK]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    changes = [e for e in RunRecord(tmp_path / "parts").read_events() if e["kind"] == "change"]
    assert [e["step"] for e in changes] == [3, 6, 12, 15]
    assert changes[-2]["reason"] == "tired"
    assert changes[-1]["sequence_length"] == 64
    rows = {r["step"]: r for r in RunRecord(tmp_path / "parts").read_metrics() if "loss" in r}
    assert rows[20]["tokens"] - rows[19]["tokens"] == 4 * 64
    for step in range(2, 21):  # the last step of a phase is rated by its own sizes
        taken = rows[step]["tokens"] - rows[step - 1]["tokens"]
        assert rows[step]["tokens_per_s"] * rows[step]["step_s"] == pytest.approx(taken), step


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_each_signal_saves_and_ends_with_the_documented_code(
    number: int, overrides: Any, tmp_path: Path
) -> None:
    assert train(2, overrides(tmp_path / "run"), stop_after=3, number=number) == [exit_codes.STOPPED] * 2
    events = RunRecord(tmp_path / "run").read_events()
    assert events[-1]["kind"] == "stop"
    assert latest(tmp_path / "run").step == events[-1]["step"] >= 3


def test_trigger_files_save_and_stop(overrides: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "save").touch()
    assert train(1, overrides(run_dir)) == [exit_codes.OK]
    assert committed(run_dir)[0].step == 1
    assert not (run_dir / "save").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "stop").touch()
    assert train(2, overrides(other)) == [exit_codes.STOPPED] * 2
    assert RunRecord(other).read_events()[-1]["reason"] == "stop file"
    assert not (other / "stop").exists()


def test_the_time_limit_stops(overrides: Any, tmp_path: Path) -> None:
    assert train(1, overrides(tmp_path / "run", "time_limit=0.0001")) == [exit_codes.STOPPED]
    assert RunRecord(tmp_path / "run").read_events()[-1]["reason"] == "time limit"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.ffn_size=64", "model"),
        ("data.seed=9", "data"),
        ("data.document_mask=false", "data"),
    ],
)
def test_resume_with_something_else_is_refused_with_the_difference(
    change: str, named: str, overrides: Any, tmp_path: Path
) -> None:
    assert train(1, overrides(tmp_path / "run"), stop_after=3) == [exit_codes.STOPPED]
    (told,) = train(1, overrides(tmp_path / "run", change))
    key, _, value = change.partition("=")
    assert named in told
    assert key.rpartition(".")[2] in told or value in told
    if named == "data":
        assert f"allow_changed=[{named}]" in told
        assert train(1, overrides(tmp_path / "run", change, f"allow_changed=[{named}]")) == [exit_codes.OK]
        resumed = next(e for e in RunRecord(tmp_path / "run").read_events() if e["kind"] == "resume")
        assert resumed["allow_changed"] == [named]


def test_resume_with_another_tokenizer_is_refused(
    overrides: Any, tmp_path: Path, tokenizer_folder: Path
) -> None:
    assert train(1, overrides(tmp_path / "run"), stop_after=3) == [exit_codes.STOPPED]
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"][-1][0] = "違"
    (other / "tokenizer.json").write_text(json.dumps(content))
    (told,) = train(1, overrides(tmp_path / "run", f"tokenizer.path={other}"))
    assert "tokenizer" in told


def test_changed_validation_is_changed_data(overrides: Any, tmp_path: Path, prepared: Path) -> None:
    held_out = tmp_path / "held-out"
    for suffix in (".bin", ".idx"):
        shutil.copy(prepared / f"validation{suffix}", f"{held_out}{suffix}")
    mine = f"data.sources.small.validation={held_out}"
    assert train(1, overrides(tmp_path / "run", mine), stop_after=3) == [exit_codes.STOPPED]
    content = bytearray(Path(f"{held_out}.bin").read_bytes())
    content[0] ^= 1
    Path(f"{held_out}.bin").write_bytes(content)
    (told,) = train(1, overrides(tmp_path / "run", mine))
    assert "data: validation.small.fingerprint: " in told
    assert train(1, overrides(tmp_path / "run", mine, "allow_changed=[data]")) == [exit_codes.OK]


def test_what_older_runs_did_not_record_is_not_held_against_them() -> None:
    now = {
        "model": {"layers": 2},
        "tokenizer": {"fingerprint": "a", "eod_id": 2},
        "data": {"window": 8, "validation": {"x": 1}},
    }
    before = {"model": {"layers": 2}, "tokenizer": {"fingerprint": "a"}, "data": {"window": 8}}
    for old, new in ((before, now), (now, now), (now, before), ({"model": {"layers": 2}}, now)):
        check_fingerprints(old, new, [], Path("x"))
    for part, key, value in (
        ("tokenizer", "eod_id", 1),
        ("data", "validation", {"x": 2}),
        ("data", "window", 4),
    ):
        changed = now | {part: {**now[part], key: value}}
        with pytest.raises(UserError, match=key):
            check_fingerprints(now, changed, [], Path("x"))


def test_stopping_at_the_best_needs_a_validation(
    overrides: Any, tmp_path: Path, prepared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copy(prepared / f"train{suffix}", tmp_path / f"alone{suffix}")
    alone = f"data.sources.small.path={tmp_path / 'alone'}"
    (told,) = train(1, overrides(tmp_path / "run", alone, "evaluation.stop_at_best=2"))
    assert "evaluation.stop_at_best=2 has nothing to go by" in told
    assert train(1, overrides(tmp_path / "run", alone, "schedule.length=2")) == [exit_codes.OK]
    said = capfd.readouterr().out
    assert "no source has validation documents" in said
    assert "source small: " in said


def test_a_second_run_in_a_live_run_directory_is_refused(overrides: Any, tmp_path: Path) -> None:
    from llmjp_train.runlog.lease import Lease

    with Lease.acquire(tmp_path / "run"):
        told = train(2, overrides(tmp_path / "run"))
    assert "is being written by process" in told[0]
    assert told[1] == exit_codes.BAD_INPUT


def test_a_run_directory_that_cannot_be_written_is_said(overrides: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    (told,) = train(1, overrides(blocked / "run"))
    assert "cannot be written" in told


def poison(rank: int, config: Any) -> None:
    """A loss that turns NaN at step 5."""
    from llmjp_train.engine.flat import FlatEngine

    step = FlatEngine.step
    count = iter(range(10**6))

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(count) == 4:
            self._engine.module.decoder.norm.register_forward_hook(lambda m, i, out: out * float("nan"))
        return step(self, *args, **kwargs)

    FlatEngine.step = wrapped  # type: ignore[method-assign]  # in the forked rank alone


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_nan_stops_the_run_at_its_step(zero: int, overrides: Any, tmp_path: Path) -> None:
    more = overrides(
        tmp_path / "run",
        f"parallel.zero={zero}",
        "checkpoint.every_steps=2",
        "evaluation.validation_every=null",
    )
    assert train(2, more, inject=poison) == [exit_codes.UNHEALTHY] * 2
    events = RunRecord(tmp_path / "run").read_events()
    fault = next(event for event in events if event["kind"] == "fault")
    assert "step 5: the loss is nan; the weights are those of step 4" in fault["message"]
    assert latest(tmp_path / "run").step == 4
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", 4).values())


def test_a_full_disk_costs_checkpoints_but_not_the_training(overrides: Any, small_disk: Any) -> None:
    run_dir = small_disk("900k") / "run"
    more = ("checkpoint.every_steps=5", "evaluation.validation_every=null")
    assert train(2, overrides(run_dir, *more)) == [exit_codes.FAILED] * 2
    assert [info.step for info in committed(run_dir)] == [5, 10][: len(committed(run_dir))]
    assert committed(run_dir)
    assert CheckpointReader(latest(run_dir).path).verify() > 0
    failed = [event for event in RunRecord(run_dir).read_events() if event["kind"] == "save_failed"]
    assert failed
    assert "are free" in failed[0]["message"]
    assert [step for step, _, _ in losses(run_dir)] == list(range(1, 21))
