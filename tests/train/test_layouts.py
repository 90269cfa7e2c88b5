"""Whole runs on tensor and pipeline ranks, resumed on other layouts."""

from pathlib import Path
from typing import Any

import pytest
from helpers.runs import losses, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import latest
from llmjp_train.config.compose import load_config
from llmjp_train.plan.account import account
from llmjp_train.runlog.record import RunRecord

FORM = ("model.num_kv_heads=4", "batch.global_batch=8")
LAYOUT = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true")


@pytest.mark.slow
def test_a_run_goes_from_three_axes_to_one_process_as_if_unbroken(overrides: Any, tmp_path: Path) -> None:
    assert train(1, overrides(tmp_path / "whole", *FORM)) == [exit_codes.OK]
    parts = overrides(tmp_path / "parts", *FORM)
    assert train(4, [*parts, *LAYOUT], stop_after=8) == [exit_codes.STOPPED] * 4
    saved = latest(tmp_path / "parts").path
    planned = account(load_config(tmp_path / "parts" / "config.yaml")).checkpoints
    payloads = [path.stat().st_size for path in saved.glob("rank-*.bin")]
    assert planned.files == len(payloads) + 3
    # each tensor begins at a multiple of 64 bytes
    assert planned.bytes <= sum(payloads) < 1.1 * planned.bytes
    assert train(1, parts) == [exit_codes.OK]
    whole, found = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [row[0] for row in found] == [row[0] for row in whole]
    for (_, loss, _), (_, other, _) in zip(whole, found, strict=True):
        assert other == pytest.approx(loss, rel=1e-5)
    record = RunRecord(tmp_path / "parts")
    start = record.read_events()[0]
    assert start["layout"] == {"tensor": 2, "pipeline": 2, "data": 1, "zero": 1, "ranks": 4}
    for one, two in zip(figures(tmp_path / "whole"), figures(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def figures(run_dir: Path) -> list[Any]:
    """Norms of layer groups, validation losses and shares of damped updates, in order."""
    rows = RunRecord(run_dir).read_metrics()
    found: list[Any] = [row["grad_norms"] for row in rows if row.get("grad_norms")]
    found += [row["validation"]["loss"] for row in rows if "validation" in row]
    return found + [row["eps_dominated"] for row in rows if "eps_dominated" in row]
