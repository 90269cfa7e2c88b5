"""Scales, ticks and paths of the charts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjp_train.publish.charts import POINTS, Mark, Series, chart, short, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_ascending_and_inside(low: float, span: float, about: int) -> None:
    if low + span == low or span < 1e-9 * abs(low):
        return
    found = ticks(low, low + span, about)
    assert found == sorted(set(found))
    assert len(found) <= about + 1
    assert all(low - 1e-6 * span - 1e-9 <= value <= low + span + 1e-6 * span + 1e-9 for value in found)


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", path)]


def test_a_line_lies_in_the_box_and_breaks_at_what_is_not_finite() -> None:
    found = chart("Loss", "nats", [Series("a", [(1, 3.0), (2, None), (3, 1.0), (4, 2.0)])])
    assert found is not None
    path = found.lines[0].path
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert all(0 <= number <= 1000 for number in numbers(path))
    assert found.text == "Loss (nats): a from 3 at step 1 to 2 at step 4"


def test_many_points_become_few_with_a_band_that_holds_the_extremes() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5000] = (5000.0, 9.0)
    found = chart("Loss", "", [Series("a", points)])
    assert found is not None
    line = found.lines[0]
    assert line.path.count("L") == POINTS - 1
    assert min(numbers(line.band)[1::2]) < 100  # the spike reaches the top of the box
    assert min(numbers(line.path)[1::2]) > 500  # its average does not


def test_charts_of_one_span_share_their_axis_and_name_the_last_step() -> None:
    found = chart("a", "", [Series("a", [(100, 1.0), (200, 2.0)])], span=(1, 480))
    assert found is not None
    assert numbers(found.lines[0].path)[0] == pytest.approx(1000 * 99 / 479, abs=0.1)
    assert [tick.text for tick in found.x_ticks] == ["100", "200", "300", "400", "480"]
    crowded = chart("a", "", [Series("a", [(240, 1.0), (480, 2.0)])])
    assert crowded is not None
    assert [tick.text for tick in crowded.x_ticks] == ["250", "300", "350", "400", "450"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart("Loss", "", [Series("a", [(1, None)])]) is None
    assert chart("Loss", "", []) is None


@pytest.mark.parametrize("value", [0.0, -2.0, 5.0])
def test_a_constant_line_lies_inside_the_box(value: float) -> None:
    found = chart("x", "", [Series("a", [(1, value), (2, value)])])
    assert found is not None
    assert all(0 < y < 1000 for y in numbers(found.lines[0].path)[1::2])


def test_a_wide_range_is_drawn_logarithmically() -> None:
    found = chart("norm", "", [Series("a", [(1, 0.01), (2, 1.0), (3, 100.0)])])
    assert found is not None
    ys = numbers(found.lines[0].path)[1::2]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert [tick.text for tick in found.y_ticks] == ["0.01", "0.1", "1", "10", "100"]


def test_marks_outside_the_steps_are_left_out() -> None:
    marks = [Mark(5, "in", "start"), Mark(50, "out", "incident")]
    found = chart("x", "", [Series("a", [(1, 1.0), (9, 2.0)])], marks=marks)
    assert found is not None
    assert [label for _, label, _ in found.marks] == ["in"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3e-5, "3e-5"), (0.003, "0.003"), (1234, "1234"), (12_500, "12.5k"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_intervals_are_a_band_round_few_points() -> None:
    line = Series("acc", [(1, 0.4), (2, 0.6)], intervals=[(1, 0.3, 0.5), (2, 0.5, 0.7)])
    found = chart("Task", "acc", [line])
    assert found is not None
    assert found.lines[0].band
    assert min(numbers(found.lines[0].band)[1::2]) < min(numbers(found.lines[0].path)[1::2])
    assert all(0 <= number <= 1000 for number in numbers(found.lines[0].band))
