"""The chronicle: what it tells of a record, and what it says where the record holds nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.run_records import full_run, new_run, start, step_row
from helpers.runs import train

from llmjp_train import cli, exit_codes
from llmjp_train.publish.card import LANGUAGES
from llmjp_train.publish.chronicle import FORMS, chronicle
from llmjp_train.publish.chronicle_words import FINDINGS, KINDS, WORDS
from llmjp_train.publish.facts import facts
from llmjp_train.publish.story import story
from llmjp_train.runlog.lease import Lease
from llmjp_train.runlog.reading import INCIDENTS, STARTS
from llmjp_train.runlog.record import RunRecord

JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A stopped and resumed run with a spike, a failed save, a death that a supervisor saw, and a note."""
    found = full_run(tmp_path_factory.mktemp("runs") / "full")
    found.beside("notes.jsonl", "note", step=100, text="冷却が 14:20 に止まった")
    found.beside(
        "incidents.jsonl", "incident", step=60, what="rank_died", rank=3, node="a012", evidence="killed by signal 9",
        action="restart", lost_steps=4, lost_seconds=72.0,
    )  # fmt: skip
    return found


def told(record: RunRecord, language: str = "en", form: str = "md") -> str:
    return chronicle(story(facts(record)), language, form)


def test_it_tells_what_was_planned_and_what_happened(record: RunRecord) -> None:
    text = told(record)
    for words in (
        "Steps: 100 of 100",
        "- Length: 100 steps, 204,800 tokens, 800 sequences",
        "wiki: 1,234,567 tokens",
        "Steps 1 to 100; 100 steps logged; 204,800 tokens by then; loss 8.0657 to",
        f"validation {8.05 * 100**-0.2:.4f} at step 100; 2 checkpoint(s) saved (steps 50, 100;",
        "step 49, stop: SIGTERM",
        "step 49, resume: 2 processes on cpu, ZeRO-1, fp32, from step-00000049.epoch-0001",
        "step 70, spike: loss 5.5000, 7.2 deviations above its mean",
        "suite quick on step 100: jcommonsenseqa acc 0.3500 ± 0.0784",
        "### a rank died – step 60",
        "- Where: rank 3, node a012",
        "- Evidence: killed by signal 9",
        "- Cost: 4 steps, 1 min 12 s of training",
        "- What was done: restarted",
        "- Incidents: 3",
        "step 100: note: 冷却が 14:20 に止まった",
        "Epsilon (1e-08) dominated at most 2.5 % of the updates (step 20, 5 checks), never more than half.",
        "1 loss spike(s) were recorded.",
    ):
        assert words in text, words
    assert "add up to more time than the record's clock holds" in text, "the toy's steps of 0.2 s took none"


def test_every_number_is_in_both_languages_and_both_forms(record: RunRecord) -> None:
    """The two languages differ in words alone: no figure is in one and not in the other."""

    def figures(text: str) -> list[str]:
        shown = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.DOTALL)
        return sorted(re.findall(r"\d+\.\d+|\d{1,3}(?:,\d{3})+", shown))

    for form in FORMS:
        assert figures(told(record, "en", form)) == figures(told(record, "ja", form))
    assert JAPANESE.search(told(record, "ja"))
    assert set(WORDS["en"]) == set(WORDS["ja"])
    assert set(FINDINGS["en"]) == set(FINDINGS["ja"])
    fields = re.compile(r"{(\w+)}")
    for table in (WORDS, FINDINGS):
        for key, sentence in table["en"].items():
            assert set(fields.findall(sentence)) == set(fields.findall(table["ja"][key])), key
    from llmjp_train.publish import japanese

    for kind in (*STARTS, *INCIDENTS, "stop", "end", "early_stop", "change", "note", "evaluation"):
        assert kind in KINDS["ja"] or kind in japanese.KINDS
    early = {"kind": "early_stop", "folder": "step-6", "left": ["left-step-8"], "reason": "best at step 6"}
    assert (
        japanese.event_text(early) == "step-6 を最新とする（best at step 6）、以後は数えないもの: left-step-8"
    )


def test_the_chart_is_told_to_who_cannot_see_it(record: RunRecord) -> None:
    page = told(record, "en", "html")
    (loss, health) = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert loss.startswith("Loss (nats a token): training from 8.066 at step 1 to ")
    assert "validation from 4.422 at step 20" in loss
    assert "marked: step 49: resume: 2 processes" in loss
    assert "step 70: spike" in loss
    assert health.startswith("Updates dominated by epsilon (share of parameters): here from 0.025 at step 20")
    assert page.count('class="mark incident"') == 3
    assert page.count('class="mark start"') == 1
    assert page.count('class="mark note"') == 1


