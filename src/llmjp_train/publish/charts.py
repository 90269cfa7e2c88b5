"""Line charts as inline SVG that fits any width: the plot stretches, its labels are text of the page.

The SVG holds lines alone, in a box of 1000 x 1000 without a fixed aspect; line widths do not scale with
it. Tick labels are placed by per cent, so that they keep their size on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BOX = 1000.0
POINTS = 120
"""More points than this are averaged in as many buckets, with a band from least to greatest."""
_LOG_RATIO = 50.0
_DOTS = 30

Pair = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A line of a chart; a value of none (not finite) breaks it."""

    name: str
    points: Sequence[Pair]
    dots: bool = False
    """Show each point, as long as they are few."""
    intervals: Sequence[tuple[float, float, float]] = ()
    """x, lower and upper end, drawn as a band where the points are few enough to be drawn as they are."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place on the x axis."""

    x: float
    label: str
    kind: str
    """``start`` or ``incident``."""


@dataclass(frozen=True)
class Tick:
    """A label at ``place`` per cent of the axis, from the left or from the bottom."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series as SVG paths, empty where there is nothing to draw."""

    name: str
    path: str
    band: str
    dots: str


@dataclass(frozen=True)
class Chart:
    """What the page's template draws."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[tuple[float, str, str]]
    """Place in the box, label, kind."""
    text: str
    """The chart in words, for who cannot see it."""
    wide: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from ``low`` to ``high``."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Share of the axis, 0 to 1 inside it."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    marks: Sequence[Mark] = (),
    from_zero: bool = False,
    percent: bool = False,
    wide: bool = False,
    span: tuple[float, float] | None = None,
    points: int = POINTS,
) -> Chart | None:
    """A chart of y over steps; none when no series has a value.

    Args:
        from_zero: the y axis starts at 0 (shares and rates); a wide range is else drawn logarithmically.
        percent: y is a share, labelled in per cent.
        wide: may take more room than the others.
        points: most points of a line.
        span: first and last step, so that several charts share an axis; none: those of the series.
    """
    reduced = [
        (line, middle, band or list(line.intervals))
        for line in series
        for middle, band in [_reduced(line.points, points)]
    ]
    values = [y for _, middle, band in reduced for y in _values(middle, band)]
    steps = [x for line in series for x, y in line.points if y is not None]
    if not values:
        return None
    low, high = span or (min(steps), max(steps))
    x_axis = _padded(min(low, *steps), max(high, *steps), whole=True)
    y_axis = _y_axis(values, from_zero=from_zero)
    return Chart(
        title=title,
        unit=unit,
        lines=[_line(line, middle, band, x_axis, y_axis) for line, middle, band in reduced if middle],
        x_ticks=_x_ticks(x_axis),
        y_ticks=_y_ticks(y_axis, percent=percent),
        marks=[
            (BOX * x_axis.place(mark.x), mark.label, mark.kind)
            for mark in marks
            if x_axis.low <= mark.x <= x_axis.high
        ],
        text=_words(title, unit, series),
        wide=wide,
    )


def _values(middle: list[Pair], band: list[tuple[float, float, float]]) -> list[float]:
    return [y for _, y in middle if y is not None] + [y for _, low, high in band for y in (low, high)]


def _reduced(points: Sequence[Pair], most: int) -> tuple[list[Pair], list[tuple[float, float, float]]]:
    """At most ``most`` points and, where several became one, the band that they span."""
    if len(points) <= most:
        return list(points), []
    middle: list[Pair] = []
    band: list[tuple[float, float, float]] = []
    for index in range(most):
        part = points[index * len(points) // most : (index + 1) * len(points) // most]
        found = [y for _, y in part if y is not None]
        x = sum(x for x, _ in part) / len(part)
        middle.append((x, sum(found) / len(found) if found else None))
        if found:
            band.append((x, min(found), max(found)))
    return middle, band


def _padded(low: float, high: float, *, whole: bool = False) -> Axis:
    if low == high:
        room = 1.0 if whole or low == 0 else abs(low) * 0.1
        return Axis(low - room, high + room)
    return Axis(low, high)


def _y_axis(values: list[float], *, from_zero: bool) -> Axis:
    low, high = min(values), max(values)
    if from_zero:
        return Axis(0.0, high * 1.08 if high > 0 else 1.0)
    if low > 0 and high / low > _LOG_RATIO:
        return Axis(low / 1.2, high * 1.2, log=True)
    axis = _padded(low, high)
    room = 0.06 * (axis.high - axis.low)
    return Axis(axis.low - room, axis.high + room)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9)
    return [round(index * width, 12) for index in range(first, last + 1)]


def _x_ticks(axis: Axis) -> list[Tick]:
    """Round steps, and the last one where there is room for it."""
    found = [Tick(100 * axis.place(v), _count(v)) for v in ticks(axis.low, axis.high, 5) if v == int(v)]
    if axis.high == int(axis.high) and (not found or found[-1].place < 85):
        found.append(Tick(100.0, _count(axis.high)))
    return found


def _y_ticks(axis: Axis, *, percent: bool) -> list[Tick]:
    if axis.log:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        many = len(powers) > 3
        values = [
            f * 10.0**p
            for p in powers
            for f in ((1,) if many else (1, 2, 5))
            if axis.low <= f * 10.0**p <= axis.high
        ]
    else:
        values = ticks(axis.low, axis.high, 5)
    return [Tick(100 * axis.place(v), f"{100 * v:.4g} %" if percent else short(v)) for v in values]


def short(value: float) -> str:
    """A number in few characters: 0.0003, 3e-05, 12k, 1.2M."""
    size = abs(value)
    if size >= 10_000:
        return _count(value)
    return f"{value:.4g}" if size >= 1e-3 or size == 0 else f"{value:.2g}".replace("e-0", "e-")


def _count(value: float) -> str:
    for bound, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if letter == 'k' else bound):.4g}{letter}"
    return f"{value:.4g}"


def _line(
    series: Series, middle: list[Pair], band: list[tuple[float, float, float]], x_axis: Axis, y_axis: Axis
) -> Line:
    def at(x: float, y: float) -> str:
        return f"{BOX * x_axis.place(x):.1f} {BOX * (1 - y_axis.place(y)):.1f}"

    path, pen = [], "M"
    for x, y in middle:
        if y is None:
            pen = "M"
            continue
        path.append(pen + at(x, y))
        pen = "L"
    outline = [at(x, high) for x, _, high in band] + [at(x, low) for x, low, _ in reversed(band)]
    few = (series.dots and len(middle) <= _DOTS) or len(middle) == 1
    # A line of no length with round ends is a dot that stays round when the box is stretched.
    dots = [f"M{at(x, y)}h0" for x, y in middle if y is not None] if few else []
    return Line(series.name, "".join(path), "M" + "L".join(outline) + "Z" if band else "", "".join(dots))


def _words(title: str, unit: str, series: Sequence[Series]) -> str:
    parts = []
    for line in series:
        found = [(x, y) for x, y in line.points if y is not None]
        if found:
            (x0, y0), (x1, y1) = found[0], found[-1]
            parts.append(f"{line.name} from {short(y0)} at step {x0:.0f} to {short(y1)} at step {x1:.0f}")
    return f"{title}{f' ({unit})' if unit else ''}: {'; '.join(parts)}"
