"""Comparisons: known differences are found, none is seen where there is none, and both as often as promised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from llmjp_train.commands import compare as command
from llmjp_train.errors import UserError
from llmjp_train.evaluate import resampling
from llmjp_train.evaluate.compare import _exchange_p, compare, read


def write(
    folder: Path,
    name: str,
    scores: dict[str, list[Any]],
    metric: str = "acc",
    clusters: list[str] | None = None,
    **more: Any,
) -> Path:
    """An evaluation with these scores of the items."""
    lines, tasks = [], {}
    for task, values in scores.items():
        figure = resampling.FIGURES.get(metric, resampling.mean)
        better = metric != "bits_per_byte"
        tasks[task] = {
            "main_metric": metric, "data_sha256": "d", "task_version": "1", "prompts_sha256": "p",
            "metric": {metric: {"value": figure(values), "higher_is_better": better}},
        } | more  # fmt: skip
        for index, value in enumerate(values):
            cluster = clusters[index] if clusters else f"item {index}"
            lines.append(
                {"task": task, "id": index, "index": index, "metrics": {metric: value}, "cluster": cluster}
            )
    payload = {
        "schema": 1,
        "model": f"runs/{name}",
        "step": 5,
        "tasks": tasks,
        "items_file": f"{name}.items.jsonl",
        "time": name,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{name}.json").write_text(json.dumps(payload))
    return folder / f"{name}.json"


def difference(tmp_path: Path, first: list[Any], second: list[Any], **settings: Any) -> Any:
    a = write(tmp_path, "a", {"t": first}, **settings)
    b = write(tmp_path, "b", {"t": second}, **settings)
    return compare([read(a), read(b)]).differences[0]


def test_a_model_with_itself_shows_no_difference(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 2, 200).tolist()
    found = difference(tmp_path, values, values)
    assert (found.difference, found.p, found.p_corrected) == (0.0, 1.0, 1.0)
    assert found.verdict == "no difference seen: every item came out alike"


def test_a_clear_difference_is_found_with_the_paired_interval(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    first = draw.integers(0, 2, 400)
    second = np.where(draw.random(400) < 0.15, 1, first)
    found = difference(tmp_path, first.tolist(), second.tolist())
    wanted = scipy.stats.ttest_rel(second, first)
    low, high = wanted.confidence_interval()
    assert found.difference == pytest.approx((second - first).mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert found.p == pytest.approx(1 / 2001)
    assert found.verdict.startswith("b@5 ahead by 0.0")


def test_the_paired_error_is_smaller_than_that_of_two_samples(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    first = draw.integers(0, 2, 500)
    second = np.where(draw.random(500) < 0.05, 1 - first, first)
    found = difference(tmp_path, first.tolist(), second.tolist())
    apart = (first.var(ddof=1) / 500 + second.var(ddof=1) / 500) ** 0.5
    assert found.stderr < apart / 2


def test_items_that_share_a_passage_widen_the_interval(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    passages = [f"p{i // 10}" for i in range(300)]
    shift = np.repeat(draw.normal(0, 0.3, 30), 10)
    first, second = draw.random(300), draw.random(300) + shift
    alone = difference(tmp_path, first.tolist(), second.tolist())
    together = difference(tmp_path, first.tolist(), second.tolist(), clusters=passages)
    assert together.clusters == 30
    assert together.stderr > 1.5 * alone.stderr
    assert together.p > alone.p


def test_lower_is_better_where_it_is(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    sizes = draw.integers(300, 900, 60)
    first = [(-float(s) * 1.5, int(s)) for s in sizes]
    second = [(-float(s) * (1.3 + 0.05 * draw.normal()), int(s)) for s in sizes]
    found = difference(tmp_path, first, second, metric="bits_per_byte")
    assert found.difference < 0
    assert found.verdict.startswith("b@5 ahead by")
    assert found.low < found.difference < found.high


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pearson", "macro_f1"])
def test_figures_over_all_items_are_compared_too(metric: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    golds = draw.integers(0, 3, 150)
    noise = draw.random(150)
    first = [(int(g), int(draw.integers(0, 3))) for g in golds]
    second = [(int(g), int(g) if n < 0.8 else 0) for g, n in zip(golds, noise, strict=True)]
    found = difference(tmp_path, first, second, metric=metric)
    assert found.low > 0
    assert found.p < 0.01
    assert difference(tmp_path, first, first, metric=metric).p == 1.0


def test_false_alarms_and_finds_come_as_often_as_promised(tmp_path: Path) -> None:
    """200 comparisons without a difference: about 5 % seen; with the smallest visible one: about 80 %."""
    draw = np.random.default_rng(6)
    alarms, finds, rounds = 0, 0, 200
    size = 0.0
    for _ in range(rounds):
        first = draw.normal(0, 1, 120)
        second = first + draw.normal(0, 0.5, 120)
        pair = [(first.tolist(), second.tolist()), (first.tolist(), (second + size).tolist())]
        ps = []
        for a, b in pair:
            ps.append(_exchange_p(resampling.mean, (a, b), list(range(120)), 0))
        alarms += ps[0] < 0.05
        finds += ps[1] < 0.05 and size > 0
        size = (1.959964 + 0.841621) * 0.5 / 120**0.5
    assert alarms / rounds == pytest.approx(0.05, abs=0.035)
    assert finds / (rounds - 1) == pytest.approx(0.8, abs=0.08)


def test_holm_corrects_for_the_number_of_tasks(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    base = {f"t{i}": draw.integers(0, 2, 150).tolist() for i in range(6)}
    other = {name: np.where(draw.random(150) < 0.06, 1, values).tolist() for name, values in base.items()}
    found = compare([read(write(tmp_path, "a", base)), read(write(tmp_path, "b", other))])
    ps = sorted((d.p, d.p_corrected) for d in found.differences)
    wanted, greatest = [], 0.0
    for rank, (p, _) in enumerate(ps):
        greatest = max(greatest, min(1.0, p * (6 - rank)))
        wanted.append(greatest)
    assert [c for _, c in ps] == pytest.approx(wanted)
    alone = compare(
        [read(write(tmp_path, "c", {"t0": base["t0"]})), read(write(tmp_path, "d", {"t0": other["t0"]}))]
    )
    (same,) = [d for d in found.differences if d.task == "t0"]
    assert same.visible > alone.differences[0].visible


def test_three_evaluations_make_three_pairs_and_names_stay_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), "m", {"t": [0, 1, 1, i % 2]}) for i in range(3)]
    found = compare([read(path) for path in paths])
    assert found.names == ["m@5 (1)", "m@5 (2)", "m@5 (3)"]
    assert len(found.differences) == 3


def test_what_is_not_alike_is_left_out_with_the_reason(tmp_path: Path) -> None:
    a = read(write(tmp_path, "a", {"t": [0, 1, 1], "u": [1, 1, 0]}))
    b = read(write(tmp_path, "b", {"t": [0, 1, 0], "v": [1, 1, 0]}))
    found = compare([a, b])
    assert [d.task for d in found.differences] == ["t"]
    assert found.left_out == ["u: b@5 has no figures", "v: a@5 has no figures"]
    with pytest.raises(UserError, match="no task that can be compared: t: of different data"):
        compare([a, read(write(tmp_path, "c", {"t": [0, 1, 0]}, data_sha256="e"))])
    shown = compare([a, read(write(tmp_path, "d", {"t": [0, 1]}, prompts_sha256="q"))]).differences[0].notes
    assert shown == [
        "2 items in common of 3 and 2",
        "the prompts differ (other examples, or items in another number)",
    ]
    with pytest.raises(UserError, match="two evaluations or more"):
        compare([a])


def test_the_newest_evaluation_of_a_folder_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "a", {"t": [0, 1]})
    write(tmp_path, "b", {"t": [1, 1]})
    assert read(tmp_path).name == "b@5"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    for path, message in (
        (tmp_path / "empty", "holds no evaluation"),
        (tmp_path / "no.json", "does not exist"),
        (tmp_path / "bad.json", "is not JSON"),
    ):
        with pytest.raises(UserError, match=message):
            read(path)
    (tmp_path / "a.items.jsonl").unlink()
    with pytest.raises(UserError, match="has no items beside it"):
        read(tmp_path / "a.json")


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    a, b = (write(tmp_path, name, {"t": values}) for name, values in (("a", [0, 1] * 40), ("b", [1, 1] * 40)))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(a), str(b), "--names", "old,new"])) == 0
    shown = capsys.readouterr().out
    assert "new minus old" in shown
    assert "new ahead by 0.500" in shown
    assert command.run(parser.parse_args([str(a), str(b), "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["verdict"].startswith("b@5 ahead by 0.500")
    with pytest.raises(UserError, match="--names has 1 names for 2"):
        command.run(parser.parse_args([str(a), str(b), "--names", "old"]))


def test_clustered_errors_are_those_of_a_bootstrap() -> None:
    draw = np.random.default_rng(8)
    clusters = np.repeat(np.arange(60), 5)
    values = draw.random(300) + np.repeat(draw.normal(0, 0.4, 60), 5)
    spread = resampling.draws(resampling.mean, values.tolist(), clusters.tolist(), 2000).std()
    assert resampling.mean_stderr(values.tolist(), clusters.tolist()) == pytest.approx(spread, rel=0.06)
    alone = resampling.mean_stderr(values.tolist(), list(range(300)))
    assert alone == pytest.approx(values.std(ddof=1) / 300**0.5)
    assert resampling.mean_stderr([1.0, 2.0], [0, 0]) is None


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say() -> None:
    draw = np.random.default_rng(9)
    inside = 0
    for _ in range(200):
        golds = draw.normal(size=80)
        pairs = list(zip(golds.tolist(), (golds + draw.normal(size=80)).tolist(), strict=True))
        value = resampling.FIGURES["pearson"](pairs)
        found = resampling.draws(resampling.FIGURES["pearson"], pairs, list(range(80)), 100)
        low, high = np.percentile(found, [2.5, 97.5])
        inside += low <= 0.5**0.5 <= high
        assert low <= value <= high
    assert 0.89 <= inside / 200 <= 0.985


def test_a_share_of_clustered_items_has_wilson_s_interval_of_fewer_items() -> None:
    values = [float(i // 5 % 2) for i in range(100)]
    clusters = [i // 5 for i in range(100)]
    _, low, high = resampling.error_and_interval("acc", 0.5, values, clusters)
    _, apart_low, apart_high = resampling.error_and_interval("acc", 0.5, values, list(range(100)))
    assert low is not None
    assert apart_low is not None
    assert high - low > 1.8 * (apart_high - apart_low)


def test_scores_without_touched_items() -> None:
    lines = [{"index": i, "metrics": {"acc": float(i < 4)}, "cluster": str(i)} for i in range(10)]
    found = resampling.without({"main_metric": "acc"}, lines, {0, 1, 9})
    assert (found["all"], found["clean"], found["clean_items"]) == (0.4, pytest.approx(2 / 7), 7)
    assert found["clean_stderr"] > 0
    assert resampling.without({"main_metric": "acc"}, lines, set(range(10)))["clean"] is None


def test_the_interval_of_a_mean_of_shares_stays_a_share() -> None:
    values = [0.0] * 9 + [0.3]
    stderr, low, high = resampling.error_and_interval("char_f1", 0.03, values, list(range(10)))
    assert (stderr, low) == (pytest.approx(0.03), 0.0)
    assert high == pytest.approx(0.03 + 1.96 * 0.03, abs=1e-3)
    _, low, _ = resampling.error_and_interval("difference", -0.01, [-0.1, *values], list(range(11)))
    assert low is not None
    assert low < 0
