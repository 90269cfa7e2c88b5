"""`python -m llmjp_train.commands.train_node JOB`: this node's share of a job's ranks, supervised.

Started by a job's script, once on every node (slurm/job.sh.j2 and its siblings).
"""

import faulthandler
import fnmatch
import gc
import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError
from llmjp_train.launch.job import Job, JobFolder
from llmjp_train.parallel.world import node_place

if TYPE_CHECKING:
    from llmjp_train.config.machine import ClusterConfig
    from llmjp_train.config.root import TrainConfig

_BEFORE_FORK = (
    "llmjp_train.engine.deepspeed_setup",
    "llmjp_train.train.loop",
    "llmjp_train.train.setup",
    "llmjp_train.commands.train_rank",
)
_MEETING_SECONDS = 300.0


def main() -> int:
    """Entry point."""
    # Until the ranks run there is nothing to save: a request to end ends this process.
    folder = JobFolder(Path(sys.argv[1]).resolve())
    node, nodes = node_place()
    try:
        return _supervise(folder, folder.read(), node, nodes)
    except UserError as error:
        if node == 0:
            print(f"llmjp: {error}", file=sys.stderr, flush=True)
        return exit_codes.BAD_INPUT


def _supervise(folder: JobFolder, job: Job, node: int, nodes: int) -> int:
    from llmjp_train.config.compose import load_config
    from llmjp_train.launch.heartbeat import HangWatch
    from llmjp_train.launch.meeting import hello, meet
    from llmjp_train.launch.supervisor import Supervisor

    if nodes != job.nodes:
        raise UserError(
            f"the job has {job.nodes} nodes, but {nodes} processes were started: start one on each node"
        )
    config = load_config(folder.path / "config.yaml")
    attempt = folder.path / f"attempt-{os.environ['LLMJP_ATTEMPT']}"
    attempt.mkdir(exist_ok=True)
    os.environ.update(host_variables(config.cluster, nodes))
    data = [source.path for source in config.data.sources.values() if source.path not in ("", "???")]
    meeting = meet(attempt, node, nodes, hello(folder.path, data), config.cluster.interface, _MEETING_SECONDS)
    if node == 0:
        for warning in meeting.warnings:
            print(f"warning: {warning}", flush=True)
    _import()
    result = Supervisor(
        attempt,
        folder.path / f"node-{node:04d}.txt",
        lambda: _rank(config, job),
        node=node,
        local=job.ranks_per_node,
        size=job.ranks,
        address=meeting.address,
        port=meeting.port,
        deadline=_deadline(job),
        hang=HangWatch(folder.run_dir, least_seconds=config.cluster.hang_seconds).verdict
        if node == 0
        else None,
    ).run()
    return result.code


def _import() -> None:
    """What every rank needs, once a node; a rank then starts in milliseconds."""
    for name in _BEFORE_FORK:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _rank(config: "TrainConfig", job: Job) -> int:
    """A forked rank."""
    from llmjp_train.commands.train_rank import train_rank
    from llmjp_train.train.stops import Stops

    stops = Stops().install()
    faulthandler.enable()
    cores = sorted(os.sched_getaffinity(0))
    local = int(os.environ["LOCAL_RANK"])
    share = cores[local * len(cores) // job.ranks_per_node : (local + 1) * len(cores) // job.ranks_per_node]
    os.environ["LLMJP_CORES"] = ",".join(map(str, share or cores))
    try:
        return train_rank(config, stops)
    except UserError as error:
        print(f"llmjp train: {error}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def host_variables(cluster: "ClusterConfig", nodes: int, host: str | None = None) -> dict[str, str]:
    """What the network profile says of this host; nothing for a job of one node."""
    name = socket.gethostname() if host is None else host
    if nodes > 1:
        for pattern, variables in cluster.network.hosts.items():
            if fnmatch.fnmatchcase(name, pattern):
                return dict(variables)
    return {}


def _deadline(job: Job) -> float | None:
    """Unix time to save and end at, whatever the scheduler signals."""
    if job.minutes is None:
        return None
    return float(os.environ["LLMJP_BEGAN"]) + 60 * job.minutes - job.lead


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(exit_codes.STOPPED))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.STOPPED))
    sys.exit(main())
