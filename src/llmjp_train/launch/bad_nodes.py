"""Nodes that a run's jobs leave out: bad-nodes.jsonl of the run directory, and what schedulers are told of it.

A line a change; the newest line of a node counts.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

from llmjp_train.config.machine import ClusterConfig, Scheduler
from llmjp_train.launch.job import append_line, now, read_lines
from llmjp_train.runlog.record import SCHEMA

FILE = "bad-nodes.jsonl"


def left_out(run_dir: Path) -> dict[str, str]:
    """Nodes to be left out, and why, the first found first."""
    found: dict[str, str] = {}
    for row in read_lines(run_dir / FILE):
        found.pop(row["host"], None)
        if row["left_out"]:
            found[row["host"]] = row["why"]
    return found


def leave_out(run_dir: Path, host: str, why: str, job: str = "") -> None:
    """Leave a node out from now on."""
    _write(run_dir, host, why, job, left_out=True)


def take_back(run_dir: Path, host: str) -> None:
    """Use a node again."""
    _write(run_dir, host, "taken back by a person", "", left_out=False)


def _write(run_dir: Path, host: str, why: str, job: str, *, left_out: bool) -> None:
    row = {"schema": SCHEMA, "time": now(), "host": host, "why": why, "job": job, "left_out": left_out}
    append_line(run_dir / FILE, row)


def excluded(cluster: ClusterConfig, hosts: Iterable[str]) -> list[str]:
    """What a scheduler must be told to leave out: hosts, and for Slurm also those of ``cluster.options``.

    Slurm takes the last list that it is given and forgets the others.
    """
    hosts = list(hosts)
    if cluster.scheduler is not Scheduler.slurm or not hosts:
        return hosts
    given = []
    for option in cluster.options:
        words = shlex.split(option)
        if words and words[0].startswith("--exclude="):
            given.append(words[0].partition("=")[2])
        elif len(words) == 2 and words[0] in ("-x", "--exclude"):
            given.append(words[1])
    return [*given, *hosts]
