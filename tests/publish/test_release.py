"""Releases of a run that was trained, stopped and resumed: what is in one, and what is found when it was changed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.releases import SECRET

from llmjp_train import cli, exit_codes
from llmjp_train.checkpoint.listing import choose
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.errors import UserError
from llmjp_train.publish.redact import Redaction, redaction
from llmjp_train.publish.release import Wanted, release
from llmjp_train.publish.release_folder import additions, with_additions, without_additions, write_sums
from llmjp_train.publish.verification import check_arithmetic, check_hashes, check_items
from llmjp_train.runlog.record import RunRecord

EVALUATED = "step-00000020-own_choice-num_fewshot-1-limit-8"
"""Name of the evaluation in the release."""


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
    assert "own_choice" in (released / f"evaluation/{EVALUATED}/index.ja.html").read_text("utf-8")
    assert (released / "LICENSE").read_text() == "the words of a licence"
    citation = yaml.safe_load((released / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "日本語モデルの会"}]
    assert f"torch=={torch.__version__}" in (released / "requirements.lock").read_text()
    said = {check["name"]: check["said"] for check in found["checks"] if check["level"] == "whole"}
    assert said["evaluation items"].startswith("8 of 8 run again")


@pytest.mark.slow
def test_the_search_for_test_items_is_told(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    words = ["evaluate", "contamination", str(run), "tasks=[own_choice]"]
    assert cli.main(words) == exit_codes.OK
    done = release(run, choose(run), tmp_path / "out", Wanted())
    assert not any("test items" in what for what in done.missing)
    assert re.search(
        r"13-grams\): own_choice 0 of \d+\.", (done.folder / "README.md").read_text(encoding="utf-8")
    )
    assert re.search(
        r"own_choice \d+ 問中 0 問。", (done.folder / "README.ja.md").read_text(encoding="utf-8")
    )
    assert failed(done.folder) == set()


@pytest.mark.slow
def test_the_card_shows_figures_with_words(released: Path) -> None:
    for card, words in (
        ("README.md", "Training loss in nats a token"),
        ("README.ja.md", "学習損失（nats/トークン）"),
    ):
        text = (released / card).read_text(encoding="utf-8")
        shown = dict(re.findall(r"!\[([^\]]+)\]\((figures/[\w.-]+)\)", text))
        assert list(shown.values()) == ["figures/loss.png", "figures/learning-rate.png"]
        assert words in next(iter(shown))
        assert "at 3,840 tokens" in next(iter(shown)) or "3,840 トークンで" in next(iter(shown))
    assert (released / "figures/loss.png").read_bytes().startswith(b"\x89PNG")


ADDED = "<!-- addition -->\nAsk us at the workshop.\n<!-- end of addition -->\n"


@pytest.mark.slow
def test_what_people_add_to_a_card_is_kept_where_marked(trained: Path, copy: Path) -> None:
    edit(copy / "README.md", lambda text: text.replace("\n## Data\n", f"\n{ADDED}\n## Data\n", 1))
    assert failed(copy) == {"SHA256SUMS"}
    again = release(trained, choose(trained), copy, Wanted("mit"), force=True)
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert ADDED in card
    assert "license: mit" in card
    assert failed(copy) == set()
    assert any("1 additions by hand" in check.said for check in again.checks)
    edit(copy / "README.md", lambda text: text.replace("| Layers | 2 |", "| Layers | 3 |", 1))
    with pytest.raises(UserError, match=r"contradicts the record: README\.md: says '\| Layers \| 3 \|'"):
        release(trained, choose(trained), copy, Wanted("mit"), force=True)
    assert ADDED in (copy / "README.md").read_text(encoding="utf-8"), "nothing was replaced"


def test_additions_come_back_where_they_stood() -> None:
    card = "# A\n\ntext\n\n## B\n\n- x\n\n## C\n\nend\n"
    mark = "<!-- addition -->\n{}\n<!-- end of addition -->"
    added = {
        "# A": mark.format("a"),
        "## B": mark.format("one\n\n## a heading of theirs") + "\n\n" + mark.format("two"),
        "## C": mark.format("at the end"),
    }
    text = with_additions(card, added)
    assert without_additions(text) == card
    assert additions(text) == added
    moved = with_additions("# A\n\ntext\n", added)
    assert without_additions(moved) == "# A\n\ntext\n"
    assert all(addition in moved for addition in added.values()), "also of sections that are gone"


@pytest.mark.slow
def test_an_item_whose_scores_were_made_up_is_found_by_running_it(copy: Path) -> None:
    path = copy / f"record/evaluations/{EVALUATED}.items.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[0]["loglikelihoods"] = [score - 5 for score in lines[0]["loglikelihoods"]]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    write_sums(copy)
    assert failed(copy) == set(), "it does not contradict itself"
    (check,), left_out = check_items(copy)
    assert not check.passed
    assert f"item {lines[0]['id']}:" in check.said
    assert left_out == []


@pytest.mark.slow
def test_a_checkpoint_that_is_pruned_while_it_is_read_says_so(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    checkpoint = choose(run, 10)

    reader = CheckpointReader.read

    def read(self: CheckpointReader, *wanted: Any) -> torch.Tensor:
        if checkpoint.path.exists():
            shutil.rmtree(checkpoint.path)
        return reader(self, *wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointReader, "read", read)
        with pytest.raises(UserError, match=r"was removed while it was read.*checkpoint\.keep_every"):
            release(run, checkpoint, tmp_path / "out", Wanted())
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_a_run_without_evaluations_and_from_unknown_code_lists_both(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "evaluations")
    environment = json.loads((run / "environment.json").read_text())
    for source, said in (
        (None, "the source revision of the training code"),
        ({"commit": "a" * 40, "changed": True}, "the changes that the training code had beside its commit"),
    ):
        (run / "environment.json").write_text(json.dumps(environment | {"source": source}))
        missing = release(run, choose(run), tmp_path / "out", Wanted(), force=True).missing
        assert said in missing
        assert any("an evaluation of step 20" in what for what in missing)
        assert failed(tmp_path / "out") == set()
    checks, left_out = check_items(tmp_path / "out")
    assert (checks, left_out) == ([], ["evaluation items: the release holds none of step 20"])


@pytest.mark.slow
def test_an_earlier_step_is_released_with_the_record_up_to_it(trained: Path, tmp_path: Path) -> None:
    words = ["release", str(trained), "--step", "10,20", "--out", str(tmp_path / "both")]
    assert cli.main(words) == exit_codes.OK
    assert failed(tmp_path / "both" / "step-00000020") == set()
    out = tmp_path / "both" / "step-00000010"
    manifest = json.loads((out / "release.json").read_text())
    assert (manifest["step"], manifest["tokens"]) == (10, 10 * 6 * 32)
    assert max(row["step"] for row in RunRecord(out / "record").read_metrics()) == 10
    assert any("licence (--licence" in what for what in manifest["missing"])
    assert any("an evaluation of step 10" in what for what in manifest["missing"])
    assert not (out / "evaluation").exists()
    assert not any("data source" in what for what in manifest["missing"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "CC0-1.0 (small.jsonl: made by this test)" in card
    left = next(line for line in card.splitlines() if line.startswith("- What is left out of small"))
    assert "0 malformed and 0 empty of 200 records, " in left
    assert left.endswith("Unicode normalisation: none; before that: lines without kana.")
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


def _other_hash(text: str) -> str:
    first = re.search(r'"kind": "save".*?"sha256": "(\w{8})', text)
    assert first is not None
    return text.replace(first[1], "0" * 8, 1)


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
    "the layout that saved it": (
        "release.json", lambda text: text.replace('"data": 2', '"data": 4', 1), "layout",
    ),
    "a resume's start removed": ("record/events.jsonl", _without_first("resume"), "chain of resumes"),
    "a save removed": ("record/events.jsonl", _without_first("save"), "chain of resumes"),
    "a licence of the data": ("record/data.json", lambda text: text.replace("CC0-1.0", "CC-BY-4.0"), "cards"),
    "the hash of a save": ("record/events.jsonl", _other_hash, "chain of resumes"),
    "an item's result": (
        f"record/evaluations/{EVALUATED}.items.jsonl",
        lambda text: re.sub(r'"acc": (?:1|0)', lambda m: f'"acc": {1 - int(m[0][-1])}', text, count=1),
        "evaluation items",
    ),
    "a figure of an evaluation": (
        f"record/evaluations/{EVALUATED}.json",
        lambda text: re.sub(r'"value": [\d.]+', '"value": 0.9375', text, count=1),
        "evaluation items",
    ),
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
def test_every_file_may_be_read_by_whom_the_user_s_umask_lets(released: Path) -> None:
    """safetensors writes for the owner alone, and a site would show a model that nobody can load."""
    beside = released.parent / "mode"
    beside.touch()
    files = {
        str(path.relative_to(released)): path.stat().st_mode for path in released.rglob("*") if path.is_file()
    }
    assert "model.safetensors" in files
    assert {name: mode for name, mode in files.items() if mode != beside.stat().st_mode} == {}


def test_no_name_or_secret_is_told(released: Path, trained: Path, tmp_path: Path) -> None:
    planted = (SECRET, "/home/taro", "taro@example.jp", "gpu-node-017", str(trained.parent))
    for path in released.rglob("*"):
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        assert [word for word in planted if word in text] == [], path
    assert "ECC error on <host-" in (released / "record" / "incidents.jsonl").read_text(encoding="utf-8")
    kept = release(trained, choose(trained), tmp_path / "kept", Wanted(keep_names=True)).folder
    assert "gpu-node-017" in (kept / "record" / "incidents.jsonl").read_text(encoding="utf-8")


def test_hosts_of_a_preflight_are_replaced(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.event("preflight", nodes={"gpu-a012": {"seconds": 1}}, warnings=["node gpu-a012 is slow"])
    (event,) = redaction(record).value(record.read_events())
    assert "gpu-a012" not in json.dumps(event)
    assert len(event["nodes"]) == 1


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
