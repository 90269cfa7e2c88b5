"""Files from elsewhere are data: none of them runs code, whichever command reads it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.exporting import LLAMA, MadeUpCheckpoint, save_tokenizer, train_config
from helpers.runs import train
from helpers.toy import small_run

from llmjp_train import cli, exit_codes
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.errors import UserError
from llmjp_train.publish.export import export


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_the_bomb_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def refused(words: list[str], marker: Path) -> None:
    """The command ends with an error of ours, and nothing ran."""
    assert cli.main(words) in (exit_codes.BAD_INPUT, exit_codes.FAILED), words
    assert not marker.exists(), words


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tokenizer_folder: Path) -> Path:
    run = tmp_path_factory.mktemp("security") / "run"
    words = small_run(run, prepared, tokenizer_folder, "schedule.length=4")
    assert train(1, words) == [exit_codes.OK]
    return run


CHECKPOINT_FILES = ("index", "state", "payload", "dcp")


@pytest.mark.slow
@pytest.mark.parametrize("what", CHECKPOINT_FILES)
def test_a_checkpoint_with_a_pickle_in_it(what: str, trained_run: Path, tmp_path: Path, marker: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    checkpoint = sorted((run / "checkpoints").glob("step-*"))[-1]
    bomb = pickle.dumps(Bomb(marker))
    names = sorted(path.name for path in checkpoint.iterdir())
    assert not {name for name in names if name.endswith((".pt", ".pkl", ".distcp")) or name == ".metadata"}
    if what == "dcp":  # what torch's own checkpoints call their pickled index
        (checkpoint / ".metadata").write_bytes(bomb)
        assert CheckpointReader(checkpoint).names()
        assert not marker.exists()
        return
    files = {"index": "index.json", "state": "state.json"}
    payload = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    path = checkpoint / files[what] if what in files else payload
    # As long as before and named by COMMITTED as it should be: only its content is not what it was.
    path.write_bytes(bomb.ljust(path.stat().st_size, b"\0")[: max(path.stat().st_size, len(bomb))])
    done = subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", "train", str(run), "schedule.length=6"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == exit_codes.BAD_INPUT, done.stdout + done.stderr
    assert not marker.exists()
    for words in (["export", str(run), "--out", str(tmp_path / "out")],
                  ["checkpoint", "verify", str(run)]):  # fmt: skip
        refused(words, marker)


def hf_folder(folder: Path) -> Path:
    tokenizer = save_tokenizer(folder.parent / "tokenizer")
    config = train_config(LLAMA, tokenizer)
    export(MadeUpCheckpoint(LLAMA), config, tokenizer, folder, dtype="float32")
    return folder


def _as_bin(folder: Path, bomb: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)


def _as_safetensors(folder: Path, bomb: bytes) -> None:
    (folder / "model.safetensors").write_bytes(bomb)


def _remote_code(folder: Path, bomb: bytes) -> None:
    code = f"import pickle; pickle.loads({bomb!r})\nfrom transformers import LlamaForCausalLM as Evil\n"
    (folder / "evil.py").write_text(code)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}
    values["model_type"] = "evil"
    path.write_text(json.dumps(values))


def _tokenizer_code(folder: Path, bomb: bytes) -> None:
    (folder / "evil.py").write_text(f"import pickle; pickle.loads({bomb!r})\n")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(values))
    (folder / "tokenizer.json").unlink()


HF_TRAPS: dict[str, Callable[[Path, bytes], None]] = {
    "a pickled pytorch_model.bin": _as_bin,
    "a pickle called safetensors": _as_safetensors,
    "code of the model": _remote_code,
    "code of the tokenizer": _tokenizer_code,
}


@pytest.mark.slow
@pytest.mark.parametrize("trap", HF_TRAPS)
def test_a_hugging_face_folder_with_code_in_it(trap: str, tmp_path: Path, marker: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    HF_TRAPS[trap](folder, pickle.dumps(Bomb(marker)))
    refused(["evaluate", str(folder), "tasks=[own_choice]", "limit=1", "device=cpu"], marker)
    refused(["generate", str(folder), "むかし", "--max-tokens", "1"], marker)
    imported = cli.main(["import", str(folder), "--out", str(tmp_path / "imported")])
    # The weights are sound in the last one: a run without a tokenizer may come of it, code may not.
    assert imported != exit_codes.OK or trap == "code of the tokenizer"
    assert not marker.exists()


EVIL_YAML = "!!python/object/apply:os.system ['touch {marker}']"


def test_yaml_builds_no_objects(tmp_path: Path, marker: Path) -> None:
    evil = EVIL_YAML.format(marker=marker)
    configs = tmp_path / "mine" / "experiment"
    configs.mkdir(parents=True)
    (configs / "evil.yaml").write_text(f"# @package _global_\nname: {evil}\n")
    refused(["train", "--dry-run", "--config-dir", str(tmp_path / "mine"), "experiment=evil"], marker)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"name: {evil}\n")
    refused(["run", "show", str(run)], marker)
    refused(["evaluate", str(run), "tasks=[own_choice]"], marker)
    cluster = tmp_path / "evil-cluster.yaml"
    cluster.write_text(f"name: {evil}\n")
    refused(["cluster", "check", str(cluster)], marker)


TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "%s"
doc_to_choice: [a, b]
doc_to_target: 0
num_fewshot: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1, licence: CC0-1.0, source: x, data_version: "1"}
%s
"""
REACH = "{{ cycler.__init__.__globals__.os.system('touch %s') }}"


