"""What autograd saves for the backward pass, tensor by tensor; `plan.working` has what the passes need on top.

The list of a layer equals what `torch.autograd.graph.saved_tensors_hooks` sees, as
tests/plan/test_activations.py checks at true sizes for each recompute policy. Sizes are those of one micro
batch on one rank. B T: tokens, H hidden size, F feed-forward width, A attention width (heads x head size).
"""

from dataclasses import dataclass

from llmjp_train.config.machine import Device, Recompute
from llmjp_train.config.model import Mlp, Norm, Position
from llmjp_train.config.training import Dtype
from llmjp_train.plan.job import Job


@dataclass(frozen=True)
class Saved:
    """A tensor that is kept for the backward pass."""

    name: str
    bytes: int


def layer(job: Job, recompute: Recompute | None = None) -> list[Saved]:
    """What one decoder layer saves under a recompute policy (none: the job's)."""
    policy = job.recompute if recompute is None else recompute
    if policy is Recompute.full:
        return [Saved("input of the layer", stream_bytes(job))]
    attention = [*norm(job, "attention norm"), *_attention(job)]
    if policy is Recompute.selective:
        return [*attention, Saved("input of the feed-forward block", stream_bytes(job))]
    return [*attention, *norm(job, "feed-forward norm"), *_feed_forward(job)]


def layer_bytes(job: Job, recompute: Recompute | None = None) -> int:
    """Sum of `layer`."""
    return sum(saved.bytes for saved in layer(job, recompute))


def feed_forward_bytes(job: Job) -> int:
    """What the feed-forward block alone saves: what selective recompute makes again."""
    return sum(saved.bytes for saved in [*norm(job, ""), *_feed_forward(job)])


def stream_bytes(job: Job) -> int:
    """One residual stream, B T H: what stages send each other. Sequence parallelism divides it."""
    return whole_stream(job) // _sequence_split(job)


def whole_stream(job: Job) -> int:
    """A residual stream with the tokens of all tensor-parallel ranks."""
    return job.tokens * job.model.hidden_size * job.item


