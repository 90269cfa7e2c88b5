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
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes
from llmjp_train.errors import UserError
from llmjp_train.launch.job import Job, JobFolder
from llmjp_train.parallel.world import node_place

if TYPE_CHECKING:
    from llmjp_train.config.machine import ClusterConfig
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.launch.judging import Needs
    from llmjp_train.launch.supervisor import Result

_BEFORE_FORK = (
    "llmjp_train.engine.deepspeed_setup",
    "llmjp_train.train.loop",
    "llmjp_train.train.setup",
    "llmjp_train.commands.train_rank",
)
_MEETING_SECONDS = 300.0


def main() -> int:
    """Entry point; 0 once the attempt's folder holds how this node ended, else the code of that.

    The arbiter reads the folder, for launchers make different things of several nodes' codes: srun and ssh give the
    highest, and Open MPI ends all for the first that is not 0, or is told not to and gives 0 whatever they were.
    """
    folder = JobFolder(Path(sys.argv[1]).resolve())
    try:
        node, nodes = node_place()
    except UserError as error:
        print(f"llmjp train: {error}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    attempt = folder.attempt(os.environ["LLMJP_ATTEMPT"])
    result = _result(folder, attempt, node, nodes)
    with suppress(OSError):  # a full disk
        if not (attempt / f"node-{node:04d}.json").exists():  # which a supervisor has written
            result.write(attempt, node)
        return exit_codes.OK
    return result.code


def _result(folder: JobFolder, attempt: Path, node: int, nodes: int) -> "Result":
    """How this node ended, whatever happened to it."""
    from llmjp_train.launch.meeting import BadNodesError
    from llmjp_train.launch.probe import node_name
    from llmjp_train.launch.supervisor import Result, end_others

    host = node_name()
    try:
        attempt.mkdir(exist_ok=True)
        return _supervise(folder, attempt, folder.read(), node, nodes)
    except BadNodesError as error:
        if node == 0:
            return _bad(error.bad)
        return Result(exit_codes.FAILED, str(error), "peer", host=host)
    except UserError as error:
        if node == 0:
            print(f"llmjp: {error}", file=sys.stderr, flush=True)
        return Result(exit_codes.BAD_INPUT, str(error), host=host)
    except SystemExit:  # until the ranks run there is nothing to save: a request to end ends this process
        return Result(exit_codes.STOPPED, host=host)
    except Exception as error:
        traceback.print_exc()
        reason = f"node {node} could not start its ranks: {type(error).__name__}: {error}"
        with suppress(OSError):
            end_others(attempt, node, "crash", f"{reason} on {host}")  # which would wait for its ranks
        return Result(exit_codes.FAILED, reason, "crash", host=host)


def _supervise(folder: JobFolder, attempt: Path, job: Job, node: int, nodes: int) -> "Result":
    from llmjp_train.config.compose import load_config
    from llmjp_train.launch.heartbeat import HangWatch
    from llmjp_train.launch.meeting import hello, measured_hello, meet
    from llmjp_train.launch.supervisor import Supervisor

    if nodes != job.nodes:
        raise UserError(
            f"the job has {job.nodes} nodes, but {nodes} processes were started: start one on each node"
        )
    config = load_config(folder.path / "config.yaml")
    os.environ.update(host_variables(config.cluster, nodes))
    os.environ.update(flight_recorder(config.cluster, attempt))
    data = [source.path for source in config.data.sources.values() if source.path not in ("", "???")]
    preflight = config.cluster.preflight
    if preflight:
        cuda = config.cluster.device.name == "cuda"
        mine = measured_hello(folder.path, data, folder.run_dir, cuda=cuda)
    else:
        mine = hello(folder.path, data)
    asked = needs(config, job) if preflight else None
    meeting = meet(attempt, node, nodes, mine, config.cluster.interface, _MEETING_SECONDS, asked)
    if node == 0:
        for warning in meeting.warnings:
            print(f"warning: {warning}", flush=True)
    told = None
    if preflight:
        told = {
            "ranks_per_node": job.ranks_per_node,
            "nodes": meeting.figures,
            "warnings": list(meeting.warnings),
        }
    _import()
    return Supervisor(
        attempt,
        folder.path / f"node-{node:04d}.txt",
        lambda: _rank(config, job, told),
        node=node,
        local=job.ranks_per_node,
        size=job.ranks,
        address=meeting.address,
        port=meeting.port,
        deadline=_deadline(job),
        lead=job.lead,
        hang=HangWatch(folder.run_dir, least_seconds=config.cluster.hang_seconds).verdict
        if node == 0
        else None,
    ).run()


def _bad(bad: dict[str, str]) -> "Result":
    """Say which nodes were found to be bad, to people and to the arbiter, which has them left out."""
    from llmjp_train.launch.supervisor import Result

    for host, why in bad.items():
        print(f"llmjp: bad node {host}: {why}", file=sys.stderr, flush=True)
    host, why = next(iter(bad.items()))
    reason = why if len(bad) == 1 else f"{why} (and {len(bad) - 1} more bad nodes)"
    return Result(exit_codes.FAILED, reason, "bad_node", host=host, bad=bad)


def needs(config: "TrainConfig", job: Job) -> "Needs":
    """What a run asks of each of its nodes."""
    from llmjp_train.config.derive import derived
    from llmjp_train.config.machine import Device, known
    from llmjp_train.launch.judging import Needs

    return Needs(
        devices=job.ranks_per_node,
        cuda=config.cluster.device is Device.cuda,
        memory_gib=known(config.cluster.device_memory_gib),
        checkpoint_bytes=derived(config).checkpoint_bytes,
    )


def _import() -> None:
    """What every rank needs, once a node; a rank then starts in milliseconds."""
    for name in _BEFORE_FORK:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _rank(config: "TrainConfig", job: Job, preflight: dict[str, Any] | None) -> int:
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
        return train_rank(config, stops, preflight=preflight)
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


def flight_recorder(cluster: "ClusterConfig", attempt: Path) -> dict[str, str]:
    """What makes NCCL keep its last collectives and write them into the attempt's folder when one takes too long."""
    from llmjp_train.config.machine import Device

    wanted = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{attempt}/nccl-rank-",
    }
    if cluster.device is Device.cpu:
        return {}
    return {name: value for name, value in wanted.items() if name not in os.environ}  # a person's own count


def _deadline(job: Job) -> float | None:
    """Unix time to save and end at, whatever the scheduler signals."""
    if job.minutes is None:
        return None
    return float(os.environ["LLMJP_BEGAN"]) + 60 * job.minutes - job.lead


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(exit_codes.STOPPED))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.STOPPED))
    sys.exit(main())
