"""A run that was trained, stopped and resumed, and its release: made once for all tests of this room."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.releases import SECRET
from helpers.runs import train
from helpers.toy import small_run

from llmjp_train import cli, exit_codes
from llmjp_train.checkpoint.listing import choose
from llmjp_train.publish.release import Wanted, release
from llmjp_train.runlog.record import RunRecord


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tokenizer_folder: Path) -> Path:
    """A run of 20 steps with a checkpoint at 10 that it was resumed from, on another number of ranks."""
    run = tmp_path_factory.mktemp("release") / "run"
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["statements"] == [
        {"input": "small.jsonl", "licence": None, "origin": None, "filters": None}
    ]
    said = [
        {
            "input": "small.jsonl",
            "licence": "CC0-1.0",
            "origin": "made by this test",
            "filters": "lines without kana",
        }
    ]
    prepared = shutil.copytree(prepared, run.parent / "prepared")
    (prepared / "manifest.json").write_text(json.dumps(manifest | {"statements": said}), encoding="utf-8")
    words = small_run(run, prepared, tokenizer_folder, "checkpoint.every_steps=10")
    assert train(1, [*words, "schedule.length=10"]) == [exit_codes.OK]
    assert train(2, [*words, "parallel.data=2"]) == [exit_codes.OK] * 2
    words = ["tasks=[own_choice]", "limit=8", "num_fewshot=1", "device=cpu"]
    assert cli.main(["evaluate", str(run), *words]) == exit_codes.OK
    record = RunRecord(run)
    record.beside(
        "notes.jsonl", "note", step=12, text=f"see /home/taro/logs/a.txt, {SECRET}, taro@example.jp"
    )
    record.beside(
        "incidents.jsonl", "incident", step=15, host="gpu-node-017", message="ECC error on gpu-node-017"
    )
    return run


@pytest.fixture(scope="session")
def released(trained: Path) -> Path:
    text = trained.parent / "licence.txt"
    text.write_text("the words of a licence")
    wanted = Wanted("apache-2.0", text, ["日本語モデルの会"])
    return release(trained, choose(trained), trained.parent / "released", wanted).folder
