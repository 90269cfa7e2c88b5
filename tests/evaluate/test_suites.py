"""Suites: what they hold and leave out, licences, groups and averages that are only stated when they are whole."""

from pathlib import Path
from typing import Any

import pytest

from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness, resampling
from llmjp_train.evaluate.averages import group_averages, suite_averages
from llmjp_train.evaluate.llm_jp_eval import fill, prompts
from llmjp_train.evaluate.schema import Metric, TaskResult
from llmjp_train.evaluate.suites import Suite, choice, harness_task, load_suite
from llmjp_train.evaluate.tasks import Group, MissingDataError, find_groups, find_tasks

JAPANESE = {
    "own_texts", "jcommonsenseqa", "jmmlu", "jnli", "janli", "jsts", "jcola", "jsquad", "jemhopqa", "niilc",
    "mgsm_ja", "mawps_ja", "jhumaneval",
}  # fmt: skip


def result(value: float, metric: str = "acc", items: int = 100, stderr: float | None = 0.05) -> TaskResult:
    figures = Metric(value, stderr, None, None, True)
    return TaskResult(
        {metric: figures}, metric, items, items, None, None, 0, "CC0-1.0", "", "1", None, "1", "", 0.0, 0, 0
    )


def test_the_japanese_suite_holds_every_benchmark_and_all_subjects(llmjp_data: Path) -> None:
    assert set(load_suite("japanese").names) >= JAPANESE
    found = choice("japanese", limit=1)
    names = [entry.task.name for entry in found.chosen]
    assert len(names) == len(set(names))
    assert sum(name.startswith("jmmlu_") for name in names) == 40
    assert set(found.groups) == {"jmmlu"}
    sizes = [len(entry.task.scored()) for entry in found.chosen if entry.group]
    assert sum(sizes) == 5279 - 4, "all but those that repeat one of their subject's examples"
    left_out = {line.split(":")[0] for line in found.skipped}
    assert left_out == {f"task {n}" for n in ("jamp", "jsick", "jsem", "chabsa", "alt_ja_en", "alt_en_ja")}


@pytest.mark.slow
def test_no_task_scores_one_of_its_examples(llmjp_data: Path) -> None:
    for entry in choice("full").chosen:
        if entry.task.local:
            harness.load_task(entry, [])


def test_full_is_all_suites_and_keeps_their_limits(llmjp_data: Path) -> None:
    full = load_suite("full")
    for name in ("quick", "japanese", "llm-jp-eval", "english"):
        assert set(load_suite(name).names) <= set(full.names)
    assert full.limit("llm_jp_eval_jnli") == 100
    assert full.limit("jnli") is None


def test_a_task_without_licence_is_refused_and_commercial_leaves_out_what_is_not(tmp_path: Path) -> None:
    text = (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"
    )
    (tmp_path / "mine.jsonl").write_text('{"q": "一足す一は", "c": ["二", "三"], "a": 0}\n')
    (tmp_path / "mine.yaml").write_text("task: mine\n" + text)
    (tmp_path / "nc.yaml").write_text("task: nc\n" + text + "metadata: {licence: CC-BY-NC-4.0}\n")
    include = [str(tmp_path)]
    with pytest.raises(UserError, match="task mine does not state its items' licence"):
        choice("", ["mine"], include=include)
    assert [e.task.name for e in choice("", ["nc"], include=include).chosen] == ["nc"]
    found = choice("", ["nc", "own_choice"], include=include, licences="commercial")
    assert [e.task.name for e in found.chosen] == ["own_choice"]
    assert "CC-BY-NC-4.0, is not known to allow commercial use" in found.skipped[0]
    with pytest.raises(UserError, match="licences=free: give all or commercial"):
        choice("quick", licences="free")


def test_the_harness_s_own_tasks_are_left_out_where_their_data_are_not() -> None:
    found = choice("english")
    assert {entry.task.name for entry in found.chosen} == set(load_suite("english").harness)
    with pytest.raises(MissingDataError, match=r"arc_easy: its data \(allenai/ai2_arc\) are not in"):
        harness.load_task(found.chosen[0], [])
    with pytest.raises(UserError, match="installed lm-eval has no no/such"):
        harness_task("x", {"file": "no/such.yaml"})


def test_the_harness_s_own_groups_are_found_by_their_files(tmp_path: Path) -> None:
    found = choice("english")
    assert {name: len(group.tasks) for name, group in found.groups.items()} == {
        "mmlu": 57,
        "global_mmlu_ja": 6,
    }
    assert {entry.group for entry in found.chosen} == {"", "mmlu", "global_mmlu_ja"}
    assert load_suite("full").groups == load_suite("english").groups
    anatomy = next(entry.task for entry in found.chosen if entry.task.name == "mmlu_anatomy")
    assert (anatomy.licence, anatomy.output_type) == ("MIT", "multiple_choice")
    (tmp_path / "mine.yaml").write_text("tasks: []\nharness: {x: {files: 'no/such_*.yaml', licence: MIT}}\n")
    with pytest.raises(UserError, match=r"installed lm-eval has no no/such_\*"):
        load_suite("mine", [str(tmp_path)])


