"""Benchmarks whose data are not here: items made by hand in the sources' own form go all the way to a score."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluating import llmjp

from llmjp_train.commands import data
from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness, resampling
from llmjp_train.evaluate.suites import choice
from llmjp_train.evaluate.tasks import find_tasks

THREE = ("entailment", "contradiction", "neutral")
TASKS = ["jamp", "jsick", "jsem", "chabsa", "alt_ja_en", "alt_en_ja"]
TIMES = "花子は{}時に駅に着いた。", "花子は{}時には駅にいた。"


def jamp(first: int) -> str:
    rows = [
        (
            first + i,
            TIMES[0].format(first + i),
            TIMES[1].format(first + i),
            THREE[i % 3],
            1,
            "時",
            "short",
            "到着",
        )
        for i in range(6)
    ]
    head = "num\tpremise\thypothesis\tgold_label\ttemplate_num\ttime_format\ttime_span\tcategory"
    return "\n".join([head, *("\t".join(map(str, row)) for row in rows)]) + "\n"


def jsick(first: int) -> str:
    head = (
        "pair_ID\tdata\tsentence_A_En\tsentence_B_En\tentailment_label_En\trelatedness_score_En\t"
        "corr_entailment_labelAB_En\tcorr_entailment_labelBA_En\tsentence_A_Ja\tsentence_B_Ja\tentailment_label_Ja\t"
        "relatedness_score_Ja\timage_ID\toriginal_caption\tsemtag_short\tsemtag_long"
    )
    rows = [
        f"{i}\ttest\tA dog\tA cat\tneutral\t1.0\t\t\t犬が{i}匹走っている\t動物が{i}匹いる\t{THREE[i % 3]}\t3.0\t{i}.jpg"
        "\tA dog .\t\t"
        for i in range(first, first + 6)
    ]
    return "\n".join([head, *rows]) + "\n"


def jsem(first: int) -> str:
    answers = ("yes", "no", "unknown", "undef", "infelicitous")
    problems = "".join(
        f'<problem answer="{answer}" inference_type="entailment" jsem_id="X{first + i}" language="jp" phenomena="x">\n'
        f'<p idx="1">\n<script>\n太郎は{first + i}冊の本を読んだ。</script></p>'
        '<p idx="2"><script>次郎も読んだ。</script></p>\n'
        f"<h><script>本は{first + i}冊ある。</script></h><note></note></problem>\n"
        for i, answer in enumerate(answers)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE jsem-dataset SYSTEM "jsem.dtd">\n'
    return f"{head}<jsem-dataset>{problems}</jsem-dataset>\n"


def chabsa(first: int) -> str:
    def opinion(target: str, polarity: str) -> dict[str, Any]:
        return {"target": target, "category": "market#general", "polarity": polarity, "from": 0, "to": 2}

    sentences = [
        {"sentence_id": i, "sentence": f"第{first + i}期は国内が伸び、海外は減った。",
         "opinions": [opinion("国内", "positive"), opinion("海外", "negative")] if i else []}
        for i in range(6)
    ]  # fmt: skip
    header = {"document_id": f"E{first:05}", "document_name": "架空商事", "edi_id": f"E{first:05}"}
    return json.dumps({"header": header, "sentences": sentences}, ensure_ascii=False)


def convert(name: str, sources: list[Path], out: Path) -> None:
    arguments = {
        "action": "convert",
        "name": name,
        "sources": sources,
        "out": out,
        "root": None,
        "json": False,
    }
    assert data.run(argparse.Namespace(**arguments)) == 0


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root made of files in the sources' own form by `llmjp data convert`."""
    raw, root = tmp_path / "raw", tmp_path / "root"
    raw.mkdir()
    for split, first in (("test", 1), ("fewshot", 101)):
        for name, content in (("jamp", jamp), ("jsick", jsick), ("jsem", jsem), ("chabsa", chabsa)):
            path = raw / f"{name}.{split}"
            path.write_text(content(first), "utf-8")
            convert(name, [path], root / "eval" / name / f"{split}.jsonl")
        numbers = range(first, first + 5)
        ja, en, articles = (raw / f"{name}.{split}" for name in ("data_ja.txt", "data_en.txt", "URL.txt"))
        ja.write_text("".join(f"SNT.{n}.1\t{n}番の店は今日開いた。\n" for n in numbers), "utf-8")
        en.write_text("".join(f"SNT.{n}.1\tShop no. {n} opened today.\n" for n in [*numbers, 999]), "utf-8")
        articles.write_text("".join(f"URL.{n}\thttp://example.org/{n}\n" for n in list(numbers)[:4]), "utf-8")
        convert("alt", [ja, en, articles], root / "eval/alt" / f"{split}.jsonl")
    monkeypatch.setenv("LLMJP_DATA", str(root))
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path / "cache"))
    return root


