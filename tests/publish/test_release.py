"""Releases of a run that was trained, stopped and resumed: what is in one, and what is found when it was changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import train
from helpers.toy import small_run

from llmjp_train import cli, exit_codes
from llmjp_train.checkpoint.listing import choose
from llmjp_train.errors import UserError
from llmjp_train.publish.redact import Redaction
from llmjp_train.publish.release import Wanted, release
from llmjp_train.publish.release_folder import write_sums
from llmjp_train.publish.verification import check_arithmetic, check_hashes
from llmjp_train.runlog.record import RunRecord

SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tokenizer_folder: Path) -> Path:
    """A run of 20 steps with a checkpoint at 10 that it was resumed from, on another number of ranks."""
    run = tmp_path_factory.mktemp("release") / "run"
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["statements"] == [{"input": "small.jsonl", "licence": None, "origin": None}]
    said = [{"input": "small.jsonl", "licence": "CC0-1.0", "origin": "made by this test"}]
    prepared = shutil.copytree(prepared, run.parent / "prepared")
    (prepared / "manifest.json").write_text(json.dumps(manifest | {"statements": said}), encoding="utf-8")
    words = small_run(run, prepared, tokenizer_folder, "checkpoint.every_steps=10")
    assert train(1, [*words, "schedule.length=10"]) == [exit_codes.OK]
    assert train(2, [*words, "parallel.data=2"]) == [exit_codes.OK] * 2
    record = RunRecord(run)
    record.beside(
        "notes.jsonl", "note", step=12, text=f"see /home/taro/logs/a.txt, {SECRET}, taro@example.jp"
    )
    record.beside(
        "incidents.jsonl", "incident", step=15, host="gpu-node-017", message="ECC error on gpu-node-017"
    )
    return run


@pytest.fixture(scope="module")
def released(trained: Path) -> Path:
    return release(trained, choose(trained), trained.parent / "released", Wanted("apache-2.0")).folder


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    return shutil.copytree(released, tmp_path / "copy")


def failed(folder: Path) -> set[str]:
    return {check.name for check in (*check_hashes(folder), *check_arithmetic(folder)) if not check.passed}


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    assert change(before) != before
    path.write_text(change(before), encoding="utf-8")


@pytest.mark.slow
def test_a_release_is_accepted_up_to_the_whole_model(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(released), "--json"]) == exit_codes.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["level"], found["passed"]) == ("whole", True)
    assert {check["name"] for check in found["checks"]} >= {
        "parameters",
        "tokens",
        "chain of resumes",
        "cards",
        "chronicle",
    }
    assert cli.main(["verify", str(released), "--level", "hashes"]) == exit_codes.OK
    assert "level reached: hashes" in capsys.readouterr().out
    files = {path.name for path in released.iterdir()}
    assert files >= {"model.safetensors", "config.json", "parity.json", "tokenizer.json", "README.md"}
    assert files >= {"README.ja.md", "report.html", "release.json", "SHA256SUMS", "record"}
    assert files >= {f"chronicle.{language}.{form}" for language in ("en", "ja") for form in ("html", "md")}
    assert json.loads((released / "release.json").read_text())["licence"] == "apache-2.0"


@pytest.mark.slow
def test_an_earlier_step_is_released_with_the_record_up_to_it(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "ten"
    assert cli.main(["release", str(trained), "--step", "10", "--out", str(out)]) == exit_codes.OK
    manifest = json.loads((out / "release.json").read_text())
    assert (manifest["step"], manifest["tokens"]) == (10, 10 * 6 * 32)
    assert max(row["step"] for row in RunRecord(out / "record").read_metrics()) == 10
    assert any("licence (--licence" in what for what in manifest["missing"])
    assert not any("data source" in what for what in manifest["missing"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "CC0-1.0 (small.jsonl: made by this test)" in card
    assert failed(out) == set()


@pytest.mark.slow
def test_a_changed_file_is_found(copy: Path) -> None:
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert failed(copy) == {"SHA256SUMS"}
    (copy / "extra.txt").write_text("x")
    (copy / "report.html").unlink()
    (said,) = (check.said for check in check_hashes(copy))
    assert "extra.txt is not listed" in said
    assert "report.html is missing" in said
    assert "model.safetensors was altered" in said


def _another_tokenizer(text: str) -> str:
    content = json.loads(text)
    pieces = content["model"]["vocab"]
    pieces[-1], pieces[-2] = pieces[-2], pieces[-1]
    return json.dumps(content, ensure_ascii=False)


def _without_first(kind: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = text.splitlines(keepends=True)
        del lines[next(number for number, line in enumerate(lines) if f'"kind": "{kind}"' in line)]
        return "".join(lines)

    return change


CHANGES: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a number of the card": ("README.md", lambda text: text.replace("| Layers | 2 |", "| Layers | 3 |"), "cards"),
    "a number of the Japanese card": ("README.ja.md", lambda text: text.replace("| 2 |", "| 3 |", 1), "cards"),
    "a number of the chronicle": (
        "chronicle.en.html", lambda text: text.replace("steps logged", "0 steps logged", 1), "chronicle",
    ),
    "a note added to the story": (
        "chronicle.ja.md", lambda text: text + "\n- all went well\n", "chronicle",
    ),
    "an incident of the record removed": ("record/incidents.jsonl", _without_first("incident"), "chronicle"),
    "the licence in the manifest": ("release.json", lambda text: text.replace("apache-2.0", "mit"), "cards"),
    "the step in the manifest": ("release.json", lambda text: text.replace('"step": 20', '"step": 21'), "step"),
    "the batch in the configuration": (
        "record/config.yaml", lambda text: text.replace("global_batch: 6", "global_batch: 8", 1), "batches",
    ),
    "the vocabulary": (
        "config.json", lambda text: text.replace('"vocab_size": 400', '"vocab_size": 401'), "vocabulary",
    ),
    "a resume's start removed": ("record/events.jsonl", _without_first("resume"), "chain of resumes"),
    "a save removed": ("record/events.jsonl", _without_first("save"), "chain of resumes"),
    "a licence of the data": ("record/data.json", lambda text: text.replace("CC0-1.0", "CC-BY-4.0"), "cards"),
    "another tokenizer": ("tokenizer.json", _another_tokenizer, "tokenizer"),
}  # fmt: skip
"""File, change, and the check that finds it although SHA256SUMS was written anew."""


@pytest.mark.slow
@pytest.mark.parametrize("what", list(CHANGES))
def test_who_writes_the_sums_anew_is_found_by_arithmetic(what: str, copy: Path) -> None:
    name, change, check = CHANGES[what]
    edit(copy / name, change)
    assert "SHA256SUMS" in failed(copy)
    write_sums(copy)
    found = failed(copy)
    assert "SHA256SUMS" not in found
    assert check in found


@pytest.mark.slow
def test_weights_of_another_model_fail_the_layers(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy / "config.json", lambda text: text.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.01'))
    write_sums(copy)
    assert cli.main(["verify", str(copy)]) == exit_codes.FAILED
    out = capsys.readouterr().out
    assert "FAIL layers" in out
    assert "level reached: arithmetic; do not rely on this release" in out


@pytest.mark.slow
def test_no_name_or_secret_is_told(released: Path, trained: Path, tmp_path: Path) -> None:
    planted = (SECRET, "/home/taro", "taro@example.jp", "gpu-node-017", str(trained.parent))
    for path in released.rglob("*"):
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        assert [word for word in planted if word in text] == [], path
    assert "ECC error on <host-" in (released / "record" / "incidents.jsonl").read_text(encoding="utf-8")
    kept = release(trained, choose(trained), tmp_path / "kept", Wanted(keep_names=True)).folder
    assert "gpu-node-017" in (kept / "record" / "incidents.jsonl").read_text(encoding="utf-8")


def test_rules_of_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    rules = Redaction(["node-01.example.jp"], ["hanako"])
    for text, wanted in (
        ("~/x/y and /work/a/b.txt", "<folder>/y and <folder>/b.txt"),
        ("https://example.jp/a/b 1/2 nats/token", "https://example.jp/a/b 1/2 nats/token"),
        ("by hanako on node-01, not node-012", "by <user> on <host-1>, not node-012"),
        ("correct-horse-battery", "<secret>"),
    ):
        assert rules.text(text) == wanted
    assert rules.value({"wandb_api_key": "abc", "eos_token": "</s>", "n": [1, "/a/b/c"]}) == {
        "wandb_api_key": "<secret>", "eos_token": "</s>", "n": [1, "<folder>/c"],
    }  # fmt: skip


@pytest.mark.slow
def test_two_places_that_disagree_stop_the_release(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    edit(run / "config.yaml", lambda text: text.replace("global_batch: 6", "global_batch: 8", 1))
    with pytest.raises(UserError, match=r"samples at step 1: 6 in the metrics, 8 by config\.yaml"):
        release(run, choose(run), tmp_path / "out", Wanted())
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_bad_input(released: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path)]) == exit_codes.BAD_INPUT
    assert "is no release" in capsys.readouterr().err
    edit(copy / "release.json", lambda text: text.replace('"schema": 1', '"schema": 99'))
    assert cli.main(["verify", str(copy)]) == exit_codes.BAD_INPUT
    assert "update llmjp-train" in capsys.readouterr().err
    assert cli.main(["release", str(tmp_path / "nowhere")]) == exit_codes.BAD_INPUT
