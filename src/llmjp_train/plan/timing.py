"""Seconds of a step, term by term, from counts and the constants of `plan.constants`.

A figure of the cluster that is unknown makes bounds: `step_time` then takes the best or the worst value that
such machines have (BOUNDS). Times are those of the slowest stage; 1F1B adds the pipeline's fill and drain.
"""

from dataclasses import dataclass

from llmjp_train.config.machine import Device, Recompute, known
from llmjp_train.config.model import Mlp
from llmjp_train.config.training import Dtype
from llmjp_train.plan import activations
from llmjp_train.plan.constants import Constants, shipped
from llmjp_train.plan.job import Job
from llmjp_train.plan.stages import Stage, stages
from llmjp_train.plan.state import partition

BOUNDS = {
    "memory_gbs": (8000.0, 1200.0),
    "node_link_gbs": (900.0, 25.0),
    "network_gbs": (400.0, 12.0),
}
"""Best and worst of GPU nodes in use: HBM3e to HBM2; NVLink 5 to PCIe 4; 8 x 400 Gb/s to 1 x 100 Gb/s."""


@dataclass(frozen=True)
class Part:
    """One line of a step's time."""

    name: str
    seconds: float
    formula: str
    source: str


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    parts: tuple[Part, ...]
    constants: Constants

    @property
    def seconds(self) -> float:
        """All parts."""
        return sum(part.seconds for part in self.parts)

    def of(self, name: str) -> float:
        """Seconds of the parts of one name."""
        return sum(part.seconds for part in self.parts if part.name == name)


@dataclass(frozen=True)
class Rates:
    """What one device does a second, with the constants applied."""

    matmul: float
    attention: float
    memory: float
    link: float
    """Bytes/s of one device to others of its node."""
    network: float
    """Bytes/s of a node."""
    passes: float

    @classmethod
    def of(cls, job: Job, constants: Constants, worst: bool) -> "Rates | None":
        """None where the device's peak is unknown."""
        if job.peak_flops is None:
            return None
        matmul = job.peak_flops * (constants.matmul_ampere if _ampere(job) else constants.matmul_hopper)
        matmul /= 1 + constants.width / job.model.hidden_size + constants.tokens / job.tokens

        def figure(key: str) -> float:
            value = known(getattr(job.cluster, key))
            return (BOUNDS[key][worst] if value is None else value) * 1e9

        return cls(
            matmul,
            matmul * constants.attention,
            figure("memory_gbs"),
            figure("node_link_gbs") * constants.network,
            figure("network_gbs") * constants.network,
            constants.passes,
        )


def _ampere(job: Job) -> bool:
    return "A100" in job.cluster.device_name


def uncertain(job: Job) -> list[str]:
    """Figures of the cluster that are unknown and that a step's time depends on."""
    if job.cluster.device is Device.cpu:
        return []
    used = ["memory_gbs"] + ["node_link_gbs"] * (job.ranks > 1) + ["network_gbs"] * (job.nodes > 1)
    return [key for key in used if known(getattr(job.cluster, key)) is None]


def step_time(job: Job, constants: Constants | None = None, *, worst: bool = True) -> StepTime | None:
    """Time of a step; none where the device's peak is unknown.

    Args:
        worst: which bound is taken for figures that are unknown.
    """
    constants = shipped() if constants is None else constants
    rates = Rates.of(job, constants, worst)
    if rates is None:
        return None
    held = stages(job)
    alike: dict[tuple[int, bool, bool], list[Part]] = {}
    for stage in held:
        if _form(stage) not in alike:
            alike[_form(stage)] = _stage_parts(job, stage, rates)
    every = [alike[_form(stage)] for stage in held]
    totals = [sum(part.seconds for part in parts) for parts in every]
    slowest = max(range(len(every)), key=lambda index: totals[index])
    count = job.micro_batches
    parts = [
        Part(part.name, part.seconds * count, f"{count} micro batches x {part.formula}", part.source)
        for part in every[slowest]
    ]
    parts += _pipeline_parts(job, rates, totals, slowest)
    stage = held[slowest]
    parts += [
        *_data_parts(job, stage, rates, totals[slowest]),
        _optimizer(job, stage, rates),
    ]
    return StepTime(tuple(part for part in parts if part.seconds > 0), constants)


def _form(stage: Stage) -> tuple[int, bool, bool]:
    return stage.layers, stage.first, stage.last


