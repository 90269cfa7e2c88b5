"""The report: complete, escaped, self-contained, and without overflow on a phone and a screen, light and dark."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.browser import browse, luminance, measure
from helpers.run_records import full_run, new_run, payload, start, step_row

from llmjp_train import cli
from llmjp_train.publish.card import LANGUAGES, card
from llmjp_train.publish.chronicle import chronicle
from llmjp_train.publish.facts import evaluation, facts
from llmjp_train.publish.report import _evaluation_charts, _period, render
from llmjp_train.publish.story import story
from llmjp_train.runlog.record import RunRecord

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects what a page refers to and what it leaves open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(tag)
        else:
            self.open.pop()


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    return checker


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    record = full_run(tmp_path_factory.mktemp("runs") / "full")
    path = record.path / "environment.json"
    source = {"commit": "0123456789" * 4, "changed": True}  # of a checkout, wherever the tests run
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": source}))
    return record


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render(facts(record))


@pytest.fixture(scope="module", params=["report", "chronicle en", "chronicle ja"])
def look(request: pytest.FixtureRequest, record: RunRecord) -> str:
    """A page to look at: the report, or the chronicle in a language."""
    kind, _, language = request.param.partition(" ")
    found = facts(record)
    return render(found) if kind == "report" else chronicle(story(found), language, "html")


def text_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_page_is_whole_and_needs_nothing_else(look: str) -> None:
    checker = checked(look)
    assert checker.wrong == []
    assert checker.open == []
    assert all(link.startswith(("#", "data:", "chronicle.")) for link in checker.links)
    assert not checker.tags & {"script", "iframe", "object", "embed", "img"}
    assert "@import" not in look
    assert "url(" not in look
    assert "//" not in look[: look.index("<body>")]
    assert 'name="viewport"' in look
    assert "prefers-color-scheme: dark" in look


def test_figures_come_from_the_record(page: str, record: RunRecord) -> None:
    text = text_of(page)
    newest = [row for row in record.read_metrics() if "loss" in row][-1]
    assert "Tokens seen 204,800 of 204,800 planned" in text
    best = 8.05 * 100**-0.2
    assert f"{best:.4f} nats a token, step 100" in text
    assert f"Bits per byte {best / 3:.4f}" in text
    assert f"{newest['loss']:.4f}" in text
    assert "0.3500 ± 0.0784" in text  # 1.96 times the standard error of 0.04
    assert "0.210" in text  # the majority baseline beside it
    assert "100 of 1,119" in text
    assert "jnli: no data here" in text
    assert "own_text bits_per_byte ↓ 2.1234 – – – 100" in text
    assert "1,234,567" in text
    assert "150,000" in text  # tokens of wiki trained on: 1,500 in each of 100 steps
    assert "step-00000100.epoch-0001" in text
    assert "2 incidents" in text
    assert "No space left on device" in text
    assert "from step-00000049.epoch-0001" in text
    assert "5 evaluations in training" in text
    assert "2 processes on cpu, ZeRO-1, fp32" in text


def test_every_curve_is_there(page: str) -> None:
    titles = re.findall(r"<h3>([^<]+?)(?: <span|</h3>)", page)
    wanted = {
        "Loss",
        "Loss, second half",
        "Validation",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Time of a step",
        "Dominated by epsilon",
        "jcommonsenseqa",
    }
    assert wanted <= set(titles)
    assert page.count('class="mark incident"') == 2
    assert page.count('class="mark start"') == 1


def test_what_comes_from_the_record_is_escaped(tmp_path: Path) -> None:
    record = new_run(
        tmp_path / "run", name="<script>alert(1)</script>", notes=["<img src=x onerror=alert(2)>"]
    )
    start(record)
    step_row(record, 1, 5.0)
    record.event("fault", step=1, message="</td><script>alert(3)</script>")
    record.write_environment()
    page = render(facts(record))
    checker = checked(page)
    assert "script" not in checker.tags
    assert "img" not in checker.tags
    assert "&lt;script&gt;alert(1)" in page
    assert checker.wrong == []


HOSTILE = "\"'><script>alert(9)</script><img src=x onerror=alert(9)>&amp;"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("config.yaml", "toy"),
        ("config.yaml", "tiny"),
        ("data.json", "wiki"),
        ("data.json", "a" * 64),
        ("data.json", "c" * 64),
        ("environment.json", "Linux"),
        ("environment.json", "torch"),
        ("events.jsonl", "No space left"),
        ("events.jsonl", "SIGTERM"),
        ("events.jsonl", "step-00000049.epoch-0001"),
        ("events.jsonl", "fp32"),
        ("events.jsonl", "save_failed"),
        ("evaluations/step-00000100-quick.json", "jcommonsenseqa"),
        ("evaluations/step-00000100-quick.json", "acc_norm"),
        ("evaluations/step-00000100-quick.json", "CC BY-SA 4.0"),
        ("evaluations/step-00000100-quick.json", "jnli: no data here"),
        ("evaluations/step-00000100-quick.json", "lm_eval"),
        ("checkpoints/*/COMMITTED", "pipeline"),
    ],
)
def test_hostile_words_stay_words(file: str, word: str, record: RunRecord, page: str, tmp_path: Path) -> None:
    """Wherever a record holds text, markup in it is shown, and neither read nor able to end a table's row."""
    shutil.copytree(record.path, tmp_path / "run")
    quoted = HOSTILE.replace("'", "''") if file.endswith("yaml") else json.dumps(HOSTILE)[1:-1]
    found = list((tmp_path / "run").glob(file))
    assert found
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert word in text
        if file.endswith("yaml"):
            text = re.sub(rf": {word}$", f": '{quoted}'", text, flags=re.M)
        path.write_text(text.replace(word, quoted), encoding="utf-8")
    found_facts = facts(RunRecord(tmp_path / "run"))
    hostile = render(found_facts)
    checker = checked(hostile)
    assert checker.wrong == []
    assert checker.tags == checked(page).tags
    assert "script&gt;alert(9)" in hostile
    for language in LANGUAGES:
        assert "<script" not in card(found_facts, language).split("---\n", 2)[2]


