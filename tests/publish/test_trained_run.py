"""What a real training leaves: evaluated in it and after it, exported, continued and told, form by form."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import train
from helpers.toy import small_run

from llmjp_train import cli, exit_codes
from llmjp_train.publish.generate import Sampling, generate
from llmjp_train.runlog.record import RunRecord

pytestmark = pytest.mark.slow

FORMS = {
    "llama": (
        "parallel.data=2", "parallel.zero=3", "evaluation.every=5", "evaluation.limit=4",
        "model.head_size=12", "evaluation.validation_every=5",
    ),
    "gpt2": (
        "evaluation=none", "model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh",
        "model.bias=all", "model.num_kv_heads=4", "model.tied_embeddings=true",
    ),
    "gpt_neox": (
        "evaluation=none", "model.rope_fraction=0.25", "model.norm=layernorm", "model.mlp=gelu",
        "model.bias=all", "model.num_kv_heads=4", "model.tied_embeddings=true",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FORMS))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared: Path, tokenizer_folder: Path
) -> tuple[str, Path]:  # fmt: skip
    form: str = request.param
    run = tmp_path_factory.mktemp(form) / "run"
    words = small_run(run, prepared, tokenizer_folder)
    if "evaluation=none" in FORMS[form]:
        words = [word for word in words if not word.startswith("evaluation.")]
    words += ["schedule.length=10", "schedule.warmup=2", "model.max_positions=1024", *FORMS[form]]
    ranks = 2 if "parallel.data=2" in FORMS[form] else 1
    assert train(ranks, words) == [exit_codes.OK] * ranks
    return form, run


def test_evaluation_in_the_loop_gives_the_figures_of_the_command(
    trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks under ZeRO-3 in training, one process after it."""
    form, run = trained
    if form != "llama":
        assert RunRecord(run).read_evaluations() == {}
        return
    found = RunRecord(run).read_evaluations()
    assert list(found) == ["step-00000005-in-loop", "step-00000010-in-loop"]
    assert (
        cli.main(["evaluate", str(run), "suite=quick", "limit=4", "dtype=float32", "device=cpu", "--json"])
        == 0
    )
    after: dict[str, Any] = json.loads(capsys.readouterr().out)
    within = found["step-00000010-in-loop"]
    assert within["tasks"].keys() == after["tasks"].keys() == {"own_choice", "own_reading", "own_texts"}
    for name, task in after["tasks"].items():
        assert within["tasks"][name]["prompts_sha256"] == task["prompts_sha256"]
        assert within["tasks"][name]["majority_baseline"] == task["majority_baseline"]
        for metric, figures in task["metric"].items():
            assert within["tasks"][name]["metric"][metric]["value"] == pytest.approx(
                figures["value"], rel=1e-4
            )
            assert figures["stderr"] is not None


def test_it_exports_continues_text_and_is_told(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, run = trained
    assert cli.main(["export", str(run), "--out", str(tmp_path / "model"), "--dtype", "float32"]) == 0
    certificate = json.loads((tmp_path / "model" / "parity.json").read_text())
    assert (certificate["passed"], certificate["level"], certificate["family"]) == (True, "whole", form)
    assert certificate["source"]["step"] == 10
    texts = []
    for model in (run, tmp_path / "model"):
        parts: list[str] = []
        generate(model, "春の山", Sampling(greedy=True, max_tokens=20), parts.append)
        texts.append("".join(parts))
    assert texts[0] == texts[1]
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    evaluated, validated = form == "llama", "Best validation</dt><dd>" in page
    assert ("This run has not been evaluated" in page) != evaluated
    assert validated == any("validation" in row for row in RunRecord(run).read_metrics())
    for name in ("README.en.md", "README.ja.md"):
        card = (run / name).read_text(encoding="utf-8")
        assert ("own_texts" in card) == evaluated
        assert "10 / 10" in card
