"""The model cards: every number from the record, what is missing said to be missing, in two languages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.exporting import LLAMA, MadeUpCheckpoint, save_tokenizer, train_config
from helpers.run_records import full_run, new_run, payload, start, step_row

from llmjp_train import cli
from llmjp_train.errors import UserError
from llmjp_train.publish.card import LANGUAGES, card
from llmjp_train.publish.export import export
from llmjp_train.publish.facts import facts
from llmjp_train.publish.japanese import STATES
from llmjp_train.runlog.record import RunRecord


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return full_run(tmp_path_factory.mktemp("runs") / "full")


def front(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of dashes."""
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_come_from_the_record(record: RunRecord, language: str) -> None:
    text = card(facts(record), language, licence="apache-2.0", languages=["ja", "en"])
    best = 8.05 * 100**-0.2
    wanted = (
        "1,840,256",
        "791,680",
        "204,800",
        "100 / 100",
        "1,234,567",
        "150,000",
        f"{best:.4f}",
        f"{best / 3:.4f}",
    )
    for number in wanted:
        assert number in text
    assert "0.3500 ± 0.0784" in text
    assert "| 0.270 – 0.430 | 0.210 | 0.200 | 100 / 1,119 | 100 |" in text
    assert "No space left on device" in text
    assert "c" * 64 in text
    head = front(text)
    assert head["license"] == "apache-2.0"
    assert head["language"] == ["ja", "en"]
    results = head["model-index"][0]["results"]
    assert {result["dataset"]["name"]: result["metrics"][0]["value"] for result in results} == {
        "own_text": 2.1234,  # of jcommonsenseqa a part of the items was scored
    }


def scored(record: RunRecord, name: str, step: int, items: int, value: float, stderr: float = 0.04) -> None:
    """An evaluation of one task of 1,119 items."""
    found = payload(record.path, step)
    task = found["tasks"]["jcommonsenseqa"] | {"items": items}
    task["metric"]["acc"] |= {"value": value, "stderr": stderr}
    record.write_evaluation(name, found | {"tasks": {"jcommonsenseqa": task}})


def test_the_index_holds_the_newest_steps_whole_results_once_each(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    scored(record, "step-00000010-quick", 10, 1119, 0.1)
    scored(record, "step-00000020-quick", 20, 1119, 0.2)
    scored(record, "step-00000020-quick-num_fewshot-0", 20, 1119, 0.3)
    scored(record, "step-00000020-core-limit-2", 20, 2, 0.5)
    text = card(facts(record), "en")
    (result,) = front(text)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "acc", "value": 0.2}]
    assert "2 / 1,119" not in text, "a trial is no second figure beside all items"
    assert "0.1000 ± 0.0784" in text
    assert "0.3000 ± 0.0784" in text


