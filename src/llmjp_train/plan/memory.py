"""Bytes of each rank, term by term, at the moments of a step that can be the fullest.

A rank's memory peaks either while the fullest backward pass begins (activations are there), or while
gradients are reduced (activations are gone, buffers of the reduction are there). Both are added up and the
larger one counts. What DeepSpeed 0.19 keeps was read from its code and measured tensor by tensor
(docs/planner.md); tests/plan/test_engine_bytes.py holds weights, masters and moments to the byte.
"""

from dataclasses import dataclass

from llmjp_train.config.machine import Device, Recompute, known
from llmjp_train.config.model import Norm
from llmjp_train.config.training import Dtype
from llmjp_train.plan import activations
from llmjp_train.plan.job import Job
from llmjp_train.plan.stages import Stage, stages
from llmjp_train.plan.state import (
    Term,
    bucket_elements,
    gathered,
    gradient_terms,
    reduction_terms,
    state_terms,
)

GIB = 2**30
CONTEXT_BYTES = int(0.9 * GIB)
"""CUDA context, kernels and cuBLAS workspaces of a process, and what the driver keeps of a device's stated
memory: 0.6 to 1.2 GiB on the machines that people report."""
GROUP_BYTES = int(0.15 * GIB)
"""Buffers of one NCCL communicator: tens of channels of 4 MiB for each direction."""
SLACK = 0.05
"""Share of what comes and goes that the caching allocator loses to rounding and fragmentation."""