def layer_flops(job: Job) -> tuple[float, float]:
    """Forward FLOPs of one layer and micro batch on one rank: matrix products, and attention's two."""
    model = job.model
    width = model.num_heads * model.head_size
    matrices = 2 * model.hidden_size * (width + model.num_kv_heads * model.head_size)
    matrices += (3 if model.mlp is Mlp.swiglu else 2) * model.hidden_size * model.ffn_size
    causal = 2 if job.engine.flash and not _masked(job) else 1
    attention = 4.0 * job.tokens * job.sequence_length * width / causal
    return 2.0 * job.tokens * matrices / job.tensor, attention / job.tensor


def _masked(job: Job) -> bool:
    """Attention under a mask of documents computes every score."""
    return job.document_mask and job.cluster.device is Device.cuda and job.engine.name == "llmjp-train"


def _stage_parts(job: Job, stage: Stage, rates: Rates) -> list[Part]:
    """Seconds of one micro batch on one stage."""
    matrices, attention = layer_flops(job)
    head = 2.0 * job.tokens * activations.head_elements(job) if stage.last else 0.0
    again = {Recompute.none: 0.0, Recompute.full: 1.0}.get(job.recompute, _feed_forward_share(job))
    layers = stage.layers
    saved = activations.layer_bytes(job, Recompute.none)
    repeated = saved if job.recompute is Recompute.full else activations.feed_forward_bytes(job)
    found = [
        Part(
            "matrix products",
            3 * (layers * matrices + head) / rates.matmul,
            f"3 x {layers * matrices + head:.4g} FLOP at {rates.matmul / 1e12:.1f} TFLOP/s",
            "forward 1, backward 2; constant matmul_*",
        ),
        Part(
            "attention",
            3.5 * layers * attention / rates.attention,
            f"3.5 x {layers * attention:.4g} FLOP at {rates.attention / 1e12:.1f} TFLOP/s",
            "forward 1, flash backward 2.5 (Dao, 2023); constant attention",
        ),
        Part(
            "recomputation",
            layers
            * (
                again * matrices / rates.matmul
                + (attention / rates.attention if job.recompute is Recompute.full else 0.0)
            ),
            f"{again:.2f} of a forward pass of {layers} layers",
            "parallel.recompute",
        ),
        Part(
            "element-wise",
            layers * saved * rates.passes / rates.memory,
            f"{rates.passes:.2f} x {layers} x {saved:,} B at {rates.memory / 1e9:.0f} GB/s",
            "norms, rotation, activation, residuals; constant passes",
        ),
    ]
    if again:
        seconds = layers * repeated * rates.passes / 3 / rates.memory
        found.append(
            Part("element-wise, again", seconds, f"a third of it for {repeated:,} B", "parallel.recompute")
        )
    found.append(_tensor(job, stage, rates, again))
    add = 4 if job.engine.fused else (8 + job.item if job.dtype is not Dtype.fp32 else 12)
    found.append(
        Part(
            "gradient sums",
            add * stage.parameters / rates.memory,
            f"{add} B x {stage.parameters:,}",
            "fp32 sums read and written each micro batch",
        )
    )
    return found


def _feed_forward_share(job: Job) -> float:
    """Share of a layer's matrix FLOPs that selective recompute repeats."""
    model = job.model
    inner = (3 if model.mlp is Mlp.swiglu else 2) * model.hidden_size * model.ffn_size
    return 2.0 * job.tokens * inner / job.tensor / layer_flops(job)[0]


def _tensor(job: Job, stage: Stage, rates: Rates, again: float) -> Part:
    """Two all-reduces a layer in each pass (Shoeybi et al., 2019), or their halves under sequence parallelism."""
    share = 2 * (job.tensor - 1) / job.tensor
    whole = job.tokens * job.model.hidden_size * job.item
    count = stage.layers * (4 + 2 * again) + 2 * stage.first + 2 * stage.last
    rate = (
        rates.link
        if job.tensor <= (job.cluster.devices_per_node or job.tensor)
        else network_share(job, rates)
    )
    return Part(
        "tensor-parallel communication",
        share * whole * count / rate if job.tensor > 1 else 0.0,
        f"{count:.0f} all-reduces of {whole:,} B at {rate / 1e9:.0f} GB/s",
        "ring all-reduce, 2 (t - 1) / t of the bytes; constant network",
    )


