"""What a cluster's file lacks, and what in it is odd."""

import re
import shutil
from collections.abc import Iterator

from llmjp_train.config.machine import ClusterConfig, Container, Device, Launcher, Scheduler

SUBMITTERS = {Scheduler.slurm: "sbatch", Scheduler.pbs: "qsub", Scheduler.grid_engine: "qsub"}
"""The command that takes a job, by scheduler."""
LAUNCHERS = {
    Scheduler.local: (Launcher.none,),
    Scheduler.slurm: (Launcher.srun, Launcher.mpirun),
    Scheduler.pbs: (Launcher.mpirun, Launcher.ssh),
    Scheduler.grid_engine: (Launcher.mpirun, Launcher.ssh),
    Scheduler.hosts: (Launcher.ssh,),
}
"""What can start processes on the nodes of a job, by scheduler."""
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
"""Variables that are set for each rank."""
LEAST_LEAD = 90
"""Seconds: Slurm looks at time limits every 30."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FIGURES = ("device_memory_gib", "peak_tflops_bf16", "memory_gbs", "node_link_gbs", "network_gbs")


def lacks(cluster: ClusterConfig) -> list[str]:
    """What a job could not be submitted or planned with: key, value and remedy."""
    return [*_scheduling(cluster), *_times(cluster), *_words(cluster), *_devices(cluster)]


def odd(cluster: ClusterConfig) -> list[str]:
    """What works but is likely not meant, or is not known."""
    found = []
    if cluster.device is Device.cuda:
        found += [
            f"{key} is unknown: the plan gives bounds instead of figures"
            for key in (*_FIGURES, "storage_gbs")
            if getattr(cluster, key) == "unknown"
        ]
    if cluster.scheduler is Scheduler.local:
        return found
    if not cluster.account:
        found.append("account is empty: give cluster.account=NAME if the site bills jobs to one")
    if not cluster.interface:
        found.append(
            "interface is empty: ranks meet at the first node's name, so names must resolve on every node"
        )
    if not cluster.shared:
        found.append("shared is empty: nothing checks that a run directory lies where every node sees it")
    if cluster.time_limit is None:
        found.append("time_limit is empty: jobs take the scheduler's own, and nothing saves ahead of it")
    elif cluster.signal_lead < LEAST_LEAD:
        found.append(
            f"signal_lead={cluster.signal_lead} is short: Slurm looks every 30 s; take {LEAST_LEAD} or more"
        )
    for place, name in _variables(cluster):
        if name in OURS:
            found.append(f"{place} sets {name}, which is set for each rank")
    command = SUBMITTERS.get(cluster.scheduler)
    if command and shutil.which(command) is None:
        found.append(f"{command} is not on this machine: submit from one of the cluster")
    return found


def _scheduling(cluster: ClusterConfig) -> Iterator[str]:
    scheduler, possible = cluster.scheduler, LAUNCHERS[cluster.scheduler]
    if cluster.launcher not in possible:
        names = " or ".join(one.name for one in possible)
        yield f"launcher={cluster.launcher.name} does not go with scheduler={scheduler.name}: take {names}"
    if scheduler in (Scheduler.pbs, Scheduler.grid_engine) and not cluster.partition:
        what = "its queue" if scheduler is Scheduler.pbs else "the resource of a whole node, such as node_f"
        yield f"partition is empty, but scheduler={scheduler.name} needs {what}"
    if scheduler is Scheduler.hosts and not cluster.hosts:
        yield "hosts is empty, but scheduler=hosts needs the names of the nodes: hosts: [node1, node2]"
    if scheduler is not Scheduler.hosts and cluster.hosts:
        yield f"hosts has no effect with scheduler={scheduler.name}, which chooses the nodes: remove it"
    if (cluster.container is Container.none) != (not cluster.image):
        yield f"container={cluster.container.name} and image={cluster.image!r}: give both, or neither"
    if cluster.container is Container.pyxis and cluster.launcher is not Launcher.srun:
        yield f"container=pyxis is srun's, but launcher={cluster.launcher.name}: take container=apptainer"
    if cluster.venv and cluster.container is not Container.none:
        yield f"venv={cluster.venv} has no effect with container={cluster.container.name}: remove it"


def _times(cluster: ClusterConfig) -> Iterator[str]:
    limit, most = cluster.time_limit, cluster.max_time_limit
    if limit is not None and most is not None and limit > most:
        yield f"time_limit={limit} is above max_time_limit={most} minutes, the site's own: lower it"
    if limit is not None and cluster.signal_lead >= 60 * limit:
        yield f"signal_lead={cluster.signal_lead} s is not below time_limit={limit} minutes: no step would be taken"
    if cluster.nodes is not None and cluster.max_nodes is not None and cluster.nodes > cluster.max_nodes:
        yield f"nodes={cluster.nodes} is above max_nodes={cluster.max_nodes}, the site's own: take fewer"


def _words(cluster: ClusterConfig) -> Iterator[str]:
    """A line break would begin another line of the job's script."""
    single = {"account": cluster.account, "partition": cluster.partition, "interface": cluster.interface}
    for key, values in (*((k, [v]) for k, v in single.items()), ("options", cluster.options),
                        ("modules", cluster.modules), ("hosts", cluster.hosts), ("image", [cluster.image]),
                        ("venv", [cluster.venv]), ("module_init", [cluster.module_init])):  # fmt: skip
        for value in values:
            if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
                yield f"{key}={value!r} holds a line break or control character: remove it"
    for place, name in _variables(cluster):
        if not _NAME.match(name):
            yield f"{place} has {name!r}, which is no name of a variable: letters, digits and _ alone"


def _devices(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.scheduler is not Scheduler.local and not cluster.devices_per_node:
        yield "devices_per_node is missing: how many ranks a node has"
    if cluster.device is Device.cuda:
        for key in _FIGURES:
            if getattr(cluster, key) is None:
                yield f"{key} is missing: give the figure, or unknown"


def _variables(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Where each variable is set, and its name."""
    for name in cluster.environment:
        yield "environment", name
    for name in cluster.network.environment:
        yield "network.environment", name
    for pattern, variables in cluster.network.hosts.items():
        for name in variables:
            yield f"network.hosts.{pattern}", name
