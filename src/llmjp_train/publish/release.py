"""A release: model, certificate, cards, report, chronicle and record in one folder that a stranger can check."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmjp_train.checkpoint.listing import COMMITTED, CheckpointInfo
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.compose import load_config
from llmjp_train.errors import UserError
from llmjp_train.publish.evaluation_page import write_evaluation
from llmjp_train.publish.export import MAX_SHARD, export, plan
from llmjp_train.publish.facts import Facts, facts
from llmjp_train.publish.figures import write_figures
from llmjp_train.publish.parity import Progress
from llmjp_train.publish.place import check_place, clear_leftovers, partial_folder, replace_folder
from llmjp_train.publish.redact import Redaction, redaction
from llmjp_train.publish.release_folder import (
    BEGIN,
    CARDS,
    CITATION,
    END,
    EVALUATION,
    LICENCE,
    LOCK,
    MADE_BY,
    MANIFEST,
    RECORD,
    REPORT,
    SCHEMA,
    additions,
    cards,
    chronicles,
    with_additions,
    write_sums,
)
from llmjp_train.publish.report import render
from llmjp_train.publish.rerun import stored_evaluations
from llmjp_train.publish.upload import revision_name
from llmjp_train.publish.verification import Check, check_arithmetic
from llmjp_train.runlog.reading import config_values, run_state
from llmjp_train.runlog.record import BESIDE, RunRecord


@dataclass(frozen=True)
class Wanted:
    """What a release is to state and hold."""

    licence: str | None = None
    """Hugging Face's identifier of the model's licence; none: listed as missing."""
    licence_text: Path | None = None
    """File with the licence's words; none: listed as missing."""
    authors: Sequence[str] = ()
    """Who is to be cited; none: no CITATION.cff, listed as missing."""
    languages: Sequence[str] = ("ja",)
    dtype: str = "bfloat16"
    max_shard_bytes: int = MAX_SHARD
    live: bool = False
    """Release from a run that still runs: what happens later is not in it."""
    evaluations: Path | None = None
    """A folder of further evaluations, as ``llmjp follow`` leaves them."""
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
    if state == "running" and not wanted.live:
        raise UserError(
            f"{run} is running ({reason}): its record still grows; stop it first (llmjp stop), or say --live: "
            "what happens later is then not in the release"
        )
    config = load_config(run / "config.yaml")
    clear_leftovers(out)
    check_place(out, force)
    added = kept_additions(out)
    if wanted.licence_text is not None and not wanted.licence_text.is_file():
        raise UserError(f"--licence-text {wanted.licence_text}: there is no such file")
    size = sum(shard.bytes for shard in plan(config.model, wanted.dtype, wanted.max_shard_bytes))
    saved = run / "tokenizer"
    with partial_folder(out, size, "release") as partial:
        with _still_there(checkpoint):
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
        copy = copy_record(record, partial / RECORD, checkpoint.step, rules, wanted.evaluations)
        found = facts(copy)
        _write_manifest(partial, found, checkpoint, wanted)
        _write_texts(partial, found, checkpoint, wanted)
        write_pages(partial, found, wanted, added)
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


@contextmanager
def _still_there(checkpoint: CheckpointInfo) -> Iterator[None]:
    """A checkpoint that a live run's retention removes while it is read is told as that.

    Raises:
        UserError: it is gone.
    """
    try:
        yield
    except (OSError, UserError) as error:
        if (checkpoint.path / COMMITTED).is_file():
            raise
        raise UserError(
            f"{checkpoint.path.name} was removed while it was read, as the run's retention says: release a newer "
            "one, or keep its like with checkpoint.keep_steps or checkpoint.keep_every"
        ) from error


def copy_record(
    record: RunRecord, out: Path, step: int, rules: Redaction | None, evaluations: Path | None = None
) -> RunRecord:
    """The record up to a checkpoint in another folder: all events, metrics and evaluations up to ``step``.

    Events after it stay: what failed later belongs to the story of the run.

    Args:
        evaluations: folder of further evaluations; the run's own goes before one of the same name.
    """
    copy = RunRecord(out)
    hide: Callable[[Any], Any] = (lambda value: value) if rules is None else rules.value
    copy.create(yaml.safe_dump(hide(config_values(record)), allow_unicode=True, sort_keys=False))
    for name in ("environment.json", "data.json", "contamination.json"):
        if content := record.read_json(name):
            _write_json(out / name, hide(content))
    # Steps that were taken again among them: they are part of what the training cost.
    rows = {"metrics.jsonl": [row for row in record.read_metrics(latest=False) if row["step"] <= step]}
    rows |= {name: record.read_lines(name) for name in ("events.jsonl", *BESIDE)}
    for name, lines in rows.items():
        if lines:
            text = "".join(json.dumps(hide(line), ensure_ascii=False) + "\n" for line in lines)
            (out / name).write_text(text, encoding="utf-8")
    for folder in (record.path / "evaluations", *([evaluations] if evaluations else [])):
        _copy_evaluations(folder, out / "evaluations", step, hide)
    return copy


