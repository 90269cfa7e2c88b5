"""`llmjp evaluate` on a run, on a Hugging Face folder, and on nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluating import llmjp

from llmjp_train.commands.evaluate import _name
from llmjp_train.config.compose import compose
from llmjp_train.errors import UserError
from llmjp_train.evaluate import schema
from llmjp_train.runlog.record import RunRecord


def test_list_shows_each_task_with_size_licence_and_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert llmjp("--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    rows = {row["task"]: row for row in listed["tasks"]}
    assert rows["own_choice"]["items"] == 48
    assert rows["own_choice"]["majority_baseline"] == 0.25
    assert rows["own_choice"]["licence"] == "CC0-1.0"
    assert rows["own_choice"]["data"] == "here"
    assert rows["own_texts"]["majority_baseline"] is None
    assert rows["jcommonsenseqa"]["licence"] == "CC-BY-SA-4.0"
    assert listed["suites"]["quick"] == ["own_choice", "own_reading", "own_texts"]
    assert len(listed["groups"]["jmmlu"]) == 40
    assert rows["arc_easy"]["licence"] == "CC-BY-SA-4.0"
    assert rows["arc_easy"]["data"] == "from elsewhere"


def test_list_as_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert llmjp("--list") == 0
    shown = capsys.readouterr().out
    for word in (
        "own_choice",
        "bits_per_byte",
        "48",
        "0.250",
        "CC0-1.0",
        "here",
        "suite=quick",
        "jmmlu (40 tasks)",
    ):
        assert word in shown


def test_list_says_which_data_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path))
    assert llmjp("--list", "--json") == 0
    rows = {row["task"]: row for row in json.loads(capsys.readouterr().out)["tasks"]}
    assert rows["jcommonsenseqa"]["data"].startswith("missing: task jcommonsenseqa")
    assert rows["jcommonsenseqa"]["items"] is None


@pytest.mark.slow
def test_a_run_is_evaluated_and_the_result_kept(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert llmjp(str(run_dir), "limit=3", "device=cpu") == 0
    kept = RunRecord(run_dir).read_evaluations()
    assert list(kept) == ["step-00000020-quick-limit-3"]
    payload = kept["step-00000020-quick-limit-3"]
    assert schema.problems(payload) == []
    assert payload["step"] == 20
    lines = (run_dir / "evaluations" / payload["items_file"]).read_text("utf-8").splitlines()
    assert len(lines) == 9
    shown = capsys.readouterr().out
    assert "checkpoint of step 20" in shown
    assert "own_texts" in shown


def test_a_trial_goes_beside_the_suites_own_result() -> None:
    names = []
    for words in ([], ["limit=2"], ["num_fewshot=0", "bos=true"], ["runner=harness", "device=cpu"]):
        names.append(_name(20, compose("evaluate", ["suite=demo", *words])))
    assert names == [
        "step-00000020-demo",
        "step-00000020-demo-limit-2",
        "step-00000020-demo-num_fewshot-0-bos-true",
        "step-00000020-demo",  # they change no figure
    ]
    assert _name(None, compose("evaluate", ["tasks=[own_choice,own_texts]"])) == "own_choice-own_texts"


@pytest.mark.slow
def test_a_run_and_its_weights_as_a_folder_score_alike(
    run_dir: Path, hf_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []
    for model in (run_dir, hf_folder):
        assert llmjp(str(model), "--json", "limit=4", "device=cpu") == 0
        found.append(json.loads(capsys.readouterr().out))
    ours, theirs = found
    assert ours["settings"]["adapter"] == "FastLM"
    assert theirs["settings"]["adapter"] == "FastLM"
    assert theirs["step"] is None
    for name, task in ours["tasks"].items():
        other = theirs["tasks"][name]
        assert task["prompts_sha256"] == other["prompts_sha256"]
        for metric, figures in task["metric"].items():
            assert figures["value"] == pytest.approx(other["metric"][metric]["value"], rel=1e-5), name


def test_an_earlier_step_and_an_output_folder(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--step", "10", "--output", str(out), "tasks=[own_choice]", "limit=2", "device=cpu")
    assert llmjp(str(run_dir), *words) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "step-00000010-own_choice-limit-2.items.jsonl",
        "step-00000010-own_choice-limit-2.json",
        "step-00000010-own_choice-limit-2.report",
    ]
    assert RunRecord(run_dir).read_evaluations() == {}
    assert json.loads((out / "step-00000010-own_choice-limit-2.json").read_text())["step"] == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a run directory"),
        (("limit=3",), "name a run directory"),
        (("no/such/place",), "no/such/place does not exist"),
        (("{tmp}",), "neither a run directory"),
        (("{run}", "--step", "15"), "no checkpoint of step 15, only 10, 20"),
        (("{run}", "--step", "first"), "--step first: give a step's number"),
        (("{run}", "suite=quik"), "did you mean quick"),
        (("{run}", "dtype=float8", "device=cpu"), "dtype=float8"),
        (("{run}", "device=gpu"), "device=gpu"),
        (("{run}", "limt=3"), "limt"),
    ],
)
def test_bad_requests_say_what_to_do(
    words: tuple[str, ...], message: str, run_dir: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=message):
        llmjp(*(word.format(tmp=empty, run=run_dir) for word in words))


def test_incomplete_folders_are_refused(hf_folder: Path, tmp_path: Path) -> None:
    shutil.copy(hf_folder / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        llmjp(str(tmp_path), "device=cpu")
    for path in hf_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    with pytest.raises(UserError, match="cannot load the model"):
        llmjp(str(tmp_path), "device=cpu")


def test_listing_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, argparse\n"
        "from llmjp_train.evaluate.tasks import find_tasks\n"
        "from llmjp_train.evaluate.table import describe\n"
        "import llmjp_train.commands.evaluate\n"
        "rows = [describe(task) for task in find_tasks().values() if not task.metadata.get('catalogue')]\n"
        "assert len(rows) >= 3\n"
        "heavy = {'torch', 'lm_eval', 'datasets', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_harness_s_own_runner_gives_the_same_and_unknown_ones_are_refused(
    hf_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for runner in ("fast", "harness"):
        words = (str(hf_folder), "--json", "tasks=[own_choice]", "limit=4", "device=cpu", f"runner={runner}")
        assert llmjp(*words) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [payload["settings"]["adapter"] for payload in found] == ["FastLM", "FolderLM"]
    first, second = (payload["tasks"]["own_choice"]["metric"]["acc"]["value"] for payload in found)
    assert first == second
    with pytest.raises(UserError, match="runner=slow: give fast or harness"):
        llmjp(str(hf_folder), "runner=slow", "device=cpu")


def test_a_folder_whose_files_lack_a_tensor_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(hf_folder, folder)
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"files lack 1 tensors \(model.layers.1.mlp.up_proj.weight"):
        llmjp(str(folder), "device=cpu")


@pytest.mark.parametrize("runner", ["fast", "harness"])
def test_a_folder_that_lacks_a_shard_is_refused(hf_folder: Path, tmp_path: Path, runner: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(hf_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(hf_folder).save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(UserError, match=f"cannot load the model.*{shards[1].name}"):
        llmjp(str(folder), f"runner={runner}", "device=cpu")


def test_scores_are_kept_until_the_result_is_written(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmjp_train.evaluate import results

    words = (str(run_dir), "tasks=[own_choice]", "limit=3", "device=cpu")
    journal = run_dir / "evaluations/step-00000020-own_choice-limit-3.progress.jsonl"

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            llmjp(*words)
    assert len(journal.read_text("utf-8").splitlines()) == 1 + 12
    assert llmjp(*words) == 0
    assert "12 scores are there" in capsys.readouterr().out
    assert not journal.exists()
    kept = RunRecord(run_dir).read_evaluations()["step-00000020-own_choice-limit-3"]
    assert kept["tasks"]["own_choice"]["tokens_run"] is None, "nothing was computed again"


def test_a_run_writes_texts_without_an_export(run_dir: Path, llmjp_data: Path) -> None:
    assert llmjp(str(run_dir), "tasks=[jemhopqa]", "limit=2", "num_fewshot=0", "device=cpu") == 0
    (task,) = (
        RunRecord(run_dir)
        .read_evaluations()["step-00000020-jemhopqa-num_fewshot-0-limit-2"]["tasks"]
        .values()
    )
    assert set(task["metric"]) == {"char_f1", "exact_match"}
