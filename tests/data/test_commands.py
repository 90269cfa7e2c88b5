"""`llmjp prepare`, `llmjp data` and `llmjp tokenizer` as the command line calls them."""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmjp_train.errors import UserError


def llmjp(command: str, *words: str) -> int:
    """Run a command as cli does: overrides apart from flags."""
    module = importlib.import_module(f"llmjp_train.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    args = parser.parse_args([word for word in words if word not in overrides])
    args.overrides, args.config_dir, args.cfg = overrides, None, False
    return int(module.run(args))


@pytest.mark.parametrize("command", ["prepare", "data", "tokenizer"])
def test_commands_are_light_to_import(command: str) -> None:
    code = (
        f"import sys, llmjp_train.commands.{command} as c; assert c.SUMMARY and c.USES_CONFIG in (0, 1);"
        "print([m for m in ('torch', 'numpy', 'hydra', 'transformers', 'yaml', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_to_token_files(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"input=[{corpus}]",
        f"output={tmp_path / 'out'}",
        f"tokenizer.path={tokenizer_folder}",
        "workers=1",
    ]
    assert llmjp("prepare", *words, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "400 ids, end of document 2" in said
    assert "bytes a token" in said
    assert not (tmp_path / "out").exists()
    assert llmjp("prepare", *words) == 0
    assert "train: 19" in capsys.readouterr().out
    assert llmjp("prepare", *words, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)

    assert llmjp("data", "show", str(tmp_path / "out"), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [part["tokens"] for part in shown] == [
        manifest["train"]["tokens"],
        manifest["validation"]["tokens"],
    ]
    assert llmjp("data", "show", str(tmp_path / "out" / "train.bin")) == 0
    assert f"{manifest['train']['tokens']:,}" in capsys.readouterr().out

    assert llmjp("data", "verify", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.count("sound") == 2
    with (tmp_path / "out" / "validation.bin").open("r+b") as file:
        file.write(b"\xff\xff")
    assert llmjp("data", "verify", str(tmp_path / "out")) == 1
    said = capsys.readouterr().out
    assert "an id is 65535, but the tokenizer has 400" in said
    assert "the sha256 of validation.bin is not the manifest's" in said


def test_malformed_lines_are_reported_at_the_end(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(corpus.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    words = [
        f"input=[{path}]",
        f"output={tmp_path / 'out'}",
        f"tokenizer.path={tokenizer_folder}",
        "workers=1",
    ]
    assert llmjp("prepare", *words, "max_malformed=0.1") == 0
    said = capsys.readouterr().out
    assert "malformed and left out: 1 of 201 records" in said
    assert f"{path}:201: no JSON" in said


def test_a_dry_run_looks_at_the_beginning_and_at_the_values(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "x.jsonl").write_text(corpus.read_text(encoding="utf-8") * 10, encoding="utf-8")
    words = [f"input=[{tmp_path}]", f"output={tmp_path / 'out'}", f"tokenizer.path={tokenizer_folder}"]
    assert llmjp("prepare", *words, "text_key=body", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "malformed    1,000 of the first 1,000 records" in said
    assert said.count("no field 'body'") == 5
    assert "no text in the first 1,000 records: check input and text_key" in said
    assert "passed over, of no kind that is read: 1 (notes.md)" in said
    with pytest.raises(UserError, match=r"validation_share=2\.0"):
        llmjp("prepare", *words, "validation_share=2", "--dry-run")


def test_an_end_of_document_that_is_not_in_use_is_told(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    hf.add_tokens(["<EOD|LLM-jp>"], special_tokens=True)
    hf.save_pretrained(str(tmp_path / "both"))
    words = [f"input=[{corpus}]", f"output={tmp_path / 'out'}", f"tokenizer.path={tmp_path / 'both'}"]
    for command in (["prepare", *words, "--dry-run"], ["tokenizer", "show", str(tmp_path / "both")]):
        assert llmjp(*command) == 0
        assert "and not <EOD|LLM-jp> (400), which it has too" in capsys.readouterr().out
    assert llmjp("tokenizer", "show", str(tokenizer_folder)) == 0
    assert "which it has too" not in capsys.readouterr().out


def test_no_validation_is_told(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 9)
    words = [
        f"input=[{tmp_path / 'x.jsonl'}]",
        f"output={tmp_path / 'out'}",
        f"tokenizer.path={tokenizer_folder}",
        "workers=1",
    ]
    assert llmjp("prepare", *words) == 0
    assert "warning: no document went to validation" in capsys.readouterr().out


def test_a_tokenizer_is_trained_shown_and_checked(
    corpus: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    assert llmjp("tokenizer", "train", f"input=[{corpus}]", f"output={out}", "vocab_size=380") == 0
    assert "380 ids in" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a tokenizer already"):
        llmjp("tokenizer", "train", f"input=[{corpus}]", f"output={out}", "vocab_size=380")
    assert llmjp("tokenizer", "show", str(out), "--text", " 春が\n来る") == 0
    said = capsys.readouterr().out
    assert "round trip       exact" in said
    assert "adds nothing" in said
    assert llmjp("tokenizer", "check", str(out), "--vocab-size", "512") == 0
    with pytest.raises(UserError, match="has 380 ids"):
        llmjp("tokenizer", "check", str(out), "--vocab-size", "100")
    assert llmjp("tokenizer", "check", str(out), "--data", str(prepared)) == 1
    assert "was prepared with tokenizer toy" in capsys.readouterr().out


def test_a_tokenizer_with_another_end_of_document_is_not_the_datas(
    tokenizer_folder: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tokenizer_folder, other)
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<s>"}))
    assert llmjp("tokenizer", "check", str(other), "--data", str(prepared)) == 1
    assert (
        "prepared with id 2 at the end of each document, where the tokenizer has 1" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("max_mb=0", r"max_mb=0\.0: it must be more than 0"),
        ("max_mb=inf", "max_mb=inf: it must be more than 0"),
        ("vocab_size=-5", "vocab_size=-5: it must be more than 261"),
        ("character_coverage=2", r"character_coverage=2\.0: it must be between 0\.98 and 1"),
        ("max_piece=0", "max_piece=0: it must be between 1 and 512"),
        ("output=/dev/null", r"output=/dev/null cannot be written \(File exists\)"),
        ("output=/proc/tokenizer", "output=/proc/tokenizer cannot be written"),
    ],
)
def test_a_tokenizer_is_not_trained_with_values_out_of_range(
    corpus: Path, tmp_path: Path, change: str, said: str
) -> None:
    words = [f"input=[{corpus}]", f"output={tmp_path / 'out'}", "vocab_size=380"]
    key = change.partition("=")[0]
    words = [word for word in words if not word.startswith(f"{key}=")]
    with pytest.raises(UserError, match=said):
        llmjp("tokenizer", "train", *words, change)


@pytest.mark.slow
def test_a_tokenizer_is_trained_on_a_real_corpus_by_name(
    llmjp_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    assert llmjp("tokenizer", "train", "input=[wikipedia-leads]", f"output={out}", "vocab_size=4096") == 0
    assert "4,096 ids in" in capsys.readouterr().out
    assert llmjp("tokenizer", "check", str(out), "--vocab-size", "4096") == 0
    assert "round trips are exact" in capsys.readouterr().out


def test_the_catalogue_is_listed_and_had(llmjp_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert llmjp("data", "list", "--root", str(llmjp_data)) == 0
    said = capsys.readouterr().out
    assert "jcommonsenseqa" in said
    assert "CC BY-SA 4.0" in said
    assert llmjp("data", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["aozora"]["here"] is True
    assert llmjp("data", "get", "aozora") == 0
    assert "licence: public domain" in capsys.readouterr().out
    with pytest.raises(UserError, match="llmjp data get needs a name"):
        llmjp("data", "get")
