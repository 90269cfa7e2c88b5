"""Pages of evaluations and comparisons: figures, escaping, two languages, and Chromium's verdict."""

import csv
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from helpers.browser import browse, luminance

from llmjp_train.evaluate.averages import Average
from llmjp_train.evaluate.compare import Comparison, Difference
from llmjp_train.evaluate.definitions import DIFFERS, THEIRS, both, others_of, right_name
from llmjp_train.evaluate.schema import Metric, Payload, TaskResult
from llmjp_train.evaluate.tasks import find_groups, find_tasks
from llmjp_train.evaluate.verdicts import SENTENCES, Sentence
from llmjp_train.publish.evaluation_page import (
    evaluation_csv,
    families,
    harness_layout,
    samples_of,
    write_comparison,
    write_evaluation,
)
from llmjp_train.publish.evaluation_words import LANGUAGES, WORDS

EVIL = "</pre><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"


def result(value: float, metric: str = "acc", **more: Any) -> TaskResult:
    better = metric != "bits_per_byte"
    figures = {metric: Metric(value, 0.05, value - 0.1, value + 0.1, better)}
    settings: dict[str, Any] = {
        "metric": figures, "main_metric": metric, "items": 48, "items_in_all": 48, "majority_baseline": 0.25,
        "chance": 0.25, "num_fewshot": 4, "licence": "CC0-1.0", "source": "", "data_version": "1", "data_sha256": None,
        "task_version": "1", "prompts_sha256": "ab" * 32, "seconds": 1.5, "truncated": 0, "joined_tokens": 0,
        "family": "Own items", "clusters": 48, "tokens_run": 12345, "tokens_plain": 99999,
    }  # fmt: skip
    return TaskResult(**(settings | more))


@pytest.fixture
def payload() -> dict[str, Any]:
    tasks = {
        "own_choice": result(0.4),
        "own_reading": result(0.3, clusters=12),
        "own_texts": result(2.5, "bits_per_byte", majority_baseline=None, chance=None),
        "jsquad": result(
            0.2, "char_f1", majority_baseline=None, chance=None, family="Reading", faults=["T3: <ratio>"]
        ),
    }
    averages = [
        Average("mean of tasks", "average", ["own_choice", "own_reading"], 0.35, 0.04, 0.27, 0.43, ""),
        Average("AVG", "average", ["NLI"], None, None, None, None, f"categories that did not run: {EVIL}"),
    ]
    return Payload(
        model=f"runs/x{EVIL}", step=20, suite="japanese", tasks=tasks, skipped=["task jnli: no data"],
        harness="lm-eval 0.4.13", time="2026-01-02T03:04:05+00:00", seconds=12.0, settings={"dtype": EVIL},
        items_file="x.items.jsonl", averages=[asdict(a) for a in averages], faults=["one"], differs=["two"],
    ).to_dict()  # fmt: skip


LINES = [
    {"task": "own_choice", "id": f"id{i}", "index": i, "prediction": i % 4, "metrics": {"acc": float(i % 2)}}
    for i in range(8)
] + [
    {"task": "jsquad", "id": "q", "index": 0, "response": [EVIL], "metrics": {"char_f1": 0.2}},
    {"task": "own_texts", "id": "t", "index": 0, "metrics": {"bits_per_byte": [-1.0, 3]}},
]  # fmt: skip