def inner_bytes(job: Job) -> int:
    """One tensor inside the feed-forward block, B T F."""
    return job.tokens * (job.model.ffn_size // job.tensor) * job.item


def _sequence_split(job: Job) -> int:
    return job.tensor if job.engine.sequence_parallel else 1


def norm(job: Job, name: str) -> list[Saved]:
    """A norm's saved tensors and its output, which the next matrix product saves."""
    tokens = job.tokens // _sequence_split(job)
    stream = stream_bytes(job)
    # our tensor parallelism saves the gathered input of a matrix product, Megatron-LM gathers it again
    ours = job.engine.name == "llmjp-train"
    output = Saved(f"{name}: output", stream * (_sequence_split(job) if ours else 1))
    if job.model.norm is Norm.layernorm:
        # mean and 1 / deviation: the CPU kernel keeps them in the input's dtype, the CUDA kernel in fp32
        statistic = job.item if job.cluster.device is Device.cpu else 4
        return [
            Saved(f"{name}: input", stream),
            Saved(f"{name}: mean and deviation", 2 * tokens * statistic),
            output,
        ]
    if job.compile or job.engine.fused:
        return [Saved(f"{name}: input", stream), Saved(f"{name}: 1 / root mean square", 4 * tokens), output]
    if job.dtype is Dtype.fp32:
        wide = [Saved(f"{name}: input", stream)]
    else:
        wide = [Saved(f"{name}: input in fp32", stream // job.item * 4)]
    return [
        *wide,
        Saved(f"{name}: 1 / root mean square", 4 * tokens),
        Saved(f"{name}: normalised", stream),
        output,
    ]


def norm_keeps_input(job: Job) -> bool:
    """Whether a norm saves the tensor that it is given, and not a copy of it in fp32."""
    fused = job.compile or job.engine.fused
    return fused or job.model.norm is Norm.layernorm or job.dtype is Dtype.fp32


def _attention(job: Job) -> list[Saved]:
    """Rotation, scaled dot product and output projection."""
    model, item = job.model, job.item
    heads = model.num_heads // job.tensor
    wide = job.tokens * heads * model.head_size * item
    found = []
    if model.position is Position.rope and job.dtype is not Dtype.fp32 and not job.engine.fused:
        rotated = int(model.head_size * model.rope_fraction)
        # queries and keys each cast both tables; in fp32 all layers share one pair
        found.append(Saved("rotary tables in 16 bit", 4 * job.tokens * rotated * item))
    if model.qk_norm:
        found += _qk_norm(job)
    found += [
        # grouped keys and values are repeated for each query head before the kernel
        Saved("queries, keys and values", 3 * wide),
        Saved("mixed values", wide),
        Saved("log-sum-exp of the scores", 4 * job.tokens * heads),
    ]
    if model.position is Position.rope and model.rope_fraction < 1 and not job.engine.fused:
        # joining rotated and plain features lays a head's tokens together, so that the output is copied
        found.append(Saved("mixed values, token by token", wide))
    if not job.engine.flash:
        scores = job.micro_batch * heads * job.sequence_length**2
        found.append(Saved("scores, softmax and its dropout", scores * (2 * item + 1)))
    elif job.document_mask and job.cluster.device is Device.cuda and job.engine.name == "llmjp-train":
        found.append(Saved("mask of documents as a bias", job.micro_batch * job.sequence_length**2 * item))
    return found


def _qk_norm(job: Job) -> list[Saved]:
    """RMSNorm over each head of queries and keys."""
    found = []
    for name, heads in (("query", job.model.num_heads), ("key", job.model.num_kv_heads)):
        count = job.tokens * heads // job.tensor
        width = job.model.head_size
        found += [
            Saved(f"{name} norm: input in fp32", 4 * count * width),
            Saved(f"{name} norm: 1 / root mean square", 4 * count),
            Saved(f"{name} norm: normalised", count * width * job.item),
        ]
    return found


def _feed_forward(job: Job) -> list[Saved]:
    inner = inner_bytes(job)
    if job.model.mlp is Mlp.swiglu:
        count = 3 if job.compile or job.engine.fused else 4
        return [Saved("gate, its SiLU, up and their product", count * inner)]
    return [Saved("up and its GELU", 2 * inner)]


def shared(job: Job, flying: int = 1) -> int:
    """What the layers of a stage share: rotary tables in fp32, and the mask of documents as booleans.

    Each of the micro batches in flight keeps them where its layers are called again with them (full recompute), and
    its tables where autograd saves them as they are (fp32); else they are there for the one at hand alone.
    """
    tables = mask = 0
    if job.model.position is Position.rope:
        tables = 2 * job.tokens * int(job.model.head_size * job.model.rope_fraction) * 4
    if job.document_mask and job.cluster.device is Device.cuda:
        mask = job.micro_batch * job.sequence_length**2
    again = job.recompute is Recompute.full
    # DeepSpeed's pipeline keeps those of the micro batch at hand; else they go when the last layer has run
    at_hand = 1 if job.pipeline > 1 else 0
    with_tables = flying if again or job.dtype is Dtype.fp32 else 0
    with_mask = flying if again else 0
    return tables * max(with_tables, at_hand) + mask * max(with_mask, at_hand)


def embedding(job: Job) -> int:
    """What the first stage saves: token ids, and with learned positions the positions too."""
    return 8 * job.tokens * (2 if job.model.position is Position.learned else 1)


def head_saved(job: Job) -> list[Saved]:
    """Final norm and the loss, which makes its gradients in the forward pass unless the z-loss is on."""
    final = norm(job, "final norm")
    if job.z_loss:
        return [*final, Saved("targets", 8 * job.tokens), Saved("log(Z) of each token", 4 * job.tokens)]
    # the loss saves the gradient of its input; the input itself is let go
    return [
        *final[:-1],
        Saved("gradient of the final hidden states", whole_stream(job)),
        Saved("gradient of the head in fp32", 4 * head_elements(job)),
    ]


def head_elements(job: Job) -> int:
    """Elements of the head on one rank."""
    return job.vocabulary // job.tensor * job.model.hidden_size
