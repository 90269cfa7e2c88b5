"""A run that ends at its best validation loss: which checkpoint is chosen, and what a further start does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import events, losses, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import choose, committed
from llmjp_train.runlog.reading import describe

Overrides = Callable[..., list[str]]
MORE = (
    "evaluation.validation_every=2",
    "evaluation.stop_at_best=3",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=2",
)


def best_at_6(rank: int, config: Any) -> None:
    """The validation loss falls until step 6 and rises from there."""
    from llmjp_train.train import hooks

    validate = hooks.validate
    hooks.validate = lambda run: {**validate(run), "loss": 1.0 + abs(run.step - 6)}  # type: ignore[dict-item]


@pytest.mark.parametrize("more", [(), ("checkpoint.asynchronous=true",)], ids=["foreground", "background"])
def test_the_best_checkpoint_is_the_newest_and_a_further_start_takes_no_step(
    more: tuple[str, ...], overrides: Overrides, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = overrides(run_dir, *MORE, *more)
    assert train(2, words, inject=best_at_6) == [exit_codes.OK] * 2
    assert [event["step"] for event in events(run_dir, "save")] == [2, 4, 6, 8, 12]
    assert choose(run_dir).step == 6
    (stop,) = events(run_dir, "early_stop")
    assert (stop["step"], stop["ended_at"], stop["folder"]) == (6, 12, "step-00000006.epoch-0001")
    assert stop["left"] == ["left-step-00000008.epoch-0001", "left-step-00000012.epoch-0001"]
    assert "step-00000006.epoch-0001 is the newest" in describe(stop)
    for _ in range(2):
        assert train(2, words, inject=best_at_6) == [exit_codes.OK] * 2
    assert len(losses(run_dir)) == 12, "the record is as it was"
    assert len(events(run_dir, "save")) == 5
    assert len(events(run_dir, "early_stop")) == 1
    end = events(run_dir)[-1]
    assert (end["kind"], end["step"]) == ("end", 6)
    assert "to train on from there, change evaluation.stop_at_best" in end["reason"]
    assert train(1, [*words, "schedule.length=9"], inject=best_at_6) == [exit_codes.OK]
    assert [info.step for info in committed(run_dir)] == [6, 8, 9], "another schedule is another course"
    assert train(1, [*words, "evaluation.stop_at_best=null"]) == [exit_codes.OK]
    assert choose(run_dir).step == 20


def test_a_best_checkpoint_whose_save_failed_is_replaced_by_one_at_the_end(
    overrides: Overrides, tmp_path: Path
) -> None:
    def fail_at_6(rank: int, config: Any) -> None:
        from llmjp_train.errors import UserError
        from llmjp_train.train import saving

        best_at_6(rank, config)
        save = saving.save

        def failing(run_dir: Path, step: int, **more: Any) -> Any:
            if step == 6:
                raise UserError("no room")
            return save(run_dir, step, **more)

        saving.save = failing  # type: ignore[assignment]

    run_dir = tmp_path / "run"
    words = overrides(run_dir, *MORE, "checkpoint.every_steps=null")
    assert train(1, words, inject=fail_at_6) == [exit_codes.OK]
    assert [info.step for info in committed(run_dir)] == [4, 12]
    assert events(run_dir, "early_stop") == []
