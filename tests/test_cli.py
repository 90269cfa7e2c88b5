"""The command line: the guide, near misses, and errors without tracebacks."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from llmjp_train import cli, exit_codes
from llmjp_train.config.prepare import PrepareConfig, TokenizerTrainConfig


def llmjp(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("given", "held"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(given: dict[str, str], held: str) -> None:
    code = "import os, llmjp_train; print(os.environ['OMP_WAIT_POLICY'])"
    env = {**{key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}, **given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == held


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["--version"], ["trian"]])
def test_guide_and_help_import_neither_hydra_nor_torch(words: list[str]) -> None:
    code = (
        "import sys, contextlib; from llmjp_train.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'deepspeed', 'transformers', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_guide_and_help_take_half_a_second_at_most(words: list[str]) -> None:
    """Of the processor: the clock has other processes in it."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    assert llmjp(*words).returncode == exit_codes.OK
    assert spent() - before < 0.5


def test_the_guide_names_every_command_once_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == exit_codes.OK
    text = capsys.readouterr().out
    told = re.findall(r"^  ([a-z-]+(?:, [a-z-]+)*) ", text.partition("The usual path")[0], re.MULTILINE)
    assert sorted(", ".join(told).split(", ")) == sorted(cli.COMMANDS)
    assert len(text.splitlines()) <= 48
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_is_the_guide(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == exit_codes.OK
    assert "The usual path" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"llmjp {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from llmjp_train import __version__

    assert cli.main(["--version"]) == exit_codes.OK
    assert capsys.readouterr().out == f"llmjp {__version__}\n"


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == exit_codes.BAD_INPUT
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_all_wrong_keys_and_values_are_told_at_once_without_a_traceback() -> None:
    done = llmjp(
        "train", "experiment=tiny-cpu", "optimizer.learning_rate=1", "batch.global_batch=eight", "model=7b"
    )
    assert done.returncode == exit_codes.BAD_INPUT
    assert "Traceback" not in done.stderr
    for part in ("optimizer.learning_rate", "batch.global_batch", "eight", "7b", "7.2b"):
        assert part in done.stderr


def test_a_missing_run_and_a_missing_file_are_told(tmp_path: object) -> None:
    done = llmjp("train", str(tmp_path))
    assert done.returncode == exit_codes.BAD_INPUT
    assert "holds no config.yaml" in done.stderr
    done = llmjp(
        "train",
        "experiment=tiny-cpu",
        f"tokenizer.path={tmp_path}/none",
        f"data.sources.small.path={tmp_path}/no",
    )
    assert done.returncode == exit_codes.BAD_INPUT
    assert f"{tmp_path}/none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_refuses_what_a_start_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "experiment=tiny-cpu", "batch.global_batch=5", "schedule.warmup=500"]
    assert cli.main(["train", *words]) == exit_codes.BAD_INPUT
    told = capsys.readouterr()
    assert "has 2 errors" in told.err
    assert told.out == "", "no number of a configuration that is wrong"


def test_a_dry_run_says_what_a_start_still_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run", "experiment=tiny-cpu"]) == exit_codes.OK
    text = capsys.readouterr().out
    assert "before a start: tokenizer.path must be given" in text
    assert "before a start: data.sources.small.path must be given" in text


def test_a_start_that_does_not_fit_its_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "experiment=llm-jp-3-13b", "scale=full"]) == exit_codes.BAD_INPUT
    assert "cluster sakura-h100 would be 32 nodes, but nothing started" in capsys.readouterr().err
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "x")):
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "experiment=tiny-cpu", "batch.global_batch=5"]) == exit_codes.BAD_INPUT
    told = capsys.readouterr().err
    assert "needs 1 processes, but torchrun started 3" in told
    assert "batch.global_batch=5" in told, "with the other errors, and before torch is imported"
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "experiment=tiny-cpu", "batch.global_batch=5"]) == exit_codes.BAD_INPUT
    assert capsys.readouterr().err == "", "rank 0 tells it for all"


