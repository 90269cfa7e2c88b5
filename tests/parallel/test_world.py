from collections.abc import Callable
from typing import Any

import pytest

from llmjp_train.errors import UserError
from llmjp_train.parallel.world import World, first_host, node_place, world


def test_alone_without_a_launcher():
    assert world({}) == World()


def test_torchrun():
    env = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "4711"}
    assert world(env) == World(3, 8, 1, "n1", 4711, "torchrun")


def test_srun_finds_the_first_node_and_a_port_of_the_job():
    env = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "9",
        "SLURM_NTASKS": "16",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[012-013]",
        "SLURM_JOB_ID": "77",
    }
    assert world(env) == World(9, 16, 1, "gpu012", 20077, "srun")


def test_a_batch_script_is_not_a_step():
    assert world({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}) == World()


def test_each_attempt_of_a_job_meets_at_another_port():
    env = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1",
           "SLURM_STEP_NODELIST": "n1", "SLURM_JOB_ID": "11999"}  # fmt: skip
    ports = [world({**env, "LLMJP_ATTEMPT": f"{n:03d}-20260101T000000"}).port for n in range(1, 9)]
    assert (ports[0], len(set(ports))) == (31999, 8)
    assert all(20000 <= port < 32000 for port in ports), "below those that the kernel gives away"


MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_ess_base_jobid": str((5 << 16) + 1),
}  # fmt: skip


def test_mpirun_on_one_machine_needs_nothing_more():
    assert world(MPIRUN) == World(0, 2, 0, "127.0.0.1", 20005, "mpirun")


def test_mpirun_over_machines_needs_an_address():
    with pytest.raises(UserError, match="MASTER_ADDR"):
        world({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize("place", [world, node_place])
def test_another_mpi_is_refused_and_does_not_make_each_process_alone(place: Callable[..., Any]):
    with pytest.raises(
        UserError, match=r"started 2 processes \(PMI_SIZE\).*Open MPI's mpirun, srun or torchrun"
    ):
        place({"PMI_RANK": "1", "PMI_SIZE": "2"})
    place({"PMI_RANK": "0", "PMI_SIZE": "1"})
    assert world({**MPIRUN, "PMI_RANK": "0", "PMI_SIZE": "2"}).launcher == "mpirun"


def test_half_set_variables_are_named():
    with pytest.raises(UserError, match="LOCAL_RANK"):
        world({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a1", "a1"), ("a1,b2", "a1"), ("n[3-8,12],x1", "n3"), ("n[003-008]", "n003"), ("", "")],
)
def test_first_host(nodes: str, host: str):
    assert first_host(nodes) == host
