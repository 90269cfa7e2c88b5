"""Faults in a real Slurm, each with the end that docs/faults.md promises."""

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from helpers.processes import processes, ranks, wait
from helpers.runs import events, losses, seconds_between, train
from helpers.throwaway import Slurm
from helpers.toy import small_run

import llmjp_train
from llmjp_train.launch.job import folders

LLMJP = (sys.executable, "-m", "llmjp_train.cli")
NODES = ("cluster=dev-slurm", "cluster.devices_per_node=1", "nodes=2", "cluster.hang_seconds=8")
SIZES = ("schedule.length=400", "evaluation.validation_every=null", "checkpoint.every_steps=20")
"""Longer than a test takes to see its first rows and to hurt it, on a fast machine too."""
SHORT = ("schedule.length=20", *SIZES[1:])


def rows(run_dir: Path) -> int:
    return len(losses(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


def calm_losses(tmp_path: Path, prepared: Path, tokenizer_folder: Path) -> list[tuple[int, float, float]]:
    """Of an undisturbed run in the same layout."""
    train(2, small_run(tmp_path / "calm", prepared, tokenizer_folder, *SIZES))
    return losses(tmp_path / "calm")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_rank_that_hangs_is_found_and_the_run_ends_as_if_nothing_had_been(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "hung"
    slurm.run(*LLMJP, "submit", *small_run(run_dir, prepared, tokenizer_folder, *NODES, *SIZES), cwd=tmp_path)
    wait(lambda: rows(run_dir) > 10, 200, "10 steps")
    found = ranks(run_dir)
    assert len(found) == 2
    os.kill(found[1], signal.SIGSTOP)
    (folder,) = folders(run_dir)
    assert slurm.wait_job(folder.scheduler_id, seconds=300) == "COMPLETED"
    (incident,) = events(run_dir, "incident")
    assert (incident["what"], incident["action"]) == ("hang", "restart")
    assert "nothing was logged for" in incident["evidence"]
    assert 0 <= incident["lost_steps"] <= 20
    printed = "".join(path.read_text() for path in folder.path.glob("node-*.txt"))
    assert "in all_reduce" in printed, (
        "the stack of the rank that waited; the one that was stopped cannot show its own"
    )
    assert processes(run_dir) == {}
    assert losses(run_dir) == calm_losses(tmp_path, prepared, tokenizer_folder)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_lost_node_is_left_and_the_run_goes_on_elsewhere(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """A node dies with all that runs on it: the ranks elsewhere end, and the job is queued again for other nodes."""
    run_dir = tmp_path / "lost"
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *SIZES)
    slurm.run(*LLMJP, "submit", "--requeue", *words, cwd=tmp_path)
    wait(lambda: rows(run_dir) > 10, 200, "10 steps")
    (folder,) = folders(run_dir)
    node = slurm.run("scontrol", "show", "hostnames", slurm.job(folder.scheduler_id)["NodeList"]).split()[-1]
    slurm.daemon("lose", node)
    assert slurm.wait_job(folder.scheduler_id, seconds=200) == "COMPLETED"
    assert len({json.dumps(row) for row in folder.history() if row["kind"] == "begin"}) >= 2
    assert losses(run_dir) == calm_losses(tmp_path, prepared, tokenizer_folder)
    slurm.daemon("start", node)


@pytest.fixture(scope="module")
def calm_short(
    tmp_path_factory: pytest.TempPathFactory, prepared: Path, tokenizer_folder: Path
) -> list[tuple[int, float, float]]:
    """Of an undisturbed short run."""
    run_dir = tmp_path_factory.mktemp("calm") / "run"
    train(2, small_run(run_dir, prepared, tokenizer_folder, *SHORT))
    return losses(run_dir)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [("--requeue",), ("--chain", "2")], ids=["requeue", "chain"])
def test_a_bad_node_is_named_and_the_run_begins_elsewhere(
    words: tuple[str, ...], slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path,
    calm_short: list[tuple[int, float, float]],
) -> None:  # fmt: skip
    """The second of three nodes cannot write where the others can: a folder stands in the place of its file."""
    run_dir = tmp_path / "bad"
    run_dir.mkdir()
    bad = "127.0.0.2"
    (run_dir / f".preflight-{bad}").mkdir()
    overrides = small_run(run_dir, prepared, tokenizer_folder, *NODES, *SHORT)
    slurm.run(*LLMJP, "submit", *words, *overrides, cwd=tmp_path)
    found = folders(run_dir)
    assert slurm.wait_job(found[-1].scheduler_id, seconds=200) == "COMPLETED"

    (incident,) = events(run_dir, "incident")
    assert (incident["what"], incident["node"], incident["lost_steps"]) == ("bad_node", bad, 0)
    assert incident["evidence"] == f"cannot write in {run_dir}: Is a directory"
    assert incident["action"] == ("requeue" if len(found) == 1 else "next")
    (row,) = (json.loads(line) for line in (run_dir / "bad-nodes.jsonl").read_text().splitlines())
    assert (row["host"], row["job"], row["left_out"]) == (bad, "0001", True)
    assert f"bad node {bad}: cannot write" in found[0].log.read_text()
    job = slurm.job(found[-1].scheduler_id)
    assert (job["NodeList"], job["ExcNodeList"]) == ("127.0.0.[1,3]", bad)
    status = json.loads(slurm.run(*LLMJP, "status", run_dir, "--json"))[0]
    assert list(status["left_out"]) == [bad]

    (preflight,) = events(run_dir, "preflight")
    assert sorted(preflight["nodes"]) == ["127.0.0.1", "127.0.0.3"]
    assert len(preflight["links_gbs"]["network"]) == 2
    assert preflight["seconds"] < 20, "1 s on a quiet machine"
    assert losses(run_dir) == calm_short


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_port_that_another_program_took_costs_one_start(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path,
    calm_short: list[tuple[int, float, float]],
) -> None:  # fmt: skip
    """Between the moment when the nodes agree on it and that when the ranks want it."""
    run_dir = tmp_path / "port"
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *SHORT)
    slurm.run(*LLMJP, "submit", *words, cwd=tmp_path)
    (folder,) = folders(run_dir)

    def ports() -> list[int]:
        found = sorted(folder.path.glob("attempt-*/meeting.json"))
        return [json.loads(path.read_text())["port"] for path in found]

    wait(ports, 100, "nodes that meet")
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports()[0]))
        other.listen()
        assert slurm.wait_job(folder.scheduler_id, seconds=200) == "COMPLETED"
    first, second = ports()
    assert first != second
    (incident,) = events(run_dir, "incident")
    assert (incident["what"], incident["action"], incident["lost_steps"]) == ("rank_died", "restart", 0)
    assert f"port: {first}" in incident["evidence"]
    assert "EADDRINUSE" in incident["evidence"]
    assert losses(run_dir) == calm_short
    print(f"\nport taken: {seconds_between(folder)}")


