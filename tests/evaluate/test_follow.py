"""Following a run: each complete checkpoint once, failures again, the training directory untouched."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import wait

from llmjp_train.checkpoint.listing import CheckpointInfo
from llmjp_train.errors import UserError
from llmjp_train.evaluate.follow import Action, Follower


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted([folder, *folder.rglob("*")])
    }


def llmjp(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmjp_train.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=dict(os.environ))


SETTINGS = ("tasks=[own_choice]", "limit=2", "num_fewshot=0", "device=cpu")


@pytest.mark.slow
def test_each_checkpoint_is_evaluated_once_and_the_run_is_untouched(run_dir: Path, tmp_path: Path) -> None:
    before = snapshot(run_dir)
    out = tmp_path / "run.followed"
    done = llmjp("follow", str(run_dir), "--once", *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert snapshot(run_dir) == before
    results = sorted(path.name for path in out.glob("step-*-own_choice-num_fewshot-0-limit-2.json"))
    assert results == [
        "step-00000010-own_choice-num_fewshot-0-limit-2.json",
        "step-00000020-own_choice-num_fewshot-0-limit-2.json",
    ]
    state = json.loads((out / "follow.json").read_text())["checkpoints"]
    evaluated = [entry["evaluate"] for entry in state.values()]
    assert [(entry["state"], entry["attempts"]) for entry in evaluated] == [("done", 1)] * 2
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    again = llmjp("follow", str(run_dir), "--once", *SETTINGS)
    assert again.returncode == 0
    assert again.stdout == ""
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")} == times


@pytest.mark.slow
def test_a_damaged_checkpoint_is_tried_again_and_given_up_in_words(run_dir: Path, tmp_path: Path) -> None:
    broken = next(path for path in (run_dir / "checkpoints").glob("step-00000020*"))
    shards = [path for path in broken.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    shards[0].write_bytes(b"\0" * shards[0].stat().st_size)
    done = llmjp("follow", str(run_dir), "--once", "attempts=2", "--output", str(tmp_path / "o"), *SETTINGS)
    assert done.returncode == 1
    assert "given up: step 20 (evaluate)" in done.stdout
    entries = json.loads((tmp_path / "o/follow.json").read_text())["checkpoints"]
    by_step = {entry["step"]: entry["evaluate"] for entry in entries.values()}
    assert (by_step[20]["state"], by_step[20]["attempts"]) == ("failed", 2)
    assert by_step[20]["error"].startswith("exit code")
    assert by_step[10]["state"] == "done"


@pytest.mark.slow
def test_checkpoints_are_evaluated_in_parts(run_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(next((run_dir / "checkpoints").glob("step-00000010*")))
    out = tmp_path / "out"
    done = llmjp("follow", str(run_dir), "--once", "--output", str(out), *SETTINGS, "parallel.tensor=2")
    assert done.returncode == 0, done.stdout
    result = json.loads((out / "step-00000020-own_choice-num_fewshot-0-limit-2.json").read_text("utf-8"))
    assert result["settings"]["parallel"] == {"tensor": 2, "pipeline": 1, "data": 1}


def alive(word: str) -> list[int]:
    """Processes that have ``word`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        found += [int(path.parent.name)] if word.encode() in words else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_an_end_takes_the_evaluation_s_processes_with_it(
    number: signal.Signals, run_dir: Path, tmp_path: Path
) -> None:
    words = [
        "follow",
        str(run_dir),
        "--output",
        str(tmp_path),
        "tasks=[own_choice]",
        "parallel.data=2",
        "device=cpu",
    ]
    process = subprocess.Popen([sys.executable, "-m", "llmjp_train.cli", *words], stdout=subprocess.DEVNULL)
    wait(lambda: len(alive(str(run_dir))) == 4, 60, "the follower, the command, and its two processes")
    process.send_signal(number)
    process.wait(60)
    wait(lambda: not alive(str(run_dir)), 60, "their end")


def follower(run_dir: Path, out: Path, act: Any, attempts: int = 3) -> Follower:
    return Follower(run_dir, out, [Action("evaluate", act)], attempts, lambda text: None)


def test_the_newest_comes_first_and_failures_come_again(run_dir: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def act(info: CheckpointInfo) -> str:
        seen.append(info.step)
        return "no luck" if len(seen) < 3 else ""

    worker = follower(run_dir, tmp_path / "o", act)
    while worker.turn():
        pass
    assert seen == [20, 20, 20, 10]
    assert worker.given_up == []


def test_one_that_was_killed_goes_on(run_dir: Path, tmp_path: Path) -> None:
    def killed(info: CheckpointInfo) -> str:
        raise KeyboardInterrupt

    first = follower(run_dir, tmp_path / "o", killed)
    with pytest.raises(KeyboardInterrupt):
        first.turn()
    first._lock.close()
    seen: list[int] = []
    second = follower(run_dir, tmp_path / "o", lambda info: seen.append(info.step) or "")
    (entry,) = second.state["checkpoints"].values()
    assert entry["evaluate"]["state"] == "begun"
    while second.turn():
        pass
    assert seen == [20, 10]


def test_a_new_checkpoint_is_taken_up_and_an_incomplete_one_is_not(run_dir: Path, tmp_path: Path) -> None:
    later = run_dir / "checkpoints"
    kept = next(later.glob("step-00000020*"))
    hidden = tmp_path / kept.name
    marker = kept / "COMMITTED"
    content = marker.read_bytes()
    marker.unlink()
    seen: list[int] = []
    worker = follower(run_dir, tmp_path / "o", lambda info: seen.append(info.step) or "")
    while worker.turn():
        pass
    assert seen == [10]
    assert not hidden.exists()
    marker.write_bytes(content)
    assert worker.turn()
    assert seen == [10, 20]


def test_actions_come_in_order_and_what_failed_is_not_published(run_dir: Path, tmp_path: Path) -> None:
    done: list[str] = []

    def action(name: str, fails: int | None = None, needs: str | None = None) -> Action:
        def act(info: CheckpointInfo) -> str:
            done.append(f"{name} {info.step}")
            return "no luck" if info.step == fails else ""

        return Action(name, act, lambda info: name == "a" or info.step in (10, 20), needs)

    actions = [action("a", fails=20), action("b", fails=10), action("c", needs="b")]
    worker = Follower(run_dir, tmp_path / "o", actions, 2, lambda text: None, oldest_first=True)
    while worker.turn():
        pass
    assert done == ["a 10", "b 10", "b 10", "a 20", "a 20", "b 20", "c 20"]
    assert worker.given_up == ["step 10 (b)", "step 20 (a)"]


def test_wrong_places_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies inside the run"):
        follower(run_dir, run_dir / "evaluations", lambda info: "")
    worker = follower(run_dir, tmp_path / "o", lambda info: "")
    with pytest.raises(UserError, match="in use by another"):
        follower(run_dir, tmp_path / "o", lambda info: "")
    worker.turn()
    worker._lock.close()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="tells of another run"):
        follower(other, tmp_path / "o", lambda info: "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("do=[evaluate,import]",), "give some of [evaluate, export, publish]"),
        (("do=[publish,export]", "to=x"), "in this order"),
        (("do=[publish]", "to=x"), "publish sends what export makes"),
        (("do=[export,publish]",), "name a target"),
        (("attempts=0",), "attempts=0"),
        (("tasks=[own_chioce]",), "did you mean own_choice"),
    ],
)
def test_bad_requests(run_dir: Path, words: tuple[str, ...], message: str) -> None:
    done = llmjp("follow", str(run_dir), *words)
    assert done.returncode == 2
    assert message in done.stderr
