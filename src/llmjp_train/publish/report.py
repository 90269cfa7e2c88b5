"""One HTML file that tells a run: no other file, no network, any screen."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmjp_train import __version__
from llmjp_train.config.derive import human, table
from llmjp_train.errors import UserError
from llmjp_train.publish.charts import POINTS, Chart, Mark, Series, chart, short
from llmjp_train.publish.facts import Facts, Score, facts
from llmjp_train.runlog.incidents import seconds_between
from llmjp_train.runlog.reading import STARTS, describe, is_incident, validations
from llmjp_train.runlog.record import RunRecord

_VALUES = 16
"""Rows of the table of figures."""
_NEWEST = 20
"""Evaluations in training that are shown in full, and a twentieth of the events; all of them are in the record."""


def write_report(record: RunRecord, out: Path) -> Path:
    """Write the report of a run to ``out``.

    Raises:
        UserError: the record is damaged, or ``out`` cannot be written.
    """
    return write_text(out, render(facts(record)))


def write_text(path: Path, text: str) -> Path:
    """Write a file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name another place with --out FILE"
        ) from error
    return path


def render(found: Facts) -> str:
    """The page; every value that comes from the record is escaped."""
    environment = Environment(
        loader=PackageLoader("llmjp_train.publish"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, whole=whole, size=human, short=short, when=when)
    return environment.get_template("report.html.j2").render(
        facts=found,
        summary=found.summary,
        version=__version__,
        charts=charts(found),
        points=POINTS,
        most=_NEWEST,
        period=_period(found.summary.began, found.summary.written),
        setting=_setting(found.starts),
        derived=table(found.derived) if found.derived else [],
        values=_values(found),
        sources=_sources(found),
        machine=_machine(found.environment),
        events=[_event(event) for event in found.events],
        incidents=[_event(event) for event in found.events if is_incident(event)],
    )


def figure(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where the record holds none."""
    return "–" if value is None else format(value, form)


def whole(value: float | None) -> str:
    """A count with separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def when(time: str | None) -> str:
    """A time of the record to the second, in UTC."""
    return "–" if not time else time[:19].replace("T", " ")


def _period(began: str | None, written: str | None) -> str:
    """From the first start to the training's newest entry, e.g. 2026-04-01 09:00 to 2026-04-03 10:30 UTC (2 d 1 h)."""
    if not began or not written:
        return ""
    first, last = when(began)[:16], when(written)[:16]
    seconds = seconds_between(began, written)
    shown = last[11:] if first[:10] == last[:10] else last
    return f"{first} to {shown} UTC ({duration(max(seconds, 0.0))})"


_UNITS = {"en": (" d", " h", " min", " s"), "ja": (" 日", " 時間", " 分", " 秒")}


def duration(seconds: float, language: str = "en") -> str:
    """Two units at most: 0.4 s, 42 s, 3 min 50 s, 2 h 5 min, 3 d 4 h."""
    if 0 < seconds < 10:
        return f"{seconds:.2g}{_UNITS[language][-1]}"
    sizes = tuple(zip(_UNITS[language], (86_400, 3600, 60, 1), strict=True))
    index = next((i for i, (_, size) in enumerate(sizes) if seconds >= size), 3)
    parts: list[str] = []
    left = int(seconds)
    for unit, size in sizes[index : index + 2]:
        count, left = divmod(left, size)
        if count or not parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts)


def _setting(starts: list[dict[str, Any]]) -> str:
    """Processes, ZeRO stage and precision of the newest start."""
    if not starts:
        return ""
    kept = ("kind", "layout", "device", "dtype")
    return describe({key: value for key, value in starts[-1].items() if key in kept})


def charts(found: Facts) -> list[Chart]:
    """The curves that the record has figures for, all but the second on the same steps."""
    steps, points = found.steps, validations(found.rows)
    span = (steps[0]["step"], steps[-1]["step"]) if steps else None
    loss = Series("training", _points(steps, "loss"))
    validation = Series("validation", [(p.step, p.loss) for p in points], dots=True)
    bits = [(p.step, p.bits_per_byte) for p in points if p.bits_per_byte is not None]
    shares = [(row["step"], row["eps_dominated"]) for row in found.rows if "eps_dominated" in row]
    phases = [
        Series("whole step", _points(steps, "step_s")),
        Series("forward and backward", _points(steps, "forward_backward_s")),
    ]
    rates = Series("tokens/s", _points(steps, "tokens_per_s"))
    norm = Series("gradient norm", _points(steps, "grad_norm"))
    rate = Series("learning rate", _points(steps, "lr"))
    share = Series("share", shares, dots=True)
    drawn = [
        chart("Loss", "nats a token", [loss, validation], marks=_marks(found.events), wide=True, span=span),
        _second_half(loss, validation),
        chart("Validation", "bits a byte", [Series("validation", bits, dots=True)], span=span),
        chart("Learning rate", "", [rate], from_zero=True, span=span),
        chart("Gradient norm", "before clipping", [norm], span=span),
        chart("Tokens per second", "all ranks", [rates], from_zero=True, span=span),
        chart("Time of a step", "s", phases, from_zero=True, span=span),
        chart("Dominated by epsilon", "of updates", [share], from_zero=True, percent=True, span=span),
        *_evaluation_charts(found, span),
    ]
    return [one for one in drawn if one is not None]


def _points(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float | None]]:
    return [(row["step"], row.get(key)) for row in rows]