def test_what_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    text = told(new_run(tmp_path / "run"))
    for words in (
        "- State: new (it has not taken a step)",
        "- Tokens seen: not recorded",
        "- Goodput: not recorded",
        "- Data: not recorded",
        "This run was never started: nothing happened.",
        "This run has recorded no metrics",
        "No incident was recorded",
        "This run has not been evaluated.",
        "Nobody wrote a note",
        "How far epsilon damps the updates was not recorded (metrics.health_every is 50).",
        "No validation was recorded.",
    ):
        assert words in text, words
    assert "記録なし" in told(RunRecord(tmp_path / "run"), "ja", "html")


def test_a_configuration_of_another_version_costs_what_follows_from_it_alone(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    path = record.path / "config.yaml"
    path.write_text(path.read_text() + "of_the_future: 1\n")
    text = told(record)
    assert "The configuration could not be read by this version" in text
    assert "- Seed: 1" in text


def test_a_run_that_is_running_is_told_so_far(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    with Lease.acquire(record.path):
        start(record)
        step_row(record, 1, 5.0)
        assert cli.main(["chronicle", str(record.path)]) == 0
    text = (record.path / "chronicle.en.md").read_text(encoding="utf-8")
    assert "- State: running" in text
    assert "The run is running: this page tells it as far as its record went" in text
    assert "Steps 1 to 1; 1 steps logged" in text


def _event(second: int, kind: str, step: int, **fields: Any) -> dict[str, Any]:
    layout = {"data": 1, "zero": 1, "ranks": 1}
    more = {"layout": layout, "origin": {}, "dtype": "fp32", "device": "cpu"} if kind in STARTS else {}
    time = f"2026-04-01T23:{second // 60:02d}:{second % 60:02d}.000+00:00"
    return {"schema": 1, "time": time, "kind": kind, "step": step, **more, **fields}


def _row(second: int, step: int) -> dict[str, Any]:
    time = _event(second, "", 0)["time"]
    return {
        "schema": 1,
        "time": time,
        "step": step,
        "tokens": 8 * step,
        "loss": 9.0 - step / 10,
        "step_s": 1.0,
    }


def test_a_killed_attempt_a_changed_setting_and_lost_time(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    other = {"data": 2, "zero": 2, "ranks": 2}
    lines = [
        _event(0, "start", 0, changed={}),
        _event(60, "resume", 5, layout=other, changed={"optimizer.eps": [1e-5, 1e-8]}),
        _event(
            64, "change", 7, global_batch=16, sequence_length=256, lr=1e-4, weights={}, reason="it was stable"
        ),
        _event(70, "end", 10, reason="finished", outcome="finished"),
    ]
    rows = [
        *(_row(step, step) for step in range(1, 9)),
        *(_row(60 + step - 5, step) for step in range(6, 11)),
    ]
    for name, values in (("events.jsonl", lines), ("metrics.jsonl", rows)):
        text = "".join(json.dumps(value) + "\n" for value in values)
        (record.path / name).write_text(text, encoding="utf-8")
    text = told(record)
    for words in (
        "### ended without a word – step 8",
        "- Evidence: the start at step 0 never said how it ended (killed, or an error)",
        "- Cost: 3 steps, 52 s until the next start",
        "; layout before: data 1, zero 1, ranks 1; 3 steps taken again",
        "- Changed by a later start, step 5: optimizer.eps 1e-05 → 1e-08",
        "step 7, change: batch 16, length 256, lr 0.0001, it was stable",
        "- Goodput: 15.4 %",
        "1 min 5 s from the first start to the newest row of the metrics, with 2 start(s).",
        "| steps taken again or given up | 3 s | 4.6 % |",
        "| down: stopped, queueing, loading | 52 s | 80.0 % |",
        "1 incident(s); steps lost: 3; down until the next start: 52 s.",
    ):
        assert words in text, words
    assert "設定の変更: optimizer.eps 1e-05 → 1e-08" in told(record, "ja")


HOSTILE = "\"'><script>alert(9)</script><img src=x onerror=alert(9)>\n# heading | cell"


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_words_stay_words(tmp_path: Path, language: str) -> None:
    record = new_run(tmp_path / "run", name=HOSTILE, notes=[HOSTILE])
    start(record, changed={HOSTILE: [HOSTILE, None]})
    step_row(record, 1, 5.0)
    record.event("fault", step=1, message=HOSTILE)
    record.beside("notes.jsonl", "note", step=1, text=HOSTILE)
    record.event("stop", step=1, reason=HOSTILE, outcome="failed")
    start(record, "resume", 1, changed={HOSTILE: [HOSTILE, None]})
    page = told(record, language, "html")
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(9)") > 5
    text = told(record, language)
    assert "<" not in text
    assert "\n# heading" not in text


def test_the_command_writes_what_it_names_and_refuses_the_rest(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chronicle", str(record.path), "--out", str(tmp_path / "a"), "--language", "ja"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a" / f"chronicle.ja.{form}") for form in FORMS]
    assert 'href="chronicle' not in (tmp_path / "a" / "chronicle.ja.html").read_text(encoding="utf-8")
    assert cli.main(["chronicle", str(record.path), "--language", "fr"]) == exit_codes.BAD_INPUT
    assert "speaks en and ja" in capsys.readouterr().err
    assert cli.main(["chronicle", str(tmp_path)]) == exit_codes.BAD_INPUT
    assert "holds no config.yaml" in capsys.readouterr().err
    assert cli.main(["chronicle", str(record.path), "--beside", str(tmp_path / "no")]) == exit_codes.BAD_INPUT
    assert "does not exist" in capsys.readouterr().err


def test_no_torch_is_loaded(record: RunRecord, tmp_path: Path) -> None:
    code = (
        "import sys; from llmjp_train.cli import main; code = main(sys.argv[1:]); "
        "heavy = [n for n in ('torch', 'deepspeed', 'transformers', 'matplotlib') if n in sys.modules]; "
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    words = ["chronicle", str(record.path), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_runs_without_a_common_step(record: RunRecord, tmp_path: Path) -> None:
    text = chronicle(story(facts(record), new_run(tmp_path / "other", seed=7)), "en", "md")
    assert "No step was logged by both this run and other." in text
    assert "| seed | 1 | 7 |" in text


STORY = (
    "experiment=tiny-cpu",
    "model.vocab_size=1536",
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.ffn_size=128",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_size=16",
    "batch.sequence_length=128",
    "schedule.length=100",
    # With 172,352 parameters this leaves each as much gradient as a clip of 1 leaves one of 1.7 billion.
    "optimizer.clip=0.01",
    "metrics.health_every=5",
    "metrics.tensorboard=false",
    "checkpoint.every_steps=null",
    "evaluation.validation_every=20",
)
ALIKE = 0.01
"""Relative gap of the losses at the first health check."""
FACTOR = 100
"""By how much the health metric separates the two there."""


@pytest.mark.full
@pytest.mark.timeout(400)
def test_epsilon_of_a_172b_shows_in_the_health_metric_long_before_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one seed that differ in epsilon alone: the loss looks fine, the health metric tells."""
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    sizes = ["vocab_size=1536", "character_coverage=0.98"]
    assert cli.main(["tokenizer", "train", "input=[llmjp-small-ja]", "output=tokenizer", *sizes]) == 0
    prepare = ["prepare", "input=[llmjp-small-ja]", "output=data", "tokenizer.path=tokenizer"]
    assert cli.main([*prepare, "validation_share=0.08"]) == 0
    paths = ("tokenizer.path=tokenizer", "data.sources.small.path=data")
    found = {}
    for eps in ("1e-5", "1e-8"):
        words = [*STORY, *paths, f"optimizer.eps={eps}", f"name=eps-{eps}", f"run_dir=eps-{eps}"]
        assert train(1, words) == [exit_codes.OK]
        found[eps] = RunRecord(Path(f"eps-{eps}")).read_metrics()
    loss = {eps: {row["step"]: row["loss"] for row in rows if "loss" in row} for eps, rows in found.items()}
    share = {
        eps: {row["step"]: row["eps_dominated"] for row in rows if "eps_dominated" in row}
        for eps, rows in found.items()
    }
    assert abs(loss["1e-5"][5] / loss["1e-8"][5] - 1) < ALIKE, "the loss looks fine"
    assert share["1e-5"][5] > 0.5 > FACTOR * share["1e-8"][5], "the health metric tells"
    assert share["1e-5"][5] > FACTOR * max(share["1e-8"].values())
    last = {
        eps: [row["validation"]["loss"] for row in rows if "validation" in row][-1]
        for eps, rows in found.items()
    }
    assert last["1e-5"] > last["1e-8"] + 0.1, "and what it tells of comes true"

    assert cli.main(["chronicle", "eps-1e-5", "--beside", "eps-1e-8"]) == 0
    text = Path("eps-1e-5/chronicle.en.md").read_text(encoding="utf-8")
    assert "| optimizer.eps | 1e-05 | 1e-08 |" in text
    crossed = re.search(
        r"At step 5, after 2,560 tokens, epsilon \(1e-05\) dominated ([\d.]+) % of the updates", text
    )
    assert crossed is not None
    assert float(crossed[1]) == pytest.approx(100 * share["1e-5"][5], rel=1e-2)
    assert "No loss spike was recorded." in text
    lead = re.search(r"The health metric told (\d+) steps, ([\d,]+) tokens, before the loss", text)
    assert lead is not None
    assert int(lead[1]) >= 20
    assert int(lead[2].replace(",", "")) == 512 * int(lead[1])
    alone = told(RunRecord(Path("eps-1e-8")))
    assert "never more than half" in alone
