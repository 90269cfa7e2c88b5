"""Checkpoints between layouts, bit for bit; and what damage, full disks and kills do to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

from llmjp_train.checkpoint.listing import choose, committed, latest
from llmjp_train.checkpoint.storage import DamagedError
from llmjp_train.checkpoint.store import CheckpointReader, load, save
from llmjp_train.errors import UserError
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.runlog.lease import Lease, LeaseLostError

SAMPLES = 6


def make_engine(world: int, zero: int) -> Any:
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world as place
    from llmjp_train.train.optimizer import parameter_groups

    config = small_config(f"parallel.data={world}", f"parallel.zero={zero}", f"batch.global_batch={SAMPLES}")
    started = layout.start(config.parallel, place(), cuda=False)
    return config, FlatEngine(config, started, 2, parameter_groups(config))


def train_and_save(rank: int, world: int, zero: int, run_dir: Path) -> float:
    """Two steps, a save, and the loss of the step after it."""
    config, engine = make_engine(world, zero)
    for step in range(2):
        engine.step(ragged_batches(config, SAMPLES, seed=step)[rank::world], lr=1e-3)
    save(
        run_dir,
        2,
        engine.fragments(owned=True),
        {"step": 2, "layout": {"data": world, "zero": zero}},
        epoch=1,
    )
    result = engine.step(ragged_batches(config, SAMPLES, seed=2)[rank::world], lr=1e-3)
    engine.close()
    return float(result.loss)


def load_and_save(rank: int, world: int, zero: int, source: Path, run_dir: Path) -> Any:
    """Load in another layout, save from there, and the loss of the next step."""
    config, engine = make_engine(world, zero)
    state = load(source, engine.fragments())
    engine.restore(state["step"])
    save(
        run_dir,
        2,
        engine.fragments(owned=True),
        {"step": 2, "layout": {"data": world, "zero": zero}},
        epoch=1,
    )
    result = engine.step(ragged_batches(config, SAMPLES, seed=2)[rank::world], lr=1e-3)
    engine.close()
    return float(result.loss)


def contents(path: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(path)
    return {name: reader.read(name) for name in reader.names()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    run_dir = tmp_path_factory.mktemp("saved")
    losses = run_ranks(train_and_save, 2, 1, run_dir)
    return latest(run_dir).path, losses[0]


@pytest.mark.parametrize(
    ("world", "zero"),
    [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)],
)
def test_saved_by_two_ranks_is_bit_equal_in_any_layout_and_back(
    world: int, zero: int, saved: tuple[Path, float], tmp_path: Path
) -> None:
    source, loss = saved
    losses = run_ranks(load_and_save, world, zero, source, tmp_path / "other")
    there = latest(tmp_path / "other")
    before, after = contents(source), contents(there.path)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    if (world, zero) == (2, 1):
        assert losses[0] == loss
    else:
        assert losses[0] == pytest.approx(loss, rel=1e-6)
    back = run_ranks(load_and_save, 2, 1, there.path, tmp_path / "back")
    assert back[0] == loss
    again = contents(latest(tmp_path / "back").path)
    assert all(torch.equal(value, again[name]) for name, value in before.items())


def test_holds_masters_and_moments_of_every_parameter_and_no_pickle(saved: tuple[Path, float]) -> None:
    from llmjp_train.model.shapes import parameter_shapes

    path, _ = saved
    reader = CheckpointReader(path)
    shapes = parameter_shapes(small_config().model)
    assert set(reader.names()) == {f"{k}.{n}" for k in ("master", "exp_avg", "exp_avg_sq") for n in shapes}
    assert all(reader.shape(f"master.{name}") == shape for name, shape in shapes.items())
    assert {file.name for file in path.iterdir()} == {
        "COMMITTED",
        "index.json",
        "state.json",
        "rank-00000.bin",
        "rank-00001.bin",
    }
    assert reader.verify() >= len(reader.names())


def fragments(value: float, elements: int = 1000) -> list[Fragment]:
    shape = (elements // 10, 10)
    return [
        Fragment(f"{kind}.w", shape, shape, (0, 0), 0, torch.full((elements,), value))
        for kind in ("master", "exp_avg", "exp_avg_sq")
    ]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run directory with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step, fragments(float(step)), {"step": step}, epoch=1)
    return tmp_path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


@pytest.mark.parametrize("name", ["rank-00000.bin", "index.json", "state.json"])
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_newest_is_refused_by_name_and_the_one_before_taken(
    two: Path, name: str, harm: Any
) -> None:
    newest = latest(two)
    harm(newest.path / name)
    with pytest.raises(UserError, match=newest.path.name):
        load(choose(two, "latest").path, fragments(0.0))
    assert choose(two, "latest-valid").step == 1
    found = fragments(0.0)
    assert load(choose(two, "latest-valid").path, found) == {"step": 1}
    assert all(float(f.view.min()) == 1.0 for f in found)


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("--step ", "--step 1 or --step latest-valid"),
        ("resume=", "resume=1 or resume=latest-valid"),
        ("fork.step=", "fork.step=1"),
    ],
)
def test_latest_offers_the_step_before_a_truncated_one_in_the_caller_s_words(
    two: Path, setting: str, advice: str
) -> None:
    cut(latest(two).path / "rank-00000.bin")
    with pytest.raises(
        UserError,
        match=rf"damaged: rank-00000.bin .* The one before is of step 1: take it with {advice}\.$",
    ):
        choose(two, "latest", setting=setting)


def test_all_damaged_is_said_of_each(two: Path) -> None:
    for info in committed(two):
        flip(info.path / "rank-00000.bin")
    with pytest.raises(UserError, match=r"(?s)step-00000002.*crc32.*step-00000001.*crc32"):
        choose(two, "latest-valid")


def test_another_model_is_refused_with_the_difference(two: Path) -> None:
    shape = (50, 10)
    other = [
        Fragment("master.w", shape, shape, (0, 0), 0, torch.zeros(500)),
        Fragment("master.v", (1,), (1,), (0,), 0, torch.zeros(1)),
    ]
    with pytest.raises(UserError, match=r"(?s)master.v is not in it.*\(100, 10\) in it and \(50, 10\) here"):
        load(latest(two).path, other)


def test_steps_are_chosen_by_number(two: Path) -> None:
    assert choose(two, 1).step == 1
    with pytest.raises(UserError, match="no checkpoint of step 7, only 1, 2"):
        choose(two, 7)
    with pytest.raises(UserError, match="'newest' names no checkpoint"):
        choose(two, "newest")


def test_a_gap_or_an_overlap_of_ranks_is_never_written(tmp_path: Path) -> None:
    shape = (4,)
    part = Fragment("master.w", shape, shape, (0,), 0, torch.zeros(3))
    with pytest.raises(RuntimeError, match="gap"):
        save(tmp_path, 1, [part], {}, epoch=1)
    assert committed(tmp_path) == []


def save_on_small_disk(rank: int, world: int, run_dir: Path) -> str:
    shape = (100_000, 10)
    half = 1_000_000 // world
    pieces = [Fragment("master.w", shape, shape, (0, 0), rank * half, torch.zeros(half))]
    try:
        save(run_dir, 2, pieces, {}, epoch=1)
    except UserError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("told", [True, False], ids=["free space known", "free space unknown"])
def test_a_full_disk_loses_nothing_and_says_what_is_needed(
    small_disk: Any, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk("3m")
    save(folder, 1, fragments(1.0), {"step": 1}, epoch=1)
    if not told:  # a quota, or another job that fills the disk meanwhile: the write itself fails
        import shutil

        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    messages = run_ranks(save_on_small_disk, 2, folder)
    for message in messages:
        assert "step-00000002" in message
        assert "needs 4,000,000 bytes" in message
        assert "Earlier checkpoints are untouched" in message
    assert [info.step for info in committed(folder)] == [1]
    assert CheckpointReader(latest(folder).path).verify() == 3
    assert not list((folder / "checkpoints").glob("step-00000002*"))


KILLED = """
import sys
from pathlib import Path
import torch
from llmjp_train.checkpoint.store import save
from llmjp_train.parallel.fragment import Fragment
shape = (400, 1000)
print("ready", flush=True)
for step in range(2, 10_000):
    parts = [Fragment(f"{k}.w", shape, shape, (0, 0), 0, torch.full((400_000,), float(step))) for k in "abc"]
    save(Path(sys.argv[1]), step, parts, {"step": step}, epoch=1)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    torn = 0
    for turn in range(6):
        run_dir = tmp_path / str(turn)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(run_dir)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "2\n"
        time.sleep(0.003 + 0.004 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        infos = committed(run_dir)
        assert infos
        for info in infos:
            reader = CheckpointReader(info.path)
            assert reader.verify() == 3
            assert float(reader.read("a.w").max()) == info.step
        torn += len(list((run_dir / "checkpoints").iterdir())) - len(infos)
        after = fragments(5.0)
        assert save(run_dir, infos[-1].step + 1, after, {}, epoch=1).step == infos[-1].step + 1
    assert torn, "no kill hit a save in progress: the test would pass without any care"


def test_a_stale_writer_cannot_commit(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as old:
        save(tmp_path, 1, fragments(1.0), {}, epoch=old.epoch)
        with Lease.acquire(tmp_path, takeover=True) as new:
            with pytest.raises(LeaseLostError, match="taken over as epoch 2"):
                save(tmp_path, 2, fragments(2.0), {}, epoch=old.epoch)
            assert [info.step for info in committed(tmp_path)] == [1]
            save(tmp_path, 2, fragments(3.0), {}, epoch=new.epoch)
    assert [(info.step, info.epoch) for info in committed(tmp_path)] == [(1, 1), (2, 2)]


def test_what_a_stale_writer_commits_after_a_takeover_is_nobodys(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as old:
        save(tmp_path, 1, fragments(1.0), {}, epoch=old.epoch)
        written = save(tmp_path, 2, fragments(2.0), {}, epoch=old.epoch)
        hidden = written.path.rename(tmp_path / "held back")  # as if its last write were still on the way
        with Lease.acquire(tmp_path, takeover=True):
            hidden.rename(written.path)
            assert [info.step for info in committed(tmp_path)] == [1]


def test_the_commit_says_what_belongs_to_it(two: Path) -> None:
    info = latest(two)
    said = json.loads((info.path / "COMMITTED").read_text())
    assert said["version"] == 1
    assert set(said["files"]) == {"rank-00000.bin", "index.json", "state.json"}
    assert info.bytes == sum(file.stat().st_size for file in info.path.iterdir() if file.name != "COMMITTED")


def test_damage_is_a_user_error_with_its_own_type() -> None:
    assert issubclass(DamagedError, UserError)
