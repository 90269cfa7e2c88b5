"""Shards: what one unit of work makes of its documents, and how shards become one shuffled pair of files.

A shard is NUMBER.ids (token ids), NUMBER.docs (a row a document) and NUMBER.json (counts and sha256), its
documents sorted by a key that the text and the seed decide. Merging goes through the keys in stretches
that fit memory, so that the order of documents depends neither on the workers nor on the shards' size.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmjp_train.config.prepare import PrepareConfig, Unicode
from llmjp_train.data.progress import Progress
from llmjp_train.data.reading import Block, parse_all
from llmjp_train.data.token_files import AnyIds, TokenFileWriter, token_dtype
from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError

LOCATED = 100
"""Malformed records of a shard that are located; all are counted."""
STRETCH = 1 << 26
"""Tokens that are shuffled in memory at once."""
DOCUMENT = np.dtype(
    [
        ("key", "<u8"),  # place in the shuffled order
        ("split", "<u8"),  # hash of the text, which decides about validation
        ("start", "<i8"),  # first token in the shard
        ("length", "<i4"),  # tokens
        ("leading", "<i4"),  # UTF-8 bytes of the first token
        ("size", "<i8"),  # UTF-8 bytes of the text
    ]
)
_SUFFIXES = (".ids", ".docs")

Documents = npt.NDArray[np.void]


@dataclass(frozen=True)
class Shards:
    """Makes shards in a folder."""

    config: PrepareConfig
    tokenizer: Tokenizer
    folder: Path

    def path(self, number: int) -> Path:
        """Path of a shard without suffix."""
        return self.folder / f"{number:07d}"

    def started(self, number: int) -> bool:
        """Whether an earlier run has left this shard, good or not."""
        return self.path(number).with_suffix(".json").is_file()

    def kept(self, number: int) -> dict[str, Any] | None:
        """Facts of a shard of an earlier run; none when its bytes are not those that were written."""
        path = self.path(number)
        facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        for suffix in _SUFFIXES:
            file = path.with_suffix(suffix)
            if not file.is_file() or _sha256(file) != facts["sha256"][suffix]:
                return None
        return facts | {"kept": True}

    def make(self, block: Block) -> dict[str, Any]:
        """Tokenise a block's documents; facts of the shard."""
        texts: list[str] = []
        malformed: list[str] = []
        wrongs = 0
        for offset, (text, wrong) in enumerate(parse_all(block.records, self.config.text_key)):
            if wrong:
                wrongs += 1
                if len(malformed) < LOCATED:
                    malformed.append(f"{block.file}:{block.first + offset}: {wrong}")
            elif text.strip():
                texts.append(policy(text, self.config))
        ids, documents = self._tokenised(texts)
        path = self.path(block.number)
        digests = {}
        for suffix, content in zip(_SUFFIXES, (ids, documents), strict=True):
            raw = np.ascontiguousarray(content).view(np.uint8).data
            _write(path.with_suffix(suffix), raw)
            digests[suffix] = hashlib.sha256(raw).hexdigest()
        facts = {
            "file": str(block.file),
            "records": len(block.records),
            "consumed": block.consumed,
            "documents": len(documents),
            "empty": len(block.records) - wrongs - len(documents),
            "tokens": len(ids),
            "special": self._special(ids, len(documents)),
            "malformed": wrongs,
            "located": malformed,
            "sha256": digests,
        }
        _write(path.with_suffix(".json"), json.dumps(facts, ensure_ascii=False).encode())
        return facts

    def _tokenised(self, texts: list[str]) -> tuple[AnyIds, Documents]:
        """Ids and rows, both in the order of keys."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        tail = [np.array([self.tokenizer.eod_id], dtype)] if self.config.append_eod else []
        pairs = zip(texts, self.tokenizer.encode_many(texts), strict=True)
        found = [(text.encode(), np.array(ids, dtype)) for text, ids in pairs if ids]
        documents = np.zeros(len(found), dtype=DOCUMENT)
        seed = self.config.seed.to_bytes(8, "little", signed=True)
        leading: dict[int, int] = {}
        for row, (content, ids) in enumerate(found):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            first = int(ids[0])
            if first not in leading:
                leading[first] = self.tokenizer.leading_bytes(first)
            key = hashlib.blake2b(digest, digest_size=8, key=seed).digest()
            documents[row] = (
                _number(key),
                _number(digest[:8]),
                0,
                len(ids) + len(tail),
                leading[first],
                len(content),
            )
        order = np.argsort(documents["key"], kind="stable")
        documents = documents[order]
        documents["start"] = np.cumsum(documents["length"], dtype=np.int64) - documents["length"]
        pieces = [piece for row in order for piece in (found[row][1], *tail)]
        flat = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
        return flat, documents

    def _special(self, ids: AnyIds, documents: int) -> int:
        """Special tokens that the texts hold, other than the appended ends of documents."""
        table = np.zeros(self.tokenizer.vocab_size, dtype=np.bool_)
        table[list(self.tokenizer.special_ids)] = True
        appended = documents if self.config.append_eod and table[self.tokenizer.eod_id] else 0
        return int(table[ids].sum()) - appended


def policy(text: str, config: PrepareConfig) -> str:
    """The text as it is tokenised: newlines and Unicode by the configuration, nothing else changed."""
    if config.unify_newlines:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.unicode is Unicode.nfc:
        return unicodedata.normalize("NFC", text)
    if config.unicode is Unicode.nfkc:
        return unicodedata.normalize("NFKC", text)
    return text


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes | memoryview) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


@dataclass
class Totals:
    """Counts of one of the two outputs."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the text, after newline and Unicode policy."""
    leading_bytes: int = 0
    """Those of them that the first tokens of documents spell."""

    def add(self, rows: Documents) -> None:
        """Count documents."""
        self.documents += len(rows)
        self.tokens += int(rows["length"].sum(dtype=np.int64))
        self.text_bytes += int(rows["size"].sum())
        self.leading_bytes += int(rows["leading"].sum(dtype=np.int64))


