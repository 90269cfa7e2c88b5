"""A plan in words for a terminal."""

from collections.abc import Iterable, Sequence

from llmjp_train.config.derive import human
from llmjp_train.plan.account import Account
from llmjp_train.plan.constants import PUBLISHED, Constants
from llmjp_train.plan.memory import GIB, RankMemory
from llmjp_train.plan.ranges import Range
from llmjp_train.plan.search import Found

UNKNOWN = "unknown"


def lines(plan: Account, *, explain: bool = False) -> list[str]:
    """The whole plan; with ``explain`` each term's formula and source."""
    job = plan.job
    found = [
        f"{plan.name}: {job.model.name} on {job.ranks} x {job.cluster.device_name} "
        f"({job.cluster.name}, {job.nodes} nodes)",
        f"  layout    {job.layout()}; {job.micro_batches} micro batches a step",
        "",
        *_memory(plan, explain),
        "",
        *_time(plan, explain),
        "",
        *_run(plan, explain),
    ]
    if plan.unknown:
        found.append(_unknown(plan))
    return found


def successor_lines(plan: Account, today: Account) -> list[str]:
    """What the run would be on the cluster that took the place of the plan's."""
    job = today.job
    step, days, hours, free = _figures(today)
    return [
        f"{plan.job.cluster.name} has closed; on {job.nodes} nodes of {job.cluster.name} (cluster={job.cluster.name} "
        f"nodes={job.nodes} parallel=auto)",
        _row("layout", [job.layout()]),
        _row("step, s; days; GPU hours", [f"{step}; {days}; {hours}"]),
        _row("GiB to spare", [free]),
    ]


def _memory(plan: Account, explain: bool) -> list[str]:
    worst = plan.memory.worst
    device = plan.memory.device_bytes
    found = [f"memory of a rank, GiB (device: {UNKNOWN if device is None else f'{device / GIB:.1f}'})"]
    shown = _shown(plan.memory.ranks, worst)
    names = list(dict.fromkeys(term.name for rank in shown for term in rank.terms))
    head = [f"stage {rank.stage.index}" for rank in shown]
    found.append(_row("", head))
    found += [_row(name, [f"{rank.named(name) / GIB:.2f}" for rank in shown]) for name in names]
    found.append(_row("in all", [f"{rank.bytes / GIB:.2f}" for rank in shown]))
    found.append(_row("fullest moment", [rank.moment for rank in shown]))
    if plan.memory.headroom is not None:
        word = "fits, to spare" if plan.memory.fits else "does NOT fit, over by"
        found.append(_row(word, [f"{abs(plan.memory.headroom) / GIB:.2f}"]))
    if explain:
        found.append(f"  stage {worst.stage.index}, term by term:")
        found += [f"    {t.name} [{t.kind}]: {t.formula}. Source: {t.source}" for t in worst.terms]
    return found


def _shown(ranks: tuple[RankMemory, ...], worst: RankMemory) -> list[RankMemory]:
    """First, fullest and last stage."""
    chosen = {ranks[0].stage.index, worst.stage.index, ranks[-1].stage.index}
    return [rank for rank in ranks if rank.stage.index in chosen]


def _time(plan: Account, explain: bool) -> list[str]:
    if plan.time is None or plan.step is None:
        return [
            f"time: not known, since the peak of {plan.job.cluster.device_name} in {plan.job.dtype.name} is unknown: "
            f"give cluster.peak_tflops_{'fp32' if plan.job.dtype.name == 'fp32' else 'bf16'}"
        ]
    found = [f"time of a step, s ({plan.step.text()} in all)"]
    found += [_row(part.name, [f"{part.seconds:.2f}"]) for part in plan.time.parts]
    if plan.time.constants.source == PUBLISHED:
        found.append(
            "  fitted on published runs of other engines: expect 15 to 20 % either way until "
            "'llmjp plan --calibrate RUN' has refitted it on 20 steps of your own"
        )
    else:
        found.append(f"  calibrated on {plan.time.constants.source}")
    if explain:
        found += [f"    {part.name}: {part.formula}. Source: {part.source}" for part in plan.time.parts]
    return found


