"""From a checked configuration to jobs in the queue: folders, snapshots, scripts, commands."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmjp_train.config.compose import dump_config
from llmjp_train.config.derive import derived, nodes_of
from llmjp_train.config.machine import ClusterConfig, Container, Scheduler
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError
from llmjp_train.launch import snapshot
from llmjp_train.launch.bad_nodes import leave_out, left_out, take_back
from llmjp_train.launch.clusters import lacks
from llmjp_train.launch.job import Job, JobFolder, find_run, folders, job_name, new_folder, now
from llmjp_train.launch.schedulers import SchedulerApi, scheduler, submit
from llmjp_train.launch.scripts import render

OWN_ID = ("SLURM_JOB_ID", "PBS_JOBID", "JOB_ID")
"""Where a job's script finds its own id."""
_HOST = re.compile(r"[A-Za-z0-9][\w.-]*\Z")


@dataclass(frozen=True)
class Asked:
    """What a submission asks for besides its configuration."""

    chain: int = 1
    after: str = ""
    """Scheduler's id of a job, or a run."""
    requeue: bool = False
    bare: bool = False
    budget_hours: float | None = None
    after_stop: bool = False
    exclude: tuple[str, ...] = ()
    """Nodes to be left out from now on."""
    include: tuple[str, ...] = ()
    """Nodes that were left out, to be used again."""


def nodes_left_out(config: TrainConfig, asked: Asked) -> list[str]:
    """Nodes that the run's next job must not get."""
    kept = [host for host in left_out(Path(config.run_dir)) if host not in asked.include]
    return list(dict.fromkeys([*kept, *asked.exclude]))


def problems(config: TrainConfig, asked: Asked) -> list[str]:
    """Why no job can be made of a configuration; key, value and remedy."""
    cluster, nodes = config.cluster, nodes_of(config)
    found = [f"cluster {cluster.name}: {message}" for message in lacks(replace(cluster, nodes=nodes))]
    ranks = derived(config).world_size
    if (
        cluster.devices_per_node
        and ranks > cluster.devices_per_node
        and ranks != nodes * cluster.devices_per_node
    ):
        found.append(
            f"{ranks} ranks do not fill {nodes} nodes of cluster.devices_per_node={cluster.devices_per_node}: change "
            "parallel.data or nodes"
        )
    found += _node_problems(config, asked, nodes)
    if cluster.scheduler is Scheduler.local and nodes > 1:
        found.append(f"cluster=local has one node, the layout needs {nodes}: choose a cluster")
    if asked.requeue and cluster.scheduler is not Scheduler.slurm:
        found.append(f"--requeue is Slurm's; with scheduler={cluster.scheduler.name} take --chain N")
    if asked.requeue and asked.chain > 1:
        found.append("--requeue and --chain both say how a run goes on: take one of them")
    if asked.bare and cluster.launcher.name in ("ssh", "none"):
        found.append(f"--bare needs srun or mpirun, but cluster.launcher={cluster.launcher.name}")
    if asked.chain < 1:
        found.append(f"--chain {asked.chain} must be at least 1")
    where = Path(config.run_dir).resolve()
    if nodes > 1 and cluster.shared and not any(where.is_relative_to(folder) for folder in cluster.shared):
        found.append(
            f"run_dir={config.run_dir} lies in none of cluster.shared={cluster.shared}, so other nodes would not see "
            "it: give run_dir=FOLDER in one of them"
        )
    return found


def _node_problems(config: TrainConfig, asked: Asked, nodes: int) -> list[str]:
    """What is wrong with nodes that are named: those of the cluster's file, and those to be left out."""
    cluster, found = config.cluster, []
    absent = nodes_left_out(config, asked)
    hosts = [host for host in cluster.hosts if host not in absent]
    if cluster.scheduler is Scheduler.hosts and len(hosts) < nodes:
        lost = [host for host in cluster.hosts if host in absent]
        less = f" without those left out ({', '.join(lost)}; --include HOST takes one back)" if lost else ""
        found.append(f"cluster.hosts names {len(hosts)} hosts{less}, the layout needs {nodes}: name more")
    if asked.exclude and cluster.scheduler in (Scheduler.pbs, Scheduler.local):
        name = cluster.scheduler.name
        found.append(f"--exclude has no effect with scheduler={name}, which cannot leave nodes out: drop it")
    for host in asked.exclude:
        if not _HOST.match(host):
            found.append(
                f"--exclude {host!r} is no name of a host: give one host, and the option once for each"
            )
    known = left_out(Path(config.run_dir))
    for host in asked.include:
        if host not in known:
            names = ", ".join(known) or "none"
            found.append(f"--include {host}: the run leaves no such node out; left out: {names}")
    return found


