"""The ten traps that other suites fell into, each shown not to be open here."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data.tokenizers import load_tokenizer
from llmjp_train.evaluate import answers, harness, japanese, text_metrics
from llmjp_train.evaluate.likelihood import make_encoder
from llmjp_train.evaluate.suites import Chosen, choose
from llmjp_train.evaluate.tasks import TaskFile, find_tasks, majority, read_items

NAMES = [
    "jcommonsenseqa",
    "jnli",
    "jsts",
    "jcola",
    "janli",
    "jsquad",
    "jemhopqa",
    "niilc",
    "mgsm_ja",
    "mawps_ja",
]


def loaded(name: str) -> Any:
    chosen, _ = choose("", [name])
    return harness.load_task(chosen[0], [])


@pytest.mark.parametrize("name", ["llmjp-ver2.2-50k", "llmjp-ver3.0-100k"])
def test_t1_no_tokenizer_s_habit_reaches_the_model(name: str, llmjp_data: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(name=name, path=str(llmjp_data / "tokenizer" / name)))
    assert tokenizer.hf.encode("東京都") != tokenizer.encode("東京都"), "the trap is set"
    row = make_encoder(tokenizer, bos=False).pair("首都は：", "東京都千代田区")
    assert tokenizer.decode(list(row.continuation)) == "東京都千代田区"
    assert not {tokenizer.eod_id, tokenizer.bos_id} & {*row.context, *row.continuation}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llmjp-ver2.2-50k", "llmjp-ver3.0-100k"])
@pytest.mark.parametrize("space", ["", " "])
def test_t2_prose_cut_anywhere_is_scored_whole(name: str, space: str, llmjp_data: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(name=name, path=str(llmjp_data / "tokenizer" / name)))
    encoder = make_encoder(tokenizer, bos=False)
    draw = random.Random(1)
    for doc in read_items(llmjp_data / "eval/jsquad/valid.jsonl")[:1600:4]:
        text = doc["context"][:120]
        cut = draw.randrange(10, len(text) - 5)
        context, rest = text[:cut].rstrip() + space, text[cut:].lstrip()
        row = encoder.pair(context, rest)
        assert tokenizer.decode(list(row.continuation)).lstrip() == rest
    assert (encoder.counts.joined_tokens > 20) == (space == ""), (
        "a joint token is met where no space parts them"
    )


def test_t3_the_published_f1_is_an_f1_over_characters_and_all_golds() -> None:
    assert text_metrics.char_f1("「東京」", ["東京"]) == 1.0
    assert text_metrics.char_f1("京東", ["東京"]) == 1.0
    assert text_metrics.llm_jp_eval_char_f1("京東", "東京") == 0.5
    assert text_metrics.char_f1("北の島々", ["北の島々を除く全国", "北の島々"]) == 1.0


def test_t4_a_sentence_in_another_order_does_not_score_nought_in_bleu() -> None:
    gold, permuted = "私は昨日東京で友人に会いました", "東京で私は昨日友人に会いました"
    assert text_metrics.bleu([(gold, gold)]) == pytest.approx(100)
    assert 40 < text_metrics.bleu([(gold, permuted)]) < 100


def test_t5_numbers_keep_their_sign_and_ranges_are_not_joined() -> None:
    assert answers.last_number("-1.5") == -1.5
    assert answers.last_number("2〜3") == 3
    assert answers.last_number("わかりません") is None
    assert japanese.mgsm_scores({"answer_number": 2}, ["わかりません"]) == {"exact_match": 0.0}


def test_t6_no_prompt_shows_sep_and_every_gold_counts(llmjp_data: Path) -> None:
    task = find_tasks()["jsquad"]
    assert all("[SEP]" in doc["context"] for doc in task.items["validation"]), "the trap is set"
    assert not any("[SEP]" in doc["passage"] for doc in [*task.scored(), *task.examples()])
    several = next(doc for doc in task.scored() if len(set(doc["answers"])) > 1)
    for gold in several["answers"]:
        assert japanese.jsquad_scores(several, [gold]) == {"exact_match": 1.0, "char_f1": 1.0}


@pytest.mark.parametrize(("name", "wanted"), [("jnli", 0.555), ("jcola", 0.839), ("janli", 0.5)])
def test_t7_the_majority_baseline_is_known(name: str, wanted: float, llmjp_data: Path) -> None:
    golds = find_tasks()[name].golds()
    assert golds is not None
    assert majority(golds) == pytest.approx(wanted, abs=5e-4)


def test_t8_every_task_names_its_data_s_version() -> None:
    for task in find_tasks().values():
        assert task.metadata["data_version"], task.name
        if "JGLUE" in task.metadata["source"]:
            assert "1.3" in task.metadata["data_version"], task.name


@pytest.mark.parametrize("name", ["jnli", "jsquad", "llm_jp_eval_janli"])
def test_t9_prompts_do_not_depend_on_the_number_of_ranks(name: str, llmjp_data: Path) -> None:
    alone, *shares = loaded(name), loaded(name), loaded(name)
    alone.build_all_requests(limit=6)
    for rank, task in enumerate(shares):
        task.build_all_requests(limit=6, rank=rank, world_size=2)
    wanted = {(r.doc_id, r.args[0]) for r in alone.instances}
    found = {(r.doc_id, r.args[0]) for task in shares for r in task.instances}
    assert len(found) == 6
    assert found == wanted


def test_t10_long_answers_do_not_become_nan() -> None:
    scores = japanese.jsts_scores({"label": 3.0}, [(-900.0 - i, False) for i in range(6)])
    gold, prediction = scores["pearson"]
    assert gold == 3.0
    assert prediction == pytest.approx(
        sum(i * math.exp(-i) for i in range(6)) / sum(math.exp(-i) for i in range(6))
    )


@pytest.mark.parametrize("name", [*NAMES, "jmmlu_nutrition", "llm_jp_eval_mawps", "llm_jp_eval_jsquad"])
def test_examples_are_fixed_and_never_scored(name: str, llmjp_data: Path) -> None:
    task = loaded(name)  # refuses an overlap
    task.build_all_requests(limit=3)
    shown = task.sampler.sample(n=task.config.num_fewshot)
    assert len(shown) == task.config.num_fewshot > 0
    contexts = {request.args[0] for request in task.instances}
    asked = [str(task.doc_to_text(doc)) for doc in shown]
    assert len(contexts) == 3
    for context in contexts:
        places = [context.index(text) for text in asked]
        assert places == sorted(places)


def test_an_example_that_is_scored_is_refused(tmp_path: Path) -> None:
    rows = [{"q": f"一足す{i}は", "c": ["二", "三"], "a": 0} for i in range(4)]
    for file in ("test", "fewshot"):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = {
        "task": "mine", "dataset_path": "json", "test_split": "test", "fewshot_split": "fewshot",
        "dataset_kwargs": {"data_files": {"test": "test.jsonl", "fewshot": "fewshot.jsonl"}},
        "fewshot_config": {"sampler": "first_n"}, "num_fewshot": 1, "output_type": "multiple_choice",
        "doc_to_text": "{{q}}：", "doc_to_choice": "c", "doc_to_target": "a", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(settings), "utf-8")
    entry = Chosen(TaskFile("mine", tmp_path / "mine.yaml", settings), 1, None)
    with pytest.raises(ValueError, match="an example before each item is itself scored: '一足す0は："):
        harness.load_task(entry, [])


def test_prompts_end_in_a_sign_that_starts_no_word(llmjp_data: Path) -> None:
    for name in [*NAMES, "jmmlu_nutrition"]:
        task = loaded(name)
        assert re.search(r"[：）]$", task.doc_to_text(task.task_docs[0])), name
        assert task.config.target_delimiter == "", name
