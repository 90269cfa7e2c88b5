"""Configurations that begin as another run's."""

from pathlib import Path

import pytest

from llmjp_train.config.compose import ConfigError, compose, dump_config
from llmjp_train.config.runs import load_run, stem_of
from llmjp_train.config.validate import problems

TINY = "experiment=tiny-cpu", "tokenizer.path=t", "data.sources.small.path=d"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that is itself a branch, with a setting of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    more = (f"run_dir={folder}", "schedule.length=77", "fork.run=other", "fork.step=5")
    (folder / "config.yaml").write_text(dump_config(compose("train", [*TINY, *more])))
    return folder


def test_a_run_that_was_copied_is_itself_and_not_its_origin(tmp_path: Path) -> None:
    """Going on with the copy must not write into the directory that it was copied from."""
    text = dump_config(compose("train", ["experiment=tiny-cpu", "tokenizer.path=t", "data.sources.small.path=d",
                                         f"run_dir={tmp_path}/first"]))  # fmt: skip
    for name in ("first", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
        found = load_run(tmp_path / name, tmp_path / name / "config.yaml")
        assert found.run_dir == str(tmp_path / name)


def test_another_run_dir_is_refused_and_its_own_is_not(run: Path, tmp_path: Path) -> None:
    path = run / "config.yaml"
    assert load_run(run, path, [f"run_dir={run}", "schedule.length=80"]).schedule.length == 80
    with pytest.raises(
        ConfigError, match=r"leave it out, or start a branch there with 'llmjp train fork.run="
    ):
        load_run(run, path, [f"run_dir={tmp_path}/elsewhere"])


def test_a_branch_takes_the_settings_of_its_stem_and_a_directory_of_its_own(
    run: Path, tmp_path: Path
) -> None:
    words = [f"fork.from={run}", "fork.step=10", f"run_dir={tmp_path}/new", "optimizer.lr=1e-3"]
    assert stem_of(words) == run
    found = load_run(run, run / "config.yaml", words)
    assert (found.run_dir, found.fork.run, found.fork.step) == (f"{tmp_path}/new", str(run), 10)
    assert (found.schedule.length, found.optimizer.lr) == (77, 1e-3)
    assert problems(found) == []
    newest = load_run(run, run / "config.yaml", [words[0], words[2]])
    assert newest.fork.step is None, "the stem's own fork is not the branch's"
    (told,) = problems(load_run(run, run / "config.yaml", words[:2]))
    assert "is run_dir itself: name another run_dir for the branch" in told


def test_a_branch_that_has_begun_goes_on_with_its_own_settings(run: Path, tmp_path: Path) -> None:
    words = [f"fork.run={run}", "fork.step=10", f"run_dir={tmp_path}/new"]
    branch = tmp_path / "new"
    branch.mkdir()
    began = load_run(run, run / "config.yaml", [*words, "optimizer.lr=1e-3"])
    (branch / "config.yaml").write_text(dump_config(began))
    assert stem_of(words) == branch
    found = load_run(branch, branch / "config.yaml", words)
    assert (found.run_dir, found.fork.run, found.fork.step) == (str(branch), str(run), 10)
    assert found.optimizer.lr == 1e-3


@pytest.mark.parametrize("word", ["experiment=tiny-cpu", "model=tiny", "scale=rehearsal"])
def test_a_branch_that_chooses_files_is_composed(word: str, run: Path) -> None:
    assert stem_of([f"fork.run={run}", word]) is None
    assert stem_of([f"fork.run={run.parent}"]) is None, "no run is told of elsewhere"
    assert stem_of(["schedule.length=5"]) is None
