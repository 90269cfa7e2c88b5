"""The demo as `make demo` runs it, on the project's own text and on real text."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.run_records import config

from llmjp_train import cli
from llmjp_train.commands.demo import LEAST_STEPS, MARKER, Demo, _margin
from llmjp_train.config.compose import dump_config
from llmjp_train.config.data import SourceConfig
from llmjp_train.data.token_files import TokenFileWriter
from llmjp_train.errors import UserError
from llmjp_train.runlog.record import RunRecord

BETTER_THAN_UNIGRAM = 0.5


def demo(folder: Path, data: Path | None) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("LLMJP_DATA", "OMP_NUM_THREADS")}
    if data is not None:
        env["LLMJP_DATA"] = str(data)
    done = subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", "demo", "--output", str(folder)],
        env=env, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def check(folder: Path, out: str) -> None:
    """What the demo promises."""
    record = RunRecord(folder / "run")
    events = record.read_events()
    starts = [event for event in events if event["kind"] in ("start", "resume")]
    assert [(e["layout"]["ranks"], e["layout"]["zero"]) for e in starts] == [(1, 1), (2, 2)]
    stop = next(event for event in events if event["kind"] == "stop")
    assert stop["reason"] == "SIGTERM"
    assert starts[1]["step"] == stop["step"] > 0
    assert events[-1]["kind"] in ("end", "evaluation")
    match = re.search(
        r"validation loss of the exported step (\d+): ([\d.]+) nats .* has ([\d.]+): ([\d.]+) better", out
    )
    assert match is not None
    assert float(match.group(4)) >= BETTER_THAN_UNIGRAM
    losses = {row["step"]: row["validation"]["loss"] for row in record.read_metrics() if "validation" in row}
    best = min(losses.values())
    parity = json.loads((folder / "model" / "parity.json").read_text())
    assert int(match.group(1)) == parity["source"]["step"]
    assert float(match.group(2)) == pytest.approx(losses[parity["source"]["step"]], abs=1e-3)
    assert parity["passed"] is True
    assert parity["level"] == "whole"
    assert record.read_evaluations()
    assert "level reached: whole" in out
    manifest = json.loads((folder / "release" / "release.json").read_text())
    steps = {row["step"]: row["tokens"] for row in record.read_metrics() if "loss" in row}
    assert manifest["tokens"] == steps[manifest["step"]]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "own_reading" in page
    for card in ("README.en.md", "README.ja.md"):
        assert f"{best:.4f}" in (folder / "run" / card).read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_on_the_projects_own_text(tmp_path: Path) -> None:
    out = demo(tmp_path / "demo", None)
    check(tmp_path / "demo", out)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_on_real_text_with_a_benchmark(tmp_path: Path, llmjp_data: Path) -> None:
    out = demo(tmp_path / "demo", llmjp_data)
    check(tmp_path / "demo", out)
    (payload,) = RunRecord(tmp_path / "demo" / "run").read_evaluations().values()
    assert payload["tasks"]["jcommonsenseqa"]["items"] == 100


def test_a_folder_that_no_demo_made_is_never_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that holds nothing but names that a demo gives."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    for flags in ([], ["--force"]):
        assert cli.main(["demo", "--output", str(tmp_path), *flags]) == 2
        assert f"{tmp_path} is not empty and no demo made it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def halted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo whose first part fails, as one that was interrupted."""

    def fail(demo: Demo) -> None:
        (demo.output / "data").mkdir()
        raise UserError("its first part failed")

    monkeypatch.setattr("llmjp_train.commands.demo._path", fail)


