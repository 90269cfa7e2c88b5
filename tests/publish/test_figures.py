"""The card's figures: what is drawn, in which words, and that it can be drawn."""

from pathlib import Path

from helpers.run_records import full_run, new_run, payload

from llmjp_train.publish.facts import facts
from llmjp_train.publish.figures import figures, write_figures


def test_loss_rate_and_tasks_over_tokens_with_incidents(tmp_path: Path) -> None:
    record = full_run(tmp_path / "run")
    for step, accuracy in ((60, 0.2), (80, 0.3)):
        record.write_evaluation(f"step-{step:08d}-quick", payload(record.path, step, accuracy))
    found = facts(record)
    drawn = {figure.name: figure for figure in figures(found)}
    assert list(drawn) == [
        "loss.png",
        "learning-rate.png",
        "jcommonsenseqa-acc.png",
        "own_text-bits_per_byte.png",
    ]
    tokens = found.steps[0]["tokens"], found.steps[-1]["tokens"]
    loss = drawn["loss.png"].words
    assert f"at {tokens[0]:,} tokens" in loss["en"]
    assert f"{tokens[1]:,} トークンで" in loss["ja"]
    assert "incidents marked" in loss["en"]
    assert "件に印" in loss["ja"]
    task = drawn["jcommonsenseqa-acc.png"].words
    assert task["en"].startswith("jcommonsenseqa, acc with 95 % intervals: 0.22 at ")
    assert "0.35 at " in task["en"]
    assert "95 % 区間つき" in task["ja"]
    written = write_figures(tmp_path, found)
    assert [path.name for path in written] == list(drawn)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_run_without_steps_has_none(tmp_path: Path) -> None:
    record = new_run(tmp_path / "run")
    assert figures(facts(record)) == []
    assert write_figures(tmp_path, facts(record)) == []
    assert not (tmp_path / "figures").exists()
