"""Every layout of a number of devices that is worth a look, and the Pareto front of those that fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmjp_train.config.machine import Recompute
from llmjp_train.config.training import Dtype
from llmjp_train.errors import UserError
from llmjp_train.plan.constants import Constants
from llmjp_train.plan.job import Job
from llmjp_train.plan.memory import GIB, MemoryPlan, memory
from llmjp_train.plan.stages import bounds
from llmjp_train.plan.timing import step_time

MICRO_BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Candidate:
    """A layout with its figures."""

    job: Job
    memory: MemoryPlan
    seconds: float | None
    """Of a step; none where the device's peak is unknown."""

    @property
    def headroom(self) -> int:
        """Bytes left on the fullest rank; 0 where the device's memory is unknown."""
        return self.memory.headroom or 0


@dataclass(frozen=True)
class Found:
    """Result of a search."""

    front: list[Candidate]
    """Fitting layouts of which none is slower and fuller than another, fastest first."""
    tried: int
    fitting: int
    closest: Candidate | None
    """The least full of those that do not fit, where none does."""


def layouts(job: Job) -> Iterator[Job]:
    """Layouts of as many devices as the job has that split the model and the batch evenly."""
    devices, model = job.ranks, job.model
    cuts: dict[
        int, tuple[int, ...]
    ] = {}  # layers of each stage by number of stages: far dearer than the rest
    per_node = job.cluster.devices_per_node or devices
    for tensor in _divisors(min(per_node, devices)):
        if (
            model.num_kv_heads % tensor
            or model.num_heads % tensor
            or model.ffn_size % tensor
            or devices % tensor
        ):
            continue
        for pipeline in _divisors(devices // tensor):
            if pipeline > model.num_layers:
                break
            data = devices // (tensor * pipeline)
            if job.global_batch % data or (pipeline > 1 and job.global_batch // data < pipeline):
                continue
            if pipeline not in cuts:
                cuts[pipeline] = bounds(replace(job, pipeline=pipeline, stage_layers=()))
            # sequence parallelism costs nothing and splits what tensor parallelism alone does not
            engine = replace(job.engine, sequence_parallel=tensor > 1)
            for micro in MICRO_BATCHES:
                if job.global_batch % (data * micro):
                    continue
                # a pipeline that never fills is not worth a look
                if pipeline > 1 and job.global_batch // (data * micro) < pipeline:
                    continue
                for zero in _stages(pipeline, job.dtype):
                    for recompute in Recompute:
                        yield replace(
                            job, tensor=tensor, pipeline=pipeline, data=data, micro_batch=micro, zero=zero,
                            recompute=recompute, stage_layers=cuts[pipeline], engine=engine,
                        )  # fmt: skip


def _stages(pipeline: int, dtype: Dtype) -> tuple[int, ...]:
    """ZeRO stages that the engine runs; stage 0 costs no less than 1."""
    return (1,) if pipeline > 1 else (1, 2, 3)


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, count + 1) if count % size == 0]


def search(job: Job, constants: Constants | None = None) -> Found:
    """The Pareto front in step time and memory headroom; GPU hours follow the step time.

    Raises:
        UserError: no data-parallel size divides the global batch.
    """
    front: list[Candidate] = []
    tried = fitting = 0
    closest: Candidate | None = None
    for one in layouts(job):
        tried += 1
        plan = memory(one)
        if not plan.fits:
            if closest is None or plan.worst.bytes < closest.memory.worst.bytes:
                closest = Candidate(one, plan, None)
            continue
        fitting += 1
        time = step_time(one, constants)
        front.append(Candidate(one, plan, None if time is None else time.seconds))
    if not tried:
        raise UserError(
            f"batch.global_batch={job.global_batch} is divided by no data-parallel size that {job.ranks} devices "
            f"allow: take a multiple of {job.ranks}, or another number of nodes"
        )
    return Found(pareto(front), tried, fitting, None if fitting else closest)


def pareto(found: list[Candidate]) -> list[Candidate]:
    """Candidates that no other beats in both step time and headroom, fastest first."""
    kept: list[Candidate] = []
    most: int | None = None
    for one in sorted(found, key=lambda c: (c.seconds or 0.0, -c.headroom, c.job.tensor * c.job.pipeline)):
        if most is None or one.headroom > most:
            kept.append(one)
            most = one.headroom
    return kept


def best(job: Job, constants: Constants | None = None) -> Candidate:
    """The fastest layout that fits.

    Raises:
        UserError: none fits: by how much, and what to change.
    """
    found = search(job, constants)
    if not found.front:
        raise UserError(
            "\n".join([f"{job.model.name} fits on no layout of {job.ranks} devices", *_none_fits(job, found)])
        )
    return found.front[0]


def remedies(job: Job) -> list[str]:
    """Changes after which a job that does not fit would, the smallest first."""
    found = []
    near = [
        ("parallel.recompute=selective", replace(job, recompute=Recompute.selective)),
        ("parallel.recompute=full", replace(job, recompute=Recompute.full)),
        ("batch.micro_batch=1", replace(job, micro_batch=1)),
        (
            "batch.micro_batch=1 parallel.recompute=full",
            replace(job, micro_batch=1, recompute=Recompute.full),
        ),
    ]
    if job.pipeline == 1:
        near += [(f"parallel.zero={zero}", replace(job, zero=zero)) for zero in (2, 3) if zero > job.zero]
    tried = [job]
    for words, other in near:
        if other in tried:
            continue
        tried.append(other)
        plan = memory(other)
        if plan.fits and plan.headroom is not None:
            found.append(f"{words} would fit, with {plan.headroom / GIB:.1f} GiB to spare")
    if found:
        return found[:3]
    result = search(job)
    if result.front:
        one = result.front[0]
        return [
            f"on as many devices this would fit: {one.job.layout()}, {one.headroom / GIB:.1f} GiB to spare"
        ]
    return _none_fits(job, result)


def _none_fits(job: Job, result: Found) -> list[str]:
    """By how much the least full layout misses, and how many nodes would do."""
    lines = []
    if result.closest is not None:
        plan = result.closest.memory
        assert plan.device_bytes is not None
        over = plan.worst.bytes - plan.device_bytes
        lines.append(
            f"the least full of {result.tried} layouts ({result.closest.job.layout()}) is {over / GIB:.1f} GiB "
            f"over {plan.device_bytes / GIB:.1f} GiB"
        )
    for factor in (2, 4, 8, 16, 32):
        wider = replace(job, data=job.data * factor)
        if any(memory(one).fits for one in layouts(wider)):
            lines.append(
                f"take {wider.nodes} nodes (cluster.nodes={wider.nodes}), devices with more memory, or a smaller model"
            )
            return lines
    return [*lines, "take devices with more memory, a shorter batch.sequence_length or a smaller model"]