def test_without_data_every_benchmark_is_named_as_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path))
    found = choice("japanese")
    assert [entry.task.name for entry in found.chosen] == ["own_texts"]
    for name in JAPANESE - {"own_texts", "jmmlu"}:
        assert any(f"task {name}:" in line for line in found.skipped), name
    assert found.groups == {}


def test_a_group_s_figure_is_the_mean_of_its_subjects_with_its_error() -> None:
    results = {"a": result(0.2, items=10, stderr=0.03), "b": result(0.6, items=30, stderr=0.04)}
    (plain,) = group_averages({"g": Group("g", ["a", "b"], weighted=False)}, results)
    assert (plain.value, plain.stderr) == (pytest.approx(0.4), pytest.approx(0.025))
    (pooled,) = group_averages({"g": Group("g", ["a", "b"], weighted=True)}, results)
    assert pooled.value == pytest.approx(0.5)
    assert pooled.stderr == pytest.approx((0.0075**2 + 0.03**2) ** 0.5)
    assert find_groups()["jmmlu"].weighted is False


def test_llm_jp_eval_s_average_needs_every_category() -> None:
    suite = load_suite("llm-jp-eval")
    everything = {name: result(0.5) for tasks in suite.categories.values() for name in tasks}
    known = find_tasks()
    here = {n: r for n, r in everything.items() if n in known and not known[n].metadata.get("not_run")}
    found = {average.name: average for average in suite_averages(suite, here, [])}
    assert found["QA"].value == pytest.approx(0.5)
    assert found["NLI"].value is None
    assert "llm_jp_eval_jamp" in found["NLI"].reason
    assert found["AVG"].value is None
    assert found["AVG"].reason == "categories that did not run in full: NLI, HE, EL, FA, MT"
    whole = {average.name: average for average in suite_averages(suite, everything, [])}
    assert whole["AVG"].value == pytest.approx(0.5)
    assert "STS" not in whole


def test_a_mean_over_tasks_takes_shares_alone_and_a_group_once() -> None:
    results = {"a": result(0.2), "b": result(0.4), "c": result(0.9), "d": result(3.0, "bits_per_byte")}
    groups = group_averages({"g": Group("g", ["a", "b"], weighted=False)}, results)
    (average,) = suite_averages(Suite("s", "", [], [], {}), results, groups)
    assert average.tasks == ["c", "g"]
    assert average.value == pytest.approx((0.3 + 0.9) / 2)


def test_llm_jp_eval_s_prompts_are_the_catalogue_s(llmjp_data: Path) -> None:
    frame = prompts()["template"]["frame"]
    found = choice("llm-jp-eval", limit=1).chosen
    assert len(found) == 10
    for entry in found:
        task = harness.load_task(entry, [])
        doc = task.task_docs[0]
        context = task.fewshot_context(doc, num_fewshot=4)
        name = entry.task.name.removeprefix("llm_jp_eval_")
        shots = "".join(
            f"{example['ask'].removesuffix('### 応答:' + chr(10))}### 応答:\n{example['said']}"
            for example in task.sampler.sample(n=4)
        )
        item = doc["ask"].split("### 入力:\n")[1].split("\n\n### 応答:")[0]
        wanted = (
            frame.replace("{instruction}", prompts()["tasks"][name]["instruction"])
            .replace("{fewshots}", shots)
            .replace("{input}", item)
        )
        assert context == wanted, name
        assert "{" not in context.replace(item, "") or name == "mawps"
        assert (
            entry.task.settings["generation_kwargs"]["max_gen_toks"]
            == prompts()["tasks"][name]["output_length"]
        )


def test_a_prompt_of_another_form_is_refused() -> None:
    assert fill("質問：{a}\n{b['c']}", ["{x}", "y"]) == "質問：{x}\ny"
    with pytest.raises(UserError, match="has 1 places, 2 are known"):
        fill("{a}", ["x", "y"])


@pytest.mark.parametrize(
    ("name", "doc", "said", "wanted"),
    [
        ("exact_scores", {"said": "entailment"}, " ｅntailment\n\n### 入力", {"exact_match": 1.0}),
        ("exact_scores", {"said": "5"}, "5.0", {"exact_match": 0.0}),
        ("char_f1_scores", {"said": "東京"}, "「東京」", {"char_f1": 1.0}),
        ("jsts_scores", {"label": 2.5}, "わからない", {"pearson": (2.5, -2.0), "spearman": (2.5, -2.0)}),
    ],
)
def test_llm_jp_eval_s_scoring(name: str, doc: dict[str, Any], said: str, wanted: dict[str, Any]) -> None:
    from llmjp_train.evaluate import llm_jp_eval

    assert getattr(llm_jp_eval, name)(doc, [said]) == wanted


def test_mean_of_weights_and_errors() -> None:
    assert resampling.mean_of([(0.2, None), (0.4, 0.1)], [1, 1]) == (pytest.approx(0.3), None)
