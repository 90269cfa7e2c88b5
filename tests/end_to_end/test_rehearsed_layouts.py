"""The historical experiments with two ranks on each axis that they have above one: trained, moved, exported."""

import shlex
from pathlib import Path

import pytest
from helpers.ranks import run_ranks
from helpers.runs import rank_main, train

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import latest
from llmjp_train.cli import main
from llmjp_train.config.compose import load_config
from llmjp_train.runlog.record import RunRecord

LAYOUTS = {
    "llm-jp-13b-v1-mdx": {"tensor": 1, "pipeline": 2, "data": 2, "zero": 1, "ranks": 4},
    "llm-jp-175b-abci": {"tensor": 2, "pipeline": 2, "data": 2, "zero": 1, "ranks": 8},
    "llm-jp-3-172b-geniac": {"tensor": 2, "pipeline": 2, "data": 2, "zero": 1, "ranks": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and tokenizer of rehearsals, made as their notes say."""
    from llmjp_train.config.rehearsal import make_commands

    made = tmp_path_factory.mktemp("rehearsal")
    for command in make_commands(str(made)).split(" && "):
        assert main(shlex.split(command)[1:]) == exit_codes.OK
    return made


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rehearsal_in_its_own_layout_goes_on_in_another_and_exports(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMJP_REHEARSAL", str(folder))
    run_dir, ranks = tmp_path / "run", LAYOUTS[name]["ranks"]
    words = [f"experiment={name}", "scale=rehearsal_layout", f"run_dir={run_dir}"]
    assert train(ranks, words, stop_after=20) == [exit_codes.STOPPED] * ranks
    stopped = latest(run_dir).step
    assert stopped >= 20
    alone = [f"parallel.{axis}=1" for axis in ("tensor", "pipeline", "data")] + ["parallel.sequence=false"]
    config = load_config(run_dir / "config.yaml", alone)
    assert run_ranks(rank_main, 1, config, timeout=300) == [exit_codes.OK]
    record = RunRecord(run_dir)
    starts = [event for event in record.read_events() if event["kind"] in ("start", "resume")]
    assert starts[0]["layout"] == LAYOUTS[name]
    assert starts[1]["layout"]["ranks"] == 1
    losses = [row["loss"] for row in record.read_metrics() if "loss" in row]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert max(losses[stopped : stopped + 3]) < losses[0], "the loss goes on where it was"
    assert main(["export", str(run_dir)]) == exit_codes.OK
    assert list(run_dir.glob("export/*/*.safetensors"))
