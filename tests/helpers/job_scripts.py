"""Job scripts of the shipped clusters, and what a node says when it comes."""

from dataclasses import replace
from functools import cache

from llmjp_train.commands.cluster import cluster_named
from llmjp_train.launch.job import Job
from llmjp_train.launch.scripts import render

CLUSTERS = ("abci-2", "abci-3", "dev-slurm", "gcp-a3", "mdx", "sakura-h100", "tsubame4", "local")

known = cache(cluster_named)


def a_job(name: str, **values: object) -> tuple[Job, object]:
    cluster = known(name)
    job = Job(
        run_dir="/data/runs/a", number=1, name="a", scheduler=cluster.scheduler.name,
        nodes=1 if name == "local" else 2, ranks_per_node=cluster.devices_per_node or 2, submitted="",
        minutes=cluster.time_limit, lead=cluster.signal_lead,
    )  # fmt: skip
    return replace(job, **values), cluster


def rendered(name: str, **values: object) -> str:
    job, cluster = a_job(name, **values)
    return render(job, cluster, folder="/data/runs/a/jobs/0001", python="/env/bin/python", cwd="/home/me")


HELLO = {
    "host": "n0", "code": "a", "package": "/job/code", "config": "c", "data": {}, "python": "3.11.2", "torch": "2.13.0",
    "deepspeed": "0.19.8", "open_files": 65536, "memory_gib": 1.0, "skew_s": 0.0, "probe": {},
}  # fmt: skip
"""What a sound node says; tests change parts of it."""
