"""`llmjp run show|diff|list`: what they print, and that they load no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.run_records import full_run, new_run

from llmjp_train import cli


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run, a new one, and one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    full_run(folder / "whole", steps=40, name="[red]whole")
    new_run(folder / "fresh", name="fresh", seed=7)
    new_run(folder / "damaged")
    (folder / "damaged" / "config.yaml").write_text("run_dir: [")
    return folder


def output(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert cli.main(["run", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_show(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "show", runs / "whole")
    assert text.startswith("[red]whole  ended  finished\n")
    for words in (
        "tiny, 1,840,256 parameters",
        "40 of 40",
        "81,920 of 81,920",
        f"best {8.05 * 40**-0.2:.4f} at step 40",
        "checkpoints   20 (",
        "step-00000040-quick",
        "2, with 2 incidents",
        "newest events (8 in all)",
        "No space left on device",
    ):
        assert words in text, words


def test_show_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "show", runs / "whole", "--json"))
    assert found["state"] == "ended"
    assert found["derived"]["steps"] == 40
    assert [one["step"] for one in found["checkpoints"]] == [20, 40]
    assert found["events"][-1]["kind"] == "end"
    assert found["best_validation"]["step"] == 40


def test_show_a_new_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "show", runs / "fresh")
    assert text.startswith("fresh  new  it has not taken a step\n")
    assert "newest events" not in text


def test_diff(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "diff", runs / "whole", runs / "fresh")
    assert re.search(r"seed +1 +7 +\+600 %", text)
    assert "(none)" in text
    assert "code: recorded in neither run" not in text
    assert re.search(r"incidents +2 +0 +-100 %", text)
    assert re.search(r"throughput, median +tokens/s +10,0\d\d +not recorded", text)
    assert "no step was logged by both" in text
    same = output(capsys, "diff", runs / "whole", runs / "whole")
    assert same.startswith("nothing differs but names and folders")
    for part in ("configuration", "data", "code", "environment"):
        assert f"{part}: nothing differs" in same
    assert "the losses of all 40 common steps are equal" in same
    found = json.loads(output(capsys, "diff", runs / "whole", runs / "whole", "--json"))
    assert found["nothing_differs"] is True
    assert found["first_different_step"] is found["apart_from_step"] is None
    assert len(found["losses"]) == 40
    other = json.loads(output(capsys, "diff", runs / "whole", runs / "fresh", "--json"))
    (seed,) = (change for change in other["config"] if change["key"] == "seed")
    assert (seed["before"], seed["after"], seed["relative"]) == (1, 7, 6.0)
    (steps,) = (one for one in other["results"] if one["name"] == "steps")
    assert (steps["before"], steps["after"], steps["relative"]) == (40, 0, -1.0)
    assert other["nothing_differs"] is False


def test_diff_of_curves_with_other_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At equal steps the run with the larger batch has seen more: losses at equal tokens stand beside them."""
    small, large = new_run(tmp_path / "small"), new_run(tmp_path / "large")
    for step in range(1, 61):
        small.metrics(step=step, tokens=8 * step, loss=9 - step / 20, step_s=1.0)
        large.metrics(step=step, tokens=16 * step, loss=9 - step / 12, step_s=1.5)
    text = output(capsys, "diff", small.path, large.path)
    assert "data: recorded in neither run" in text
    assert "code: recorded in neither run" in text
    at_steps, _, at_tokens = text.partition("losses at equal tokens")
    assert re.search(r"\n +60 +6.0000 +4.0000 +-2.000000 +-33.3 %", at_steps)
    assert re.search(r"\n +480 +6.0000 +6.5000 +\+0.500000 +\+8.33 %", at_tokens)
    assert re.search(r"time of a step, median +s +1 +1.5 +\+50 %", text)
    assert "the losses differ from step 1 on; the largest difference is 2" in text
    assert "their mean gap over 20 steps is larger than the curves' own scatter from step 20 on" in text


def test_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "list", runs)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows[str(runs / "whole")][:5] == ["ended", "tiny", "40", "40", "81,920"]
    assert rows[str(runs / "fresh")][:4] == ["new", "tiny", "0", "100"]
    assert f"{runs / 'damaged'}: " in text
    assert "is damaged" in text
    found = json.loads(output(capsys, "list", runs, "--json"))
    assert [Path(one["path"]).name for one in found["runs"]] == ["fresh", "whole"]
    assert list(found["damaged"]) == [str(runs / "damaged")]


def test_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run under" in output(capsys, "list", tmp_path)


@pytest.mark.parametrize("words", [["show", "none"], ["diff", "none", "none"], ["list", "none"]])
def test_what_is_not_there_is_refused(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *words]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("action", ["show", "diff", "list"])
def test_no_torch_is_loaded(runs: Path, action: str) -> None:
    paths = {"show": ["whole"], "diff": ["whole", "fresh"], "list": ["."]}[action]
    code = (
        "import sys; from llmjp_train.cli import main; code = main(sys.argv[1:]); "
        "heavy = [n for n in ('torch', 'deepspeed', 'transformers', 'matplotlib', 'jinja2') if n in sys.modules]; "
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", action, *paths],
        cwd=runs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = {"show": "tiny, 1,840,256 parameters", "diff": "configuration", "list": "tiny"}
    assert said[action] in done.stdout
