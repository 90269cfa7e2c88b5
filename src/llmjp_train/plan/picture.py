"""One page a plan, of its own: memory by rank and kind, and where a step's time goes. No script, no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llmjp_train.plan.account import Account
from llmjp_train.plan.memory import GIB, RankMemory
from llmjp_train.plan.text import lines

COLOURS = {
    # memory: state blue, gradients orange, activations green, what comes and goes violet and red, machine grey
    "weights": "#1f4e8c",
    "masters": "#3f7fc4",
    "moments": "#8fbbe8",
    "gradients": "#c4501b",
    "gradients of a micro batch": "#f0a05a",
    "activations": "#2e8b57",
    "shared tables": "#7fc49a",
    "token ids": "#bfe3c9",
    "head and loss, saved": "#1d5c39",
    "working memory": "#6d4fa0",
    "pipeline buffers": "#a98bd0",
    "gathered weights": "#d4c2ec",
    "reduction buffers": "#b0345f",
    "reduced gradients": "#e58aa8",
    "allocator slack": "#d9c84a",
    "device context": "#6f7681",
    "communicators": "#a9b0ba",
    # time: matrix products blue, passes over memory green, communication violet and red, waiting grey
    "matrix products": "#1f4e8c",
    "attention": "#3f7fc4",
    "recomputation": "#8fbbe8",
    "element-wise": "#2e8b57",
    "element-wise, again": "#7fc49a",
    "gradient sums": "#f0a05a",
    "tensor-parallel communication": "#6d4fa0",
    "pipeline messages": "#a98bd0",
    "data-parallel communication": "#b0345f",
    "pipeline bubble": "#a9b0ba",
    "optimizer": "#d9c84a",
}
"""Of every term and part by name, so that two plans lie side by side."""
WIDTH, HEIGHT, LEFT = 960.0, 260.0, 40.0
_MOST_BARS, _MOST_TICKS = 64, 5
_WIDEST = 120.0
"""Room of one bar at most: a plan without pipeline has a single one."""


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    value: float


def page(plan: Account) -> str:
    """A whole HTML document."""
    sizes: dict[str, int] = {}
    for rank in plan.memory.ranks:
        for term in rank.terms:
            if term.bytes:
                sizes[term.name] = max(sizes.get(term.name, 0), rank.named(term.name))
    worst = plan.memory.worst
    sections = [
        f"<h1>{escape(plan.name)}</h1>",
        f"<p>{escape(plan.job.model.name)} on {plan.job.ranks} × {escape(plan.job.cluster.device_name)}: "
        f"{escape(plan.job.layout())}</p>",
        "<h2>Memory of a rank <small>GiB, by pipeline stage; below, the most of any stage</small></h2>",
        _memory(plan, list(sizes)),
        _legend({name: f"{size / GIB:.2f}" for name, size in sizes.items()}),
        f"<p>The fullest is stage {worst.stage.index}: {worst.bytes / GIB:.1f} GiB, {_MOMENTS[worst.moment]}.</p>",
    ]
    if plan.time is not None:
        parts = [Segment(part.name, part.seconds) for part in plan.time.parts]
        sections += [
            f"<h2>A step <small>{plan.time.seconds:.3g} s on the slowest stage</small></h2>",
            _timeline(parts),
            _legend({part.name: f"{part.value:.2f} s" for part in parts}),
        ]
    sections.append(
        f'<h2>In figures</h2><div class="scroll"><pre>{escape(chr(10).join(lines(plan)))}</pre></div>'
    )
    return _document(plan.name, "\n".join(sections))


_MOMENTS = {
    "forward": "in a forward pass",
    "loss": "while the loss is made",
    "backward": "in a backward pass",
    "reduction": "while gradients are reduced",
}


def _memory(plan: Account, names: Sequence[str]) -> str:
    """Stacked bars, a stage each, over an axis in GiB, and the device's memory as a line."""
    ranks = plan.memory.ranks[:: -(-len(plan.memory.ranks) // _MOST_BARS)]
    device, worst = plan.memory.device_bytes, plan.memory.worst
    top = max(worst.bytes, device or 0) * 1.1
    room = min(_WIDEST, (WIDTH - LEFT) / len(ranks))
    found = _axis(top)
    for place, rank in enumerate(ranks):
        left, bar = LEFT + (place + 0.1) * room, 0.8 * room
        found += _bar(rank, names, left, bar, HEIGHT / top)
        if len(ranks) <= 16 or place % 8 == 0:
            found.append(_words(left + bar / 2, HEIGHT + 16, str(rank.stage.index), "middle"))
    found.append(_words(LEFT, HEIGHT + 34, "pipeline stage"))
    if device is not None:
        level = HEIGHT * (1 - device / top)
        found.append(f'<path class="limit" d="M{LEFT:.0f} {level:.1f}H{WIDTH:.0f}"/>')
        found.append(_words(WIDTH, level - 5, f"device {device / GIB:.1f}", "end"))
    told = f"The fullest is stage {worst.stage.index} with {worst.bytes / GIB:.1f} GiB ({worst.moment})."
    return _svg(HEIGHT + 40, found, told)


def _axis(top: float) -> list[str]:
    """Lines and figures at round numbers of GiB, in a plan of a small model at parts of one."""
    most = top / GIB
    tick = 10.0 ** (len(str(int(most))) - 1) if most >= 1 else 10.0 ** -(len(str(int(1 / most))))
    tick = next(each for each in (tick / 5, tick / 2, tick, 2 * tick, 5 * tick) if most / each <= _MOST_TICKS)
    found = []
    for index in range(int(most / tick) + 1):
        level = HEIGHT * (1 - index * tick / most)
        found.append(f'<path class="grid" d="M{LEFT:.0f} {level:.1f}H{WIDTH:.0f}"/>')
        found.append(_words(LEFT - 6, level + 4, f"{index * tick:.3g}", "end"))
    return found


def _bar(rank: RankMemory, names: Sequence[str], left: float, width: float, scale: float) -> list[str]:
    """One stage's terms on top of each other; ``scale``: height of a byte."""
    found, base = [], HEIGHT
    for name in names:
        size = rank.named(name)
        if size:
            base -= scale * size
            found.append(
                f'<rect x="{left:.1f}" y="{base:.1f}" width="{width:.1f}" height="{scale * size:.1f}" '
                f'fill="{COLOURS[name]}"><title>stage {rank.stage.index}: {escape(name)} {size / GIB:.2f} GiB</title>'
                "</rect>"
            )
    return found


def _timeline(parts: Sequence[Segment]) -> str:
    """One bar, with shares in the parts that are wide enough."""
    total, left, found = sum(part.value for part in parts), 0.0, []
    for part in parts:
        share = part.value / total
        found.append(
            f'<rect x="{left:.1f}" y="0" width="{WIDTH * share:.1f}" height="48" fill="{COLOURS[part.name]}">'
            f"<title>{escape(part.name)} {part.value:.2f} s, {share:.0%}</title></rect>"
        )
        if share >= 0.04:
            ink = "light" if _dark(COLOURS[part.name]) else "dark"
            found.append(_words(left + WIDTH * share / 2, 28, f"{share:.0%}", "middle", ink))
        left += WIDTH * share
    words = "; ".join(f"{part.name} {part.value:.2f} s" for part in parts)
    return _svg(52, found, f"Parts of a step: {words}.")


def _dark(colour: str) -> bool:
    """Whether white is easier to read on it than black."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue < 140


def _words(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _svg(height: float, found: Sequence[str], words: str) -> str:
    inner = "\n".join(found)
    box = f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(words)}">\n{inner}\n</svg>'
    return f'<div class="scroll">{box}</div>'


def _legend(figures: Mapping[str, str]) -> str:
    items = "".join(
        f'<li><span style="background:{COLOURS[name]}"></span>{escape(name)} <b>{figure}</b></li>'
        for name, figure in figures.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _document(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)}: plan</title>
<style>
:root {{ --page: #f7f7f5; --ink: #1b1d21; --soft: #5c6270; --grid: #e6e7ea; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #14161a; --ink: #e9eaee; --soft: #a2a8b5; --grid: #2b2f37; }} }}
body {{ font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; max-width: 72rem; margin: 0 auto;
  padding: 1.5rem clamp(0.9rem, 3vw, 2rem) 3rem; background: var(--page); color: var(--ink);
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }}
h1 {{ font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0.1rem 0 0.3rem; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 0.7rem; }} small {{ font-weight: 400; color: var(--soft); }}
.scroll {{ overflow-x: auto; }} svg {{ display: block; width: 100%; min-width: 56rem; height: auto; }}
svg text {{ font-size: 12px; fill: var(--ink); }} .grid {{ stroke: var(--grid); }}
svg text.light {{ fill: #fff; }} svg text.dark {{ fill: #111; }}
.limit {{ stroke: var(--ink); stroke-dasharray: 6 4; fill: none; }}
.legend b {{ font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums; }}
.legend {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }}
.legend span {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em; }}
pre {{ font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", monospace; }}
</style></head><body>
{body}
</body></html>
"""
