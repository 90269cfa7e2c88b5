"""Test items in training text: NFKC character 13-grams, and the share of an item's that one document holds.

Exact paragraph matching misses an item in another layout ("TITLE [SEP] ..."), and any single shared 13-gram
flags stock phrases: 63 of 3,979 encyclopaedia leads hit JSQuAD's contexts, none with a quarter of their
13-grams. So an item counts as found where one document holds a large share of the 13-grams of its longest text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmjp_train.evaluate.tasks import TaskFile

SIZE = 13
SHARE = 0.7
LEAST = 20
"""Shorter texts (a title, a choice) say nothing: they are not looked for."""
WINDOW, OVERLAP = 1 << 18, 1 << 13
_SPACES = re.compile(r"\s+")
_BASE = 0x9E3779B97F4A7C15
_BUCKETS = 24

Hashes = "np.ndarray[Any, np.dtype[np.uint64]]"


def plain(text: str) -> str:
    """NFKC, without white space, lower case: layout and width do not hide a copy."""
    return _SPACES.sub("", unicodedata.normalize("NFKC", text)).lower()


def grams(text: str) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """A 64-bit hash of each 13 characters of a plain text, in their order; empty for a shorter one."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < SIZE:
        return np.zeros(0, dtype=np.uint64)
    count = len(codes) - SIZE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SIZE):
        hashes = hashes * np.uint64(_BASE) + codes[place : place + count] + np.uint64(1)
    # The top bits choose a bucket: mix them.
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(32))


def telling(task: TaskFile, doc: dict[str, Any]) -> str:
    """The longest text that an item's prompt shows (a passage, a question, a sentence); empty: none is long enough.

    Not a shorter one beside it: a question may well be worded as its passage, or another text, has it.
    """
    shown = " ".join(
        str(task.settings.get(key, "")) for key in ("doc_to_text", "doc_to_choice", "doc_to_target")
    )
    words = set(re.findall(r"\w+", shown))
    found = [plain(value) for key, value in doc.items() if key in words and isinstance(value, str)]
    longest = max(found, key=len, default="")
    return longest if len(longest) >= LEAST else ""


@dataclass
class Touched:
    """An item that a training document holds."""

    task: str
    index: int
    """Place among the task's items."""
    share: float
    """Of its 13-grams."""
    document: int
    """Number of the document, from 0."""
    span: str
    """From the first to the last 13-gram in the document, plain, at most 200 characters."""


@dataclass
class Report:
    """What one pass over the training text found."""

    documents: int = 0
    characters: int = 0
    items: dict[str, int] = field(default_factory=dict)
    """Items of each task."""
    too_short: dict[str, int] = field(default_factory=dict)
    """Items of each task that have no text long enough to be looked for."""
    touched: list[Touched] = field(default_factory=list)
    share: float = SHARE

    def of(self, task: str) -> set[int]:
        """Places of a task's touched items."""
        return {each.index for each in self.touched if each.task == task}


class Index:
    """The 13-grams of all items. Memory: 8 bytes a distinct gram, 4 each time that a text has it, 16 MiB."""

    def __init__(self, tasks: Sequence[TaskFile]) -> None:
        self.owners: list[list[tuple[str, int]]] = []
        """Tasks and places of the items that each text tells of."""
        numbers: dict[tuple[str, str], int] = {}
        self.report_items: dict[str, int] = {}
        self.report_short: dict[str, int] = {}
        hashes: list[Any] = []
        units: list[Any] = []
        for task in tasks:
            docs = task.scored()
            self.report_items[task.name] = len(docs)
            for place, doc in enumerate(docs):
                text = telling(task, doc)
                if not text:
                    self.report_short[task.name] = self.report_short.get(task.name, 0) + 1
                    continue
                # Items on one passage share their grams: they are found together.
                key = (task.name, text)
                if key not in numbers:
                    numbers[key] = len(self.owners)
                    self.owners.append([])
                    distinct = np.unique(grams(text))
                    hashes.append(distinct)
                    units.append(np.full(len(distinct), numbers[key], dtype=np.int32))
                self.owners[numbers[key]].append((task.name, place))
        flat = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
        unit = np.concatenate(units) if units else np.zeros(0, dtype=np.int32)
        self.sizes = np.bincount(unit, minlength=len(self.owners))
        order = np.argsort(flat, kind="stable")
        self.unit = unit[order]
        self.grams, self.starts = np.unique(flat[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(flat))
        self.buckets = np.zeros(1 << _BUCKETS, dtype=bool)
        self.buckets[self._bucket(self.grams)] = True

    @property
    def nbytes(self) -> int:
        """Memory of the index in bytes; it does not grow with the training text."""
        arrays = (self.unit, self.grams, self.starts, self.ends, self.buckets, self.sizes)
        return int(sum(array.nbytes for array in arrays))

    @staticmethod
    def _bucket(hashes: Any) -> Any:
        return (hashes >> np.uint64(64 - _BUCKETS)).astype(np.int64)

    def found_in(self, text: str, share: float) -> Iterator[tuple[int, float, int, int]]:
        """(text, share, first and last place) of each text of which ``text`` holds enough."""
        hashes = grams(text)
        places = np.flatnonzero(self.buckets[self._bucket(hashes)])
        at = np.searchsorted(self.grams, hashes[places])
        at[at == len(self.grams)] = 0
        hit = self.grams[at] == hashes[places] if len(self.grams) else np.zeros(0, dtype=bool)
        places, at = places[hit], at[hit]
        if not len(at):
            return
        distinct, first = np.unique(at, return_index=True)
        counts = self.ends[distinct] - self.starts[distinct]
        rows = np.repeat(np.arange(len(distinct)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        units = self.unit[self.starts[distinct][rows] + offsets]
        shares = np.bincount(units, minlength=len(self.sizes)) / np.maximum(self.sizes, 1)
        for unit in np.flatnonzero(shares >= share):
            where = places[first[rows[units == unit]]]
            yield int(unit), float(shares[unit]), int(where.min()), int(where.max())


def search(index: Index, texts: Iterable[str], share: float = SHARE) -> Report:
    """One pass over the training text.

    Args:
        texts: the documents; each is looked at alone, long ones in overlapping windows.
        share: least share of an item's 13-grams in one document (or window).
    """
    report = Report(items=index.report_items, too_short=index.report_short, share=share)
    best: dict[tuple[str, int], Touched] = {}
    for number, raw in enumerate(texts):
        report.documents += 1
        text = plain(raw)
        report.characters += len(text)
        for start in range(0, max(1, len(text) - OVERLAP), WINDOW - OVERLAP):
            window = text[start : start + WINDOW]
            for unit, found, first, last in index.found_in(window, share):
                span = window[first : last + SIZE][:200]
                for owner in index.owners[unit]:
                    if owner not in best or best[owner].share < found:
                        best[owner] = Touched(*owner, round(found, 4), number, span)
    report.touched = sorted(best.values(), key=lambda each: (each.task, each.index))
    return report
