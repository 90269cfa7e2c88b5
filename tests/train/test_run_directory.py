"""What a run directory goes through: refusals, rewinds, damage, retention, full and read-only disks, trackers."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import events, losses, train
from helpers.toy import small_run

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed, latest
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig
from llmjp_train.data.prepare import prepare
from llmjp_train.runlog.record import RunRecord

Overrides = Callable[..., list[str]]
PLAIN = ("evaluation.validation_every=null",)


def resume(run_dir: Path, *more: str) -> Any:
    """As `llmjp train RUN` does: by the directory's own config.yaml."""
    from helpers.ranks import run_ranks
    from helpers.runs import rank_main

    from llmjp_train.config.compose import load_config

    return run_ranks(rank_main, 1, load_config(run_dir / "config.yaml", [f"run_dir={run_dir}", *more]))[0]


@pytest.fixture(scope="module")
def trained(prepared: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    more = (*PLAIN, "checkpoint.every_steps=5", "checkpoint.keep_last=9")
    assert train(1, small_run(run_dir, prepared, tokenizer_folder, *more)) == [exit_codes.OK]
    return run_dir


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """A run of 20 steps with checkpoints of steps 5, 10, 15, and 20."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_refused_start_leaves_the_directory_as_it_was(stopped: Path) -> None:
    from llmjp_train.runlog.lease import Lease

    def files() -> dict[str, bytes]:
        return {
            str(path.relative_to(stopped)): path.read_bytes()
            for path in stopped.rglob("*")
            if path.is_file() and "lease" not in path.parts
        }

    before = files()
    with Lease.acquire(stopped):
        assert "is being written by process" in resume(stopped, "schedule.length=30")
    assert files() == before
    assert "data" in resume(stopped, "data.seed=9", "schedule.length=30")
    assert files() == before
    often = ("evaluation.every=2", "schedule.length=30")
    assert "task nosuch" in resume(stopped, "evaluation.tasks=[nosuch]", *often)
    assert "own_answers generates text" in resume(stopped, "evaluation.tasks=[own_answers]", *often)
    assert "nosuch:Class cannot be loaded" in resume(stopped, "metrics.trackers=['nosuch:Class']")
    assert files() == before
    assert resume(stopped, "schedule.length=22") == exit_codes.OK, "what was refused is not remembered"


@pytest.mark.parametrize(
    "wrong",
    [("evaluation.every=2", "evaluation.tasks=[nosuch]"), ("metrics.trackers=['nosuch:Class']",)],
)
def test_ranks_refuse_a_new_run_together_and_leave_nothing(
    wrong: tuple[str, ...], overrides: Overrides, tmp_path: Path
) -> None:
    told, other = train(2, overrides(tmp_path / "run", *PLAIN, *wrong))
    assert "nosuch" in told
    assert other == exit_codes.BAD_INPUT, "one tells it for all, and none waits for it"
    assert not (tmp_path / "run").exists()


def test_going_back_to_a_step_gives_up_the_later_ones_and_is_not_repeated(stopped: Path) -> None:
    whole = losses(stopped)
    assert resume(stopped, "resume=10", "schedule.length=12") == exit_codes.OK
    assert [info.step for info in committed(stopped)] == [5, 10, 12]
    start = events(stopped, "resume")[-1]
    assert start["step"] == 10
    assert start["left"] == ["left-step-00000015.epoch-0001", "left-step-00000020.epoch-0001"]
    assert all((stopped / "checkpoints" / name / "COMMITTED").is_file() for name in start["left"])
    assert start["changed"] == {"schedule.length": [20, 12]}
    assert [step for step, _, _ in losses(stopped)] == list(range(1, 13))
    assert resume(stopped, "schedule.length=14") == exit_codes.OK
    assert events(stopped, "resume")[-1]["changed"] == {"schedule.length": [12, 14]}
    assert events(stopped, "start")[0]["changed"] == {}
    assert events(stopped, "resume")[-1]["step"] == 12, "resume=10 held for one start"
    assert losses(stopped)[:10] == whole[:10]


def test_a_longer_sequence_that_was_not_declared_from_the_start_is_refused_with_that_advice(
    stopped: Path,
) -> None:
    longer = "changes=[{step:22,sequence_length:64}]"
    told = resume(stopped, longer, "schedule.length=24", "spikes.policy=note")
    assert "data: window: 32 -> 64 (the run's longest sequence" in told
    assert "declare a longer one in changes from the start" in told


def test_what_was_allowed_to_change_is_allowed_once(stopped: Path) -> None:
    allowed = resume(stopped, "data.seed=9", "allow_changed=[data]", "schedule.length=22")
    assert allowed == exit_codes.OK
    assert events(stopped, "resume")[-1]["allow_changed"] == ["data"]
    told = resume(stopped, "data.seed=10", "schedule.length=24")
    assert "data: seed: 9 -> 10" in told
    assert "allow_changed=[data]" in told


def test_another_form_of_the_model_is_refused_with_the_difference_and_allowed_when_it_fits(
    stopped: Path,
) -> None:
    told = resume(stopped, "model.rope_theta=5e5", "schedule.length=22")
    assert "model: rope_theta: 10000.0 -> 500000.0" in told
    assert "allow_changed=[model]" in told
    assert resume(stopped, "model.rope_theta=5e5", "allow_changed=[model]", "schedule.length=22") == 0
    told = resume(stopped, "model.ffn_size=64", "schedule.length=24")
    assert "model: ffn_size: 48 -> 64" in told
    told = resume(stopped, "model.ffn_size=64", "allow_changed=[model]", "schedule.length=24")
    assert "has shape (48, 32) in it and (64, 32) here" in told


def test_a_tokenizer_that_was_allowed_to_change_is_the_one_in_the_directory(
    stopped: Path, tokenizer_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"][-1][0] = "違"
    (other / "tokenizer.json").write_text(json.dumps(content))
    again = tmp_path / "prepared"
    own = TokenizerConfig(name="toy", path=str(other))
    prepare(
        PrepareConfig(input=[str(corpus)], output=str(again), tokenizer=own, workers=1, validation_share=0.1)
    )
    assert "was prepared with tokenizer toy" in resume(stopped, f"tokenizer.path={other}")
    more = (f"tokenizer.path={other}", f"data.sources.small.path={again}", "schedule.length=22")
    told = resume(stopped, *more)
    assert "was trained with another tokenizer and data" in told
    assert "allow_changed=[tokenizer,data]" in told
    assert resume(stopped, *more, "allow_changed=[tokenizer,data]") == exit_codes.OK
    assert "違" in (stopped / "tokenizer" / "tokenizer.json").read_text()


def test_a_decay_branch_goes_on_from_a_saved_run_and_may_take_other_data(
    overrides: Overrides, stopped: Path, tmp_path: Path
) -> None:
    branch = tmp_path / "branch"
    more = ("schedule=wsd", "schedule.decay=5", "schedule.length=15", f"fork.from={stopped}", "fork.step=10")
    assert train(2, overrides(branch, *PLAIN, *more, "parallel.zero=3")) == [exit_codes.OK] * 2
    (start,) = events(branch, "fork")
    assert (start["step"], start["origin"]["fork_of"]) == (10, str(stopped))
    rows = {row["step"]: row for row in RunRecord(branch).read_metrics() if "loss" in row}
    assert list(rows) == [11, 12, 13, 14, 15]
    assert rows[11]["loss"] == pytest.approx(losses(stopped)[10][1], rel=1e-6), "the same weights and data"
    assert rows[15]["lr"] == pytest.approx(1e-4)
    assert sorted((row["lr"] for row in rows.values()), reverse=True) == [row["lr"] for row in rows.values()]
    assert [info.step for info in committed(stopped)] == [5, 10, 15, 20], "the stem is as it was"
    again = resume(branch, "schedule.length=16", "schedule.decay=6", "parallel.data=1")
    assert again == exit_codes.OK, "a branch goes on from its own checkpoints"
    assert events(branch, "resume")[-1]["step"] == 15
    assert resume(branch, f"fork.run={stopped}", "fork.step=10", "schedule.length=16", "parallel.data=1") == 0
    told = resume(branch, "fork.step=5", "schedule.length=18")
    assert f"is a branch of {stopped} at step 10: name another run_dir" in told
    told = resume(stopped, f"fork.run={branch}", "schedule.length=22")
    assert "has checkpoints already and is no branch: name another run_dir, or go on with" in told
    config = (
        stopped / "config.yaml"
    )  # once, fork.run of a run that was there already was passed over and stored
    config.write_text(
        re.sub(r"fork:\n  run: [^\n]*", f"fork:\n  run: {branch}", config.read_text("utf-8")), "utf-8"
    )
    assert resume(stopped, "schedule.length=22") == exit_codes.OK
    (told,) = train(1, overrides(tmp_path / "late", *PLAIN, "schedule.length=20", f"fork.from={stopped}"))
    assert "stands at step 22, and the branch would end at step 20: schedule.length counts" in told
    other = overrides(tmp_path / "other", *PLAIN, *more, "data.seed=9")
    (told,) = train(1, other)
    assert "data: seed: 1234 -> 9" in told
    assert train(1, [*other, "allow_changed=[data]"]) == [exit_codes.OK]


@pytest.mark.parametrize(
    ("words", "declared"),
    [
        (("batch.global_batch=8",), "changes=[{step:20,global_batch:8}]"),
        (("batch.sequence_length=16",), ""),
        (("changes=[{step:5,global_batch:8}]",), "changes=[{step:20,global_batch:8}]"),
    ],
)
def test_a_batch_that_was_not_the_past_s_is_refused_and_declared_from_here_on_taken(
    words: tuple[str, ...], declared: str, stopped: Path
) -> None:
    """Else the data would go on somewhere else: the position follows from the step and the sizes."""
    told = resume(stopped, *words, "schedule.length=22", "allow_changed=[data]")
    assert "step-00000020.epoch-0001 was reached with 120 samples (3,840 tokens)" in told
    assert "declare what is new from here on: 'changes=[{step:20,global_batch:" in told
    if declared:
        assert resume(stopped, declared, "schedule.length=22") == exit_codes.OK
        rows = {row["step"]: row["samples"] for row in RunRecord(stopped).read_metrics() if "loss" in row}
        assert (rows[20], rows[22]) == (120, 136)


def test_a_branch_too_takes_up_the_data_where_its_stem_stood(
    overrides: Overrides, stopped: Path, tmp_path: Path
) -> None:
    more = (*PLAIN, "schedule.length=12", f"fork.from={stopped}", "fork.step=10")
    (told,) = train(1, overrides(tmp_path / "branch", *more, "batch.global_batch=8"))
    assert "step-00000010.epoch-0001 was reached with 60 samples" in told


def stale_listing(rank: int, config: Any) -> None:
    """The second node's file system still shows the directory as it was before the newest checkpoint."""
    from llmjp_train.train import start

    if rank == 1:
        start.committed = lambda run_dir: committed(run_dir)[:-1]  # type: ignore[assignment]
        start.choose = lambda run_dir, which="latest": committed(run_dir)[-2]


def nothing_there(rank: int, config: Any) -> None:
    from llmjp_train.train import start

    start.SEEN_SECONDS = 1
    if rank == 1:
        start.COMMITTED = "not there"  # type: ignore[misc]


def test_ranks_go_on_from_the_checkpoint_that_the_leader_sees(
    overrides: Overrides, stopped: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(stopped, tmp_path / "alone")
    assert resume(alone, "schedule.length=21") == exit_codes.OK
    words = overrides(stopped, *PLAIN, "schedule.length=21")
    assert train(2, words, inject=stale_listing) == [exit_codes.OK] * 2
    assert events(stopped, "resume")[-1]["step"] == 20
    assert losses(stopped)[-1] == pytest.approx(losses(alone)[-1], rel=1e-5)
    told = train(2, [*words, "schedule.length=22"], inject=nothing_there)
    assert all("is not there for 1 of 2 ranks after 1 s" in text for text in told)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("rank-00000.bin", flip),
        ("rank-00000.bin", Path.unlink),
        ("index.json", flip),
        ("state.json", flip),
        ("COMMITTED", lambda path: path.write_text("{}")),
        ("COMMITTED", lambda path: os.truncate(path, 0)),
    ],
)
def test_a_damaged_newest_is_refused_with_the_one_before_and_latest_valid_goes_on_from_that(
    name: str, harm: Callable[[Path], object], stopped: Path
) -> None:
    harm(latest(stopped).path / name)
    told = resume(stopped, "schedule.length=22")
    assert "step-00000020.epoch-0001 is damaged" in told
    assert "The one before is of step 15: take it with resume=15 or resume=latest-valid" in told
    assert resume(stopped, "schedule.length=22", "resume=latest-valid") == exit_codes.OK
    assert events(stopped, "resume")[-1]["step"] == 15
    assert [info.step for info in committed(stopped)][-3:] == [15, 20, 22]
    assert resume(stopped, "schedule.length=23") == exit_codes.OK, "the damaged one is out of the way"


