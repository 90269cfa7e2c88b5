"""Payloads: figures, errors and baselines recomputed by hand; offline; nothing left on disk."""

import json
import math
import random
import socket
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness, schema
from llmjp_train.evaluate.models import DecoderLM, TokenLogprobsLM
from llmjp_train.evaluate.runner import evaluate
from llmjp_train.evaluate.suites import choose
from llmjp_train.model.decoder import Decoder

MINE = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: %s
doc_to_text: "{{q}}"
doc_to_target: a
target_delimiter: ""
metric_list: [{metric: %s, aggregation: mean, higher_is_better: true}]
metadata: {licence: CC0-1.0}
"""


@pytest.fixture(scope="module")
def lm(decoder: Decoder, tokenizer: Any) -> DecoderLM:
    return DecoderLM(decoder, tokenizer, 256, progress=False)


@pytest.fixture(scope="module")
def done(
    lm: DecoderLM, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The quick suite with ten items each: payload and lines."""
    path = tmp_path_factory.mktemp("out") / "x.items.jsonl"
    chosen, skipped = choose("quick", limit=10)
    payload = evaluate(lm, chosen, model="toy", step=7, suite="quick", skipped=skipped, items_path=path)
    return payload, [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_payload_is_valid_json_of_the_schema(done: tuple[dict[str, Any], list[Any]]) -> None:
    payload = json.loads(json.dumps(done[0]))
    assert schema.problems(payload) == []
    assert (payload["model"], payload["step"], payload["suite"], payload["schema"]) == ("toy", 7, "quick", 1)
    assert payload["harness"].startswith("lm-eval 0.4")
    assert payload["settings"]["max_length"] == 256
    assert payload["settings"]["bos"] is False
    assert payload["items_file"] == "x.items.jsonl"
    for task in payload["tasks"].values():
        assert task["licence"] == "CC0-1.0"
        assert task["seconds"] > 0
        assert len(task["data_sha256"]) == 64


def test_the_schema_check_finds_what_is_wrong(done: tuple[dict[str, Any], list[Any]]) -> None:
    payload = json.loads(json.dumps(done[0]))
    payload["tasks"]["own_choice"]["metric"]["acc"]["value"] = math.nan
    del payload["tasks"]["own_texts"]["licence"]
    assert schema.problems(payload) == ["own_choice.acc: value is nan", "own_texts: no licence"]
    assert schema.problems({"schema": 99}) == ["schema 99: this version reads 1"]


def test_accuracy_error_and_baselines_follow_from_the_items(done: tuple[dict[str, Any], list[Any]]) -> None:
    payload, lines = done
    items = [line for line in lines if line["task"] == "own_choice"]
    right = [float(line["prediction"] == line["answer"]) for line in items]
    task = payload["tasks"]["own_choice"]
    assert task["items"] == 10
    assert task["items_in_all"] == 48
    assert task["metric"]["acc"]["value"] == pytest.approx(statistics.mean(right))
    assert task["metric"]["acc"]["stderr"] == pytest.approx(statistics.stdev(right) / math.sqrt(10))
    assert task["metric"]["acc"]["low"] < task["metric"]["acc"]["value"] < task["metric"]["acc"]["high"]
    assert task["chance"] == 0.25
    golds = [line["answer"] for line in items]
    assert task["majority_baseline"] == max(golds.count(gold) for gold in golds) / 10
    assert len({line["id"] for line in items}) == 10


def test_bits_per_byte_follow_from_the_items(
    done: tuple[dict[str, Any], list[Any]], root: Path, decoder: Decoder, tokenizer: Any
) -> None:
    payload, lines = done
    items = [line for line in lines if line["task"] == "own_texts"]
    texts = [
        json.loads(line)["text"] for line in (root / "eval/items/own_texts.jsonl").read_text().splitlines()
    ]
    sizes = [len(text.encode()) for text in texts[:10]]
    task = payload["tasks"]["own_texts"]
    wanted = -sum(line["loglikelihoods"][0] for line in items) / sum(sizes) / math.log(2)
    assert task["metric"]["bits_per_byte"]["value"] == pytest.approx(wanted)
    assert task["metric"]["bits_per_byte"]["stderr"] > 0
    assert task["metric"]["bits_per_byte"]["higher_is_better"] is False
    assert task["majority_baseline"] is None
    # The texts by hand: windows of 256 tokens, the first after EOD, the last one filled up with tokens before it.
    for text, item in zip(texts, items, strict=False):
        ids, wanted = [tokenizer.eod_id, *tokenizer.encode(text)], 0.0
        for start in range(1, len(ids), 256):
            end = min(start + 256, len(ids))
            window = torch.tensor([ids[max(0, end - 257) : end]])
            with torch.no_grad():
                scores = decoder(window[:, :-1]).log_softmax(-1).gather(2, window[:, 1:, None])
            wanted += scores[0, start - end :].sum().item()
        assert item["loglikelihoods"][0] == pytest.approx(wanted, abs=1e-3)
    assert max(len(tokenizer.encode(text)) for text in texts[:10]) > 256


def test_items_hold_no_text(done: tuple[dict[str, Any], list[Any]]) -> None:
    for line in done[1]:
        assert not {"question", "text", "passage", "doc"} & set(line)
        assert all(math.isfinite(ll) for ll in line["loglikelihoods"])


def test_random_generators_are_left_alone(lm: DecoderLM) -> None:
    chosen, _ = choose("quick", ["own_choice"], limit=2)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    evaluate(lm, chosen, model="toy")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_nothing_reaches_for_the_network_or_the_disk(
    lm: DecoderLM, monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    import datasets

    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection to {args[1:]} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (root / "eval").rglob("*")}
    chosen, _ = choose("quick", limit=1)
    payload = evaluate(lm, chosen, model="toy")
    assert len(payload["tasks"]) == 3
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in (root / "eval").rglob("*")} == before


