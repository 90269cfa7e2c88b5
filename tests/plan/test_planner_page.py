"""docs/planner.md: its tables are what the planner says now."""

from pathlib import Path
from statistics import median

import pytest
from helpers.plans import experiment

from llmjp_train.plan import fit
from llmjp_train.plan.account import account
from llmjp_train.plan.auto import with_auto
from llmjp_train.plan.memory import GIB
from llmjp_train.plan.ranges import Range

GOAL = 0.15
RUNS = (
    ("experiment=llm-jp-13b-v1-mdx",),
    ("experiment=llm-jp-13b-v2-mdx",),
    ("experiment=llm-jp-175b-abci",),
    ("experiment=llm-jp-175b-abci", "parallel.sequence=true"),
    ("experiment=llm-jp-175b-abci", "cluster=abci-3", "parallel=auto", "cluster.nodes=49"),
    ("experiment=llm-jp-3-172b-geniac",),
    ("experiment=llm-jp-3-172b-geniac", "parallel.recompute=none"),
)


def page(root: Path) -> str:
    return (root / "docs" / "planner.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(RUNS)))
def test_the_historical_runs_are_planned_as_the_page_says(place: int, root: Path) -> None:
    table = page(root).split("## Three historical runs, and today")[1]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(RUNS)
    plan = account(with_auto(experiment(*RUNS[place])))
    assert plan.step is not None
    assert plan.mfu is not None
    assert plan.days is not None
    free = (plan.memory.headroom or 0) / GIB
    room = f"GiB, {free:.2f} to spare" if free > 0 else f"GiB: refused, {-free:.2f} too much"
    for words in (
        f"| {plan.job.ranks} " if "the same" not in lines[place] else "",
        f"{plan.memory.worst.bytes / GIB:.2f} {room} |",
        f"| {plan.step.text()} s, MFU {whole(plan.mfu.times(100))} %",
        f"| {whole(plan.days)} days",
    ):
        assert words in lines[place], words


def whole(value: Range) -> str:
    return value.text(".0f")


@pytest.mark.full
def test_the_error_table_and_its_summary_are_those_of_the_fit(root: Path) -> None:
    text, errors = page(root), fit.errors()
    for line in fit.markdown(errors).splitlines():
        assert line in text
    left_out = [abs(apart) for row, _, _, apart in errors if not row.held_out]
    never = [abs(apart) for row, _, _, apart in errors if row.held_out]
    for found, words in ((left_out, "{met} of {all} rows are met within 15 %"), (never, "of seven rows")):
        met = sum(error <= GOAL for error in found)
        assert words.format(met=met, all=len(found)) in text
        assert f"(median {median(found):.0%}, worst {max(found):.1%})".replace("%", " %") in text
    assert len(never) == 7
    assert f"never fitted, {['five', 'six', 'seven'][sum(error <= GOAL for error in never) - 5]} (" in text
