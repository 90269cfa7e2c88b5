"""Plain hosts over ssh for real: each an sshd of its own on this machine, all of one file system."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.processes import processes, to_each_below, wait
from helpers.runs import events, losses, seconds_between, train
from helpers.sshd import Sshd, sshd
from helpers.toy import small_run

from llmjp_train.checkpoint.listing import committed
from llmjp_train.launch.job import folders

LONG = ("schedule.length=100000", "evaluation.validation_every=null", "checkpoint.every_steps=20")
HURT = ("schedule.length=400", *LONG[1:])


class Hosts:
    """Machines n1, n2, … that `ssh` knows by these names."""

    def __init__(self, folder: Path, servers: dict[str, Sshd]) -> None:
        self.servers = servers
        text = "".join(
            f"Host {name}\n  HostName 127.0.0.1\n"
            + "".join(f"  {key} {value}\n" for key, value in one.options.items())
            for name, one in servers.items()
        )
        (folder / "ssh_config").write_text(text)
        # ssh takes its settings from the home that the system knows, which is not ours to change.
        program = folder / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        program.chmod(0o755)
        self.env = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def llmjp(self, *words: object, cwd: Path | None = None) -> str:
        """Output of a command, as typed on the first machine."""
        command = [sys.executable, "-m", "llmjp_train.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=self.env, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self, run_dir: Path) -> Any:
        """`llmjp status` of a run."""
        return json.loads(self.llmjp("status", run_dir, "--json"))[0]

    def wait_end(self, run_dir: Path, seconds: float = 200) -> None:
        """Until no job of a run is left, nor a process of it."""
        wait(lambda: self.state(run_dir)["jobs"] == [], seconds, "the end of its jobs")
        assert processes(run_dir) == {}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Three of them."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(sshd(tmp_path / name)) for name in ("n1", "n2", "n3")}
        yield Hosts(tmp_path, servers)


def calm(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, *words: str
) -> list[tuple[int, float, float]]:
    """Losses of an undisturbed run of two ranks."""
    train(2, small_run(tmp_path / "calm", prepared, tokenizer_folder, *words))
    return losses(tmp_path / "calm")


def over_ssh(*names: str) -> tuple[str, ...]:
    return (
        "cluster.scheduler=hosts", "cluster.launcher=ssh", f"cluster.hosts=[{','.join(names)}]", "nodes=2",
        "cluster.devices_per_node=1", "cluster.interface=lo", "cluster.hang_seconds=60",
        "+cluster.environment.OMP_NUM_THREADS=1",  # as the undisturbed runs have it
    )  # fmt: skip


def steps(run_dir: Path) -> int:
    return len(losses(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


@pytest.mark.full
@pytest.mark.timeout(300)
def test_two_hosts_train_as_two_ranks_of_this_machine(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """The run's directory is given as seen from where it is submitted, and a variable has a space."""
    words = small_run(Path("runs/a run"), prepared, tokenizer_folder, *over_ssh("n1", "n2"))
    words.append("+cluster.environment.SAID='two words'")
    hosts.llmjp("submit", *words, cwd=tmp_path)
    run_dir = tmp_path / "runs" / "a run"
    hosts.wait_end(run_dir)
    (folder,) = folders(run_dir)
    log = folder.log.read_text()
    assert hosts.state(run_dir)["state"] == "ended", log
    assert "\r" not in log
    (preflight,) = events(run_dir, "preflight")
    assert sorted(preflight["nodes"]) == ["n1", "n2"]
    assert losses(run_dir) == calm(tmp_path, prepared, tokenizer_folder)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_stop_loses_no_step_and_a_hard_cancel_is_passed_on(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "stopped"
    hosts.llmjp("submit", *small_run(run_dir, prepared, tokenizer_folder, *over_ssh("n1", "n2"), *LONG))
    wait(lambda: steps(run_dir) > 5, 150, "steps")
    assert hosts.state(run_dir)["state"] == "running"
    hosts.llmjp("stop", run_dir)
    hosts.wait_end(run_dir)
    last = events(run_dir, "stop")[-1]
    assert (last["reason"], committed(run_dir)[-1].step) == ("stop file", last["step"])

    hosts.llmjp("resume", run_dir)
    wait(lambda: steps(run_dir) > last["step"] + 5, 150, "steps after the resume")
    assert "its ranks save if they can" in hosts.llmjp("cancel", run_dir, "--now")
    more = [sys.executable, "-m", "llmjp_train.cli", "cancel", str(run_dir), "--now"]
    while (again := subprocess.run(more, capture_output=True, text=True, env=hosts.env)).returncode == 0:
        assert "cancelled running job" in again.stdout, "any number of times, until there is nothing left"
    assert "has no job that runs or waits" in again.stderr
    hosts.wait_end(run_dir)
    last = events(run_dir, "stop")[-1]
    assert (last["reason"], committed(run_dir)[-1].step) == ("SIGTERM", last["step"]), "saved all the same"
    assert events(run_dir, "incident") == []
    end = folders(run_dir)[-1].history()[-1]
    assert (end["code"], end["action"], set(end["signal"].split())) == (75, "stopped", {"TERM"})


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_lost_host_is_told_and_a_spare_one_takes_its_place(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """It dies with all that runs on it; the next attempt cannot reach it, leaves it out, and a third goes on."""
    run_dir = tmp_path / "lost"
    spare = over_ssh("n1", "n2", "n3")
    hosts.llmjp("submit", *small_run(run_dir, prepared, tokenizer_folder, *spare, *HURT))
    wait(lambda: steps(run_dir) > 10, 150, "10 steps")
    hosts.servers["n2"].lose()
    hosts.wait_end(run_dir)
    (folder,) = folders(run_dir)
    log = folder.log.read_text()
    assert hosts.state(run_dir)["state"] == "ended", log
    gone, absent = events(run_dir, "incident")
    assert (gone["what"], gone["node"], gone["action"]) == ("node_lost", "n2", "restart"), log
    assert 0 <= gone["lost_steps"] <= 20
    assert (absent["what"], absent["node"], absent["action"]) == ("bad_node", "n2", "restart"), log
    assert absent["evidence"].startswith("ssh could not start it (code 255)")
    assert "llmjp: host n2: ssh lost it (code 255)" in log
    assert list(hosts.state(run_dir)["left_out"]) == ["n2"]
    attempts = [sorted(one["nodes"]) for one in events(run_dir, "preflight")]
    assert attempts == [["n1", "n2"], ["n1", "n3"]]
    assert losses(run_dir) == calm(tmp_path, prepared, tokenizer_folder, *HURT)
    print(f"\nlost host: {seconds_between(folder)}")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_host_that_goes_silent_is_noticed_though_its_connection_stays_open(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """The first one, whose terminal nobody empties any more: its ranks must end all the same, and free the run."""
    run_dir = tmp_path / "silent"
    hosts.llmjp("submit", *small_run(run_dir, prepared, tokenizer_folder, *over_ssh("n1", "n2"), *LONG))
    wait(lambda: steps(run_dir) > 10, 150, "10 steps")
    began = time.time()
    hosts.servers["n1"].silence()
    wait(lambda: events(run_dir, "incident"), 90, "the incident")
    hosts.servers["n1"].speak()
    (gone,) = events(run_dir, "incident")
    assert (gone["what"], gone["node"], gone["action"]) == ("node_lost", "n1", "restart")
    seconds = datetime.fromisoformat(gone["time"]).timestamp() - began
    print(f"\nsilent host: noticed after {seconds:.1f} s")
    assert 20 < seconds < 80
    wait(lambda: len(events(run_dir, "resume")) == 1, 120, "a start in the same job")
    hosts.llmjp("cancel", run_dir, "--now")
    hosts.wait_end(run_dir)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_first_host_is_told_when_it_cannot_be_reached_and_none_is_to_spare(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    run_dir = tmp_path / "unreachable"
    hosts.servers["n1"].lose()
    began = time.monotonic()
    hosts.llmjp("submit", *small_run(run_dir, prepared, tokenizer_folder, *over_ssh("n1", "n2"), *LONG))
    hosts.wait_end(run_dir)
    assert time.monotonic() - began < 200, "not the five minutes of a node that gives no sign"
    (incident,) = events(run_dir, "incident")
    assert (incident["what"], incident["node"], incident["action"]) == ("bad_node", "n1", "halt")
    status = hosts.state(run_dir)
    assert (list(status["left_out"]), status["state"]) == (["n1"], "failed")


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_line_that_breaks_does_not_keep_the_ranks_from_saving(
    hosts: Hosts, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """The machine that submitted is gone: no shell, no ssh, and nobody who reads what the hosts print."""
    run_dir = tmp_path / "broken line"
    hosts.llmjp("submit", *small_run(run_dir, prepared, tokenizer_folder, *over_ssh("n1", "n2"), *LONG))
    wait(lambda: steps(run_dir) > 5, 150, "steps")
    (folder,) = folders(run_dir)
    script = int(folder.scheduler_id.partition("-")[0])
    psutil.Process(script).suspend()  # its last words would go to a terminal that is gone
    to_each_below(script, psutil.Process.kill, "bash", "ssh")
    psutil.Process(script).kill()
    wait(lambda: events(run_dir, "stop"), 100, "the stop")
    wait(lambda: processes(run_dir) == {}, 60, "the end of all")
    last = events(run_dir, "stop")[-1]
    assert (last["reason"], committed(run_dir)[-1].step) == ("SIGTERM", last["step"])
