"""What the passes need beside what autograd saves, at each moment of a micro batch that can be the fullest.

Every figure is a sum of tensors that are alive together, read from the backward formulas of torch
(tools/autograd/derivatives.yaml) and from our modules; tests/plan/test_peak.py holds the sums to what an engine
really allocates. Bytes of one micro batch on one rank. B T: tokens, H hidden size, F feed-forward width over
tensor-parallel ranks, V vocabulary over tensor-parallel ranks.
"""

from dataclasses import dataclass

from llmjp_train.config.machine import Device, Recompute
from llmjp_train.config.model import Mlp, Norm
from llmjp_train.plan import activations
from llmjp_train.plan.job import Job
from llmjp_train.plan.stages import Stage


@dataclass(frozen=True)
class Need:
    """Bytes at a moment, and of what they are."""

    bytes: int
    what: str


def loss_forward(job: Job) -> Need:
    """The loss on chunks of logits: its input, which autograd does not save, and a chunk.

    A chunk's logits lie there in fp32 (4 B) beside an fp32 temporary of the log-sum-exp, then beside their gradient in
    16 bit and the product of that with the chunk's tokens, V H. The temporary is made inside the kernel
    (aten/src/ATen/native/ReduceOps.cpp), where no count of tensors sees it: a process's peak rises by it.
    """
    chunk, head = _chunk(job), activations.head_elements(job)
    logits = max(_new_logits(job), 8 * chunk)
    if job.item < 4:
        logits = max(logits, 4 * chunk + job.item * (chunk + head))
    inputs = 0 if job.z_loss else activations.whole_stream(job)  # with the z-loss it is saved
    if job.engine.sequence_parallel:
        inputs += activations.stream_bytes(job)  # this rank's tokens lie beside the gathered ones
    return Need(inputs + logits, f"loss on {chunk:,} logits at a time ({logits:,} B), its input")


def loss_backward(job: Job) -> Need:
    """Gradients of the loss on their way: of its input, and of the head in fp32 and in the weights' dtype."""
    head, stream = activations.head_elements(job), activations.whole_stream(job)
    wide, cast = 4 * head, job.item * head if job.item < 4 else 0
    if not job.z_loss:  # both lie there scaled beside those that the forward pass saved
        return Need(stream + wide + cast, "gradients of the head and of its input, scaled")
    chunk = _chunk(job)
    logits = max(_new_logits(job), 4 * chunk + cast + (job.item * chunk if job.item < 4 else 0))
    return Need(stream + wide + logits, f"gradients of the head and of its input, {chunk:,} logits")


def final_norm(job: Job, begun: bool) -> Need:
    """The backward pass of the final norm: of what the head and the loss saved, only the norm's input is left.

    Args:
        begun: a micro batch of the step has gone backward before.
    """
    saved, passes = activations.norm(job, "final norm")[0].bytes, _norm_temporaries(job)
    head = _heads_gradient(job, begun)
    return Need(saved + passes + head, "gradients of the final norm" + _and_heads(head))


def layer_forward(job: Job, stage: Stage) -> Need | None:
    """The end of the topmost layer's forward pass under sequence parallelism, when it has saved all that it will.

    None: the backward pass is fuller in any case.
    """
    if not job.engine.sequence_parallel or job.recompute is not Recompute.none:
        return None
    # the result, its parts laid end to end, and gloo's copy to reduce in
    wholes = 3 if job.cluster.device is Device.cpu else 2
    # the norm's output and this rank's part of the result; the layer's input and the sum where they are not saved
    own = 2 if activations.norm_keeps_input(job) else 4
    if not stage.last:
        own -= 1  # the layer's output is counted among the pipeline's buffers and is not there yet
    size = wholes * activations.whole_stream(job) + own * activations.stream_bytes(job)
    return Need(size, "a result dealt out to tensor-parallel ranks")


def layer(job: Job, stage: Stage, begun: bool) -> Need:
    """The backward pass of the topmost layer, the fullest of all layers': what it makes again, and its gradients.

    Attention's own backward pass is never the fullest: what the feed-forward block made is gone by then.

    Args:
        begun: a micro batch of the step has gone backward before.
    """
    seen = activations
    inner = seen.inner_bytes(job)
    again = 0
    if job.recompute is Recompute.full:
        again = seen.layer_bytes(job, Recompute.none)
    elif job.recompute is Recompute.selective:
        again = seen.feed_forward_bytes(job)
    if again and seen.norm_keeps_input(job):
        again -= seen.stream_bytes(job)  # what is made again begins with the very tensor that was saved
    split = job.engine.sequence_parallel
    # the gradient that arrives; from the next stage it comes in a buffer, which is counted among the pipeline's
    arrived, head = (seen.stream_bytes(job), _heads_gradient(job, begun)) if stage.last else (0, 0)
    gated = job.model.mlp is Mlp.swiglu
    moments = [
        # the product is gone, its gradient and those of its factors are there
        Need(again + (2 if gated else 1) * inner, "gradients inside the feed-forward block"),
        # the weight's gradient is made whole before it is added to the sum
        Need(
            again + inner + _matrix(job) + (seen.whole_stream(job) if split else 0),
            "gradient of the feed-forward block's last matrix",
        ),
        Need(
            again - seen.feed_forward_bytes(job) + seen.norm(job, "")[0].bytes + _norm_temporaries(job),
            "gradients of the feed-forward block's norm",
        ),
    ]
    if split:
        moments.append(Need(2 * seen.whole_stream(job), "a gradient gathered from tensor-parallel ranks"))
    most = max(moments, key=lambda need: need.bytes)
    made = "" if not again else f", {again:,} B of activations made again"
    return Need(arrived + head + most.bytes, most.what + made + _and_heads(head))


def gradient_sums(stage: Stage) -> Need:
    """After a backward pass: a gradient in fp32 on its way into the sums, while other micro batches are in flight."""
    most = max(max(group) for group in stage.numels)
    return Need(4 * most, f"4 B x {most:,}: the largest gradient in fp32")


def _chunk(job: Job) -> int:
    """Logits of a chunk of the loss."""
    return min(job.loss_chunk, job.tokens) * (job.vocabulary // job.tensor)


def _new_logits(job: Job) -> int:
    """While a chunk's logits are made: in the weights' dtype and in fp32, and the chunk's before in fp32."""
    before = 4 if job.tokens > job.loss_chunk else 0
    return _chunk(job) * (before + 4 + (job.item if job.item < 4 else 0))


def _matrix(job: Job) -> int:
    """The gradient of one matrix of the feed-forward block, H F."""
    return job.model.hidden_size * (job.model.ffn_size // job.tensor) * job.item


def _norm_temporaries(job: Job) -> int:
    """Of a norm's backward pass beside its input.

    RMSNorm in single steps: the gradient of the normalised input, and of its mean square the quotient, the power,
    the power doubled and their product, all of B T H in fp32. A kernel of its own: the gradients of output and input.
    """
    if job.model.norm is Norm.layernorm or job.compile or job.engine.fused:
        return 2 * activations.stream_bytes(job)
    return 5 * 4 * (activations.stream_bytes(job) // job.item)


def _heads_gradient(job: Job, begun: bool) -> int:
    """The gradient of the head, after the loss and beside what is counted among the gradients.

    Of an embedding that is tied on one rank it waits for the embedding's part. In a step's first backward pass it is
    the only one that autograd has.
    """
    waits = job.model.tied_embeddings and job.pipeline == 1
    first = job.zero <= 1 and not begun
    return job.item * activations.head_elements(job) if waits or first else 0


def _and_heads(head: int) -> str:
    return f", {head:,} B of the head's" if head else ""
