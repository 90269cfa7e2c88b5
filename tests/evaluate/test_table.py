"""Tables in the terminal: nothing is cut off on a narrow one, and the notes say what a reader must know."""

import io
from typing import Any

from rich.console import Console

from llmjp_train.evaluate.table import show_results


def payload() -> dict[str, Any]:
    """An evaluation with one task that is not told apart from its baseline."""

    def figures(value: float) -> dict[str, Any]:
        return {"value": value, "stderr": 0.0633, "low": 0.1662, "high": 0.4103, "higher_is_better": True}

    task = {
        "metric": {"acc": figures(0.2708), "acc_norm": figures(0.2917)},
        "main_metric": "acc",
        "majority_baseline": 0.26,
        "chance": 0.2,
        "items": 1100,
        "items_in_all": 1119,
        "licence": "CC-BY-SA-4.0",
        "num_fewshot": 1,
        "seconds": 48.6,
        "truncated": 0,
    }
    whole = {**task, "metric": {"bits_per_byte": figures(2.0972) | {"higher_is_better": False}}}
    whole |= {"main_metric": "bits_per_byte", "majority_baseline": None, "chance": None, "num_fewshot": 0}
    return {
        "model": "runs/tiny-cpu",
        "step": 480,
        "harness": "lm-eval 0.4",
        "seconds": 59.0,
        "tasks": {"jcommonsenseqa": task, "own_texts": whole},
        "skipped": ["jnli: no data here"],
        "settings": {"max_length": 1024},
    }


def shown(width: int) -> str:
    stream = io.StringIO()
    show_results(payload(), Console(file=stream, width=width))
    return stream.getvalue()


def test_no_figure_is_cut_off_on_a_narrow_terminal() -> None:
    text = shown(50)
    assert "…" not in text
    for figure in ("0.166 to 0.410", "bits_per_byte ↓", "1100/1119", "0.271", "0.260"):
        assert figure in text


def test_the_main_metric_comes_first_with_the_task_s_name() -> None:
    found = payload()
    task = found["tasks"]["jcommonsenseqa"]
    task["metric"] = dict(reversed(task["metric"].items()))
    stream = io.StringIO()
    show_results(found, Console(file=stream, width=200))
    rows = [line.split()[:2] for line in stream.getvalue().splitlines() if "acc" in line]
    assert rows == [["jcommonsenseqa", "acc"], ["acc_norm", "0.292"]]


def test_the_notes_tell_examples_chance_and_what_is_not_told_apart() -> None:
    text = shown(200)
    assert (
        "jcommonsenseqa: CC-BY-SA-4.0; 1 example before each; 48.6 s; guessing gives 0.200; not told" in text
    )
    assert "own_texts: CC-BY-SA-4.0; no example; 48.6 s\n" in text
    assert "left out: jnli: no data here" in text