def test_a_run_without_anything_says_so(tmp_path: Path) -> None:
    text = text_of(render(facts(new_run(tmp_path / "run"))))
    for words in (
        "This run has recorded no metrics.",
        "This run has not been evaluated",
        "it was never started",
        "no committed checkpoint",
        "no data fingerprints",
        "no environment",
        "Tokens seen none recorded",
        "Best validation none recorded",
    ):
        assert words in text
    assert "new" in text


def test_a_configuration_of_another_version_costs_the_derived_numbers_alone(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    path = record.path / "config.yaml"
    path.write_text(path.read_text() + "of_the_future: 1\n")
    text = text_of(render(facts(record)))
    assert "of_the_future" in text
    assert "They cannot be computed" in text


def test_one_row_and_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    start(record)
    step_row(record, 1, 5.0)
    step_row(record, 2, float("nan"))
    page = render(facts(record))
    assert checked(page).wrong == []
    assert "5.0000" in text_of(page)


def test_a_long_history_does_not_swell_the_page(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    start(record)
    for step in range(1, 61):
        record.write_evaluation(f"step-{step:08d}-in-loop", payload(record.path, step))
    for step in range(1, 1001):
        record.event("validation_best", step=step, loss=5.0)
    page = render(facts(record))
    text = text_of(page)
    assert "60 evaluations in training, the newest 20" in text
    assert "step-00000060-in-loop" in text
    assert "step-00000040-in-loop" not in text
    assert "The newest 400 of 1,001 events" in text
    assert len(page) < 250_000
    assert checked(page).wrong == []


def test_curves_have_intervals_and_published_scores_beside_them() -> None:
    def result(value: float) -> dict[str, Any]:
        figures = {"value": value, "stderr": 0.02, "low": value - 0.04, "high": value + 0.04}
        return {"metric": {"acc": figures | {"higher_is_better": True}}, "main_metric": "acc"}

    def stored(step: int, value: float, **more: Any) -> Any:
        name = f"step-{step:08d}-" + ("in-loop" if not more else "japanese")
        return evaluation(
            name, {"step": step, "tasks": {"jcommonsenseqa": result(value), "x": result(value)}, **more}
        )

    everything = [stored(10, 0.2), stored(20, 0.3), stored(20, 0.31, suite="japanese")]
    drawn = _evaluation_charts(SimpleNamespace(evaluations=everything), None)  # type: ignore[arg-type]
    assert [(one.title, one.unit) for one in drawn if one] == [
        ("jcommonsenseqa", "acc, 95 % interval, in training"), ("x", "acc, 95 % interval, in training")
    ]  # fmt: skip
    known, other = drawn
    assert known is not None
    assert other is not None
    assert [line.name for line in known.lines[1:]] == [
        f"{model}, published" for model in ("open-calm-7b", "rinna 3.6b", "stablelm-base-alpha-7b")
    ]
    assert len(other.lines) == 1
    assert other.lines[0].band


def test_an_evaluation_of_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluations/mine\.json is damaged"):
        evaluation("mine", {"tasks": {"a": {"items": 1}}})


def test_an_interval_that_holds_the_majority_baseline_is_marked(tmp_path: Path) -> None:
    task = {
        "metric": {"acc": {"value": 0.25, "stderr": 0.04}},
        "main_metric": "acc",
        "majority_baseline": 0.21,
    }
    apart = task | {"metric": {"acc": {"value": 0.30, "stderr": 0.04}}}
    assert evaluation("x", {"tasks": {"a": task}}).scores[0].told_apart is False
    assert evaluation("x", {"tasks": {"a": apart}}).scores[0].told_apart is True
    skewed = task | {"metric": {"acc": {"value": 0.25, "stderr": 0.04, "low": 0.22, "high": 0.34}}}
    assert evaluation("x", {"tasks": {"a": skewed}}).scores[0].told_apart is True  # its own interval counts


def test_intervals_are_drawn_beside_the_baseline(page: str) -> None:
    drawn = re.findall(r'<svg class="interval( apart)?".*?</svg>', page, re.S)
    assert drawn == [" apart", "", " apart", *[""] * 9]  # acc of the last step, after training and in it
    first = page[page.index('<svg class="interval') :]
    assert 'd="M27.0 6H43.0"' in first  # from low to high
    assert first.index('d="M21.0 0.5V11.5"') < first.index("</svg>")  # the majority baseline
    assert first.index('cx="35.0"') < first.index("</svg>")


@pytest.mark.parametrize(
    ("began", "changed", "words"),
    [
        ("2026-04-01T09:00:00.5+00:00", "2026-04-01T09:03:50+00:00", "2026-04-01 09:00 to 09:03 UTC (3 min 49 s)"),
        ("2026-04-01T09:00:00Z", "2026-04-03T10:30:00+00:00", "2026-04-01 09:00 to 2026-04-03 10:30 UTC (2 d 1 h)"),
        ("2026-04-01T09:00:00+00:00", "2026-04-01T11:00:07+00:00", "2026-04-01 09:00 to 11:00 UTC (2 h)"),
        ("2026-04-01T09:00:00+00:00", "2026-04-01T09:00:00+00:00", "2026-04-01 09:00 to 09:00 UTC (0 s)"),
        (None, "2026-04-01T09:00:00+00:00", ""),
    ],
)  # fmt: skip
def test_the_period_is_told_in_two_units(began: str | None, changed: str, words: str) -> None:
    assert _period(began, changed) == words


def test_a_later_note_does_not_stretch_the_period(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    lines = [
        ("events.jsonl", {"kind": "start", "step": 0, "time": "2026-04-01T09:00:00+00:00"}),
        ("metrics.jsonl", {"step": 1, "loss": 5.0, "time": "2026-04-01T11:00:00+00:00"}),
        ("notes.jsonl", {"kind": "note", "text": "fine", "time": "2026-06-01T09:00:00+00:00"}),
    ]
    for name, line in lines:
        (record.path / name).write_text(json.dumps(line) + "\n")
    page = render(facts(record))
    assert "2026-04-01 09:00 to 11:00 UTC (2 h)" in page
    assert "Last change of the record: 2026-06-01 09:00:00 UTC" in page


@pytest.mark.parametrize("name", ["environment.json", "data.json", "evaluations/step-00000001-quick.json"])
@pytest.mark.parametrize("content", ['{"schema": 1, "tas', "[]", "\udc93"])
def test_a_damaged_file_of_the_record_is_named(
    tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = new_run(tmp_path / "run")
    path = record.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert cli.main(["report", str(record.path)]) == 2
    assert f"{path} is damaged" in (said := capsys.readouterr().err)
    assert "restore it from a copy, or move it away" in said
    path.unlink()
    assert cli.main(["report", str(record.path)]) == 0


def test_the_command_writes_page_and_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = full_run(tmp_path / "run", steps=40)
    out = tmp_path / "elsewhere" / "page.html"
    assert cli.main(["report", str(record.path), "--out", str(out)]) == 0
    cards = [record.path / "README.en.md", record.path / "README.ja.md"]
    assert capsys.readouterr().out.split("\n")[:-1] == [str(out), *map(str, cards)]
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>\n")
    out.unlink()
    assert cli.main(["report", str(record.path), "--out", str(out), "--card-only"]) == 0
    assert not out.exists()
    assert not (record.path / "report.html").exists()


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_run_is_refused(tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path if there else tmp_path / "none"
    assert cli.main(["report", str(path)]) == 2
    assert ("holds no config.yaml" if there else "does not exist") in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = new_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(record.path), "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# Chromium.


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_and_text_is_legible(
    chromium: str, look: str, tmp_path: Path, width: int, dark: bool
) -> None:
    said = measure(chromium, look, tmp_path, width, dark=dark)
    assert int(said["inner"]) == width
    assert int(said["scroll"]) == width
    assert int(said["wide"]) == 0
    assert int(said["small"]) == 0
    assert int(said["pairs"]) == 0, "a table of two columns fits: what is long in it breaks"
    assert int(said["loads"]) == 0
    paper, ink = luminance(said["page"]), luminance(said["ink"])
    assert (paper < 0.1) == dark
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7


@pytest.mark.slow
def test_the_overflow_check_finds_an_overflow(chromium: str, page: str, tmp_path: Path) -> None:
    broken = page.replace(
        "</main>", '<div style="width:2000px">wide</div><img src="http://127.0.0.1:9/a.png"></main>'
    )
    said = measure(chromium, broken, tmp_path, 390, dark=False)
    assert int(said["loads"]) == 1
    assert int(said["scroll"]) >= 2000
    assert int(said["wide"]) > 0


@pytest.mark.slow
def test_the_console_is_silent_and_the_page_may_load_and_run_nothing(
    chromium: str, look: str, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(look, encoding="utf-8")
    assert "CONSOLE" not in browse(chromium, path, tmp_path / "profile", "--dump-dom")
    # Its own policy stops what a hole in the escaping would let in, and the console tells.
    bad = '<script>document.title = "taken"</script><img src="http://127.0.0.1:9/a.png"></main>'
    path.write_text(look.replace("</main>", bad), encoding="utf-8")
    said = browse(chromium, path, tmp_path / "profile", "--dump-dom")
    assert said.count("Content Security Policy") == 2  # a line for each attempt
    assert "<title>taken" not in said


@pytest.mark.slow
def test_a_screenshot_shows_curves(chromium: str, page: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    picture = tmp_path / "page.png"
    browse(
        chromium,
        tmp_path / "page.html",
        tmp_path / "profile",
        "--window-size=1200,1500",
        f"--screenshot={picture}",
    )
    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (1500, 1200)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    assert int(((blue > red + 0.4) & (blue > green + 0.2)).sum()) > 1000  # the training curves
    assert int(((red > blue + 0.4) & (red > green + 0.2)).sum()) > 300  # the validation curve and incidents