def threshold(shards: Sequence[Path], share: float) -> int:
    """Documents whose hash is below this go to validation: ``share`` of them, and where that is not 0 and
    there are two different texts or more, at least one, but not all."""
    wanted = round(share * 2**64)
    if not wanted:
        return 0
    smallest, largest = 2**64, -1
    for path in shards:
        splits = np.fromfile(path.with_suffix(".docs"), dtype=DOCUMENT)["split"]
        if len(splits):
            smallest, largest = min(smallest, int(splits.min())), max(largest, int(splits.max()))
    if smallest == largest:
        return 0  # a single text, however often, is for training
    return min(max(wanted, smallest + 1), largest)


def merge(
    shards: Sequence[Path], bound: int, train: TokenFileWriter, validation: TokenFileWriter
) -> tuple[Totals, Totals]:
    """Write the documents of all shards in the order of their keys; those with a hash below ``bound`` apart.

    Raises:
        UserError: there is no document.
    """
    totals = Totals(), Totals()
    sizes = [path.with_suffix(".ids").stat().st_size // train.dtype.itemsize for path in shards]
    if sum(sizes) == 0:
        raise UserError(
            "the input holds no document: every record is empty or malformed; check input and text_key"
        )
    with Progress("shuffling", sum(sizes), "M tokens", 1e6) as progress:
        for rows, flat in _stretches(shards, train.dtype, 1 + sum(sizes) // STRETCH):
            held_out = rows["split"] < np.uint64(bound) if bound < 2**64 else np.ones(len(rows), np.bool_)
            for held, writer in ((False, train), (True, validation)):
                chosen = rows[held_out == held]
                if len(chosen):
                    ends = chosen["start"] + chosen["length"]
                    texts = [flat[a:b] for a, b in zip(chosen["start"].tolist(), ends.tolist(), strict=True)]
                    writer.add_many(np.concatenate(texts), chosen["length"])
                    totals[held].add(chosen)
            progress.add(len(flat))
    return totals


def _stretches(
    shards: Sequence[Path], dtype: np.dtype[Any], count: int
) -> Iterator[tuple[Documents, AnyIds]]:
    """Documents of each of ``count`` stretches of keys in order, and the ids into which ``start`` points."""
    edges = [2**64 * i // count for i in range(count + 1)]
    inner = np.array(edges[1:-1], dtype=np.uint64)
    cuts = []
    for path in shards:
        keys = np.fromfile(path.with_suffix(".docs"), dtype=DOCUMENT)["key"]
        cuts.append([0, *np.searchsorted(keys, inner).tolist(), len(keys)])
    for number in range(count):
        rows: list[Documents] = []
        flats: list[AnyIds] = []
        filled = 0
        for path, cut in zip(shards, cuts, strict=True):
            first, last = cut[number], cut[number + 1]
            if first == last:
                continue
            found = np.fromfile(
                path.with_suffix(".docs"), DOCUMENT, count=last - first, offset=first * DOCUMENT.itemsize
            )
            begin = int(found["start"][0])
            length = int(found["start"][-1]) + int(found["length"][-1]) - begin
            flats.append(
                np.fromfile(path.with_suffix(".ids"), dtype, count=length, offset=begin * dtype.itemsize)
            )
            found["start"] += filled - begin
            filled += length
            rows.append(found)
        if rows:
            together = np.concatenate(rows)
            # Equal keys are equal texts; the hash settles the almost impossible rest.
            yield together[np.lexsort((together["split"], together["key"]))], np.concatenate(flats)
