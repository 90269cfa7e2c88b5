"""The whole account of a run: memory, step, days, GPU hours, checkpoints and the lead time of a stop."""

from dataclasses import asdict, dataclass
from typing import Any

from llmjp_train.config.derive import derived
from llmjp_train.config.machine import known
from llmjp_train.config.root import TrainConfig
from llmjp_train.plan.constants import Constants, shipped
from llmjp_train.plan.job import Job, check_cluster, job_from
from llmjp_train.plan.memory import GIB, MemoryPlan, memory
from llmjp_train.plan.ranges import Range
from llmjp_train.plan.saves import Checkpoints, checkpoints
from llmjp_train.plan.search import remedies
from llmjp_train.plan.timing import StepTime, step_time, uncertain

STOP_MARGIN_S = 30.0
"""Seconds for the signal, the agreement of the ranks and the end of the processes."""


@dataclass(frozen=True)
class Account:
    """A plan."""

    name: str
    job: Job
    memory: MemoryPlan
    time: StepTime | None
    """At the worst of what is unknown; none where the device's peak is unknown."""
    step: Range | None
    """Seconds of an optimizer step."""
    tokens_per_s: Range | None
    mfu: Range | None
    days: Range | None
    """Steps and saves."""
    gpu_hours: Range | None
    checkpoints: Checkpoints
    lead: Range | None
    """Seconds from a stop signal to the end of the last save."""
    steps: int
    tokens: int
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        job = self.job
        return {
            "schema": 1,
            "name": self.name,
            "model": job.model.name,
            "cluster": job.cluster.name,
            "nodes": job.nodes,
            "layout": {
                key: getattr(job, key) for key in ("tensor", "pipeline", "data", "zero", "micro_batch")
            }
            | {"recompute": job.recompute.name, "ranks": job.ranks},
            "fits": self.memory.fits if self.memory.device_bytes is not None else None,
            "device_bytes": self.memory.device_bytes,
            "headroom_bytes": self.memory.headroom,
            "ranks": [
                {
                    "stage": rank.stage.index,
                    "layers": rank.stage.layers,
                    "parameters": rank.stage.parameters,
                    "moment": rank.moment,
                    "bytes": rank.bytes,
                    "terms": [asdict(term) for term in rank.terms],
                }
                for rank in self.memory.ranks
            ],
            "step": None if self.time is None else [asdict(part) for part in self.time.parts],
            "constants": None if self.time is None else asdict(self.time.constants),
            **{
                key: None if value is None else {"low": value.low, "high": value.high}
                for key, value in (
                    ("step_s", self.step),
                    ("tokens_per_s", self.tokens_per_s),
                    ("mfu", self.mfu),
                    ("days", self.days),
                    ("gpu_hours", self.gpu_hours),
                    ("stop_lead_s", self.lead),
                )
            },
            "checkpoints": asdict(self.checkpoints),
            "unknown": list(self.unknown),
        }


def account(config: TrainConfig, constants: Constants | None = None) -> Account:
    """The plan of a configuration.

    Raises:
        UserError: the cluster lacks a figure, or has no nodes.
    """
    check_cluster(config.cluster)
    return account_of(config, job_from(config), shipped() if constants is None else constants)


def account_of(config: TrainConfig, job: Job, constants: Constants) -> Account:
    """The plan of a run whose job may differ from its configuration's in layout."""
    numbers = derived(config)
    slow = step_time(job, constants, worst=True)
    fast = step_time(job, constants, worst=False)
    step = tokens_per_s = mfu = days = hours = lead = None
    if slow is not None and fast is not None:
        step = Range(fast.seconds, slow.seconds)
    saving = checkpoints(config, job, step)
    if step is not None:
        tokens = job.global_batch * job.sequence_length
        tokens_per_s = step.inverse(tokens)
        if job.peak_flops:
            mfu = tokens_per_s.times(numbers.flops_per_token / (job.peak_flops * job.ranks))
        total = step.times(numbers.steps).plus(saving.stall.times(saving.saves))
        days, hours = total.times(1 / 86400), total.times(job.ranks / 3600)
        # without pipelines a stop comes at the next micro batch; a pipeline's step cannot be interrupted
        wait = step if job.pipeline > 1 else step.times(1 / job.micro_batches)
        lead = wait.plus(saving.last).plus(Range(STOP_MARGIN_S, STOP_MARGIN_S))
    unknown = [*uncertain(job)]
    if job.cluster.name != "local":
        unknown += [
            key for key in ("device_memory_gib", "storage_gbs") if known(getattr(job.cluster, key)) is None
        ]
    return Account(
        config.name,
        job,
        memory(job),
        slow,
        step,
        tokens_per_s,
        mfu,
        days,
        hours,
        saving,
        lead,
        numbers.steps,
        numbers.tokens,
        tuple(unknown),
    )


def unfit(config: TrainConfig) -> str:
    """Why a run does not fit its cluster's devices; empty where it does, or where their memory is not known.

    `llmjp plan`, `llmjp train` and whatever submits a job refuse with these words.
    """
    return refusal(config.name, job_from(config))


def refusal(name: str, job: Job, found: MemoryPlan | None = None) -> str:
    """By how much a job does not fit, and what would change that; empty where it fits."""
    found = memory(job) if found is None else found
    if found.fits:
        return ""
    worst, device = found.worst, found.device_bytes
    assert device is not None
    largest = sorted(worst.terms, key=lambda term: -term.bytes)[:3]
    most = ", ".join(f"{term.name} {term.bytes / GIB:.1f}" for term in largest)
    head = (
        f"{name} does not fit: the fullest rank (stage {worst.stage.index}, {worst.moment}) needs "
        f"{worst.bytes / GIB:.1f} GiB of {device / GIB:.1f} GiB, {(worst.bytes - device) / GIB:.1f} GiB too much "
        f"(most: {most} GiB)"
    )
    return "\n".join([head, *(f"  {line}" for line in remedies(job))])