@pytest.mark.full
@pytest.mark.timeout(200)
def test_a_node_that_runs_other_code_is_named_and_nothing_starts(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """A file on the second node's own Python path puts a package that is installed there before the snapshot."""
    old = tmp_path / "installed" / "llmjp_train"
    shutil.copytree(Path(llmjp_train.__file__).parent, old)
    with (old / "exit_codes.py").open("a") as file:
        file.write("# an older version\n")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('SLURMD_NODENAME') == '127.0.0.2':\n"
        f"    sys.path.insert(0, {str(old.parent)!r})\n"
    )
    run_dir = tmp_path / "other code"
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *SHORT)
    path = f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    slurm.run(*LLMJP, "submit", "--chain", "2", *words, cwd=tmp_path, PYTHONPATH=path)
    first, second = folders(run_dir)
    assert slurm.wait_job(second.scheduler_id, seconds=150) == "COMPLETED"
    assert slurm.job(first.scheduler_id)["ExitCode"] == "2:0"
    log = first.log.read_text()
    assert log.count("nodes differ from node 0 (127.0.0.1), so nothing was started:\n") == 1
    assert f"  node 1 (127.0.0.2): code (it runs {old})\n" in log
    halt = "halt: bad input: nodes differ from node 0 (127.0.0.1), so nothing was started: node 1 (127.0.0.2): code"
    assert f"{halt} (it runs {old})" in log
    assert "Traceback" not in log
    ends = [row for row in first.history() if row["kind"] == "end"]
    assert [(row["action"], row["code"]) for row in ends] == [("halt", 2)]
    assert [row["kind"] for row in second.history()] == ["skip"]
    assert not (run_dir / "metrics.jsonl").exists()
    print(f"\nother code: {seconds_between(first)}")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_controller_that_is_killed_costs_the_run_nothing(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "controller"
    words = small_run(run_dir, prepared, tokenizer_folder, *NODES, *SIZES)
    slurm.run(*LLMJP, "submit", *words, cwd=tmp_path)
    (folder,) = folders(run_dir)
    wait(lambda: rows(run_dir) > 10, 200, "10 steps")
    slurm.daemon("kill", "slurmctld")
    try:
        at = rows(run_dir)
        status = json.loads(slurm.run(*LLMJP, "status", run_dir, "--json"))[0]
        assert status["state"] == "running", "the run directory knows without the scheduler"
        cancelled = slurm.run(*LLMJP, "cancel", run_dir, "--now", check=False)
        assert "Unable to contact slurm controller" in cancelled, "and not: no job runs"
        wait(lambda: rows(run_dir) > at, 60, "steps without a controller")
    finally:
        slurm.daemon("start", "slurmctld")
    wait(lambda: bool(events(run_dir, "end")), 150, "the end")
    slurm.wait_job(folder.scheduler_id, seconds=100)
    assert losses(run_dir) == calm_losses(tmp_path, prepared, tokenizer_folder)


@pytest.mark.full
@pytest.mark.timeout(200)
def test_the_committed_example_works_with_plain_sbatch(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path, root: Path
) -> None:
    """slurm/examples/tiny-dev.sbatch as it stands, in a folder that holds the text and tokenizer that it names."""
    (tmp_path / "my-tokenizer").symlink_to(tokenizer_folder)
    (tmp_path / "my-data").symlink_to(prepared)
    example = root / "slurm" / "examples" / "tiny-dev.sbatch"
    number = slurm.run("sbatch", "--parsable", example, cwd=tmp_path).strip()
    run_dir = tmp_path / "runs" / "tiny-cpu"
    wait(lambda: rows(run_dir) >= 2, 150, "two steps")
    (folder,) = folders(run_dir)
    assert folder.scheduler_id == number
    slurm.run(*LLMJP, "stop", run_dir)
    assert slurm.wait_job(number, seconds=60) == "FAILED"
    assert events(run_dir, "stop")[-1]["reason"] == "stop file"
