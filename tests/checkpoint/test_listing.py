"""Where a start begins, by the names of checkpoints alone."""

from pathlib import Path

import pytest

from llmjp_train.checkpoint.listing import COMMITTED, first_step, folder_name
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import ForkConfig


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Checkpoints of steps 5 and 20, and a save of step 30 that was killed."""
    for step in (5, 20, 30):
        folder = tmp_path / "run" / "checkpoints" / folder_name(step, 1)
        folder.mkdir(parents=True)
        if step < 30:
            (folder / COMMITTED).touch()
    return tmp_path / "run"


def test_the_first_step_is_that_of_the_checkpoint_to_go_on_from(run_dir: Path, tmp_path: Path) -> None:
    here, new = str(run_dir), str(tmp_path / "new")
    assert first_step(TrainConfig(run_dir=new)) == 0
    assert first_step(TrainConfig(run_dir=here)) == 20
    assert first_step(TrainConfig(run_dir=here, resume="5")) == 5
    assert first_step(TrainConfig(run_dir=here, resume="latest-valid")) == 5, (
        "nobody has read the newer one yet"
    )
    assert first_step(TrainConfig(run_dir=new, fork=ForkConfig(run=here))) == 20
    assert first_step(TrainConfig(run_dir=new, fork=ForkConfig(run=here, step=5))) == 5
    assert first_step(TrainConfig(run_dir=here, fork=ForkConfig(run=new, step=5))) == 20, "its own come first"
