"""The page of a plan: every term and part has a colour of its own."""

import re
from pathlib import Path

import pytest
from helpers.browser import luminance, measure
from helpers.plans import PATHS, experiment

from llmjp_train.plan.account import account
from llmjp_train.plan.memory import GIB
from llmjp_train.plan.picture import COLOURS, WIDTH, page

PLANS = [
    ("experiment=llm-jp-175b-abci",),
    ("experiment=llm-jp-13b-v2-mdx",),
    ("experiment=llm-jp-4-8b", "parallel.zero=3"),
    ("experiment=llm-jp-4-8b", "parallel.zero=2", "parallel.recompute=full"),
    ("experiment=tiny-cpu", *PATHS),
]


@pytest.mark.parametrize("words", PLANS, ids=lambda words: "-".join(words[:2]))
def test_what_a_page_shows_can_be_told_apart(words: tuple[str, ...]) -> None:
    plan = account(experiment(*words))
    shown = page(plan)
    legends = [
        re.findall(r'background:(#[0-9a-f]{6})"></span>([^<]+) <b>', part)
        for part in re.findall(r'<ul class="legend">.*?</ul>', shown)
    ]
    names = {term.name for rank in plan.memory.ranks for term in rank.terms if term.bytes}
    assert {name for _, name in legends[0]} == names
    assert all(len({colour for colour, _ in legend}) == len(legend) for legend in legends)
    assert all(COLOURS[name] == colour for legend in legends for colour, name in legend)


@pytest.mark.parametrize("words", PLANS, ids=lambda words: "-".join(words[:2]))
def test_bars_are_as_high_as_the_axis_says(words: tuple[str, ...]) -> None:
    plan = account(experiment(*words))
    memory = page(plan).split("</svg>")[0]
    axis = {
        float(text): float(y) - 4
        for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.e-]+)</text>', memory)
    }
    assert 2 <= len(axis) <= 6
    zero, (value, level) = axis[0.0], max(axis.items())
    worst = plan.memory.worst
    bar = re.findall(rf'height="([\d.]+)" fill="[^"]+"><title>stage {worst.stage.index}:', memory)
    height = worst.bytes / GIB * (zero - level) / value
    assert sum(map(float, bar)) == pytest.approx(height, abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_on_a_phone_and_a_screen_in_light_and_dark(
    chromium: str, tmp_path: Path, width: int, dark: bool
) -> None:
    shown = page(account(experiment("experiment=llm-jp-175b-abci")))
    said = measure(chromium, shown, tmp_path, width, dark=dark)
    assert (int(said["inner"]), int(said["scroll"])) == (width, width)
    assert (int(said["wide"]), int(said["small"]), int(said["loads"])) == (0, 0, 0)
    paper, ink = luminance(said["page"]), luminance(said["ink"])
    assert (paper < 0.1) == dark
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7
    drawn = re.search(r"min-width: (\d+)rem", shown)
    assert drawn is not None
    assert 12 * 16 * int(drawn[1]) / WIDTH >= 11, "words in the picture, in CSS pixels"
