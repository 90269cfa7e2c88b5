"""A rank whose core is shared, or whose data comes late, is named; one that is as fast as the others is not."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import events, train

from llmjp_train import exit_codes
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train.stragglers import Pace, scores

MORE = ("metrics.stragglers_every=4", "evaluation.validation_every=null")


def pinned(rank: int, config: Any) -> None:
    """A core for each rank, as launchers do it."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def crowded(rank: int, config: Any) -> None:
    """Six others on the core of rank 1, until it ends."""
    pinned(rank, config)
    if rank == 1:
        spin = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
        for _ in range(6):
            subprocess.Popen([sys.executable, "-c", spin])


def late(rank: int, config: Any) -> None:
    """Data of rank 1 that takes longer than the steps."""
    from llmjp_train.data.stream import TrainingStream

    batch = TrainingStream.batch
    if rank == 1:
        TrainingStream.batch = lambda self, *args: time.sleep(0.05) or batch(self, *args)  # type: ignore[method-assign]


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="ranks share the one core, so all are slow alike"
)
def test_a_rank_whose_core_is_shared_is_named(overrides: Any, tmp_path: Path) -> None:
    assert train(2, overrides(tmp_path / "run", *MORE), inject=crowded) == [exit_codes.OK] * 2
    (told,) = [event for event in events(tmp_path / "run", "straggler") if event["phase"] == "compute"]
    assert (told["rank"], told["step"]) == (1, 12)
    assert told["score"] < 0.5
    assert "% of the median rank's matrix products" in told["evidence"]
    rows = [row["slowest"] for row in RunRecord(tmp_path / "run").read_metrics() if "slowest" in row]
    assert len(rows) == 5
    assert all(row["us_per_step"] < 1e6 for row in rows)


def test_a_rank_whose_data_comes_late_is_named(overrides: Any, tmp_path: Path) -> None:
    assert train(2, overrides(tmp_path / "run", *MORE), inject=late) == [exit_codes.OK] * 2
    (told,) = [event for event in events(tmp_path / "run", "straggler") if event["phase"] == "data"]
    assert told["rank"] == 1
    assert "it waits for data in" in told["evidence"]


def test_scores_are_against_the_median() -> None:
    rates = [100.0, 99.0, 101.0, 50.0]
    found = scores([Pace(rate, 0.0, "n") for rate in rates])
    assert [round(found[rank, "compute"], 2) for rank in range(4)] == [1.0, 0.99, 1.01, 0.5]
    assert all(found[rank, "data"] == 1 for rank in range(4))
    assert scores([Pace(1, share, "n") for share in (0.0, 0.02, 0.6)])[2, "data"] == pytest.approx(0.4 / 0.98)
    assert scores([Pace(1, share, "n") for share in (0.5, 0.5)])[0, "data"] == 1, (
        "all alike: nobody is behind"
    )
