"""Task files, suites, and what is said when something is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness
from llmjp_train.evaluate.suites import choose, load_suite
from llmjp_train.evaluate.tasks import MissingDataError, find_tasks, majority, read_items

OWN = ["own_choice", "own_reading", "own_texts"]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the shared data."""
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path))


def test_every_task_file_states_licence_version_and_fixed_examples() -> None:
    tasks = find_tasks()
    assert set(OWN) | {"jcommonsenseqa"} <= set(tasks)
    for task in tasks.values():
        assert task.licence != "not stated", task.name
        assert {"version", "source", "data_version", "title"} <= set(task.metadata), task.name
        assert task.metrics, task.name
        if task.num_fewshot:
            assert task.settings["fewshot_config"]["sampler"] == "first_n", task.name
            assert task.settings["fewshot_split"] != task.split, task.name


@pytest.mark.parametrize(("name", "wanted"), [("own_choice", 0.25), ("own_reading", 0.25)])
def test_majority_baseline_is_computed_from_the_items(name: str, wanted: float) -> None:
    golds = find_tasks()[name].golds()
    assert golds is not None
    assert majority(golds) == wanted


def test_majority_baseline_follows_the_limit() -> None:
    golds = find_tasks()["own_choice"].golds(limit=5)
    assert golds is not None
    assert len(golds) == 5
    assert majority(golds) >= 0.4


def test_jcommonsenseqa_is_found_through_the_catalogue(llmjp_data: Path) -> None:
    task = find_tasks()["jcommonsenseqa"]
    assert len(task.items["validation"]) == 1119
    golds = task.golds()
    assert golds is not None
    assert majority(golds) == pytest.approx(max(golds.count(i) for i in range(5)) / 1119)


@pytest.mark.usefixtures("no_data")
def test_missing_data_are_named_with_the_way_to_get_them() -> None:
    with pytest.raises(
        MissingDataError,
        match=r"jcommonsenseqa \(CC BY-SA 4.0\) are not here: `llmjp data get jcommonsenseqa`.*LLMJP_DATA",
    ):
        choose("quick", ["jcommonsenseqa"])


def test_damaged_data_are_an_error_and_not_left_out(
    llmjp_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llmjp_data / "eval/jcommonsenseqa", tmp_path / "eval/jcommonsenseqa")
    damaged = tmp_path / "eval/jcommonsenseqa/valid.jsonl"
    damaged.chmod(0o644)
    damaged.write_text(damaged.read_text("utf-8").replace("田園", "田舎", 1), "utf-8")
    monkeypatch.setenv("LLMJP_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"valid.jsonl has sha256") as caught:
        choose("demo")
    assert not isinstance(caught.value, MissingDataError)


@pytest.mark.usefixtures("no_data")
def test_a_suite_leaves_out_what_is_not_here_and_says_so() -> None:
    chosen, skipped = choose("demo")
    assert [entry.task.name for entry in chosen] == OWN
    assert len(skipped) == 1
    assert "jcommonsenseqa" in skipped[0]


def test_suites_limits_and_choices(llmjp_data: Path) -> None:
    chosen, skipped = choose("demo", limit=500)
    assert {entry.task.name: entry.limit for entry in chosen}["jcommonsenseqa"] == 100
    assert skipped == []
    assert load_suite("quick").tasks == OWN


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "quik"}, "suite=quik: no such suite; did you mean quick"),
        ({"suite": "quick", "tasks": ["own_choise"]}, "own_choise: no such task; did you mean own_choice"),
        ({"suite": "quick", "limit": 0}, "limit=0"),
        ({"suite": "quick", "num_fewshot": -1}, "num_fewshot=-1"),
        ({"suite": "quick", "num_fewshot": 5}, "num_fewshot=5: task own_choice has 4 examples"),
        ({"suite": "quick", "include": ["no/such/folder"]}, "include=no/such/folder"),
    ],
)
def test_bad_requests_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(**settings)


def test_whole_texts_take_no_examples() -> None:
    chosen, _ = choose("quick", num_fewshot=2)
    assert {entry.task.name: entry.num_fewshot for entry in chosen} == {
        "own_choice": 2,
        "own_reading": 2,
        "own_texts": 0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1}\n{"a"\n', ":2: not a line of JSON"), ("[1]\n", ":1: a JSON object"), ("\n", "no items")],
)
def test_malformed_items_are_located(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_items(path)


def test_a_users_folder_adds_a_task_and_a_suite(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"q": "一足す一は", "c": ["二", "三"], "a": 0}\n')
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}：'\ndoc_to_choice: c\ndoc_to_target: a\n"
        "target_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {licence: CC0-1.0}\n"
    )
    (tmp_path / "ours.yaml").write_text("tasks: [mine, own_texts]\n")
    chosen, _ = choose("ours", include=[str(tmp_path)])
    assert [entry.task.name for entry in chosen] == ["mine", "own_texts"]
    assert len(harness.load_task(chosen[0], [str(tmp_path)]).task_docs) == 1


@pytest.mark.parametrize("name", OWN)
def test_a_plain_harness_asks_the_same_from_the_checkout(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(root)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    chosen, _ = choose("quick", [name])
    ours = harness.load_task(chosen[0], [])
    plain = TaskManager(include_path=str(root / "eval/tasks"), include_defaults=False).load([name])["tasks"][
        name
    ]
    for task in (ours, plain):
        task.build_all_requests(limit=6)
    assert [request.args for request in ours.instances] == [request.args for request in plain.instances]
    assert len(ours.instances) == (6 if name == "own_texts" else 24)


def test_examples_stand_before_each_question_in_their_order(root: Path) -> None:
    chosen, _ = choose("quick", ["own_choice"])
    task = harness.load_task(chosen[0], [])
    task.build_all_requests(limit=8)
    first = json.loads((root / "eval/items/own_choice_fewshot.jsonl").read_text("utf-8").splitlines()[0])
    start = f"質問：{first['question']}\n答え：{first['choices'][first['answer']]}\n\n"
    contexts = {request.args[0] for request in task.instances}
    assert len(contexts) == 8
    assert all(context.startswith(start) and context.count("質問：") == 5 for context in contexts)
    assert all(context.endswith("\n答え：") for context in contexts)