class Strict(HTMLParser):
    """Tags that are opened and closed, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.scripts += tag == "script"
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "link", "input", "img", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_value_is_escaped_and_every_tag_closed(payload: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(payload, LINES, tmp_path)
    for language in ("index.html", "index.ja.html"):
        text = (tmp_path / language).read_text("utf-8")
        parser = Strict()
        parser.feed(text)
        assert parser.open == []
        assert parser.scripts == 1
        assert "onerror=alert" in text
        assert "<img" not in text
        assert "None" not in text
        assert "method" not in text


def test_figures_are_those_of_the_payload(payload: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(payload, LINES, tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    for wanted in ("0.400", "0.300 – 0.500", "12,345 / 99,999", "not comparable", "task jnli: no data", "(12 groups)",
                   "one", "two", "T3: &lt;ratio&gt;", "2.500", "bits_per_byte ↓"):  # fmt: skip
        assert wanted in text, wanted
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tasks.csv").read_text("utf-8"))))
    assert [row["task"] for row in rows] == [*payload["tasks"], "mean of tasks", "AVG"]
    assert rows[0]["value"] == "0.4"
    assert rows[-1]["value"] == ""
    assert evaluation_csv(payload).count("\n") == 7
    layout = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert layout["results"]["own_choice"]["acc,none"] == 0.4
    assert layout["results"]["own_choice"]["acc_stderr,none"] == 0.05
    assert layout["n-samples"]["own_choice"] == {"original": 48, "effective": 48}
    assert layout == harness_layout(payload)


def test_bars_hold_shares_alone_and_groups_once(payload: dict[str, Any]) -> None:
    payload["averages"].append(
        asdict(Average("both", "group", ["own_choice", "own_reading"], 0.35, 0.03, 0.3, 0.4, ""))
    )
    found = families(payload)
    assert [bar["name"] for bar in found["Own items"]] == ["both"]
    assert [bar["name"] for bar in found["Reading"]] == ["jsquad"]


def test_published_scores_stand_beside_ours_with_what_differs(
    payload: dict[str, Any], tmp_path: Path
) -> None:
    found = families(payload)
    assert [other.model for other in found["Reading"][0]["published"]] == [
        "open-calm-7b", "rinna 3.6b", "stablelm-base-alpha-7b"
    ]  # fmt: skip
    assert found["Own items"][0]["published"] == []
    write_evaluation(payload, LINES, tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert text.count('class="ref"') == 3
    assert '<td class="k">jsquad.char_f1</td><td class="k">rinna 3.6b</td>' in text
    assert '<td class="k">AVG</td><td class="k">llm-jp-3-1.8b</td>' in text
    assert "JGLUE 1.1" in text
    payload["tasks"] = {"own_texts": payload["tasks"]["own_texts"]}
    payload["averages"] = []
    write_evaluation(payload, [], tmp_path)
    assert "Published scores" not in (tmp_path / "index.html").read_text("utf-8")


def test_samples_show_questions_where_the_licence_allows_it(payload: dict[str, Any]) -> None:
    found = samples_of(payload, LINES)
    assert [(s["task"], s["right"]) for s in found] == [("own_choice", True)] * 2 + [
        ("own_choice", False)
    ] * 2 + [("jsquad", False)]
    assert found[0]["question"].startswith("質問：")
    assert found[0]["answer"] == "2"
    assert found[-1]["answer"] == EVIL


def test_both_languages_say_the_same_things() -> None:
    assert set(WORDS["en"]) == set(WORDS["ja"])
    assert all(all(value for value in WORDS[language].values()) for language in LANGUAGES)
    families = {str(task.metadata["family"]) for task in find_tasks().values()}
    assert families - set(WORDS["ja"]) == {"JMMLU", "llm-jp-eval"}, "abilities have a name in both"


@pytest.fixture
def comparison() -> Comparison:
    more = (100, 90, True, [Sentence("prompts"), Sentence("in_common", shared=5, ours=6, theirs=7)])
    rows = [
        Difference(
            f"t{i}",
            "acc",
            "old",
            "new <b>",
            0.4,
            0.4 + d,
            d,
            0.02 * bool(d),
            d - 0.04,
            d + 0.04,
            p,
            p,
            0.06,
            *more,
        )
        for i, (d, p) in enumerate([(0.1, 0.001), (-0.02, 0.5), (0.0, 1.0)])
    ]
    unlike = Sentence("data_sha256", task="v", one="ab", other="cd")
    left_out = [Sentence("no_figures", task="u", name="old"), unlike, Sentence("few", task="w")]
    return Comparison(["old", "new <b>"], rows, left_out)


def test_a_comparison_says_what_may_be_said(comparison: Comparison, tmp_path: Path) -> None:
    written = write_comparison(comparison, tmp_path / "c.html")
    assert [path.name for path in written] == ["c.html", "c.ja.html", "c.json", "c.csv"]
    text = (tmp_path / "c.html").read_text("utf-8")
    assert "new &lt;b&gt; ahead by 0.100 (0.060 to 0.140)" in text
    assert text.count("no difference seen") == 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text("utf-8"))))
    assert float(rows[0]["difference"]) == 0.1
    assert json.loads((tmp_path / "c.json").read_text("utf-8"))["left_out"][0] == "u: old has no figures"


def test_no_sentence_of_a_comparison_is_english_on_the_japanese_page(
    comparison: Comparison, tmp_path: Path
) -> None:
    assert SENTENCES["en"].keys() == SENTENCES["ja"].keys()
    fields = {
        language: [
            sorted(field for _, field, *_ in Formatter().parse(text) if field) for text in told.values()
        ]
        for language, told in SENTENCES.items()
    }
    assert fields["en"] == fields["ja"]
    write_comparison(comparison, tmp_path / "c.html")
    pages = [(tmp_path / name).read_text("utf-8") for name in ("c.html", "c.ja.html")]
    # The longest words between the places of values: what a page has of a sentence whatever was filled in.
    for key, text in SENTENCES["en"].items():
        longest = max((words for words, *_ in Formatter().parse(text)), key=len)
        if key not in ("main_metric", "task_version"):
            assert longest in pages[0], key
        assert longest not in pages[1], key
    assert "new &lt;b&gt; が 0.100 上回る（0.060 ～ 0.140）" in pages[1]
    assert pages[1].count("差は見られない") == 2
    assert "u：old には値がない" in pages[1]


def test_tasks_of_two_definitions_stand_side_by_side(payload: dict[str, Any], tmp_path: Path) -> None:
    subjects = ["jmmlu_a", "jmmlu_b"]
    mean = Average("jmmlu", "group", subjects, 0.31, 0.02, 0.27, 0.35, "")
    payload["tasks"] |= {name: asdict(result(0.3)) for name in subjects}
    payload["averages"].append(asdict(mean))
    theirs = payload | {
        "suite": "llm-jp-eval",
        "averages": [],
        "time": "2026-01-01",
        "tasks": {
            "llm_jp_eval_jsquad": asdict(result(0.61, "char_f1", items=100)),
            "llm_jp_eval_jmmlu": asdict(result(0.05, "exact_match", items=100)),
            "llm_jp_eval_mawps": asdict(result(0.02, "exact_match")),
        },
    }
    written = write_evaluation(payload, [], tmp_path / "apart", (), [theirs])
    rows = {row["task"]: row for row in json.loads(written[-1].read_text("utf-8"))}
    assert written[-1].name == "definitions.json"
    assert set(rows) == {"jsquad", "jmmlu"}  # MAWPS was run in one definition alone
    assert (rows["jsquad"]["right"]["value"], rows["jsquad"]["theirs"]["value"]) == (0.2, 0.61)
    assert (rows["jmmlu"]["right"]["low"], rows["jmmlu"]["right"]["items"]) == (0.27, 96)
    assert rows["jsquad"]["differs"] == ["char_f1", "title", "prompts"]
    for path, language in zip(written, LANGUAGES, strict=False):
        table = re.search(r'<table id="definitions".*?</table>', path.read_text("utf-8"), re.DOTALL)
        assert table is not None
        for said_there in ("0.200", "0.100 – 0.300", "0.610", DIFFERS[language]["title"], "0.310", "0.050"):
            assert said_there in table[0].replace("&#39;", "'")
    # The same figures from one evaluation with both, as the suite full gives it; none where there is nothing to show.
    together = payload | {"tasks": payload["tasks"] | theirs["tasks"]}
    names = [path.name for path in write_evaluation(together, [], tmp_path / "together")]
    assert json.loads((tmp_path / "together/definitions.json").read_text("utf-8")) == list(rows.values())
    assert "definitions.json" in names
    assert both(payload) == []
    assert 'id="definitions"' not in (write_evaluation(payload, [], tmp_path / "one")[0]).read_text("utf-8")


def test_other_results_of_the_same_model_alone_are_taken(payload: dict[str, Any], tmp_path: Path) -> None:
    for name, changed in {
        "mine": {}, "suite": {"suite": "llm-jp-eval"}, "step": {"step": 10}, "model": {"model": "other"},
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(payload | changed), "utf-8")
    (tmp_path / "torn.json").write_text("{", "utf-8")
    assert [one["suite"] for one in others_of(tmp_path / "mine.json", payload)] == ["llm-jp-eval"]


def test_what_differs_is_said_in_both_languages_of_every_task_of_llm_jp_eval() -> None:
    assert DIFFERS["en"].keys() == DIFFERS["ja"].keys()
    known = find_tasks()
    groups = find_groups()
    for name in known:
        if name.startswith(THEIRS):
            assert right_name(name) in known.keys() | groups.keys(), name


# Chromium.

CHECK = """
<script>
addEventListener("load", () => {
  const first = "table#tasks tbody tr:not([hidden]) td:first-child";
  const names = () => [...document.querySelectorAll(first)].map(c => c.textContent);
  const before = names().join();
  const head = [...document.querySelectorAll("th button")].find(b => b.closest("th").cellIndex === %d);
  head.focus();
  const focused = document.activeElement === head;
  head.click();
  const sorted = names().join(), state = head.closest("th").getAttribute("aria-sort");
  const field = document.querySelector("input");
  field.value = "%s"; field.dispatchEvent(new Event("input"));
  const wide = [...document.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll") && one.getBoundingClientRect().right > innerWidth + 0.5).length;
  const style = getComputedStyle(document.body);
  const said = {focused, before, sorted, state, filtered: names().join(), wide, title: document.title.slice(0, 5),
    loads: performance.getEntriesByType("resource").length, page: style.backgroundColor, ink: style.color};
  document.documentElement.dataset.said = JSON.stringify(said);
});
</script>
"""


def said(
    chromium: str, text: str, folder: Path, column: int, word: str, dark: bool = False
) -> dict[str, Any]:
    scheme = "(prefers-color-scheme: dark)"
    copy = text.replace(scheme, "all" if dark else "not all")
    copy = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", copy
    )  # it would forbid the script that asks
    (folder / "copy.html").write_text(copy.replace("</body>", CHECK % (column, word) + "</body>"), "utf-8")
    dom = browse(chromium, folder / "copy.html", folder / "profile", "--window-size=500,2000", "--dump-dom")
    found = re.search(r'data-said="([^"]+)"', dom)
    assert found, dom[:500]
    answer: dict[str, Any] = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_tables_sort_and_filter_by_keyboard_and_nothing_overflows(
    chromium: str, payload: dict[str, Any], tmp_path: Path, dark: bool
) -> None:
    write_evaluation(payload, LINES, tmp_path)
    answer = said(chromium, (tmp_path / "index.html").read_text("utf-8"), tmp_path, 2, "reading", dark)
    assert answer["before"].split(",") == ["own_choice", "own_reading", "own_texts", "jsquad"]
    assert answer["sorted"].split(",") == ["jsquad", "own_reading", "own_choice", "own_texts"]
    assert (answer["state"], answer["focused"]) == ("ascending", True)
    assert answer["filtered"] == "own_reading"
    assert (answer["wide"], answer["loads"]) == (0, 0)
    assert answer["title"] != "taken"
    page, ink = luminance(answer["page"]), luminance(answer["ink"])
    assert (page < 0.1) == dark
    assert (max(page, ink) + 0.05) / (min(page, ink) + 0.05) > 7


@pytest.mark.slow
def test_the_policy_allows_the_page_s_own_script_alone(
    chromium: str, payload: dict[str, Any], comparison: Comparison, tmp_path: Path
) -> None:
    write_evaluation(payload, LINES, tmp_path)
    write_comparison(comparison, tmp_path / "c.html")

    def shown(name: str) -> str:
        return browse(chromium, tmp_path / name, tmp_path / "profile", "--dump-dom")

    for name in ("index.html", "index.ja.html", "c.html", "c.ja.html"):
        assert "CONSOLE" not in shown(name), name
    text = (tmp_path / "index.html").read_text("utf-8")
    (tmp_path / "broken.html").write_text(
        text.replace("</body>", "<script>let x = 1</script></body>"), "utf-8"
    )
    assert "Content Security Policy" in shown("broken.html").partition("CONSOLE")[2], (
        "it would have been seen"
    )
