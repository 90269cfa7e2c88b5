"""Bytes of each rank, term by term, at the moments of a step that can be the fullest.

A rank's memory peaks at the end of the topmost layer's forward pass, while the loss is made, while the fullest backward
pass goes through the final norm or the topmost layer (what the loss saved is gone by then), or while gradients are
reduced (activations are gone, buffers of the reduction are there). Each is added up and the largest one counts. What
DeepSpeed 0.19 keeps was read from its code and measured tensor by tensor (docs/planner.md);
tests/plan/test_engine_bytes.py holds weights, masters and moments to the byte, tests/plan/test_peak.py the whole.
"""

from dataclasses import dataclass

from llmjp_train.config.machine import Device, Recompute, known
from llmjp_train.plan import activations, working
from llmjp_train.plan.job import Job
from llmjp_train.plan.stages import Stage, stages
from llmjp_train.plan.state import (
    Term,
    bucket_terms,
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
    """``forward``, ``loss``, ``backward`` or ``reduction``."""
    terms: tuple[Term, ...]

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
    lasting = [*state_terms(job, stage), *_machine_terms(job)]
    moments = [("reduction", gradient_terms(job, stage), _reduction(job, stage))]
    for flying, begun in _flights(job, stage):
        gradients = gradient_terms(job, stage, begun=begun)
        moments += [(name, gradients, terms) for name, terms in _passes(job, stage, flying, begun)]
    found = []
    for name, gradients, terms in moments:
        slack = [_slack(sum(term.bytes for term in terms))] if job.cluster.device is Device.cuda else []
        found.append(RankMemory(stage, name, (*lasting, *gradients, *terms, *slack)))
    return max(found, key=lambda rank: rank.bytes)


def _flights(job: Job, stage: Stage) -> list[tuple[int, bool]]:
    """Micro batches in flight at the fullest backward passes, and whether there was a backward pass before."""
    most = in_flight(job, stage)
    if most < job.micro_batches:
        return [(most, True)]
    # all of the step are in flight when the first goes backward, and one less when the second does
    return [(most, False), *([(most - 1, True)] if most > 1 else [])]


def _passes(job: Job, stage: Stage, flying: int, begun: bool) -> list[tuple[str, list[Term]]]:
    """What comes and goes at each moment of a micro batch's passes that can be the fullest."""
    kept = activation_terms(job, stage, flying)
    buckets = bucket_terms(job, stage)
    always = [gathered(job, stage)] if job.zero == 3 else []
    if job.zero != 2:  # ZeRO-2's bucket comes with the first gradient and goes with the last
        always += buckets
    going_back = _pipeline_buffers(job, stage, flying, "backward")
    rest = [*going_back, *always, *(buckets if job.zero == 2 else [])]
    found = []
    if stage.last:
        loss = [*kept, head_term(job), *always]
        making = [_working(working.loss_forward(job)), *_pipeline_buffers(job, stage, flying, "forward")]
        found += [
            ("loss", [*loss, *making]),
            ("loss", [*loss, _working(working.loss_backward(job)), *going_back]),
        ]
        found.append(("backward", [*kept, _working(working.final_norm(job, begun)), *rest]))
    if stage.layers:
        need = working.layer_forward(job, stage)
        if need is not None:
            there = _pipeline_buffers(job, stage, flying, "forward" if stage.last else "backward")
            found.append(("forward", [*kept, _working(need), *there, *always]))
        found.append(("backward", [*kept, _working(working.layer(job, stage, begun)), *rest]))
    if flying > 1 and begun:
        fewer = activation_terms(job, stage, flying - 1)
        found.append(("backward", [*fewer, _working(working.gradient_sums(stage)), *rest]))
    return found


def _reduction(job: Job, stage: Stage) -> list[Term]:
    """What comes and goes while gradients are reduced; the pipeline's buffers outlast its micro batches."""
    left = activation_terms(job, stage, 0) if job.pipeline > 1 else []
    return [*reduction_terms(job, stage), *left, *_pipeline_buffers(job, stage, 0, "reduction")]


def in_flight(job: Job, stage: Stage) -> int:
    """Micro batches whose activations a stage holds at a time: 1F1B (Narayanan et al., 2019)."""
    chunks = job.engine.interleave
    if chunks > 1 and job.pipeline > 1:
        # interleaved: the first stage holds (1 + (p - 1) / (p v)) of p micro batches (Korthikanti et al., 2022)
        most = job.pipeline - stage.index + (job.pipeline - 1) / chunks
        return max(1, min(round(most), job.micro_batches))
    return max(1, min(job.pipeline - stage.index, job.micro_batches))


def activation_terms(job: Job, stage: Stage, flying: int) -> list[Term]:
    """What is saved for the backward pass when ``flying`` micro batches are in flight."""
    one = activations.layer_bytes(job)
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
            f"rotary tables and mask of {flying} micro batches in flight, and of the one at hand",
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
    return [term for term in found if term.bytes]


def head_term(job: Job) -> Term:
    """What the final norm and the loss save; it goes with the loss's own backward pass."""
    return Term(
        "head and loss, saved",
        sum(saved.bytes for saved in activations.head_saved(job)),
        "final norm" if job.z_loss else "final norm, gradients made in the forward pass",
        "model/loss.py",
        "exact",
    )


def _working(need: working.Need) -> Term:
    return Term("working memory", need.bytes, need.what, "plan/working.py", "close")


def _pipeline_buffers(job: Job, stage: Stage, flying: int, when: str) -> list[Term]:
    """Residual streams that DeepSpeed's pipeline keeps beside what autograd saves.

    Inputs and gradients are received in one buffer. Copies of the inputs and the outputs wait with each micro batch in
    flight. The last stage has one in flight, but a loss in each of its two output buffers keeps an earlier micro
    batch's input and that input's gradient until another takes its place. The integers that travel along, 24 B a
    token, are left out.

    Args:
        when: ``forward`` (the loss is made), ``backward`` or ``reduction``.
    """
    if job.pipeline == 1:
        return []
    stream = activations.stream_bytes(job)
    if stage.last:
        losses = min(2, job.micro_batches) - (when == "backward")  # it has taken the place of one
        now = when != "reduction"
        # the first layer gets a copy of the input, which autograd saves where it needs it
        copied = (
            when == "forward"
            and job.recompute is not Recompute.full
            and not activations.norm_keeps_input(job)
        )
        waiting, what = 2 * losses + now + copied, f"2 x {losses} + {now + copied}"
    else:
        kinds = 1 if stage.first else 2
        waiting, what = flying * kinds, f"{flying} x {kinds}"
    return [
        Term(
            "pipeline buffers",
            (1 + waiting) * stream,
            f"(1 received, {what} waiting) x {stream:,} B",
            "deepspeed/runtime/pipe/engine.py, pipe_buffers",
            "close",
        )
    ]


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
