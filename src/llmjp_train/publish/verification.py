"""Checks of a release that need nothing but the release: for whoever makes it and for whoever gets it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from llmjp_train.config.compose import load_config
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.phases import phase_at, phases
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.tokenizers import load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.model.hf import Entry, entries
from llmjp_train.publish import parity
from llmjp_train.publish.facts import Facts, facts
from llmjp_train.publish.parity import CERTIFICATE, Progress
from llmjp_train.publish.release_folder import (
    MADE_BY,
    RECORD,
    SUMS,
    additions,
    cards,
    chronicles,
    digest,
    files_of,
    read_manifest,
    without_additions,
)
from llmjp_train.publish.rerun import SAMPLE, item_problems, rerun, stored_evaluations
from llmjp_train.publish.weights import FolderTensors
from llmjp_train.runlog.record import RunRecord

LEVELS = ("hashes", "arithmetic", "layers", "whole")
"""How far a release can be checked, each with all before it."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    level: str
    name: str
    passed: bool
    said: str
    """What was found, with both values where two places disagree."""


def level_reached(checks: list[Check]) -> str:
    """The highest level up to which every check was made and passed; ``none`` where already the first failed."""
    reached = "none"
    for level in LEVELS:
        own = [check for check in checks if check.level == level]
        if not own or not all(check.passed for check in own):
            return reached
        reached = level
    return reached


class FolderReader:
    """A Hugging Face folder's weights under our logical names, as a checkpoint's reader gives masters."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._stored = FolderTensors(folder)
        self._entries = {name: entry for entry in entries(config.model) for name in entry.sources}

    def names(self) -> list[str]:
        """Logical names, as in a checkpoint."""
        return [f"master.{name}" for name in self._entries]

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape."""
        return tuple(self.read(name).shape)

    def read(self, name: str) -> Tensor:
        """A parameter as the folder has it."""
        logical = name.removeprefix("master.")
        entry: Entry = self._entries[logical]
        parts = entry.split(self._stored.read(entry.name))
        return dict(zip(entry.sources, parts, strict=True))[logical]


def check_hashes(folder: Path) -> list[Check]:
    """Every file against SHA256SUMS and the certificate: none altered, missing or added."""
    path = folder / SUMS
    if not path.is_file():
        return [Check("hashes", SUMS, False, "is missing: nothing says what the files were")]
    lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    stated = {line[1]: line[0] for line in lines if len(line) == 2}
    held = {file.relative_to(folder).as_posix(): file for file in files_of(folder)}
    problems = [f"{name} is missing" for name in sorted(stated.keys() - held.keys())]
    problems += [f"{name} is not listed" for name in sorted(held.keys() - stated.keys())]
    found = {name: digest(held[name]) for name in sorted(stated.keys() & held.keys())}
    problems += [f"{name} was altered" for name, value in found.items() if value != stated[name]]
    said = "; ".join(problems) or f"{len(found)} files are as they were released"
    return [Check("hashes", SUMS, not problems, said)]


