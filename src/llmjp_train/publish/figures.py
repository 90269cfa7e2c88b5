"""The card's figures as PNG files, each with words for who cannot see it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmjp_train.publish.charts import short
from llmjp_train.publish.facts import Facts
from llmjp_train.runlog.reading import is_incident, validations

FOLDER = "figures"
_INCIDENT, _LINE, _DOTS = "#c0392b", "#2563a8", "#b8860b"

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A figure of the card."""

    name: str
    """File name below `FOLDER`."""
    words: dict[str, str]
    """What it shows, by language."""
    draw: Callable[[Any], None]
    """Draws on matplotlib's axes."""

    def markdown(self, language: str) -> str:
        """As the card holds it."""
        return f"![{self.words[language]}]({FOLDER}/{self.name})"


def figures(found: Facts) -> list[Figure]:
    """Loss with incidents, learning rate, and each task evaluated at several steps, over the tokens seen."""
    rows = [row for row in found.steps if row.get("loss") is not None]
    if len(rows) < 2:
        return []
    tokens = {row["step"]: float(row["tokens"]) for row in found.rows if "tokens" in row}
    loss = [(float(row["tokens"]), float(row["loss"])) for row in rows]
    checked = [(tokens[p.step], p.loss) for p in validations(found.rows) if p.step in tokens]
    rate = [(float(row["tokens"]), float(row["lr"])) for row in rows if row.get("lr") is not None]
    marks = [tokens[e["step"]] for e in found.events if is_incident(e) and e.get("step") in tokens]
    drawn = [_loss(loss, checked, marks)]
    if len(rate) > 1:
        words = {"en": f"Learning rate: {_ends(rate, 'en')}", "ja": f"学習率：{_ends(rate, 'ja')}"}
        drawn.append(Figure("learning-rate.png", words, lambda axes: _line(axes, rate, "learning rate")))
    return drawn + _tasks(found, tokens)


def _loss(loss: Points, checked: Points, marks: list[float]) -> Figure:
    words = {
        "en": f"Training loss in nats a token: {_ends(loss, 'en')}",
        "ja": f"学習損失（nats/トークン）：{_ends(loss, 'ja')}",
    }
    if checked:
        words["en"] += f"; validation loss: {_ends(checked, 'en')}"
        words["ja"] += f"。検証損失：{_ends(checked, 'ja')}"
    if marks:
        words["en"] += f"; {len(marks)} incidents marked"
        words["ja"] += f"。事象 {len(marks)} 件に印"

    def draw(axes: Any) -> None:
        axes.plot(*zip(*loss, strict=True), color=_LINE, linewidth=1, label="training loss")
        if checked:
            axes.plot(*zip(*checked, strict=True), "o", color=_DOTS, markersize=3, label="validation loss")
        for place, mark in enumerate(marks):
            axes.axvline(
                mark, color=_INCIDENT, linewidth=0.8, linestyle=":", label="incident" if not place else None
            )
        axes.set_ylabel("nats a token")
        axes.legend(frameon=False, fontsize=8)

    return Figure("loss.png", words, draw)


def _tasks(found: Facts, tokens: dict[int, float]) -> list[Figure]:
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for one in found.evaluations:
        for score in one.scores:
            if score.main and one.step in tokens:
                points = lines.setdefault((score.task, score.metric), [])
                points.append((tokens[one.step], score.value, score.half or 0.0))
    drawn = []
    for (task, metric), points in lines.items():
        points = sorted({place: (place, value, half) for place, value, half in points}.values())
        if len(points) < 2:
            continue
        ends = [(place, value) for place, value, _ in points]
        words = {
            "en": f"{task}, {metric} with 95 % intervals: {_ends(ends, 'en')}",
            "ja": f"{task} の {metric}（95 % 区間つき）：{_ends(ends, 'ja')}",
        }
        drawn.append(Figure(f"{task}-{metric}.png".replace("/", "-"), words, _interval(points, metric)))
    return drawn


def _interval(points: list[tuple[float, float, float]], metric: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        places, values, halves = zip(*points, strict=True)
        axes.errorbar(
            places, values, yerr=halves, fmt="o-", color=_LINE, markersize=3, linewidth=1, capsize=2
        )
        axes.set_ylabel(metric)

    return draw


def _line(axes: Any, points: Points, label: str) -> None:
    axes.plot(*zip(*points, strict=True), color=_LINE, linewidth=1)
    axes.set_ylabel(label)


def _ends(points: Points, language: str) -> str:
    (x0, y0), (x1, y1) = points[0], points[-1]
    if language == "ja":
        return f"{x0:,.0f} トークンで {short(y0)}、{x1:,.0f} トークンで {short(y1)}"
    return f"{short(y0)} at {x0:,.0f} tokens, {short(y1)} at {x1:,.0f} tokens"


def write_figures(folder: Path, found: Facts) -> list[Path]:
    """Draw all into ``folder``/figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    written = []
    for figure in figures(found):
        canvas = Canvas(figsize=(6.4, 3.2), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        figure.draw(axes)
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path = folder / FOLDER / figure.name
        path.parent.mkdir(exist_ok=True)
        canvas.savefig(path, dpi=150)
        written.append(path)
    return written