def test_items_have_the_fields_that_tasks_need(sources: Path) -> None:
    items = {name: find_tasks()[name].scored() for name in TASKS}
    assert [len(items[name]) for name in TASKS] == [6, 6, 4, 5, 4, 4]
    assert items["jsem"][0] == {
        "id": "X1", "premise": "太郎は1冊の本を読んだ。次郎も読んだ。", "hypothesis": "本は1冊ある。", "answer": "yes"
    }  # fmt: skip
    assert items["chabsa"][0]["opinions"] == ["国内 positive", "海外 negative"]
    assert items["alt_ja_en"][0] == {
        "id": "SNT.1.1", "article": "1", "ja": "1番の店は今日開いた。", "en": "Shop no. 1 opened today."
    }  # fmt: skip
    assert set(items["jsick"][0]) == {
        "id", "sentence_A_Ja", "sentence_B_Ja", "entailment_label_Ja", "relatedness_score_Ja", "image_ID"
    }  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_scores_in_full(name: str, sources: Path) -> None:
    (entry,) = choice("", [name]).chosen
    task = harness.load_task(entry, [])
    task.build_all_requests(limit=2)
    doc = task.task_docs[0]
    assert str(task.doc_to_text(doc)) in task.instances[0].args[0]
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = task.doc_to_target(doc)
        results = [(-1.0 if i == gold else -2.0, False) for i in range(len(task.doc_to_choice(doc)))]
        assert task.process_results(doc, results)["acc"] == 1.0
        return
    scores = task.process_results(doc, [str(task.doc_to_target(doc))])
    for metric, value in scores.items():
        figure = resampling.FIGURES.get(metric)
        assert (value if figure is None else figure([value]) / 100) == pytest.approx(1.0)


def test_a_model_is_scored_on_them(
    sources: Path, hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"tasks=[{','.join(TASKS)}]",
        "num_fewshot=1",
        "device=cpu",
        "max_length=1024",
        "--output",
        str(tmp_path / "out"),
    )
    assert llmjp(str(hf_folder), *words, "--json") == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert list(tasks) == TASKS
    assert tasks["alt_ja_en"]["main_metric"] == "chrf"
    assert set(tasks["alt_ja_en"]["metric"]) == {"chrf", "bleu_13a"}
    for task in tasks.values():
        figures = task["metric"][task["main_metric"]]
        assert figures["low"] <= figures["value"] <= figures["high"]


def test_llm_jp_eval_s_categories_come_together_with_them(
    sources: Path, llmjp_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (llmjp_data / "eval").iterdir():
        if not (sources / "eval" / folder.name).exists():
            (sources / "eval" / folder.name).symlink_to(folder)
    (sources / "prompts").symlink_to(llmjp_data / "prompts")
    found = choice("llm-jp-eval", limit=1)
    names = {entry.task.name for entry in found.chosen}
    assert set(found.suite.categories["NLI"] + found.suite.categories["EL"]) <= names
    for entry in found.chosen:
        if entry.task.metadata.get("not_run"):
            task = harness.load_task(entry, [])
            doc = task.task_docs[0]
            (score,) = task.process_results(doc, [f"{doc['said']}\n\n### 入力:"]).values()
            assert score == 1.0, entry.task.name


def test_they_are_left_out_and_listed_as_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path))
    skipped = choice("japanese").skipped
    for name in TASKS:
        assert any(f"task {name}: the data of" in line for line in skipped), name
    assert llmjp("--list") == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("not run on real data"))
    assert all(name in line for name in [*TASKS, "llm_jp_eval_jsem", "xwinograd_jp"])
    assert "own_choice" not in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jsam", "", "no such form; there are"),
        ("alt", "x", "alt takes three files"),
        ("jsem", "<jsem-dataset>", "not in the form of jsem"),
        ("jamp", "num\tpremise\n1\ta\tb\n", "not in the form of jamp"),
        ("chabsa", "{}", "not in the form of chabsa"),
    ],
)
def test_files_of_another_form_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(content, "utf-8")
    with pytest.raises(UserError, match=message):
        convert(name, [tmp_path / "x"], tmp_path / "out")
    with pytest.raises(UserError, match="No such file"):
        convert("jsem", [tmp_path / "absent"], tmp_path / "out")