def _run(plan: Account, explain: bool) -> list[str]:
    saves = plan.checkpoints
    found = ["the run"]
    if plan.tokens_per_s and plan.days and plan.gpu_hours and plan.lead:
        found += [
            _row("tokens/s", [plan.tokens_per_s.text(",.0f")]),
            _row("MFU", [plan.mfu.text(".1%") if plan.mfu else "unknown"]),
            _row("days", [f"{plan.days.text('.1f')} for {plan.steps:,} steps, {plan.tokens:,} tokens"]),
            _row("GPU hours", [plan.gpu_hours.text(",.0f")]),
            _row("stop lead time", [f"{plan.lead.text(',.0f')} s from signal to saved"]),
        ]
    found.append(
        _row("checkpoint", [f"{human(saves.bytes)} in {saves.files:,} files, {_seconds(saves.stall)} stall"])
    )
    if saves.staging:
        staged = f"{human(saves.staging)} of host memory on a node, {_seconds(saves.seconds)} to write"
        found.append(_row("copy in the background", [staged]))
    kept = f"{human(saves.storage)}: {saves.kept} kept of {saves.saves} saves, and one being written"
    return [*found, _row("storage", [kept]), *(RUN_SOURCES if explain else ())]


RUN_SOURCES = (
    "    MFU: model FLOPs of a token (docs/metrics.md) x tokens/s / (devices x dense peak)",
    "    days: steps x step + saves x stall. GPU hours: days x 24 x devices",
    "    checkpoint: 12 B a parameter (fp32 master and two moments), a file a rank that owns some, three of JSON",
    "    stall: bytes / storage_gbs (unknown: 0.5 to 100 GB/s); in the background a copy to the host at 5 to 50 GB/s "
    "a rank, and what a save outlasts the time between saves",
    "    copy in the background: 12 B a parameter that a rank owns, rounded up to a power of two in page-locked memory",
    "    stop lead time: a micro batch (in a pipeline a step), the last save (in the background also the one before), "
    "30 s",
    "    storage: retention policy of the checkpoint group over all steps",
)


def _seconds(value: Range) -> str:
    return f"{value.text(',.0f')} s" if value.high >= 1 else "under 1 s"


def _row(name: str, cells: Iterable[str]) -> str:
    return f"  {name:<30}" + "".join(f"{cell:>12}" if len(cell) < 12 else f"  {cell}" for cell in cells)


def search_lines(front: Sequence[Account], found: Found, constants: Constants) -> list[str]:
    """The Pareto front, what bounds it and what would change that."""
    plan = front[0]
    head = (
        f"{plan.name}: {found.tried} layouts of {plan.job.ranks} x {plan.job.cluster.device_name}, {found.fitting} "
        f"fit, {len(front)} on the front of step time and headroom"
    )
    table = [("step, s", "days", "GPU hours", "GiB free"), *(_figures(one) for one in front)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [
        "  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        + f"  {layout}"
        for cells, layout in zip(table, ("layout", *(one.job.layout() for one in front)), strict=True)
    ]
    if plan.unknown:
        rows.append(_unknown(plan) + "; the order is by the slower ends")
    return [head, *rows, *bound_lines(found, constants)]


def _figures(plan: Account) -> tuple[str, str, str, str]:
    """Step, days, GPU hours, headroom; bounds where something is unknown."""
    free = UNKNOWN if plan.memory.headroom is None else f"{plan.memory.headroom / GIB:.1f}"
    if plan.step is None or plan.days is None or plan.gpu_hours is None:
        return UNKNOWN, UNKNOWN, UNKNOWN, free
    return plan.step.text(".2f"), plan.days.text(".1f"), plan.gpu_hours.text(",.0f"), free


def _unknown(plan: Account) -> str:
    return f"  bounds: cluster {plan.job.cluster.name} does not know {', '.join(plan.unknown)}"


def bound_lines(found: Found, constants: Constants) -> list[str]:
    """What the fastest layout spends its time on beside useful work, and what would cut it."""
    from llmjp_train.plan.timing import step_time

    if not found.front:
        return []
    time = step_time(found.front[0].job, constants)
    if time is None:
        return []
    useful = ("matrix products", "attention")
    largest = max(
        (p for p in time.parts if p.name not in useful), key=lambda part: part.seconds, default=None
    )
    share = sum(p.seconds for p in time.parts if p.name in useful) / time.seconds
    found_lines = [f"  the fastest spends {share:.0%} of a step on matrix products and attention"]
    if largest is not None:
        found_lines.append(
            f"  next: {largest.name}, {largest.seconds / time.seconds:.0%}; "
            + _REMEDY.get(largest.name, "a larger micro batch")
        )
    return found_lines


_REMEDY = {
    "recomputation": "more memory a device, or more nodes, would let activations stay",
    "element-wise": "parallel.compile=true fuses much of it",
    "tensor-parallel communication": "fewer tensor-parallel ranks, where memory allows",
    "pipeline bubble": "a larger global batch, or fewer stages",
    "pipeline messages": "fewer stages, or a faster network",
    "data-parallel communication": "a larger global batch, or a faster network",
    "optimizer": "a higher ZeRO stage, or a larger global batch",
    "gradient sums": "a larger micro batch",
}