def _second_half(loss: Series, validation: Series) -> Chart | None:
    """The later half on its own scale: the first steps hide it on the full one."""
    if len(loss.points) < 40:
        return None
    middle = (loss.points[0][0] + loss.points[-1][0]) / 2
    halves = [
        Series(line.name, [(x, y) for x, y in line.points if x >= middle], line.dots)
        for line in (loss, validation)
    ]
    return chart("Loss, second half", "nats a token", halves, points=POINTS // 2)


def _marks(events: list[dict[str, Any]]) -> list[Mark]:
    found = []
    for event in events:
        step = event.get("step")
        if step is None:
            continue
        if event["kind"] in STARTS and step:
            found.append(Mark(step, f"{event['kind']} at step {step}", "start"))
        elif is_incident(event):
            found.append(Mark(step, f"{event['kind']} at step {step}", "incident"))
    return found


def _evaluation_charts(found: Facts, span: tuple[float, float] | None) -> list[Chart | None]:
    """Main metrics with their 95 % intervals over the steps, where several checkpoints were evaluated alike.

    Those in training and those beside it are drawn apart: a limit may differ. Published scores are level lines.
    """
    from llmjp_train.evaluate.references import published

    lines: dict[tuple[str, str, str], list[tuple[int, Score]]] = {}
    for one in found.evaluations:
        if one.step is not None:
            kind = "in training" if one.in_loop else f"suite {one.suite}" if one.suite else "beside it"
            for score in one.scores:
                if score.main:
                    lines.setdefault((score.task, score.metric, kind), []).append((one.step, score))
    drawn = []
    for (task, metric, kind), points in lines.items():
        if len(points) < 2:
            continue
        bands = [
            (float(x), each.low, each.high)
            for x, each in points
            if each.low is not None and each.high is not None
        ]
        ends = [float(points[0][0]), float(points[-1][0])]
        series = [Series(metric, [(x, each.value) for x, each in points], dots=True, intervals=bands)]
        series += [
            Series(f"{other.model}, published", [(x, other.value) for x in ends])
            for other in published([f"{task}.{metric}"])
        ]
        drawn.append(chart(task, f"{metric}, 95 % interval, {kind}", series, span=span))
    return drawn


def _values(found: Facts) -> list[dict[str, Any]]:
    """Some rows as a table, for who wants figures or cannot see the curves; validations go to their steps."""
    by_step = {point.step: point.loss for point in validations(found.rows)}
    steps = found.steps
    if len(steps) > _VALUES:
        chosen = {round(index * (len(steps) - 1) / (_VALUES - 1)) for index in range(_VALUES)}
        chosen |= {
            index for index, row in enumerate(steps) if row["step"] in by_step and len(by_step) <= _VALUES
        }
        steps = [steps[index] for index in sorted(chosen)]
    return [{**row, "validation": by_step.get(row["step"])} for row in steps]


def _sources(found: Facts) -> list[dict[str, Any]]:
    """What each source is and what it gave."""
    described = (found.data.get("data") or {}).get("sources") or {}
    trained = found.source_tokens
    last = found.steps[-1].get("sources", {}) if found.steps else {}
    checks = [row["validation"] for row in found.rows if "validation" in row]
    validation = checks[-1].get("sources", {}) if checks else {}
    return [
        {
            "name": name,
            "tokens": value.get("tokens"),
            "seen": trained.get(name),
            "share": f"weight {value['weight']:g}" if value.get("weight") is not None else _epochs(value),
            "loss": (last.get(name) or {}).get("loss"),
            "validation": (validation.get(name) or {}).get("loss"),
            "fingerprint": str(value.get("fingerprint") or ""),
        }
        for name, value in described.items()
    ]


def _epochs(value: dict[str, Any]) -> str:
    return f"{value['epochs']:g} epochs" if value.get("epochs") is not None else "by size"


def _machine(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Environment as names and values."""
    if not environment:
        return []
    cpu, source = environment.get("cpu") or {}, environment.get("source") or {}
    features = ", ".join(cpu.get("features") or []) or "none of AVX2, AVX-512, AMX"
    rows = [
        ("System", str(environment.get("system", ""))),
        (
            "Processor",
            f"{cpu.get('model', 'unknown')}, {cpu.get('cores', '?')} cores for the first rank ({features})",
        ),
        ("Devices", ", ".join(environment.get("devices") or []) or "none beside the processor"),
        ("Python", str(environment.get("python", ""))),
    ]
    rows += [
        (name, str(value or "not installed")) for name, value in (environment.get("packages") or {}).items()
    ]
    if source.get("commit"):
        rows.append(("Source", revision(source)))
    return rows


def revision(source: dict[str, Any], changed: str = ", with uncommitted changes") -> str:
    """The commit that ran, and in the words of ``changed`` whether the files differed from it."""
    return str(source["commit"]) + (changed if source.get("changed") else "")


def _event(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": event.get("time"),
        "kind": event["kind"],
        "step": event.get("step"),
        "text": describe(event),
        "incident": is_incident(event),
    }
