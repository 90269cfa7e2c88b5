"""What DeepSpeed 0.19 keeps of a stage's parameters: weights, masters, moments, gradients and their buffers."""

from dataclasses import dataclass

from llmjp_train.config.training import Dtype
from llmjp_train.plan.job import Job
from llmjp_train.plan.stages import Stage

DS_ALLREDUCE_ELEMENTS = 500_000_000
"""DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE: what one flat copy of gradients may hold before it is reduced."""
DS_LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3's stage3_max_live_parameters: gathered weights that may be there at a time."""


@dataclass(frozen=True)
class Term:
    """One line of an account."""

    name: str
    bytes: int
    formula: str
    source: str
    kind: str
    """``exact`` (checked to the byte against the engine or autograd), ``close`` (tensors that are alive together by the
    code, checked as part of a rank's peak), ``bound`` (an upper estimate), ``assumed``."""


def padded(count: int, ranks: int) -> int:
    """A flat group's elements after DeepSpeed's padding: a multiple of twice the data-parallel ranks."""
    return -(-count // (2 * ranks)) * 2 * ranks


def partition(job: Job, stage: Stage) -> int:
    """Elements of masters (and of each moment) on one rank."""
    if job.zero == 0:
        return stage.parameters
    if job.zero == 3:
        return sum(-(-numel // job.data) for group in stage.numels for numel in group)
    return sum(padded(sum(group), job.data) // job.data for group in stage.numels)


def weight_elements(job: Job, stage: Stage) -> int:
    """Elements of the weights on one rank, padding included."""
    if job.zero == 0:
        return stage.parameters
    if job.zero == 3:
        return partition(job, stage)
    return sum(padded(sum(group), job.data) for group in stage.numels)


def state_terms(job: Job, stage: Stage) -> list[Term]:
    """Weights, masters and moments."""
    weights, owned = weight_elements(job, stage), partition(job, stage)
    share = "" if job.zero == 0 else f", 1/{job.data} of it on each data-parallel rank"
    found = [
        Term(
            "weights",
            weights * job.item,
            f"{job.item} B x {weights:,} ({job.dtype.name})" + (share if job.zero == 3 else ""),
            "parameter_shapes of the stage, tensor-parallel dimensions divided, ZeRO padding",
            "exact",
        )
    ]
    if job.zero:
        found.append(
            Term(
                "masters",
                4 * owned,
                f"4 B x {owned:,} (fp32){share}",
                "DeepSpeed ZeRO, Rajbhandari et al., 2020",
                "exact",
            )
        )
    found.append(
        Term(
            "moments",
            8 * owned,
            f"8 B x {owned:,} (two of fp32){share}",
            "Adam, Kingma and Ba, 2015",
            "exact",
        )
    )
    return found


def _accumulates_apart(job: Job) -> bool:
    """ZeRO-1 in 16 bit with fp32 accumulation is DeepSpeed's BF16_Optimizer (facts in docs/planner.md)."""
    return job.zero == 1 and job.dtype is Dtype.bf16


def gradient_terms(job: Job, stage: Stage, *, begun: bool = True) -> list[Term]:
    """Gradients that stay from the first micro batch to the step.

    Args:
        begun: a micro batch of the step has gone backward. Before, autograd's own are not there yet.
    """
    count, owned = stage.parameters, partition(job, stage)
    if _accumulates_apart(job):
        weights = weight_elements(job, stage)
        found = [
            Term(
                "gradients",
                4 * weights,
                f"4 B x {weights:,}: fp32 sums over micro batches, whole on every rank",
                "deepspeed/runtime/bf16_optimizer.py, fp32_groups_gradients_flat",
                "exact",
            )
        ]
        if begun:
            found.append(
                Term(
                    "gradients of a micro batch",
                    job.item * count,
                    f"{job.item} B x {count:,}: kept until the step",
                    "the same, immediate_grad_update is off",
                    "exact",
                )
            )
        return found
    if job.zero <= 1 and not begun:
        return []
    if job.zero <= 1:
        return [
            Term(
                "gradients",
                4 * count if job.dtype is Dtype.fp32 else (4 + job.item) * count,
                f"{count:,} whole on every rank until they are reduced",
                "torch autograd, .grad",
                "exact",
            )
        ]
    return [
        Term(
            "gradients",
            4 * owned,
            f"4 B x {owned:,}: fp32 sums of the rank's own part",
            "deepspeed/runtime/zero, averaged gradients",
            "exact",
        )
    ]


def reduction_terms(job: Job, stage: Stage) -> list[Term]:
    """Buffers while gradients are summed over data-parallel ranks."""
    weights, owned = weight_elements(job, stage), partition(job, stage)
    if job.data == 1 and (job.zero == 0 or _accumulates_apart(job)):
        return []  # there is nothing to add (engine/base.py)
    if _accumulates_apart(job):
        return [
            Term(
                "reduction buffers",
                4 * weights,
                f"4 B x {weights:,}: a flat fp32 copy of all gradients; bucket_mb has no say",
                "deepspeed/runtime/engine.py, allreduce_bucket on one flat tensor a group",
                "bound",
            )
        ]
    if job.zero == 0:
        flat = min(stage.parameters, DS_ALLREDUCE_ELEMENTS)
        return [
            Term(
                "reduction buffers",
                4 * flat,
                f"4 B x {flat:,}: a flat copy, up to 5e8 elements",
                "deepspeed/runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE",
                "bound",
            )
        ]
    found = bucket_terms(job, stage)
    if job.zero == 2 and job.item < 4:
        size = found[0].bytes // job.item
        found.append(
            Term(
                "reduction buffers",
                (job.item + 4) * size,
                f"({job.item} + 4) B x {size:,}: a bucket laid flat, and its fp32 copy that is summed",
                "stage_1_and_2.py, allreduce_bucket",
                "bound",
            )
        )
    if job.zero in (1, 2):
        found.append(
            Term(
                "reduced gradients",
                4 * owned,
                f"4 B x {owned:,}: the rank's part on its way to the optimizer",
                "stage_1_and_2.py",
                "bound",
            )
        )
    if job.zero == 3:
        found.append(gathered(job, stage))
    return found


def bucket_terms(job: Job, stage: Stage) -> list[Term]:
    """DeepSpeed's bucket of gradients: as the configuration says, and no larger than the rank's parameters."""
    if job.zero == 0 or _accumulates_apart(job):
        return []
    size = max(1, min(job.bucket_mb * 2**20 // 4, stage.parameters))
    item = job.item if job.zero == 2 else 4
    return [
        Term(
            "reduction buffers",
            item * size,
            f"{item} B x {size:,}: parallel.bucket_mb",
            "deepspeed/runtime/zero, ipg bucket; ZeRO-1 and 3 fill it with what is summed in fp32",
            "bound",
        )
    ]


def gathered(job: Job, stage: Stage) -> Term:
    """ZeRO-3's weights of other ranks, at most as many as DeepSpeed lets be there at a time."""
    live = min(stage.parameters, DS_LIVE_PARAMETERS) if job.data > 1 else 0
    return Term(
        "gathered weights",
        job.item * live,
        f"{job.item} B x {live:,}: weights in use and prefetched",
        "ZeRO-3, stage3_max_live_parameters = 1e9",
        "bound",
    )
