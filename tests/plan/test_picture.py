"""The page of a plan: every term and part has a colour of its own."""

import re

import pytest
from helpers.plans import PATHS, experiment

from llmjp_train.plan.account import account
from llmjp_train.plan.memory import GIB
from llmjp_train.plan.picture import COLOURS, page

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
