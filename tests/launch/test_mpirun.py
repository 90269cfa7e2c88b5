"""A PBS job's script with a real mpirun; the nodes are this machine, and PBS itself is left out."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.processes import processes, to_each_below, wait
from helpers.runs import events, losses
from helpers.sshd import need
from helpers.toy import small_run

from llmjp_train.checkpoint.listing import committed
from llmjp_train.config.compose import compose
from llmjp_train.launch.job import JobFolder
from llmjp_train.launch.submit import Asked, _script, prepare

PBS = (
    "cluster.scheduler=pbs", "cluster.launcher=mpirun", "cluster.partition=q", "cluster.devices_per_node=2",
    "cluster.nodes=1", "parallel.data=2", "cluster.interface=lo", "schedule.length=100000",
    "evaluation.validation_every=null", "checkpoint.every_steps=20",
)  # fmt: skip


def started(folder: JobFolder) -> "subprocess.Popen[bytes]":
    """The script, as PBS starts it on the first node."""
    hosts = folder.path / "pbs-hosts"
    hosts.write_text("localhost\nlocalhost\n")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # containers of CI
    env = {**os.environ, "PBS_NODEFILE": str(hosts), **as_root}
    return subprocess.Popen(["bash", str(folder.path / "job.sh")], env=env, start_new_session=True)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_killed_supervisor_and_a_stop_are_what_they_are_though_mpirun_starts_them(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    """mpirun has one code for all processes, and was once told to wait for ever for one that was killed."""
    need("mpirun")
    run_dir = tmp_path / "mpi"
    config = compose("train", small_run(run_dir, prepared, tokenizer_folder, *PBS))
    folder = prepare(config, Asked())
    _script(folder, config)
    script = started(folder)
    try:
        wait(lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 25, 150, "steps")
        (supervisor,) = {parent for parent in processes(run_dir).values() if parent in processes(run_dir)}
        os.kill(supervisor, signal.SIGKILL)
        wait(lambda: len(events(run_dir, "resume")) == 1, 100, "a start in the same job")
        at = len(losses(run_dir))
        wait(lambda: len(losses(run_dir)) > at, 60, "steps after it")
        script.send_signal(signal.SIGUSR1)
        assert script.wait(60) == 75
    finally:
        if script.poll() is None:
            to_each_below(script.pid, psutil.Process.kill)
            script.kill()
    ends = [row for row in folder.history() if row["kind"] == "end"]
    assert [(row["code"], row["action"]) for row in ends] == [(1, "restart"), (75, "next")]
    last = events(run_dir, "stop")[-1]
    assert (last["reason"], committed(run_dir)[-1].step) == ("SIGUSR1", last["step"])
