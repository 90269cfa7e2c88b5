"""Two runs beside each other."""

import json
from pathlib import Path

from helpers.run_records import full_run, new_run, step_row, write_data
from hypothesis import given
from hypothesis import strategies as st

from llmjp_train.runlog.compare import MISSING, Change, LossPair, changes, compare, flat, sample

values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text("ab", min_size=1, max_size=2), values, max_size=4)


@given(mappings, mappings)
def test_changes_are_what_differs_and_nothing_else(
    before: dict[str, object], after: dict[str, object]
) -> None:
    found = changes(before, after)
    assert (found == []) == (before == after)
    assert all(flat(before).get(c.key, MISSING) == c.before != c.after for c in found)
    mirrored = {(c.key, c.after, c.before) for c in changes(after, before) if _plain(c)}
    assert {(c.key, c.before, c.after) for c in found if _plain(c)} == mirrored


def _plain(change: Change) -> bool:
    return not isinstance(change.before, dict) and not isinstance(change.after, dict)


def test_a_run_equals_itself(tmp_path: Path) -> None:
    record = full_run(tmp_path / "a", steps=40)
    found = compare(record, record)
    assert (found.config, found.environment, found.data) == ([], [], [])
    assert len(found.losses) == 40
    assert found.first_different_step is None
    assert found.largest_gap == 0.0
    assert [pair.step for pair in found.validations] == [20, 40]


def test_what_differs_is_named(tmp_path: Path) -> None:
    a, b = new_run(tmp_path / "a"), new_run(tmp_path / "b", seed=7)
    write_data(a)
    for step in range(1, 6):
        step_row(a, step, 5.0)
        if step > 1:
            step_row(b, step, 5.0 if step < 4 else 4.75)
    step_row(a, 6, float("nan"))
    step_row(b, 6, 4.0)
    found = compare(a, b)
    assert Change("seed", 1, 7) in found.config
    assert {change.key for change in found.config} == {"seed", "run_dir"}
    assert Change("data.sources.wiki.tokens", 1_234_567, MISSING) in found.data
    assert [pair.step for pair in found.losses] == [2, 3, 4, 5, 6]
    assert found.losses[-1] == LossPair(6, None, 4.0)
    assert found.first_different_step == 4
    assert found.largest_gap == 0.25


@given(st.integers(0, 200))
def test_a_sample_keeps_the_ends(count: int) -> None:
    pairs = [LossPair(step, 1.0, 1.0) for step in range(count)]
    found = sample(pairs)
    assert len(found) == min(count, 12)
    assert found[:1] == pairs[:1]
    assert found[-1:] == pairs[-1:]
    assert [p.step for p in found] == sorted({p.step for p in found})


def test_curves_are_told_apart_where_the_gap_is_larger_than_their_scatter(tmp_path: Path) -> None:
    """A gap that opens late counts from there; one that closes again, or drowns in the scatter, does not."""
    rough = [6.0 + 0.3 * (-1) ** step for step in range(1, 101)]
    late = [loss - (0.8 if step > 60 else 0.0) for step, loss in enumerate(rough, 1)]
    closed = [loss - (0.8 if 20 < step <= 60 else 0.0) for step, loss in enumerate(rough, 1)]
    small = [loss - 0.1 for loss in rough]
    records = {}
    for name, losses in (("rough", rough), ("late", late), ("closed", closed), ("small", small)):
        records[name] = new_run(tmp_path / name)
        for step, loss in enumerate(losses, 1):
            records[name].metrics(step=step, tokens=8 * step, loss=loss)
    apart = compare(records["rough"], records["late"]).apart_from
    assert apart is not None
    assert 65 < apart.step < 80
    for name in ("rough", "closed", "small"):
        assert compare(records["rough"], records[name]).apart_from is None, name


def test_code_that_was_changed_beside_its_commit_is_not_called_the_same(tmp_path: Path) -> None:
    a = full_run(tmp_path / "a", steps=40)
    path = a.path / "environment.json"
    found = a.read_json("environment.json")
    path.write_text(json.dumps(found | {"source": {"commit": "c" * 40, "changed": True}}))
    assert compare(a, a).code == []
    assert compare(a, a).unknown == {"code": "changes that were not committed are not recorded"}
