"""docs/run-record.md against the code that writes, and against a record that was written."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.run_records import full_run

from llmjp_train.config.root import TrainConfig
from llmjp_train.evaluate.schema import Metric, Payload, TaskResult
from llmjp_train.runlog.reading import INCIDENTS, STARTS
from llmjp_train.runlog.record import SCHEMA, RunRecord


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "run-record.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sources(root: Path) -> dict[str, str]:
    folder = root / "src" / "llmjp_train"
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


def words(text: str) -> set[str]:
    """What a text has between backquotes, split at spaces and dots."""
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.split(r"[ .{}]+", code)}


def test_every_kind_of_event_is_described(page: str, sources: dict[str, str]) -> None:
    table = page[page.index("## events.jsonl") : page.index("## lease/")]
    described = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    written = {kind for text in sources.values() for kind in re.findall(r'\.event\(\s*"(\w+)"', text)}
    assert {"save", "fault", "spike"} <= written
    assert written <= described
    assert {*STARTS, *INCIDENTS, "stop", "end"} <= described


def test_every_key_of_a_step_is_described(page: str, sources: dict[str, str]) -> None:
    tree = ast.parse(sources["train/hooks.py"])
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_figures")
    first = next(n for n in ast.walk(function) if isinstance(n, ast.Dict))
    written = {key.value for key in first.keys if isinstance(key, ast.Constant)}
    assert {"loss", "tokens_per_s", "spike_score"} <= written
    assert written <= words(page[page.index("## metrics.jsonl") : page.index("## events.jsonl")])


def test_every_key_of_an_evaluation_is_described(page: str) -> None:
    described = words(page[page.index("## evaluations/") :])
    for kind in (Payload, TaskResult, Metric):
        assert {field.name for field in fields(kind)} <= described | {"tasks", "metric"}


def test_every_group_of_the_configuration_is_described(page: str) -> None:
    described = words(page[page.index("## config.yaml") : page.index("## environment.json")])
    assert {field.name for field in fields(TrainConfig)} <= described


def test_what_is_written_has_the_documented_form(tmp_path: Path, page: str) -> None:
    record: RunRecord = full_run(tmp_path / "run", steps=40)
    assert f"version **{SCHEMA}** of each" in page
    for name in ("environment.json", "data.json"):
        described = words(page[page.index(f"## {name}") :].split("\n## ")[0])
        assert set(record.read_json(name)) <= described, name
    for name in ("metrics.jsonl", "events.jsonl"):
        for line in (record.path / name).read_text().splitlines():
            row = json.loads(line)
            assert row["schema"] == SCHEMA
            assert {"time", "step"} <= set(row)
    assert all(found["schema"] == SCHEMA for found in record.read_evaluations().values())
    committed = json.loads(next(record.path.glob("checkpoints/*/COMMITTED")).read_text())
    files = {path.name for path in next(record.path.glob("checkpoints/*")).iterdir()}
    described = words(page[page.index("## checkpoints/") :].split("\n## ")[0])
    assert set(committed) <= described
    assert files <= described | {"rank-00000.bin", "state.json", "index.json"}
    epoch = json.loads(next(record.path.glob("lease/epoch-*.json")).read_text())
    assert set(epoch) <= words(page[page.index("## lease/") :].split("\n## ")[0])
