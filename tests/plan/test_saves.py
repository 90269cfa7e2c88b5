"""What checkpoints cost, in the foreground and in the background."""

from dataclasses import replace

import pytest
from helpers.plans import experiment

from llmjp_train.plan.account import STOP_MARGIN_S, Account, account
from llmjp_train.plan.job import job_from
from llmjp_train.plan.ranges import Range
from llmjp_train.plan.saves import checkpoints, staged
from llmjp_train.plan.stages import stages
from llmjp_train.plan.state import partition
from llmjp_train.plan.text import lines

RUN = "experiment=llm-jp-3-172b-geniac"  # its cluster says how fast it writes


def plan(*overrides: str) -> Account:
    return account(experiment(RUN, *overrides))


def test_in_the_foreground_training_waits_for_the_writing() -> None:
    found = plan()
    saves = found.checkpoints
    assert saves.stall == saves.seconds == saves.last
    assert saves.staging == 0
    assert "copy in the background" not in "\n".join(lines(found))


def test_in_the_background_it_waits_for_a_copy_that_takes_memory_of_the_host() -> None:
    ahead, behind = plan(), plan("checkpoint.asynchronous=true")
    saves, job = behind.checkpoints, behind.job
    own = 12 * max(partition(job, stage) for stage in stages(job))
    assert own <= staged(job) < 2 * own
    assert staged(job).bit_count() == 1
    assert saves.staging == 8 * staged(job)
    assert saves.seconds == ahead.checkpoints.seconds
    assert saves.stall.high == pytest.approx(own / 5e9)
    assert behind.days is not None
    assert ahead.days is not None
    assert behind.days.high < ahead.days.low
    assert any(line.startswith("  copy in the background") for line in lines(behind))
    # memory of the device is what it was
    assert behind.memory == ahead.memory


def test_a_stop_then_waits_for_two_saves() -> None:
    found = plan("checkpoint.asynchronous=true")
    assert found.lead is not None
    assert found.step is not None
    writing = found.checkpoints.seconds.high
    copy = found.checkpoints.stall.high
    assert found.lead.high == pytest.approx(found.step.high + copy + 2 * writing + STOP_MARGIN_S)


def test_a_save_that_outlasts_the_time_to_the_next_one_stops_training() -> None:
    config = experiment(RUN, "checkpoint.asynchronous=true", "checkpoint.every_steps=10")
    job, step = job_from(config), Range(1.0, 1.0)
    saves = checkpoints(config, job, step)
    between = account(config).steps / saves.saves
    assert between < saves.seconds.low
    assert saves.stall.low > saves.seconds.low - between
    assert checkpoints(config, job, None).stall.high < 10


def test_without_zero_a_copy_is_of_all_that_the_rank_has() -> None:
    job = replace(job_from(experiment("experiment=llm-jp-4-8b")), zero=0)
    assert staged(job) >= 12 * stages(job)[0].parameters


@pytest.mark.parametrize(
    ("name", "files"), [("llm-jp-13b-v1-mdx", 96 + 3), ("llm-jp-175b-abci", 2 * 392 + 3)]
)
def test_a_rank_writes_as_many_files_as_its_share_fills(name: str, files: int) -> None:
    config = experiment(f"experiment={name}")
    assert checkpoints(config, job_from(config), None).files == files