def test_the_same_questions_have_the_same_fingerprint(lm: DecoderLM) -> None:
    def prompts(**settings: Any) -> str:
        chosen, _ = choose("quick", ["own_choice"], **settings)
        return str(evaluate(lm, chosen, model="toy")["tasks"]["own_choice"]["prompts_sha256"])

    assert prompts(limit=3) == prompts(limit=3)
    assert len({prompts(limit=3), prompts(limit=4), prompts(limit=3, num_fewshot=0)}) == 3


def test_damaged_weights_are_reported_not_scored(tokenizer: Any) -> None:
    lm = TokenLogprobsLM(
        tokenizer, lambda batch: torch.full(batch.tokens.shape, math.nan), 256, progress=False
    )
    chosen, _ = choose("quick", ["own_choice"], limit=3)
    with pytest.raises(UserError, match="not finite on 3 of 3 items"):
        evaluate(lm, chosen, model="toy")


@pytest.mark.parametrize(
    ("kind", "metric", "message"),
    [("generate_until", "exact_match", "generates text"), ("loglikelihood", "acc", "greedy decoding")],
)
def test_tasks_that_a_scorer_cannot_do_are_refused(
    kind: str, metric: str, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"q": "一足す一は", "a": "二"}\n')
    (tmp_path / "mine.yaml").write_text(MINE % (kind, metric))
    chosen, _ = choose("", ["mine"], include=[str(tmp_path)])
    lm = TokenLogprobsLM(tokenizer, lambda batch: torch.zeros(batch.tokens.shape), 256, progress=False)
    with pytest.raises(UserError, match=message):
        evaluate(lm, chosen, model="toy", include=[str(tmp_path)])


def test_an_unusable_task_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"q": "一足す一は", "a": "二"}\n')
    (tmp_path / "mine.yaml").write_text(MINE % ("multiple_chioce", "acc"))
    chosen, _ = choose("", ["mine"], include=[str(tmp_path)])
    with pytest.raises(UserError, match=r"mine.yaml: lm-evaluation-harness cannot load it"):
        harness.load_task(chosen[0], [str(tmp_path)])


def test_no_tasks_is_an_error(lm: DecoderLM) -> None:
    with pytest.raises(UserError, match="no tasks to run"):
        evaluate(lm, [], model="toy")


def test_jcommonsenseqa_runs_on_real_items(lm: DecoderLM, llmjp_data: Path) -> None:
    chosen, _ = choose("quick", ["jcommonsenseqa"], limit=4)
    task = evaluate(lm, chosen, model="toy")["tasks"]["jcommonsenseqa"]
    assert task["licence"] == "CC-BY-SA-4.0"
    assert task["data_version"].startswith("JGLUE 1.3")
    assert task["chance"] == pytest.approx(0.2)
    assert (
        task["truncated"] > 0
    )  # four examples do not fit into 256 tokens of this tokenizer, and that is said