@pytest.mark.parametrize(
    ("name", "harm"), [("COMMITTED", Path.unlink), ("index.json", flip), ("rank-00000.bin", flip)]
)
def test_a_damaged_checkpoint_to_branch_from_is_refused_with_the_one_before(
    name: str, harm: Callable[[Path], object], overrides: Overrides, stopped: Path, tmp_path: Path
) -> None:
    harm(next(info.path for info in committed(stopped) if info.step == 15) / name)
    (told,) = train(1, overrides(tmp_path / "new", *PLAIN, f"fork.run={stopped}", "fork.step=15"))
    if name == "COMMITTED":
        assert "holds no checkpoint of step 15, only 5, 10, 20" in told
    else:
        assert "The one before is of step 10: take it with fork.step=10." in told


def test_a_commit_that_speaks_of_another_step_is_damage(stopped: Path) -> None:
    path = latest(stopped).path / "COMMITTED"
    path.write_text(path.read_text().replace('"step": 20', '"step": 19'))
    assert "COMMITTED is that of step-00000019.epoch-0001" in resume(stopped, "schedule.length=22")


def test_retention_in_a_run(overrides: Overrides, tmp_path: Path) -> None:
    more = (
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=1",
        "checkpoint.keep_every=6",
        "checkpoint.keep_steps=[7]",
        "checkpoint.log_spaced=true",
    )
    assert train(2, overrides(tmp_path / "run", *PLAIN, *more)) == [exit_codes.OK] * 2
    assert [info.step for info in committed(tmp_path / "run")] == [1, 2, 5, 6, 7, 10, 12, 18, 20]
    reasons = {event["step"]: event["reason"] for event in events(tmp_path / "run", "save")}
    assert (reasons[1], reasons[7], reasons[8]) == ("log_spaced", "keep_steps", "cadence")
    pruned = [name for event in events(tmp_path / "run", "prune") for name in event["removed"]]
    assert "step-00000004.epoch-0001" in pruned