class _Arithmetic:
    """The release's places that must say the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.certificate = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        self.record = RunRecord(folder / RECORD)
        self.config = load_config(folder / RECORD / "config.yaml")

    @cached_property
    def facts(self) -> Facts:
        """The record, read."""
        return facts(self.record)

    def same(self, name: str, places: dict[str, Any]) -> Check:
        """One value in several places; a place that holds none (``None``) does not count."""
        held = {place: value for place, value in places.items() if value is not None}
        agree = len({json.dumps(value) for value in held.values()}) == 1
        if agree:
            return Check("arithmetic", name, True, f"{next(iter(held.values()))} in {', '.join(held)}")
        said = ", ".join(f"{value} in {place}" for place, value in held.items())
        return Check("arithmetic", name, False, said or "is nowhere")

    def parameters(self) -> Check:
        """Counted from the tensors, from the configuration, as stated."""
        stored = FolderTensors(self.folder)
        counted = sum(torch.Size(stored.shape(name)).numel() for name in stored.files)
        derived = self.facts.derived
        return self.same("parameters", {
            "the tensors": counted,
            "record/config.yaml": derived.parameters if derived else None,
            "release.json": self.manifest["parameters"],
        })  # fmt: skip

    def vocabulary(self) -> Check:
        """Of the model, by every file that says it; the tokenizer must fit in."""
        said = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return self.same("vocabulary", {
            "config.json": said["vocab_size"],
            "record/config.yaml": self.config.model.vocab_size,
            "release.json": self.manifest["vocabulary"],
        })  # fmt: skip

    def tokenizer(self) -> Check:
        """The folder's tokenizer is the one that the run was trained with."""
        found = load_tokenizer(TokenizerConfig(name="released", path=str(self.folder)))
        return self.same("tokenizer", {
            "the folder": found.fingerprint,
            "parity.json": self.certificate["tokenizer"]["fingerprint"],
            "record/data.json": (self.facts.data.get("tokenizer") or {}).get("fingerprint"),
        })  # fmt: skip

    def step(self) -> Check:
        """Of the checkpoint, by every file that says it."""
        # The last row need not be of the last step where not every step is logged.
        every_step = self.config.metrics.every == 1
        return self.same("step", {
            "release.json": self.manifest["step"],
            "parity.json": self.certificate["source"].get("step"),
            "record/metrics.jsonl": self.facts.steps[-1]["step"] if every_step and self.facts.steps else None,
        })  # fmt: skip

    def layout(self) -> Check:
        """Of the start that saved the released checkpoint, by the checkpoint and by the start."""
        epoch = int(self.manifest["checkpoint"]["name"].rpartition("epoch-")[2])
        saved = self.manifest["checkpoint"]["layout"]
        starts = [event["layout"] for event in self.facts.starts if event.get("epoch") == epoch]
        started = {key: starts[-1].get(key) for key in saved} if starts else None
        return self.same("layout", {"release.json": saved, "record/events.jsonl": started})

    def tokens(self) -> Check:
        """Sequences and tokens of every logged step, by the batch sizes of the configuration."""
        table = phases(self.config)
        for row in self.facts.steps:
            phase = phase_at(table, row["step"] - 1)
            for name, wanted in (
                ("samples", phase.samples_at(row["step"])),
                ("tokens", phase.tokens_at(row["step"])),
            ):
                if row.get(name) != wanted:
                    said = f"{name} at step {row['step']}: {row.get(name)} in the metrics, {wanted} by config.yaml"
                    return Check("arithmetic", "batches", False, said)
        last = self.facts.steps[-1]["tokens"] if self.facts.steps else None
        return self.same("tokens", {"record/metrics.jsonl": last, "release.json": self.manifest["tokens"]})

    def chain(self) -> Check:
        """Each resume goes on from a checkpoint that an earlier start saved."""
        saves: dict[str, str | None] = {}
        epochs: set[int] = set()
        problems = []
        for event in self.facts.events:
            if event["kind"] in ("start", "resume", "fork"):
                origin = event.get("origin") or {}
                if event["kind"] == "resume":
                    problems += self._unsaved(origin, f"the resume at step {event['step']} is from", saves)
                epochs.add(event.get("epoch", 0))
            elif event["kind"] == "save":
                saves[event["folder"]] = event.get("sha256")
                epoch = int(event["folder"].rpartition("epoch-")[2])
                if epoch not in epochs:
                    problems.append(f"{event['folder']} was saved by start {epoch}, of which nothing is told")
        released = {"checkpoint": self.manifest["checkpoint"]["name"]} | self.manifest["checkpoint"]
        problems += self._unsaved(released, "the release is of", saves)
        said = (
            "; ".join(problems) or f"{len(epochs)} starts, {len(saves)} saves, each resume from one of them"
        )
        return Check("arithmetic", "chain of resumes", not problems, said)

    @staticmethod
    def _unsaved(origin: dict[str, Any], what: str, saves: dict[str, str | None]) -> list[str]:
        """What is wrong with a checkpoint that something came from; both hashes count where both are recorded."""
        name, digest = origin.get("checkpoint"), origin.get("sha256")
        if name not in saves:
            return [f"{what} {name}, which no start saved"]
        saved = saves[name]
        if digest and saved and digest != saved:
            return [f"{what} {name} with sha256 {digest[:16]}…, and what was saved has {saved[:16]}…"]
        return []

    def items(self) -> Check:
        """Each metric again from its items' values, each item's choice from its log-likelihoods."""
        counted, problems = 0, []
        for name, payload, lines in stored_evaluations(self.folder):
            for task, result in payload["tasks"].items():
                mine = [line for line in lines if line["task"] == task]
                counted += len(mine)
                problems += [f"{name}: {task}: {wrong}" for wrong in item_problems(result, mine)]
        said = "; ".join(problems[:5]) or f"{counted} items give the stated figures"
        return Check("arithmetic", "evaluation items", not problems, said)

    def cards(self) -> Check:
        """Made again from the record, the cards are the ones in the release: every number comes from there."""
        made = cards(self.facts, self.manifest["licence"], self.manifest["languages"])
        return self._made_again("cards", made, "both follow from the record, word for word")

    def chronicle(self) -> Check:
        """The same of the run's story."""
        agree = "follows from the record, word for word"
        return self._made_again("chronicle", chronicles(self.facts), agree, additions_by_hand=False)

    def _made_again(
        self, name: str, made: Iterator[tuple[str, str]], agree: str, *, additions_by_hand: bool = True
    ) -> Check:
        made_by = self.manifest.get("made_by")
        if made_by != MADE_BY:
            return Check("arithmetic", name, True, f"not made again: {made_by} made them, this is {MADE_BY}")
        wrong, added = [], 0
        for file, text in made:
            held = (self.folder / file).read_text(encoding="utf-8")
            # Of a chronicle the record holds people's words too, as notes: release would not keep others.
            own = without_additions(held) if additions_by_hand else held
            if own != text:
                wrong.append(f"{file}: {_first_difference(own, text)}")
            added += len(additions(held)) if additions_by_hand else 0
        said = "; ".join(wrong) or agree
        if added:
            said += f"; {added} additions by hand, marked as such, which nothing here checks"
        return Check("arithmetic", name, not wrong, said)