def test_a_folder_of_configurations_has_no_effect_on_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    assert cli.main(["train", str(tmp_path), "--config-dir", str(tmp_path)]) == exit_codes.BAD_INPUT
    assert "has no effect with RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("tokenizer train output=y --vocab-size 2048", "--vocab-size 2048 has no effect with train: write vocab_size="),
        ("tokenizer train output=y --data z --text a", "--text a has no effect with train: leave it out; --data z"),
        ("tokenizer train llm-jp-v3", "llm-jp-v3 has no effect with train: it takes overrides"),
        ("tokenizer show llm-jp-v3 vocab_size=7", "vocab_size=7 has no effect with show: they are for train"),
        ("tokenizer check llm-jp-v3 vocab_size=7", "vocab_size=7 has no effect with check: they are for train"),
        ("data list extra words", "extra has no effect with list: leave it out; words has no effect"),
        ("data show folder more", "more has no effect with show"),
        ("evaluate run --share 0.5 --scores x", "--share 0.5 has no effect in an evaluation: it is for 'llmjp"),
        ("train experiment=tiny-cpu --ranks", "--ranks has no effect without --dry-run: add it"),
        ("plan experiment=tiny-cpu --write x", "--write x has no effect without --search: add it"),
    ],
)  # fmt: skip
def test_what_would_be_read_by_nobody_is_refused(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == exit_codes.BAD_INPUT
    assert told in capsys.readouterr().err


def test_cfg_prints_a_configuration_that_composes_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    words = ["experiment=tiny-cpu", "tokenizer.path=t", "data.sources.small.path=d", "optimizer.lr=2e-4"]
    assert cli.main(["train", "--cfg", *words]) == exit_codes.OK
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["optimizer"]["lr"] == 2e-4
    assert said["name"] == "tiny-cpu"
    assert said["run_dir"] == "runs/tiny-cpu"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("prepare --cfg workers=3", ["output: ???", "workers: 3"]),
        ("tokenizer train --cfg", ["output: ???", "vocab_size: 4096"]),
        ("train --cfg job experiment=tiny-cpu", ["name: tiny-cpu"]),
        ("train --cfg=job experiment=tiny-cpu", ["name: tiny-cpu"]),
    ],
)
def test_cfg_shows_what_is_still_to_be_given_and_takes_hydras_form(
    words: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == exit_codes.OK
    out = capsys.readouterr().out
    assert all(line in out for line in told)


@pytest.mark.parametrize(("name", "kind"), [("prepare", PrepareConfig), ("tokenizer", TokenizerTrainConfig)])
def test_help_names_every_key_and_shows_commands(
    name: str, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    (listed,) = re.findall(r"^Keys[^:]*: (.*?)\.$", text, re.MULTILINE | re.DOTALL)
    assert listed.split() == [field.name for field in fields(kind)]
    assert f"\n  llmjp {name} " in text


def test_a_path_with_an_equals_sign_is_no_override(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    Path("lr=1e-4").mkdir()
    assert not cli._is_override("lr=1e-4")
    assert cli._is_override("lr=1e-5")
    assert cli._is_override("+changes=[]")
    assert cli._is_override("~data.sources.x")
    assert not cli._is_override("--dry-run")


COMMAND = """
import argparse, sys
from types import SimpleNamespace
from rich.console import Console
from llmjp_train.cli import _guarded
def run(args):
    {act}
    return 0
sys.exit(_guarded("evaluate", SimpleNamespace(run=run), argparse.Namespace()))
"""


@pytest.mark.parametrize(
    ("act", "code"),
    [("print('a table')", 0), ("Console().print('a table')", 0), ("sys.exit(3)", 3)],
)
def test_a_reader_that_has_gone_is_no_failure(act: str, code: int) -> None:
    """As in `llmjp evaluate --list | head -1`; rich, which prints the table, has its own way with such a reader."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(act=act)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(timeout=60)) == (b"", code)