def network_share(job: Job, rates: Rates) -> float:
    """Bytes/s of one device when all devices of its node use the network."""
    return rates.network / (job.cluster.devices_per_node or 1)


def _pipeline_parts(job: Job, rates: Rates, totals: list[float], slowest: int) -> list[Part]:
    """Fill and drain of 1F1B, and what stages send each other."""
    if job.pipeline == 1:
        return []
    fill = (sum(totals) - totals[slowest]) / job.engine.interleave
    rate = _stage_rate(job, rates)
    stream = activations.stream_bytes(job)
    # our pipeline engine waits for each message; others send while they compute and wait while filling alone
    sends = (job.pipeline - 1) if job.engine.fused else (job.micro_batches + job.pipeline - 1)
    sends *= job.engine.interleave
    return [
        Part(
            "pipeline bubble",
            fill,
            f"one micro batch on each of the other {job.pipeline - 1} stages"
            + (f" / {job.engine.interleave}" if job.engine.interleave > 1 else ""),
            "1F1B, Narayanan et al., 2021",
        ),
        Part(
            "pipeline messages",
            2 * sends * stream / rate,
            f"2 x {sends} x {stream:,} B at {rate / 1e9:.1f} GB/s",
            "activations on, gradients back",
        ),
    ]


def _stage_rate(job: Job, rates: Rates) -> float:
    """Bytes/s of one device to the next stage. Where some stages meet across nodes, all wait for those."""
    per_node = job.cluster.devices_per_node or job.ranks
    if job.ranks <= per_node:
        return rates.link
    return min(rates.link, rates.network / min(per_node, job.tensor * job.data))


def data_rate(job: Job, rates: Rates) -> float:
    """Bytes/s of a data-parallel ring on one rank: groups of a node share its network."""
    per_node = job.cluster.devices_per_node or job.ranks
    inside = max(1, min(job.data, per_node // job.tensor if job.tensor <= per_node else 1))
    if inside >= job.data:
        return rates.link
    return min(rates.link, rates.network * inside / per_node)


def _data_parts(job: Job, stage: Stage, rates: Rates, micro: float) -> list[Part]:
    """Summing gradients and spreading weights."""
    if job.data == 1:
        return []
    share, rate = (job.data - 1) / job.data, data_rate(job, rates)
    count, ours = stage.parameters, job.engine.name == "llmjp-train"
    if job.zero == 3:
        # gathered in both passes, gradients scattered in one, for each micro batch; hidden behind the compute
        each = 2 * job.item + (4 if ours else job.item)
        one = share * count * each / rate
        exposed = max(0.0, one - micro) if job.engine.data_overlap or ours else one
        first = one / 3 / max(1, stage.layers)
        return [
            Part(
                "data-parallel communication",
                job.micro_batches * exposed + first,
                f"{job.micro_batches} x what {each} B x {count:,} at {rate / 1e9:.1f} GB/s exceeds compute by",
                "ZeRO-3, overlapped; constant network",
            )
        ]
    gather = job.item if job.zero else 0
    if ours:
        # DeepSpeed adds up by all-reduce, which sends twice what a reduce-scatter does; ZeRO-2 in each micro batch.
        times = job.micro_batches if job.zero == 2 else 1
        each, formula = 8 * times, "8" if times == 1 else f"{times} x 8"
    else:
        each, formula = 4, "4"
    seconds = share * count * (each + gather) / rate
    what = f"({formula} + {gather}) B x {count:,} at {rate / 1e9:.1f} GB/s"
    if job.engine.data_overlap:
        # behind the last micro batch's backward and the first one's forward pass
        return [
            Part(
                "data-parallel communication",
                max(seconds * 0.1, seconds - micro),
                f"what {what} exceeds a micro batch by",
                "overlapped",
            )
        ]
    return [
        Part("data-parallel communication", seconds, what, "ring, (d - 1) / d of the bytes; not overlapped")
    ]


def _optimizer(job: Job, stage: Stage, rates: Rates) -> Part:
    owned = partition(job, stage)
    total = 28 * owned + 8 * stage.parameters
    return Part(
        "optimizer",
        total / rates.memory,
        f"28 B x {owned:,} + 8 B x {stage.parameters:,} at {rates.memory / 1e9:.0f} GB/s",
        "Adam reads 16 and writes 12 B an element; norm and clipping read and write the gradients",
    )