def _first_difference(held: str, wanted: str) -> str:
    pairs = zip((*held.splitlines(), None), (*wanted.splitlines(), None), strict=False)
    here, there = (line or "(ends)" for line in next(pair for pair in pairs if pair[0] != pair[1]))
    letters = enumerate(zip(here, there, strict=False))
    same = next((place for place, (a, b) in letters if a != b), min(len(here), len(there)))
    return f"says '{_around(here, same)}' where the record gives '{_around(there, same)}'"


def _around(line: str, place: int) -> str:
    """The part of a line that a reader needs: a page may be one line."""
    first, last = max(0, place - 60), place + 60
    return ("…" if first else "") + line[first:last] + ("…" if last < len(line) else "")


def check_arithmetic(folder: Path, only: str | None = None) -> list[Check]:
    """What two places of a release say of one thing; ``only`` names one of the checks.

    Raises:
        UserError: it is no release, or of a newer version.
    """
    read_manifest(folder)
    try:
        places = _Arithmetic(folder)
    except (UserError, OSError, ValueError) as error:
        return [Check("arithmetic", "files", False, f"cannot be read: {error}")]
    todo: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("parameters", places.parameters),
        ("vocabulary", places.vocabulary),
        ("tokenizer", places.tokenizer),
        ("step", places.step),
        ("layout", places.layout),
        ("tokens", places.tokens),
        ("chain of resumes", places.chain),
        ("evaluation items", places.items),
        ("cards", places.cards),
        ("chronicle", places.chronicle),
    )
    return [_guarded(name, check) for name, check in todo if only in (None, name)]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """What a damaged file breaks is a failed check, not the end of the others."""
    try:
        return check()
    except (UserError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return Check("arithmetic", name, False, f"cannot be read: {error}")


def check_items(folder: Path, *, most: int = SAMPLE) -> tuple[list[Check], list[str]]:
    """Run a sample of the stored evaluation items again on the release's own weights.

    Returns:
        The check, none where nothing could be run; and what was not run, and why.
    """
    manifest = read_manifest(folder)
    stored = [one for one in stored_evaluations(folder) if one[1].get("step") == manifest["step"] and one[2]]
    if not stored:
        return [], [f"evaluation items: the release holds none of step {manifest['step']}"]
    found = rerun(folder, stored, dtype=manifest["dtype"], most=most)
    if not found.items:
        return [], found.left_out
    said = (
        f"{found.items} of {found.stored} run again: log-likelihoods differ by {found.worst:.2f} of what "
        f"{manifest['dtype']} weights may make"
    )
    return [
        Check("whole", "evaluation items", not found.problems, "; ".join(found.problems[:5]) or said)
    ], found.left_out


def check_parity(folder: Path, *, whole: bool | None, progress: Progress | None = None) -> Iterator[Check]:
    """transformers' classes against our decoder on the release's own weights, as `parity.certify` does.

    Args:
        whole: compare the whole model's logits too; none: where the memory allows.
    """
    try:
        manifest = read_manifest(folder)
        config = load_config(folder / RECORD / "config.yaml")
        found = parity.certify(
            folder,
            FolderReader(folder, config),
            config.model,
            dtype=manifest["dtype"],
            whole=whole,
            progress=progress,
        )
    except (UserError, OSError, ValueError, KeyError, SafetensorError) as error:
        yield Check("layers", "parity with transformers", False, f"cannot be computed: {error}")
        return
    problems = "; ".join(found["problems"][:5])
    worst = max((row["relative"] or float("nan") for row in found["layers"]), default=0.0)
    said = f"{len(found['layers'])} layers differ by {worst:.1e} at most, the bound is {parity.LAYER_BOUND:g}"
    yield Check("layers", "parity with transformers", bool(found["passed"]), problems or said)
    if found["whole"] is not None:
        said = f"logits differ by {found['whole']['relative']:.1e}, the bound is {parity.LOGITS_BOUND:g}"
        yield Check("whole", "logits of the whole model", bool(found["passed"]), said)