@pytest.mark.slow
@pytest.mark.parametrize("trap", ["function", "function of our name", "template", "object", "script"])
def test_a_task_file_runs_no_code_from_outside(
    trap: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, run = tmp_path / "tasks", hf_folder(tmp_path / "model")
    tasks.mkdir()
    (tasks / "mine.jsonl").write_text('{"q": "x"}\n')
    code = f"import os\nos.system('touch {marker}')\n\ndef docs(rows):\n    return rows\n"
    (tasks / "evil.py").write_text(code)
    text, more = "{{q}}", ""
    if trap == "function":
        more = "process_docs: !function evil.docs"
    elif trap == "function of our name":
        (tasks / "llmjp_train/evaluate").mkdir(parents=True)
        shutil.copy(tasks / "evil.py", tasks / "llmjp_train/evaluate/llm_jp_eval.py")
        more = "process_docs: !function llmjp_train.evaluate.llm_jp_eval.jnli_docs"
    elif trap == "template":
        text = REACH % marker
    elif trap == "object":
        more = f"evil: {EVIL_YAML.format(marker=marker)}"
    task = TASK % (text, more)
    if trap == "script":
        task = task.replace("dataset_path: json", f"dataset_path: {tasks}/evil.py").replace(
            "dataset_kwargs: {data_files: {test: mine.jsonl}}\n", ""
        )
    (tasks / "mine.yaml").write_text(task)
    refused(["evaluate", str(run), f"include=[{tasks}]", "tasks=[mine]", "limit=1", "device=cpu"], marker)
    said = capsys.readouterr().err
    if "function" in trap:
        assert "task files may run no code from outside the project" in said
    if trap == "template":
        assert "a template of it tries to reach into Python" in said


def test_files_follow_the_user_s_umask(tmp_path: Path) -> None:
    """What a group shares and what nobody else may read is the user's to say."""
    for mask, wanted in ((0o077, 0o600), (0o002, 0o664)):
        folder = tmp_path / f"{mask:o}"
        code = (
            "from pathlib import Path; from llmjp_train.runlog.record import RunRecord; import os;"
            f"os.umask({mask}); r = RunRecord(Path({str(folder)!r})); r.create('name: x'); r.write_environment();"
            "r.beside('notes.jsonl', 'note', step=0, text='x')"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
        assert len(modes) >= 3
        assert set(modes.values()) == {wanted}, modes


def test_an_error_of_ours_is_what_refuses(tmp_path: Path) -> None:
    """Not an accident further on: the reader itself says what is wrong."""
    (tmp_path / "COMMITTED").write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(UserError):
        CheckpointReader(tmp_path)