def test_a_trial_alone_is_in_the_table_and_not_in_the_index(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    scored(record, "step-00000020-quick-limit-2", 20, 2, 0.5)
    text = card(facts(record), "en")
    assert "model-index" not in front(text)
    assert "2 / 1,119" in text


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_0_or_1_has_its_interval_alone(tmp_path: Path, share: float) -> None:
    record = new_run(tmp_path / "run")
    scored(record, "step-00000020-quick", 20, 1119, share, stderr=0.0)
    text = card(facts(record), "en")
    assert f"| {share:.4f} | 0.270 – 0.430 |" in text
    assert "± 0.0000" not in text


@pytest.mark.parametrize(("language", "missing"), [("en", "not recorded"), ("ja", "記録なし")])
def test_missing_numbers_are_said_to_be_missing(tmp_path: Path, language: str, missing: str) -> None:
    text = card(facts(new_run(tmp_path / "run")), language)
    assert text.count(missing) >= 10
    assert front(text)["license"] == "unknown"
    assert "model-index" not in front(text)
    assert "None" not in text
    for row in re.findall(r"^\| (?:Tokens seen|学習トークン数) \| (.*) \|$", text, re.M):
        assert row == missing


def test_both_languages_hold_the_same_figures(record: RunRecord) -> None:
    english, japanese = (card(facts(record), language) for language in LANGUAGES)

    def figures(text: str) -> list[str]:
        return sorted(re.findall(r"\d[\d,.]*\d{2,}", text.split("---\n", 2)[2]))

    assert len(figures(english)) > 40
    assert figures(english) == figures(japanese)
    assert english.count("\n## ") == japanese.count("\n## ")


def test_the_japanese_card_speaks_japanese(record: RunRecord) -> None:
    """English is left to names, messages, code and identifiers."""
    text = card(facts(record), "ja")
    for words in (
        "| 学習の状態 | 完了（finished） |",
        "| 入力埋め込みと出力層 | 非共有 |",
        "| 0 | 開始: 2 プロセス（cpu）、ZeRO-1、fp32 |",
        "| 49 | 再開: 2 プロセス（cpu）、ZeRO-1、fp32、step-00000049.epoch-0001 から |",
        "| 70 | 損失の急増: 損失 5.5000（平均を標準偏差の 7.2 倍上回る） |",
        "| 80 | 保存の失敗: No space left on device: free 22 MB |",
        "bits_per_byte（小さいほど良い）",
    ):
        assert words in text
    prose = re.sub(r"```.*?```|`[^`]*`", "", text.split("---\n", 2)[2], flags=re.S)
    for line in prose.splitlines():
        if line and not line.startswith(("|", "#", "-")):
            assert re.search(r"[ぁ-ん]", line), line


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_of_the_card_runs(
    record: RunRecord, language: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    checkpoint: Any = MadeUpCheckpoint(LLAMA)
    export(checkpoint, train_config(LLAMA, tokenizer), tokenizer, tmp_path / "model")
    code = card(facts(record), language).split("```python\n")[1].split("```")[0]
    exec(code.replace('"FOLDER"', repr(str(tmp_path / "model"))), {})
    assert len(capsys.readouterr().out) > 10


@pytest.mark.parametrize("state", ["running", "ended", "stopped", "failed", "new"])
def test_every_state_has_a_japanese_word(state: str) -> None:
    assert re.fullmatch(r"[ぁ-んァ-ヶー一-龠（）]+", STATES[state])


def test_the_record_cannot_break_out_of_a_table(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run", name="a|b\n# c <script>")
    start(record)
    step_row(record, 1, 5.0)
    record.event("fault", step=1, message="x | y\n| z | [link](http://evil)")
    text = card(facts(record), "en")
    assert "<script>" not in text
    assert "fault: x \\| y \\| z \\| \\[link](http://evil) |" in text
    assert "\n# c" not in text


def test_tokens_by_source_are_only_told_when_every_step_was_logged(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    for step in (1, 2, 4):
        step_row(record, step, 5.0)
    assert facts(record).source_tokens == {}
    step_row(record, 3, 5.0)
    step_row(record, 4, 5.0)
    assert facts(record).source_tokens == {"wiki": 6000, "aozora": 2000}


def test_uncommitted_changes_of_the_source_are_told(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    for changed, en, ja in (
        (False, "", ""),
        (True, ", with uncommitted changes", "（コミットされていない変更あり）"),
    ):
        source = {"commit": "abc123", "changed": changed}
        (record.path / "environment.json").write_text(json.dumps({"schema": 1, "source": source}))
        assert f"| Source revision | abc123{en} |" in card(facts(record), "en")
        assert f"| ソースコードのコミット | abc123{ja} |" in card(facts(record), "ja")


@pytest.mark.parametrize("language", LANGUAGES)
def test_commands_that_state_something_are_shown_as_code(record: RunRecord, language: str) -> None:
    text = card(facts(record), language)
    assert "`llmjp prepare … filters=…`" in text
    assert "\\`" not in text


def test_a_licence_is_never_made_up(record: RunRecord) -> None:
    text = card(facts(record), "en")
    assert front(text)["license"] == "unknown"
    assert "**not stated**" in text


@pytest.mark.parametrize("codes", ["", "Japanese", "ja, x y"])
def test_language_codes_are_checked(
    record: RunRecord, codes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(record.path), "--card-only", "--language", codes]) == 2
    assert "--language" in capsys.readouterr().err
    with pytest.raises(UserError):
        card(facts(record), "en", languages=codes.split(","))
