"""Which process this is among those that train together, as its launcher says.

The only place that reads RANK and its relatives from the environment.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmjp_train.errors import UserError


@dataclass(frozen=True)
class World:
    """A process's place among ``size`` processes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among the processes of this node."""
    address: str = "127.0.0.1"
    """Host of rank 0."""
    port: int = 29500
    launcher: str = ""
    """What started it: torchrun, srun, mpirun, or empty."""


_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


def world(environment: Mapping[str, str] | None = None) -> World:
    """The process's place, from torchrun's, Open MPI's or srun's variables; alone without any.

    Raises:
        UserError: a launcher set some of its variables but not all, or none of them names rank 0's host; an MPI
            whose variables are not read started several processes.
    """
    env = os.environ if environment is None else environment
    for launcher, names in _LAUNCHERS.items():
        if names[0] not in env or (launcher == "srun" and "SLURM_STEP_ID" not in env):
            continue  # a batch script has SLURM_PROCID too, but no step
        missing = [name for name in names if name not in env]
        if missing:
            raise UserError(
                f"{launcher} set {names[0]} but not {', '.join(missing)}; start with torchrun or srun"
            )
        rank, size, local_rank = (int(env[name]) for name in names)
        if size == 1 and launcher == "srun":
            return World()
        address = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", ""))
        if not address and env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env.get("OMPI_COMM_WORLD_SIZE", "none"):
            address = "127.0.0.1"  # mpirun on one machine
        if not address:
            raise UserError(
                f"{launcher} started {size} processes but MASTER_ADDR is not set: set it to rank 0's host"
            )
        port = int(env.get("MASTER_PORT") or _job_port(env))
        return World(rank, size, local_rank, address, port, launcher)
    _refuse_other_mpi(env)
    return World()


def _refuse_other_mpi(env: Mapping[str, str]) -> None:
    """Under MPICH's or Intel MPI's mpirun each process would take itself for alone, and all write into one run."""
    size = env.get("PMI_SIZE", "")
    if "PMI_RANK" in env and size.isdigit() and int(size) > 1:
        raise UserError(
            f"an mpirun that is not Open MPI's started {size} processes (PMI_SIZE), and its variables are not read: "
            "start with Open MPI's mpirun, srun or torchrun, or with 'llmjp train parallel.data=N' on one machine"
        )


def first_host(nodes: str) -> str:
    """First host of Slurm's compressed list: ``node[003-008,12],x1`` gives ``node003``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?", nodes)
    return match.group(1) + (match.group(2) or "") if match else ""


def _job_port(env: Mapping[str, str]) -> int:
    """A port that two jobs on one node do not share, nor two attempts of a job: the first's may be taken."""
    attempt = int(env.get("LLMJP_ATTEMPT", "1").partition("-")[0])
    # Of Open MPI's own number the upper half is the mpirun, the lower one counts what it started.
    job = int(env.get("SLURM_JOB_ID") or int(env.get("OMPI_MCA_ess_base_jobid", "0")) >> 16)
    return 20000 + (job + 1009 * (attempt - 1)) % 12000


_NODES = (
    ("LLMJP_NODE", "LLMJP_NODES"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_NODEID", "SLURM_STEP_NUM_NODES"),
)


def node_place(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Which node of how many this process is, where its launcher started one a node; 0 of 1 alone.

    Raises:
        UserError: as `world`, of an MPI whose variables are not read.
    """
    env = os.environ if environment is None else environment
    for number, count in _NODES:
        if number in env and count in env:
            return int(env[number]), int(env[count])
    _refuse_other_mpi(env)
    return 0, 1


def rank_environment(rank: int, size: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """The variables that make a process a rank, for who starts it."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def become_rank(rank: int, size: int, local_rank: int, address: str, port: int) -> None:
    """Make this process a rank, whatever started its node: DeepSpeed refuses a local rank beside mpirun's."""
    for name in _LAUNCHERS["mpirun"]:
        os.environ.pop(name, None)
    os.environ.update(rank_environment(rank, size, local_rank, address, port))