def _copy_evaluations(folder: Path, out: Path, step: int, hide: Callable[[Any], Any]) -> None:
    """Results up to ``step`` with their items' lines, which hold no text of the items."""
    for path in sorted(folder.glob("*.json")):
        payload = json.loads(path.read_text(encoding="utf-8"))
        if "tasks" not in payload or payload.get("step") is None or payload["step"] > step:
            continue
        if (out / path.name).exists():
            continue
        _write_json(out / path.name, hide(payload))
        items = folder / payload["items_file"] if payload.get("items_file") else None
        if items is not None and items.is_file():
            shutil.copyfile(items, out / items.name)


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
        "checkpoint": {
            "name": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "layout": checkpoint.layout,
            "time": checkpoint.time,
        },
        "licence": wanted.licence,
        "authors": list(wanted.authors),
        "languages": list(wanted.languages),
        "dtype": wanted.dtype,
        "names_removed": not wanted.keep_names,
        "missing": missing_facts(found, checkpoint.step, wanted),
        "made_by": MADE_BY,
    }
    _write_json(folder / MANIFEST, content)


def missing_facts(found: Facts, step: int, wanted: Wanted) -> list[str]:
    """What a reader would look for and the record does not hold, in words."""
    source = found.environment.get("source") or {}
    missing = []
    if wanted.licence is None:
        missing.append("the model's licence (--licence states it)")
    if wanted.licence_text is None:
        missing.append("the licence's words (--licence-text FILE adds them)")
    if not wanted.authors:
        missing.append("whom to cite (--author NAME, once for each)")
    if not found.environment.get("distributions"):
        missing.append("the versions of all packages")
    if not found.data:
        missing.append("the data's fingerprints")
    missing += [
        f"licence and origin of data source {name} (llmjp prepare licence=… origin=…)"
        for name, licence in found.licences.items()
        if licence is None
    ]
    if not found.contamination:
        missing.append("a search for test items in the training text (llmjp evaluate contamination RUN)")
    if not any(evaluation.step == step for evaluation in found.evaluations):
        missing.append(f"an evaluation of step {step} (llmjp evaluate makes it)")
    if not source.get("commit"):
        missing.append("the source revision of the training code")
    elif source.get("changed"):
        missing.append("the changes that the training code had beside its commit")
    return missing


def write_pages(folder: Path, found: Facts, wanted: Wanted, added: dict[str, dict[str, str]]) -> None:
    """The cards with their figures and what people added to them, the chronicle, evaluations and the report."""
    for name, text in cards(found, wanted.licence, wanted.languages):
        (folder / name).write_text(with_additions(text, added.get(name, {})), encoding="utf-8")
    for name, text in chronicles(found):
        (folder / name).write_text(text, encoding="utf-8")
    write_figures(folder, found)
    for name, payload, lines in stored_evaluations(folder):
        if lines:
            write_evaluation(payload, lines, folder / EVALUATION / name)
    (folder / REPORT).write_text(render(found), encoding="utf-8")


def kept_additions(out: Path) -> dict[str, dict[str, str]]:
    """What people added to the cards of the release that is to be replaced.

    Raises:
        UserError: a card was changed outside its marked additions: it would be lost, and contradicts the record.
    """
    if not (out / MANIFEST).is_file():
        return {}
    for check in check_arithmetic(out, only="cards"):
        if not check.passed:
            raise UserError(
                f"a card in {out} was edited by hand and contradicts the record: {check.said}. Take that back, or "
                f"put what you add between the lines {BEGIN} and {END}: it is kept"
            )
    return {name: additions((out / name).read_text(encoding="utf-8")) for name in CARDS.values()}


def _write_texts(folder: Path, found: Facts, checkpoint: CheckpointInfo, wanted: Wanted) -> None:
    """Licence, citation and the versions of all packages, where they are known."""
    if wanted.licence_text is not None:
        shutil.copyfile(wanted.licence_text, folder / LICENCE)
    if wanted.authors:
        citation = {
            "cff-version": "1.2.0",
            "message": "If you use this model, please cite it as below.",
            "title": f"{found.summary.name}, step {checkpoint.step}",
            "authors": [{"name": name} for name in wanted.authors],
            "date-released": checkpoint.time[:10],
            "version": revision_name({"step": checkpoint.step, "tokens": found.summary.tokens}),
        }
        (folder / CITATION).write_text(yaml.safe_dump(citation, allow_unicode=True, sort_keys=False), "utf-8")
    packages = found.environment.get("distributions") or {}
    if packages:
        lines = [f"{name}=={version}\n" for name, version in packages.items()]
        (folder / LOCK).write_text(f"# Python {found.environment['python']}\n" + "".join(lines), "utf-8")