@dataclass(frozen=True)
class RankMemory:
    """Memory of the ranks of one stage at their fullest moment."""

    stage: Stage
    moment: str
    """``backward`` or ``reduction``."""
    terms: tuple[Term, ...]
    other: int
    """Bytes at the other moment."""

    @property
    def bytes(self) -> int:
        """All terms."""
        return sum(term.bytes for term in self.terms)

    def named(self, name: str) -> int:
        """Bytes of the terms of one name."""
        return sum(term.bytes for term in self.terms if term.name == name)


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of every stage, and whether the fullest one fits."""

    ranks: tuple[RankMemory, ...]
    device_bytes: int | None
    """None where the cluster does not say."""

    @property
    def worst(self) -> RankMemory:
        """The fullest stage."""
        return max(self.ranks, key=lambda rank: rank.bytes)

    @property
    def headroom(self) -> int | None:
        """Bytes left on the fullest rank, negative where it does not fit; none: the device is unknown."""
        return None if self.device_bytes is None else self.device_bytes - self.worst.bytes

    @property
    def fits(self) -> bool:
        """Whether no rank is known to be too full."""
        return self.headroom is None or self.headroom >= 0


def memory(job: Job) -> MemoryPlan:
    """The memory of every stage of ``job``."""
    gib = known(job.cluster.device_memory_gib)
    device = None if gib is None or job.cluster.device is Device.cpu else int(gib * GIB)
    return MemoryPlan(tuple(_rank(job, stage) for stage in stages(job)), device)


def _rank(job: Job, stage: Stage) -> RankMemory:
    lasting = [*state_terms(job, stage), *gradient_terms(job, stage), *_machine_terms(job)]
    backward = [*activation_terms(job, stage), *_backward_buffers(job, stage)]
    reduction = reduction_terms(job, stage)
    moments = {"backward": backward, "reduction": reduction}
    if job.cluster.device is Device.cuda:
        for terms in moments.values():
            terms.append(_slack(sum(term.bytes for term in terms)))
    sizes = {name: sum(term.bytes for term in terms) for name, terms in moments.items()}
    moment = max(sizes, key=lambda name: sizes[name])
    base = sum(term.bytes for term in lasting)
    return RankMemory(stage, moment, (*lasting, *moments[moment]), base + min(sizes.values()))


def in_flight(job: Job, stage: Stage) -> int:
    """Micro batches whose activations a stage holds at a time: 1F1B (Narayanan et al., 2019)."""
    chunks = job.engine.interleave
    if chunks > 1 and job.pipeline > 1:
        # interleaved: the first stage holds (1 + (p - 1) / (p v)) of p micro batches (Korthikanti et al., 2022)
        most = job.pipeline - stage.index + (job.pipeline - 1) / chunks
        return max(1, min(round(most), job.micro_batches))
    return max(1, min(job.pipeline - stage.index, job.micro_batches))


def activation_terms(job: Job, stage: Stage) -> list[Term]:
    """What is saved for the backward pass when most micro batches are in flight."""
    flying, one = in_flight(job, stage), activations.layer_bytes(job)
    found = [
        Term(
            "activations",
            flying * stage.layers * one,
            f"{flying} micro batches in flight x {stage.layers} layers x {one:,} B",
            f"1F1B; a layer's saved tensors under recompute={job.recompute.name} (plan/activations.py)",
            "exact",
        ),
        Term(
            "shared tables",
            activations.shared(job, flying) if stage.layers else 0,
            f"rotary tables and mask, {activations.shared(job):,} B for one micro batch of {flying} in flight",
            "plan/activations.py",
            "exact",
        ),
    ]
    if stage.first:
        found.append(
            Term(
                "token ids",
                flying * activations.embedding(job),
                f"{flying} x {activations.embedding(job):,} B",
                "torch embedding; 8 B a token, and its position where those are learned",
                "exact",
            )
        )
    if stage.last:
        head = sum(saved.bytes for saved in activations.head_saved(job))
        found.append(
            Term(
                "head and loss, saved",
                head,
                "final norm, gradients made in the forward pass",
                "model/loss.py",
                "exact",
            )
        )
    return [term for term in found if term.bytes]


def _backward_buffers(job: Job, stage: Stage) -> list[Term]:
    """What comes and goes while the fullest backward pass begins."""
    head = activations.head_working(job) if stage.last else 0
    layer = activations.backward_working(job) if stage.layers else 0
    what = "loss on chunks of logits" if head > layer else "a layer's recomputation and gradients"
    found = [Term("working memory", max(head, layer), what, "plan/activations.py", "bound")]
    if job.pipeline > 1:
        stream, flying = activations.stream_bytes(job), in_flight(job, stage)
        # outputs wait for their gradient; inputs are kept too, and are not always what the first layer saves
        kept = (0 if stage.last else 1) + (0 if stage.first or _saves_input(job) else 1)
        found.append(
            Term(
                "pipeline buffers",
                (max(2, flying) * kept + 2) * stream,
                f"({max(2, flying)} x {kept} + 2) x {stream:,} B",
                "deepspeed/runtime/pipe/engine.py, pipe_buffers",
                "bound",
            )
        )
    if job.zero == 3:
        found.append(gathered(job, stage))
    if job.zero >= 2:
        bucket = bucket_elements(job, stage)
        found.append(
            Term(
                "reduction buffers",
                job.item * bucket,
                f"{job.item} B x {bucket:,}",
                "DeepSpeed's ipg bucket",
                "bound",
            )
        )
    return found


def _saves_input(job: Job) -> bool:
    """Whether a layer's saved tensors include its input in the dtype in which it arrives."""
    return job.recompute is Recompute.full or job.model.norm is Norm.layernorm or job.dtype is Dtype.fp32


def _machine_terms(job: Job) -> list[Term]:
    if job.cluster.device is Device.cpu:
        return []
    groups = 1 + sum(size > 1 for size in (job.tensor, job.pipeline, job.data))
    return [
        Term(
            "device context",
            CONTEXT_BYTES,
            f"{CONTEXT_BYTES / GIB:.2f} GiB",
            "CUDA context, kernels, workspaces",
            "assumed",
        ),
        Term(
            "communicators",
            groups * GROUP_BYTES if job.ranks > 1 else 0,
            f"{groups} NCCL communicators x {GROUP_BYTES / GIB:.2f} GiB",
            "NCCL channel buffers",
            "assumed",
        ),
    ]


def _slack(size: int) -> Term:
    return Term(
        "allocator slack",
        int(SLACK * size),
        f"{SLACK:.0%} of what comes and goes ({size:,} B)",
        "fragmentation of the caching allocator",
        "assumed",
    )
