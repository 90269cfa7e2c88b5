"""`llmjp demo` before it begins; what it makes is looked at in tests/end_to_end/."""

from pathlib import Path

import pytest

from llmjp_train import exit_codes
from llmjp_train.cli import main
from llmjp_train.commands.demo import LEAST_STEPS
from llmjp_train.config.compose import compose


@pytest.mark.parametrize("steps", [-3, 0, LEAST_STEPS - 1])
def test_a_training_too_short_for_its_parts_is_refused_at_once(
    steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["demo", "--dry-run", "--output", str(tmp_path), "--steps", str(steps)]) == exit_codes.BAD_INPUT
    )
    assert f"--steps {steps}: give at least {LEAST_STEPS}" in capsys.readouterr().err


def test_the_shortest_holds_the_experiments_warm_up() -> None:
    assert compose("train", ["experiment=tiny-cpu"], partial=True).schedule.warmup < LEAST_STEPS
