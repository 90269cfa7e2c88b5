"""A sweep: which runs overrides with several values stand for, and what is wrong with any of them, at once."""

from pathlib import Path

import pytest

from llmjp_train import cli, exit_codes
from llmjp_train.config.sweep import sweep_runs
from llmjp_train.errors import UserError


def test_there_is_a_run_for_each_combination() -> None:
    runs = sweep_runs(["experiment=tiny-cpu", "seed=range(1,3)", "+optimizer.lr=1e-3,3e-3", "notes=[a,b]"])
    assert [one.differs for one in runs] == [
        (f"seed={seed}", f"+optimizer.lr={lr}") for seed in (1, 2) for lr in (0.001, 0.003)
    ]
    assert runs[0].overrides == ("experiment=tiny-cpu", "seed=1", "+optimizer.lr=0.001", "notes=[a,b]")
    assert len({one.folder for one in runs}) == 4
    assert sweep_runs(["tokenizer.path=a/b,a/c"])[1].folder == "tokenizer.path=a_c"
    with pytest.raises(UserError, match="no effect without a key of several values"):
        sweep_runs(["seed=1", "notes=[a,b]"])


def test_what_is_wrong_with_any_run_is_told_at_once_and_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "-m",
        "experiment=tiny-cpu",
        "optimizer.lr=1e-3,fast",
        "batch.global_batch=4,5",
        "resume=old",
    ]
    assert cli.main([*words, "--dry-run"]) == exit_codes.BAD_INPUT
    told = capsys.readouterr()
    assert (
        "  - optimizer.lr=fast batch.global_batch=4; optimizer.lr=fast batch.global_batch=5: optimizer.lr"
        in told.err
    )
    assert "  - optimizer.lr=0.001 batch.global_batch=5: batch.global_batch=5 is not a multiple" in told.err
    assert told.out == ""
    assert cli.main(["train", "-m", ".", "seed=1,2"]) == exit_codes.BAD_INPUT
    assert "-m has no effect with RUN" in capsys.readouterr().err
    assert cli.main(["train", "experiment=tiny-cpu", "seed=1,2"]) == exit_codes.BAD_INPUT
    assert "'llmjp train -m' starts a run for each" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
