"""Several processes share the items of one model: the scores of one, from a part of the tokens each."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluating import llmjp, under_a_launcher
from helpers.ranks import run_ranks

from llmjp_train.errors import UserError
from llmjp_train.evaluate.journal import Journal

TASKS = ("own_choice", "own_texts", "own_written")
WRITTEN = {
    "task": "own_written", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
    "dataset_kwargs": {"data_files": {"test": "written.jsonl"}}, "doc_to_text": "{{q}}：", "doc_to_target": "a",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}, "target_delimiter": "",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1, "licence": "CC0-1.0", "source": "", "data_version": "1"},
}  # fmt: skip


@pytest.fixture
def include(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own_written.yaml").write_text(json.dumps(WRITTEN), "utf-8")
    rows = [{"q": f"一足す{i}は", "a": str(i + 1)} for i in range(5)]
    (folder / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def evaluate_once(
    rank: int, ranks: int, hf_folder: str, tokenizer_folder: str, include: str, journal: str
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data.tokenizers import load_tokenizer
    from llmjp_train.evaluate.fast import FastLM
    from llmjp_train.evaluate.likelihood import over_ranks
    from llmjp_train.evaluate.network import Network
    from llmjp_train.evaluate.runner import evaluate
    from llmjp_train.evaluate.suites import choice

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(TokenizerConfig(name="toy", path=tokenizer_folder))
    network = Network(AutoModelForCausalLM.from_pretrained(hf_folder))
    ran = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal ran
        ran += kwargs.get("input_ids", args[0] if args else None).numel()

    network.body.register_forward_pre_hook(count, with_kwargs=True)
    lm = FastLM(
        network,
        tokenizer,
        256,
        show=False,
        share=over_ranks(rank, ranks),
        journal=Journal(Path(journal), {}, rank),
    )
    asked = choice("", TASKS, limit=5, num_fewshot=1, include=[include])
    return evaluate(lm, asked, model="toy", include=[include], first=rank == 0), ran


def test_two_processes_give_the_scores_of_one_and_a_kill_of_both_is_resumed(
    hf_folder: Path, tokenizer_folder: Path, include: Path, tmp_path: Path
) -> None:
    where = (str(hf_folder), str(tokenizer_folder), str(include))
    alone, ran_alone = evaluate_once(0, 1, *where, str(tmp_path / "alone.progress.jsonl"))
    journal = tmp_path / "x.progress.jsonl"
    (first, ran_first), (other, ran_other) = run_ranks(evaluate_once, 2, *where, str(journal))
    assert other == {}
    assert max(ran_first, ran_other) < 0.75 * ran_alone
    for name, task in alone["tasks"].items():
        for metric, wanted in task["metric"].items():
            assert first["tasks"][name]["metric"][metric]["value"] == pytest.approx(wanted["value"], rel=1e-5)
        for key in ("tokens_plain", "truncated", "unfinished", "joined_tokens", "prompts_sha256"):
            assert first["tasks"][name][key] == task[key], (name, key)
    assert [path.name for path in sorted(tmp_path.glob("x.*"))] == ["x.progress.1.jsonl", "x.progress.jsonl"]

    # As if both had been killed before the result was written: any number of processes goes on.
    (again, ran_again), _, _ = run_ranks(evaluate_once, 3, *where, str(journal))
    assert ran_again == 0
    assert again["tasks"]["own_written"]["metric"] == first["tasks"]["own_written"]["metric"]
    Journal(journal, {}).finish()
    assert list(tmp_path.glob("x.*")) == []


@pytest.mark.slow
def test_the_command_under_a_launcher_writes_one_result(hf_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (str(hf_folder), "tasks=[own_choice]", "limit=5", "num_fewshot=1", "device=cpu")
    said = under_a_launcher(2, *words, "--output", str(out))
    name = "own_choice-num_fewshot-1-limit-5"
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.items.jsonl", f"{name}.json", f"{name}.report"
    ]  # fmt: skip
    payload = json.loads((out / f"{name}.json").read_text("utf-8"))
    assert payload["settings"]["processes"] == 2
    lines = [json.loads(line) for line in (out / f"{name}.items.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(5))
    assert all(line["seconds"] > 0 for line in lines)
    assert "own_choice" in said[0]
    assert "own_choice" not in said[1]


def test_the_harness_s_own_class_is_refused(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmjp_train.evaluate import together
    from llmjp_train.evaluate.likelihood import Share

    monkeypatch.setattr(together, "join", lambda *where: together.Party(Share(0, 2), 2))
    with pytest.raises(UserError, match="runs in one process, 2 were started"):
        llmjp(str(hf_folder), "runner=harness", "device=cpu", "tasks=[own_choice]")
