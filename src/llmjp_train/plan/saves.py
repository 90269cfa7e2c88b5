"""What checkpoints cost: bytes, files, time that training waits, host memory of copies, storage over the run."""

from dataclasses import dataclass

from llmjp_train.checkpoint.listing import FILE_BYTES
from llmjp_train.config.derive import derived, saved_steps
from llmjp_train.config.machine import Device, known
from llmjp_train.config.root import TrainConfig
from llmjp_train.plan.job import Job
from llmjp_train.plan.ranges import Range
from llmjp_train.plan.stages import stages
from llmjp_train.plan.state import partition

STORAGE_BOUNDS = (100.0, 0.5)
"""GB/s at which a shared file system takes a checkpoint, best and worst, where the cluster does not say."""
COPY_BOUNDS = (50.0, 5.0)
"""GB/s at which a rank copies its state into host memory: PCIe 5 of its own, and a link that devices share."""
STATE_BYTES = 12
"""Of a parameter in a checkpoint: master and two moments in fp32."""


@dataclass(frozen=True)
class Checkpoints:
    """What saving costs."""

    bytes: int
    files: int
    seconds: Range
    """Of writing one."""
    stall: Range
    """Seconds that training waits for one: all of the writing, or a copy where it goes on in the background."""
    last: Range
    """Seconds from the wish to stop to the end of the last one, which waits for one that is still being written."""
    staging: int
    """Most bytes of host memory that a node's copies take; 0 without ``checkpoint.asynchronous``."""
    saves: int
    kept: int
    storage: int
    """Bytes at the end of the run with one more being written."""


def checkpoints(config: TrainConfig, job: Job, step: Range | None) -> Checkpoints:
    """Sizes from the retention policy; each rank writes files of about 4 GiB, the leader three more.

    Args:
        step: seconds of an optimizer step; none: not known, then no save is taken to run into the next.
    """
    numbers = derived(config)
    rate = known(job.cluster.storage_gbs)
    rates = STORAGE_BOUNDS if rate is None else (rate, rate)
    owned = [partition(job, stage) * STATE_BYTES for stage in stages(job)]
    files = sum(-(-own // FILE_BYTES) for own in owned) * job.tensor * (job.data if job.zero else 1)
    seconds = Range(*(numbers.checkpoint_bytes / 1e9 / each for each in rates))
    saves = len(saved_steps(numbers.steps, config.checkpoint))
    stall = last = seconds
    staging = 0
    if config.checkpoint.asynchronous:
        staging = staged(job) * min(job.cluster.devices_per_node or job.ranks, job.ranks)
        copy = Range(*(max(owned) / 1e9 / each for each in COPY_BOUNDS))
        stall = copy.plus(_overrun(seconds, step, numbers.steps, saves))
        last = copy.plus(Range(seconds.low, 2 * seconds.high))
    return Checkpoints(
        bytes=numbers.checkpoint_bytes,
        files=files + 3,
        seconds=seconds,
        stall=stall,
        last=last,
        staging=staging,
        saves=saves,
        kept=numbers.checkpoints_kept,
        storage=numbers.kept_checkpoints_bytes + numbers.checkpoint_bytes,
    )


def staged(job: Job) -> int:
    """Most bytes of host memory of one rank's copy: masters and moments that it owns.

    Page-locked memory comes in powers of two (torch's CachingHostAllocator), which may be almost twice as much.
    """
    own = max(partition(job, stage) for stage in stages(job)) * STATE_BYTES
    return own if job.cluster.device is Device.cpu else 1 << (own - 1).bit_length()


def _overrun(seconds: Range, step: Range | None, steps: int, saves: int) -> Range:
    """How long a save waits for the one before, which is still being written; one is in flight at a time."""
    if step is None or saves < 2:
        return Range(0.0, 0.0)
    between = step.times(steps / saves)
    return Range(max(0.0, seconds.low - between.high), max(0.0, seconds.high - between.low))