def test_a_checkpoint_that_cannot_be_removed_costs_nothing(overrides: Overrides, tmp_path: Path) -> None:
    def hold_step_4(rank: int, config: Any) -> None:
        remove = shutil.rmtree

        def held(path: Any, *args: Any, **more: Any) -> None:
            if "step-00000004" in str(path) and not again:
                again.append(path)
                raise OSError(39, "Directory not empty")
            remove(path, *args, **more)

        again: list[Any] = []
        shutil.rmtree = held  # type: ignore[assignment]

    more = ("checkpoint.every_steps=4", "checkpoint.keep_last=1")
    assert train(2, overrides(tmp_path / "run", *PLAIN, *more), inject=hold_step_4) == [exit_codes.OK] * 2
    assert [path.name[:13] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000020"]
    prunes = events(tmp_path / "run", "prune")
    assert prunes[0]["left"] == ["step-00000004.epoch-0001 ([Errno 39] Directory not empty)"]
    assert prunes[1]["removed"] == ["step-00000008.epoch-0001", "step-00000004.epoch-0001"]


def test_saves_by_time(overrides: Overrides, tmp_path: Path) -> None:
    more = ("checkpoint.every_minutes=1e-9", "checkpoint.keep_last=30", "schedule.length=4")
    assert train(2, overrides(tmp_path / "run", *PLAIN, *more)) == [exit_codes.OK] * 2
    assert [info.step for info in committed(tmp_path / "run")] == [1, 2, 3, 4]
    rare = ("checkpoint.every_minutes=60", "schedule.length=4", "checkpoint.save_final=false")
    assert train(2, overrides(tmp_path / "rare", *PLAIN, *rare)) == [exit_codes.OK] * 2
    assert committed(tmp_path / "rare") == []


def test_a_read_only_file_system_is_said(overrides: Overrides, small_disk: Any) -> None:
    disk = small_disk("8m")
    assert train(1, overrides(disk / "run", *PLAIN, "schedule.length=2")) == [exit_codes.OK]
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for run_dir in (disk / "run", disk / "new"):
        (told,) = train(1, overrides(run_dir, *PLAIN, "schedule.length=4"))
        assert f"run directory {run_dir} cannot be written (Read-only file system)" in told


def test_a_disk_without_a_byte_left_loses_no_row_once_there_is_room(
    overrides: Overrides, small_disk: Any
) -> None:
    disk = small_disk("8m")
    ballast = disk / "ballast"

    def fill(rank: int, config: Any) -> None:
        from llmjp_train.train.hooks import Metrics

        after = Metrics.after_step

        def wrapped(self: Any, run: Any, row: Any) -> None:
            if rank == 0 and run.step == 4:
                with ballast.open("wb", buffering=0) as file:
                    try:
                        while file.write(bytes(4096)):
                            pass
                    except OSError:
                        pass
            if rank == 0 and run.step == 12:
                ballast.unlink()
            after(self, run, row)

        Metrics.after_step = wrapped  # type: ignore[method-assign]

    more = overrides(disk / "run", *PLAIN, "checkpoint.every_steps=5", "checkpoint.keep_last=2")
    assert train(2, more, inject=fill) == [exit_codes.OK] * 2
    assert [step for step, _, _ in losses(disk / "run")] == list(range(1, 21))
    assert [event["step"] for event in events(disk / "run", "save_failed")] == [5, 10]
    assert [info.step for info in committed(disk / "run")] == [15, 20]


class Rows:
    """A tracker of the user's own."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "rows.jsonl"

    def log(self, step: int, figures: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"at": step, **figures}) + "\n")

    def close(self) -> None:
        self.path.with_suffix(".closed").touch()


class Broken(Rows):
    """A tracker whose server is away."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        raise ConnectionError("no route to host")


def test_trackers_see_every_figure_and_a_broken_one_costs_nothing(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = types.ModuleType("my_trackers")
    module.__dict__.update(Rows=Rows, Broken=Broken)
    monkeypatch.setitem(sys.modules, "my_trackers", module)
    run_dir = tmp_path / "run"
    more = ("metrics.tensorboard=true", "metrics.trackers=['my_trackers:Rows','my_trackers:Broken']")
    assert train(2, overrides(run_dir, *more)) == [exit_codes.OK] * 2
    rows = [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    record = RunRecord(run_dir).read_metrics()
    assert [r["loss"] for r in rows if "loss" in r] == [r["loss"] for r in record if "loss" in r]
    assert [r["at"] for r in rows if "validation/loss" in r] == [10, 20]
    assert [r["at"] for r in rows if "eps_dominated" in r] == [5, 10, 15, 20]
    assert "grad_norms/layers.1" in rows[4] or "grad_norms/layers.1" in rows[5]
    assert (run_dir / "rows.closed").exists()
    (failed,) = events(run_dir, "tracker_failed")
    assert "Broken failed (ConnectionError: no route to host)" in failed["message"]
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    assert [point.step for point in board.Scalars("loss")] == list(range(1, 21))
    assert [point.value for point in board.Scalars("validation/loss")] == pytest.approx(
        [r["validation"]["loss"] for r in record if "validation" in r]
    )
    for name in ("missing:Class", "json:Missing", "json:loads"):
        (told,) = train(1, overrides(tmp_path / "bad", f"metrics.trackers=['{name}']"))
        assert f"metrics.trackers: {name}" in told


def test_a_row_holds_every_figure_that_is_promised(overrides: Overrides, tmp_path: Path) -> None:
    more = ("metrics.every=2", "schedule.length=6", "metrics.grad_norm_every=4")
    assert train(2, overrides(tmp_path / "run", *more)) == [exit_codes.OK] * 2
    rows = [row for row in RunRecord(tmp_path / "run").read_metrics() if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        for key in ("tokens_per_s", "tflops", "memory_gib", "step_s", "forward_backward_s", "optimizer_s"):
            assert row[key] > 0, key
        assert 0 <= row["data_wait_s"] <= row["step_s"]
        assert row["forward_backward_s"] + row["optimizer_s"] <= row["step_s"]
        assert row["mfu"] is None or 0 < row["mfu"] <= 1
        assert row["tokens"] == row["step"] * 6 * 32
        assert row["sources"]["small"]["loss"] == pytest.approx(row["loss"], rel=1e-6)
    groups = {"embedding", "layers.0", "layers.1", "norm", "head"}
    assert set(rows[1]["grad_norms"]) >= groups - {"head"}
    assert sum(v * v for v in rows[1]["grad_norms"].values()) ** 0.5 == pytest.approx(
        rows[1]["grad_norm"], rel=1e-5
    )
    assert "grad_norms" not in rows[0]