@pytest.mark.parametrize("name", ["demo", "."])
def test_a_folder_that_a_demo_made_is_cleared_of_its_parts_alone(
    name: str,
    tmp_path: Path,
    halted: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--output", name]
    assert cli.main(words) == 2
    assert "its first part failed" in capsys.readouterr().err
    folder = tmp_path / name
    (folder / "data" / "train.bin").write_text("tokens")
    (folder / "report.html").write_text("a page")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    (folder / "notes.txt").write_text("mine")
    assert cli.main(words) == 2
    assert "--force removes what it made" in capsys.readouterr().err
    assert (folder / "data" / "train.bin").exists()
    assert cli.main([*words, "--force"]) == 2
    assert "its first part failed" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "data", "notes.txt"]
    assert not any((folder / "data").iterdir())


def test_make_lets_a_second_demo_begin_anew() -> None:
    assert "llmjp demo --force" in (Path(__file__).parents[2] / "Makefile").read_text()


def test_an_output_that_can_be_no_folder_is_told(
    tmp_path: Path, halted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").write_text("")
    for place in (tmp_path / "afile", tmp_path / "afile" / "demo"):
        assert cli.main(["demo", "--output", str(place), "--force"]) == 2
        assert f"--output {place} cannot be used" in capsys.readouterr().err


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", "demo", "--output", str(tmp_path / "demo"), "--dry-run"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    for command in ("tokenizer train", "prepare", "train", "evaluate", "export", "generate", "report"):
        assert f"$ llmjp {command}" in done.stdout
    assert not (tmp_path / "demo").exists()


def test_too_few_steps_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("0", "6", str(LEAST_STEPS - 1)):
        assert cli.main(["demo", "--output", str(tmp_path / "demo"), "--steps", steps]) == 2
        assert f"--steps {steps}: give at least {LEAST_STEPS}" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_data_root_without_the_text_is_told_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LLMJP_DATA", "LLMJP_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "data"))
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "--own-corpus" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_margin_over_a_unigram_is_the_exported_steps_on_the_same_windows(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # Two validation windows with nothing in common; the validation loss is one window's.
    for name, ids in (("train", [0] * 62 + [1] * 2), ("validation", [0] * 17 + [1] * 16)):
        with TokenFileWriter(tmp_path / "data" / name, 2) as writer:
            writer.add(ids)
    settings = config(tmp_path / "run")
    settings.data.sources = {"small": SourceConfig(path=str(tmp_path / "data"))}
    settings.batch.sequence_length, settings.batch.global_batch = 16, 1
    settings.evaluation.validation_batches = 1
    record = RunRecord(tmp_path / "run")
    record.create(dump_config(settings))
    for step, loss in ((20, 0.25), (40, 0.5)):
        record.metrics(step=step, validation={"loss": loss})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "parity.json").write_text('{"source": {"step": 40}}')
    said = [
        f"exported step 40: 0.500 nats a token; on the same text a unigram fitted on the training text has "
        f"{nats:.3f}: {nats - 0.5:.3f} better"
        for nats in (-math.log(63 / 66), -math.log(3 / 66))
    ]
    assert _margin(tmp_path).endswith(tuple(said))


PART = """
import os, signal, sys, time
print("began", os.getpid(), flush=True)
signal.signal(signal.SIGTERM, lambda number, frame: (print("saved", flush=True), sys.exit(75)))
time.sleep(60)
"""
"""A part that saves when it is asked to end, in the place of all `llmjp` commands."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_part_that_runs_too(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(PART)
    start = (
        "import subprocess, sys; from llmjp_train import cli; from llmjp_train.commands import demo\n"
        "plain = subprocess.Popen\n"
        "subprocess.Popen = lambda words, **more: plain([words[0], sys.argv[1]], **more)\n"
        "sys.exit(cli.main(['demo', '--output', sys.argv[2]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path / "part.py"), str(tmp_path / "demo")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    began = next(line for line in process.stdout if line.startswith("began"))
    time.sleep(0.2)  # the part takes its signals just now
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"ended by {number.name}" in err
    assert out == ("" if number == signal.SIGHUP else "saved\n")
    assert not psutil.pid_exists(int(began.split()[1]))
