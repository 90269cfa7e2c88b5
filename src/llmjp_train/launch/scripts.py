"""Job scripts from the templates in slurm/, pbs/, grid_engine/ and hosts/.

No value reaches a shell unquoted: a template's expression must end in the filter ``q`` (one shell word),
``qs`` (several) or ``d`` (a word of a scheduler's own line, whose letters are checked), or it is refused.
"""

import re
import shlex
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmjp_train.config.machine import ClusterConfig, Container, Scheduler
from llmjp_train.errors import UserError
from llmjp_train.launch.bad_nodes import excluded
from llmjp_train.launch.job import Job
from llmjp_train.resources import resource

TEMPLATES = {
    "slurm": "slurm/job.sh.j2",
    "pbs": "pbs/job.sh.j2",
    "grid_engine": "grid_engine/job.sh.j2",
    "hosts": "hosts/job.sh.j2",
    "local": "hosts/job.sh.j2",
}
_DIRECTIVE = re.compile(r"[\w./:=,@%+~^*\[\]()-]+\Z")


class Word(str):
    """Text that a shell or scheduler reads as what it is."""


def quoted(value: object) -> Word:
    """One shell word."""
    text = str(value)
    if "\0" in text:
        raise UserError(f"{text!r} holds a NUL, which no shell can pass on: remove it")
    return Word(shlex.quote(text))


def words(values: Iterable[object]) -> Word:
    """Several shell words."""
    return Word(" ".join(quoted(value) for value in values))


def directive(value: object) -> Word:
    """A word of a line that the scheduler reads, which has no quotes that all of them understand.

    Raises:
        UserError: it holds spaces, quotes or other letters with a meaning of their own.
    """
    text = str(value)
    if not _DIRECTIVE.match(text):
        raise UserError(
            f"{text!r} cannot stand in a line of a job script: letters, digits and ./:=,@%+~^*[]()_- alone; "
            "correct cluster.account, cluster.partition or cluster.options"
        )
    return Word(text)


def _finalize(value: Any) -> Any:
    if isinstance(value, Word) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"a template prints {value!r} without a filter that quotes it")


def render(job: Job, cluster: ClusterConfig, **values: Any) -> str:
    """The script of a job.

    Args:
        values: ``folder`` (the job's), ``python``, ``cwd``; or ``prepare``, the words of `llmjp submit
            --prepare`, for a script that makes its folder itself when it starts; ``left_out``, nodes that the
            job must not get.
    """
    roots = {str(resource(name).parent) for name in {path.split("/")[0] for path in TEMPLATES.values()}}
    env = Environment(
        loader=FileSystemLoader(sorted(roots)), undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    env.filters.update(q=quoted, qs=words, d=directive)
    left_out = values.pop("left_out", ())
    template = env.get_template(TEMPLATES[job.scheduler])
    return template.render(
        job=job,
        cluster=cluster,
        excluded=_excluded(cluster, left_out),
        options=[shlex.split(option) for option in cluster.options],
        wall=wall_time(job.minutes) if job.minutes else None,
        container=_container(cluster),
        pyxis=[f"--container-image={cluster.image}"] if cluster.container is Container.pyxis else [],
        exported=_exported(job, cluster),
        **{"folder": None, "prepare": None, "python": "python3", "cwd": None, **values},
    )


def _excluded(cluster: ClusterConfig, left_out: Iterable[str]) -> Word | None:
    """The nodes to be left out, as the scheduler's line names them."""
    hosts = [directive(host) for host in excluded(cluster, left_out)]
    if cluster.scheduler is Scheduler.grid_engine:
        return Word("&".join(f"!{host}" for host in hosts)) if hosts else None
    return Word(",".join(hosts)) if hosts else None


def wall_time(minutes: int) -> str:
    """HH:MM:SS."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _exported(job: Job, cluster: ClusterConfig) -> list[str]:
    """Variables that a launcher must carry to the other nodes."""
    network = cluster.network.environment if job.nodes > 1 else {}
    carried = ("LD_LIBRARY_PATH",)  # always carried
    return [name for name in {**cluster.environment, **network} if name not in carried]


def _container(cluster: ClusterConfig) -> list[str]:
    """Words before Python's; pyxis is an option of srun instead."""
    if cluster.container is not Container.apptainer:
        return []
    gpus = ["--nv"] if cluster.device.name == "cuda" else []
    return ["apptainer", "exec", *gpus, cluster.image]
