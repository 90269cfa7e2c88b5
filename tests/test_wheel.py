"""The installed wheel, outside a checkout: what ships in it, and the user's own --config-dir."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Built from the checkout with the hatchling that is here: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*words, "--wheel-dir", str(folder), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("llmjp_train-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel itself and sees the other packages that are here; its bin folder."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    words = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(venv / "bin" / "python"),
        "install",
        "--no-deps",
        "--quiet",
    ]
    done = subprocess.run([*words, "--no-index", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # addsitedir would follow the checkout's editable install; a plain path does not.
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(here + "\n")
    return venv / "bin"


def llmjp(bin_folder: Path, cwd: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(bin_folder / "llmjp"), *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_it_holds_configurations_tasks_and_prose(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "eval", "slurm", "pbs", "grid_engine", "hosts"):
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"llmjp_train/resources/{path.relative_to(root)}" in names
    for name in (
        "py.typed",
        "data/catalogue.yaml",
        "data/corpus/technical.jsonl",
        "publish/templates/report.html.j2",
    ):
        assert f"llmjp_train/{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_runs_with_a_folder_of_the_users_own(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [str(installed / "python"), "-c", "import llmjp_train; print(llmjp_train.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, env={},
    )  # fmt: skip
    assert str(installed.parent) in where.stdout, "the wheel, not the checkout"
    own = tmp_path / "my configs"
    (own / "model").mkdir(parents=True)
    (own / "experiment").mkdir()
    (own / "model" / "mine.yaml").write_text("name: mine\nnum_layers: 2\nvocab_size: 2048\n")
    (own / "experiment" / "first.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\nname: first\nschedule:\n  length: 60\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    done = llmjp(installed, work, "train", "--dry-run", "--config-dir", str(own), "experiment=first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("first: mine, own\n")
    assert "60 of 2,048 tokens" in done.stdout
    relative = llmjp(
        installed, work, "train", "--dry-run", "--config-dir", "../my configs", "experiment=first"
    )
    assert relative.stdout == done.stdout
    shipped = llmjp(installed, work, "train", "--dry-run", "experiment=llm-jp-3-172b-geniac")
    assert "172,394,311,680" in shipped.stdout
    listed = llmjp(installed, work, "data", "list")
    assert "llmjp-small-ja" in listed.stdout
    assert list(work.iterdir()) == []


def test_it_trains_outside_a_checkout(
    installed: Path, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    from helpers.toy import small_run

    words = small_run(tmp_path / "run", prepared, tokenizer_folder, "schedule.length=6", "parallel.data=2")
    done = llmjp(installed, tmp_path, "train", *words)
    assert done.returncode == 0, done.stderr
    assert "finished at step 6/6" in done.stdout
