"""A release: model, certificate, cards, report, chronicle and record in one folder that a stranger can check."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmjp_train import __version__
from llmjp_train.checkpoint.listing import CheckpointInfo
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.compose import load_config
from llmjp_train.errors import UserError
from llmjp_train.publish.export import MAX_SHARD, export, plan
from llmjp_train.publish.facts import Facts, facts
from llmjp_train.publish.parity import Progress
from llmjp_train.publish.place import check_place, clear_leftovers, partial_folder, replace_folder
from llmjp_train.publish.redact import Redaction, redaction
from llmjp_train.publish.release_folder import (
    MANIFEST,
    RECORD,
    REPORT,
    SCHEMA,
    cards,
    chronicles,
    write_sums,
)
from llmjp_train.publish.report import render
from llmjp_train.publish.verification import Check, check_arithmetic
from llmjp_train.runlog.reading import config_values, run_state
from llmjp_train.runlog.record import BESIDE, RunRecord


@dataclass(frozen=True)
class Wanted:
    """What a release is to state and hold."""

    licence: str | None = None
    """Hugging Face's identifier of the model's licence; none: listed as missing."""
    languages: Sequence[str] = ("ja",)
    dtype: str = "bfloat16"
    max_shard_bytes: int = MAX_SHARD
    keep_names: bool = False
    """Leave users, hosts, folders and secrets as the record has them."""


@dataclass(frozen=True)
class Released:
    """A finished release."""

    folder: Path
    missing: list[str]
    checks: list[Check]


def release(
    run: Path,
    checkpoint: CheckpointInfo,
    out: Path,
    wanted: Wanted,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Released:
    """Write a release of one checkpoint; built aside, moved into place whole.

    Cards, report and chronicle are made from the copy of the record in the release, so that whoever has the release
    can make them again and compare.

    Raises:
        UserError: the run is live, two places disagree (both shown), or the place does not serve.
        ParityError: the exported model is not the checkpoint's.
    """
    out = out.absolute()
    record = RunRecord(run)
    state, reason = run_state(run, record.read_events())
    if state == "running":
        raise UserError(f"{run} is running ({reason}): its record still grows; stop it first (llmjp stop)")
    config = load_config(run / "config.yaml")
    clear_leftovers(out)
    check_place(out, force)
    size = sum(shard.bytes for shard in plan(config.model, wanted.dtype, wanted.max_shard_bytes))
    saved = run / "tokenizer"
    with partial_folder(out, size, "release") as partial:
        export(
            CheckpointReader(checkpoint.path),
            config,
            saved if saved.is_dir() else None,
            partial,
            dtype=wanted.dtype,
            max_shard_bytes=wanted.max_shard_bytes,
            source={"run": config.name, "step": checkpoint.step, "checkpoint": checkpoint.path.name},
            progress=progress,
        )
        rules = None if wanted.keep_names else redaction(record)
        copy = copy_record(record, partial / RECORD, checkpoint.step, rules)
        found = facts(copy)
        _write_manifest(partial, found, checkpoint, wanted)
        write_pages(partial, found, wanted)
        checks = check_arithmetic(partial)
        wrong = [f"{check.name}: {check.said}" for check in checks if not check.passed]
        if wrong:
            raise UserError(
                "the release was not made, since two places disagree:\n  "
                + "\n  ".join(wrong)
                + "\nFind out which is right; nothing was written"
            )
        write_sums(partial)
        replace_folder(partial, out)
    missing: list[str] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["missing"]
    return Released(out, missing, checks)


def copy_record(record: RunRecord, out: Path, step: int, rules: Redaction | None) -> RunRecord:
    """The record up to a checkpoint in another folder: all events, metrics and evaluations up to ``step``.

    Events after it stay: what failed later belongs to the story of the run.
    """
    copy = RunRecord(out)
    hide: Callable[[Any], Any] = (lambda value: value) if rules is None else rules.value
    copy.create(yaml.safe_dump(hide(config_values(record)), allow_unicode=True, sort_keys=False))
    for name in ("environment.json", "data.json"):
        if content := record.read_json(name):
            _write_json(out / name, hide(content))
    # Steps that were taken again among them: they are part of what the training cost.
    rows = {"metrics.jsonl": [row for row in record.read_metrics(latest=False) if row["step"] <= step]}
    rows |= {name: record.read_lines(name) for name in ("events.jsonl", *BESIDE)}
    for name, lines in rows.items():
        if lines:
            text = "".join(json.dumps(hide(line), ensure_ascii=False) + "\n" for line in lines)
            (out / name).write_text(text, encoding="utf-8")
    for name, payload in record.read_evaluations().items():
        if payload.get("step") is not None and payload["step"] <= step:
            _write_json(out / "evaluations" / f"{name}.json", hide(payload))
    return copy


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_manifest(folder: Path, found: Facts, checkpoint: CheckpointInfo, wanted: Wanted) -> None:
    content = {
        "schema": SCHEMA,
        "name": found.summary.name,
        "step": checkpoint.step,
        "tokens": found.summary.tokens,
        "parameters": found.summary.parameters,
        "vocabulary": (found.config.get("model") or {}).get("vocab_size"),
        "checkpoint": {"name": checkpoint.path.name, "layout": checkpoint.layout, "time": checkpoint.time},
        "licence": wanted.licence,
        "languages": list(wanted.languages),
        "dtype": wanted.dtype,
        "names_removed": not wanted.keep_names,
        "missing": missing_facts(found, checkpoint.step, wanted.licence),
        "made_by": f"llmjp-train {__version__}",
    }
    _write_json(folder / MANIFEST, content)


def missing_facts(found: Facts, step: int, licence: str | None) -> list[str]:
    """What a reader would look for and the record does not hold, in words."""
    source = found.environment.get("source") or {}
    missing = []
    if licence is None:
        missing.append("the model's licence (--licence states it)")
    if not found.data:
        missing.append("the data's fingerprints")
    missing += [
        f"licence and origin of data source {name} (llmjp prepare licence=… origin=…)"
        for name, licence in found.licences.items()
        if licence is None
    ]
    if not any(evaluation.step == step for evaluation in found.evaluations):
        missing.append(f"an evaluation of step {step} (llmjp evaluate makes it)")
    if not source.get("commit"):
        missing.append("the source revision of the training code")
    elif source.get("changed"):
        missing.append("the changes that the training code had beside its commit")
    return missing


def write_pages(folder: Path, found: Facts, wanted: Wanted) -> None:
    """The cards, the chronicle and the report."""
    for name, text in (*cards(found, wanted.licence, wanted.languages), *chronicles(found)):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / REPORT).write_text(render(found), encoding="utf-8")