def make_job(config: TrainConfig, asked: Asked, number: int, place: int = 1) -> Job:
    """What the folder of the ``place``-th job of a chain holds."""
    cluster, nodes = config.cluster, nodes_of(config)
    return Job(
        run_dir=str(Path(config.run_dir).resolve()),
        number=number,
        name=job_name(config.name),
        scheduler=cluster.scheduler.name,
        nodes=nodes,
        ranks_per_node=-(-derived(config).world_size // nodes),
        submitted=now(),
        minutes=cluster.time_limit,
        lead=cluster.signal_lead,
        max_restarts=cluster.max_restarts,
        requeue=asked.requeue,
        bare=asked.bare,
        budget_hours=asked.budget_hours,
        after_stop=asked.after_stop,
        chain=(place, asked.chain),
    )


def python_of(cluster: ClusterConfig) -> str:
    """The interpreter on the nodes."""
    if cluster.container is not Container.none:
        return "python3"
    return f"{cluster.venv}/bin/python" if cluster.venv else sys.executable


def preview(
    config: TrainConfig, asked: Asked, words: Sequence[str], *, plain: bool
) -> tuple[list[list[str]], str]:
    """Commands and script as `submit` would use them; nothing is written.

    Args:
        plain: a script that can be handed to the scheduler as it stands, ``words`` being those of submit.
    """
    taken = folders(Path(config.run_dir))
    number = int(taken[-1].path.name) + 1 if taken else 1
    folder = Path(config.run_dir).resolve() / "jobs" / f"{number:04d}"
    job = make_job(config, asked, number)
    script = render(
        job,
        config.cluster,
        left_out=nodes_left_out(config, asked),
        **_values(config, folder, words if plain else None),
    )
    api = scheduler(job.scheduler)
    commands, after = [], [asked.after] if asked.after else []
    for place in range(asked.chain):
        path = folder.parent / f"{number + place:04d}" / "job.sh"
        commands.append(api.submit_command(job, path, after, config.cluster.account))
        after = ["JOB" if asked.chain == 1 else f"JOB{place + 1}"]
    return commands, script


def _values(config: TrainConfig, folder: Path, words: Sequence[str] | None) -> dict[str, Any]:
    if words is not None:
        python = python_of(config.cluster) if config.cluster.venv else "python3"
        return {"prepare": list(words), "python": python}
    return {"folder": str(folder), "python": python_of(config.cluster), "cwd": os.getcwd()}


def prepare(config: TrainConfig, asked: Asked) -> JobFolder:
    """A job's folder with its snapshot, for a script that is already running."""
    folder = new_folder(Path(config.run_dir))
    folder.write(make_job(config, asked, int(folder.path.name)))
    snapshot.take(folder.path, dump_config(config), config.cluster)
    folder.scheduler_id = next((os.environ[name] for name in OWN_ID if name in os.environ), "")
    return folder


def submit_all(config: TrainConfig, asked: Asked) -> list[JobFolder]:
    """Put the job, or the chain, into the queue.

    Raises:
        UserError: another job of the run waits or runs; the scheduler refused; nothing can be written.
    """
    api = scheduler(config.cluster.scheduler.name)
    run_dir = Path(config.run_dir)
    after = [after_id(asked.after)] if asked.after else []
    if not after:
        refuse_busy(run_dir)
    if asked.exclude or asked.include:
        run_dir.mkdir(parents=True, exist_ok=True)
    for host in asked.include:
        take_back(run_dir, host)
    for host in asked.exclude:
        leave_out(run_dir, host, "left out by a person")
    text, made = dump_config(config), list[JobFolder]()
    for place in range(1, asked.chain + 1):
        folder = new_folder(run_dir)
        job = make_job(config, asked, int(folder.path.name), place)
        folder.write(job)
        if made:
            snapshot.share(folder.path, made[0].path, text)
        else:
            snapshot.take(folder.path, text, config.cluster)
        _queue(api, folder, job, config, after)
        after = [folder.scheduler_id]
        made.append(folder)
    return made


def submit_sweep(configs: Sequence[TrainConfig], asked: Asked) -> list[JobFolder]:
    """Put a job for each run of a sweep into the queue: one array where Slurm queues them.

    Raises:
        UserError: as `submit_all`, of any of the runs; then none is queued, but for those that another scheduler
            than Slurm had taken before.
    """
    cluster = configs[0].cluster
    api = scheduler(cluster.scheduler.name)
    after = [after_id(asked.after)] if asked.after else []
    for config in configs:
        refuse_busy(Path(config.run_dir))
    made = []
    for config in configs:
        made.append(folder := new_folder(Path(config.run_dir)))
        folder.write(make_job(config, asked, int(folder.path.name)))
        snapshot.take(folder.path, dump_config(config), config.cluster)
    if cluster.scheduler is not Scheduler.slurm:
        for folder, config in zip(made, configs, strict=True):
            _queue(api, folder, folder.read(), config, after)
        return made
    with _given_back(made):
        scripts = [_script(*one) for one in zip(made, configs, strict=True)]
        array = made[0].path / "array.sh"
        array.write_text(slurm_array(scripts), encoding="utf-8")
        words = api.submit_command(made[0].read(), array.resolve(), after, cluster.account)
        number = submit(api, [*words[:-1], f"--array=1-{len(made)}", words[-1]])
    for index, folder in enumerate(made, 1):
        folder.scheduler_id = f"{number}_{index}"
    return made


def slurm_array(scripts: Sequence[Path]) -> str:
    """A script for an array whose elements each run one of ``scripts``.

    Raises:
        UserError: they ask Slurm for different nodes or times, which an array cannot give.
    """
    asks = [
        [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
        for path in scripts
    ]
    if any(other != asks[0] for other in asks):
        wrong = sorted({line for other in asks for line in {*other} ^ {*asks[0]}})
        raise UserError(
            "the runs of the sweep ask Slurm for different things, but are one array: "
            f"{'; '.join(wrong)}\nsubmit those that differ by themselves, or give them one name, layout and time limit"
        )
    files = " ".join(shlex.quote(str(path.resolve())) for path in scripts)
    lines = ["#!/bin/bash", *asks[0], "set -euo pipefail", f"scripts=({files})"]
    return "\n".join([*lines, 'exec bash "${scripts[SLURM_ARRAY_TASK_ID - 1]}"']) + "\n"


def _queue(api: SchedulerApi, folder: JobFolder, job: Job, config: TrainConfig, after: Sequence[str]) -> None:
    with _given_back([folder]):
        script = _script(folder, config)
        words = api.submit_command(job, script.resolve(), after, config.cluster.account)
        folder.scheduler_id = submit(api, words)


def _script(folder: JobFolder, config: TrainConfig) -> Path:
    script = folder.path / "job.sh"
    values = {"left_out": list(left_out(folder.run_dir)), **_values(config, folder.path.resolve(), None)}
    script.write_text(render(folder.read(), config.cluster, **values), encoding="utf-8")
    script.chmod(script.stat().st_mode | 0o100)
    folder.log.touch()
    return script


@contextmanager
def _given_back(made: Sequence[JobFolder]) -> Iterator[None]:
    """What the scheduler did not take is no job; unless it may have: then the folder stays as a trace."""
    try:
        yield
    except UserError as error:
        if "is not known" not in str(error):
            for folder in made:
                shutil.rmtree(folder.path)
                with suppress(OSError):  # they hold something else
                    folder.path.parent.rmdir()
                    folder.run_dir.rmdir()
        raise


def after_id(said: str) -> str:
    """The scheduler's id of what `--after` names: an id, or the newest job of a run.

    Raises:
        UserError: a run without jobs.
    """
    if said[:1].isdigit() and not Path(said).exists():
        return said
    run_dir = find_run(said)
    found = [folder.scheduler_id for folder in folders(run_dir) if folder.scheduler_id]
    if not found:
        raise UserError(f"--after {said}: no job of that run was submitted; give the id of a job")
    return found[-1]


def refuse_busy(run_dir: Path) -> None:
    """Refuse a second job for a run that has one.

    Raises:
        UserError: a job of the run waits or runs.
    """
    for folder, state in open_jobs(run_dir):
        raise UserError(
            f"job {folder.scheduler_id} of {run_dir} is {state}, and a run has one writer: add --after "
            f"{folder.scheduler_id}, or end it with 'llmjp cancel {run_dir}'"
        )


def open_jobs(run_dir: Path) -> list[tuple[JobFolder, str]]:
    """Jobs of a run that wait or run, as their schedulers say, and which of the two."""
    found = []
    for folder in folders(run_dir):
        if folder.scheduler_id and not _over(folder):
            state = scheduler(folder.read().scheduler).states([folder.scheduler_id])[folder.scheduler_id]
            if state.state in ("pending", "running"):
                found.append((folder, state.state))
    return found


def _over(folder: JobFolder) -> bool:
    """Whether its own history says that it has ended, so that the scheduler need not be asked."""
    rows = folder.history()
    return bool(rows) and (
        rows[-1]["kind"] == "skip"
        or (
            rows[-1]["kind"] == "end"
            and rows[-1]["action"] in ("done", "halt", "cancelled", "stopped", "next")
        )
    )
