"""Token files in Megatron-core's .bin/.idx format: raw ids back to back, and an index of documents.

Index, little-endian, without padding: magic (9 bytes), version u64 = 1, dtype code u8, sequence count u64,
length of document_indices u64; then sequence lengths i32, byte offsets into .bin i64, document_indices i64
(0, and the sequence after each document); optionally a mode byte a sequence.
Source: megatron/core/datasets/indexed_dataset.py of NVIDIA/Megatron-LM.
"""

import hashlib
import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llmjp_train.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Codes of the integer types; 6 and 7 are floating-point and hold no tokens."""
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
LONGEST = 2**31 - 1
"""Tokens of the longest document that the index can hold."""
_CHUNK = 1 << 20

Ids = npt.NDArray[np.int64]
AnyIds = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 ids, else int32: Megatron-core's rule."""
    return np.dtype("<u2" if vocab_size < 65_500 else "<i4")


def pair(prefix: Path) -> tuple[Path, Path]:
    """Paths of the .bin and the .idx file of a prefix."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


class TokenFileWriter:
    """Writes a pair of files; they appear under their names when closed, whole or not at all.

    As a context manager it closes at the end of the block, and drops what was written when that fails.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix, self.dtype = prefix, token_dtype(vocab_size)
        self.num_tokens = 0
        """Tokens added so far."""
        self._vocab_size = vocab_size
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._paths = pair(prefix)
        self._parts = [path.with_name(path.name + ".part") for path in self._paths]
        self._bin = self._parts[0].open("wb")
        self._lengths = array("i")

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def add(self, ids: Sequence[int] | AnyIds) -> None:
        """Append one document.

        Raises:
            UserError: an id outside the vocabulary.
        """
        flat = np.asarray(ids, dtype=np.int64)
        self.add_many(flat, [flat.size])

    def add_many(self, flat: AnyIds, lengths: Sequence[int] | AnyIds) -> None:
        """Append documents of the given lengths whose ids follow each other in ``flat``.

        Raises:
            UserError: an id outside the vocabulary, or a document that is longer than the format allows.
        """
        counts = np.asarray(lengths, dtype=np.int64)
        assert flat.size == counts.sum(), "lengths do not add up to the ids given"
        if flat.size and (flat.min() < 0 or flat.max() >= self._vocab_size):
            wrong = flat.min() if flat.min() < 0 else flat.max()
            raise UserError(
                f"a document after number {self.num_documents} holds id {wrong}, but the vocabulary has "
                f"{self._vocab_size} ids: the tokenizer and its stated size do not match"
            )
        if counts.max(initial=0) > LONGEST:
            raise UserError(
                f"a document has more than {LONGEST} tokens, the longest that .idx can hold: split it"
            )
        self._bin.write(np.ascontiguousarray(flat, dtype=self.dtype).data)
        self._lengths.frombytes(counts.astype(np.intc).tobytes())
        self.num_tokens += int(flat.size)

    def close(self) -> None:
        """Write the index, then give both files their names."""
        _sync(self._bin)
        self._bin.close()
        with self._parts[1].open("wb") as file:
            write_index(file, np.frombuffer(self._lengths, dtype=np.intc), self.dtype)
            _sync(file)
        for part, path in zip(self._parts, self._paths, strict=True):
            part.replace(path)

    def discard(self) -> None:
        """Drop what was written."""
        self._bin.close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def __enter__(self) -> "TokenFileWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_index(file: BinaryIO, lengths: npt.NDArray[np.int32], dtype: np.dtype[Any]) -> None:
    """Write an index for documents of one sequence each, in bounded memory; offsets are 64-bit throughout."""
    count = len(lengths)
    file.write(HEADER.pack(MAGIC, VERSION, CODES[np.dtype(dtype)], count, count + 1))
    file.write(np.ascontiguousarray(lengths, dtype="<i4").data)
    offset = 0
    for start in range(0, count, _CHUNK):
        sizes = lengths[start : start + _CHUNK].astype(np.int64) * dtype.itemsize
        ends = offset + np.cumsum(sizes)
        file.write((ends - sizes).astype("<i8").data)
        offset = int(ends[-1])
    for start in range(0, count + 1, _CHUNK):
        file.write(np.arange(start, min(start + _CHUNK, count + 1), dtype="<i8").data)


class TokenFile:
    """Reads a pair of files through memory maps: opening costs the same for any size."""

    def __init__(self, prefix: Path) -> None:
        """Open and check.

        Raises:
            UserError: a file is missing, truncated, of another version, or the two do not belong together.
        """
        self.prefix = Path(prefix)
        self._bin_path, self._idx_path = pair(self.prefix)
        for path in (self._bin_path, self._idx_path):
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist: make it with 'llmjp prepare', or correct the source's path"
                )
        self.num_tokens = 0
        self._open_index()
        expected = self.num_tokens * self.dtype.itemsize
        actual = self._bin_path.stat().st_size
        if actual != expected:
            what = "is truncated" if actual < expected else "does not belong to its index"
            raise UserError(
                f"{self._bin_path} {what}: it has {actual} bytes, but {self._idx_path.name} lists "
                f"{self.num_tokens} tokens = {expected} bytes; copy both again or run 'llmjp prepare' again"
            )
        self._tokens = np.zeros(0, self.dtype)
        if expected:
            with self._bin_path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._tokens = np.frombuffer(content, dtype=self.dtype)

    def _open_index(self) -> None:
        path, size = self._idx_path, self._idx_path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            code, sequences, documents = self._header(head)
            expected = HEADER.size + 12 * sequences + 8 * documents
            if size not in (expected, expected + sequences):  # modes of multimodal sequences, a byte each
                raise UserError(
                    f"{path} has {size} bytes, but its header ({sequences} sequences, "
                    f"{documents - 1} documents) means {expected}: it is truncated or damaged; copy it again"
                )
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.dtype = np.dtype(DTYPES[code])
        self.num_documents = documents - 1
        self._plain = self.num_documents == sequences  # a sequence a document
        # Views at odd addresses: read them by slices and fancy indices, which copy what they take; take() and
        # searchsorted() would first copy the whole array.
        at = HEADER.size
        self._lengths = np.frombuffer(content, "<i4", sequences, at)
        self._pointers = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
        self._indices = np.frombuffer(content, "<i8", documents, at + 12 * sequences)
        if self._indices[0] != 0 or self._indices[-1] != sequences:
            raise UserError(
                f"{path} has its documents from sequence {self._indices[0]} to {self._indices[-1]} of "
                f"{sequences}: it is damaged, or a merge lost its document_indices; make it again"
            )
        if sequences:
            end = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize
            if end < 0 or end % self.dtype.itemsize:
                raise UserError(
                    f"{path} places the end of its last sequence at byte {end}: its offsets overflowed"
                )
            self.num_tokens = end // self.dtype.itemsize

    def _header(self, head: bytes) -> tuple[int, int, int]:
        """dtype code, sequences, length of document_indices."""
        path = self._idx_path
        if head[: len(OLD_MAGIC)] == OLD_MAGIC:
            raise UserError(
                f"{path} is an index of the older format (TNTIDX): make it again with 'llmjp prepare'"
            )
        if len(head) < HEADER.size or head[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{path} is not a Megatron-core index: it begins with {head[:9]!r}, not {MAGIC!r}"
            )
        _, version, code, sequences, documents = HEADER.unpack(head)
        if version != VERSION:
            raise UserError(
                f"{path} has index version {version}, but only version {VERSION} is known: "
                "make it again with 'llmjp prepare', or with Megatron-core's own tools"
            )
        if code not in DTYPES:
            raise UserError(f"{path} has dtype code {code}; token files have one of {sorted(DTYPES)}")
        if documents < 1:
            raise UserError(f"{path} has an empty document_indices: it is damaged; copy it again")
        return code, sequences, documents

    def starts_of(self, documents: Ids) -> Ids:
        """First tokens of documents; the end of the file for ``num_documents``."""
        sequences = documents if self._plain else self._indices[documents]
        inside = sequences < len(self._pointers)
        if inside.all():
            return self._pointers[sequences] // self.dtype.itemsize
        found = np.full(sequences.shape, self.num_tokens, dtype=np.int64)
        found[inside] = self._pointers[sequences[inside]] // self.dtype.itemsize
        return found

    @property
    def document_offsets(self) -> Ids:
        """First token of each document, and the end: (documents + 1,), copied whole, for small files."""
        return self.starts_of(np.arange(self.num_documents + 1, dtype=np.int64))

    def documents_before(self, tokens: Ids) -> Ids:
        """How many documents begin before each of ``tokens``: a binary search on disk, all at once."""
        low = np.zeros(tokens.shape, dtype=np.int64)
        high = np.full(tokens.shape, self.num_documents, dtype=np.int64)
        for _ in range(self.num_documents.bit_length()):
            middle = (low + high) >> 1
            before = (self.starts_of(middle) < tokens) & (low < high)
            low = np.where(before, middle + 1, low)
            high = np.where(before, high, middle)
        return low

    def starts_within(self, starts: Ids, length: int) -> tuple[Ids, Ids]:
        """Documents that begin after the first token of each stretch ``starts[row] .. starts[row] + length``.

        Returns:
            Rows, and columns (1 to ``length - 1``) in their stretch, of the documents' first tokens.
        """
        bounds = self.documents_before(np.concatenate([starts + 1, starts + length]))
        first, end = bounds[: len(starts)], bounds[len(starts) :]
        counts = end - first
        rows = np.repeat(np.arange(len(starts), dtype=np.int64), counts)
        offsets = np.arange(len(rows), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.starts_of(first[rows] + offsets) - starts[rows]

    def read(self, start: int, count: int) -> Ids:
        """(count,) ids from token ``start`` on; fewer at the end of the file."""
        return self._tokens[start : start + count].astype(np.int64)

    def read_into(self, start: int, out: Ids) -> int:
        """Fill ``out`` with the ids from token ``start`` on; how many there were."""
        found = self._tokens[start : start + len(out)]
        out[: len(found)] = found
        return len(found)

    def chunks(self, size: int = 1 << 24) -> Iterator[Ids]:
        """All ids, ``size`` at a time."""
        for start in range(0, self.num_tokens, size):
            yield self.read(start, size)

    def problems(self) -> list[str]:
        """What a reading of the whole index finds wrong (opening checks its ends alone)."""
        found = []
        end = 0
        for start in range(0, len(self._pointers), _CHUNK):
            sizes = self._lengths[start : start + _CHUNK].astype(np.int64) * self.dtype.itemsize
            pointers = self._pointers[start : start + _CHUNK].astype(np.int64)
            due = end + np.cumsum(sizes) - sizes
            if (sizes < 0).any():
                found.append(f"sequence {start + int((sizes < 0).argmax())} has a negative length")
            if (pointers != due).any():
                at = int((pointers != due).argmax())
                found.append(f"sequence {start + at} begins at byte {pointers[at]}, not at {due[at]}")
            if found:
                return found
            end = int(due[-1] + sizes[-1])
        for start in range(0, self.num_documents, _CHUNK):
            steps = np.diff(self._indices[start : start + _CHUNK + 1].astype(np.int64))
            if (steps < 0).any():
                found.append(f"document {start + int((steps < 0).argmax())} ends before it begins")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over both sizes and 64 blocks spread over each file: cheap at any size."""
        digest = hashlib.sha256()
        for path in (self._bin_path, self._idx_path):
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                for block in range(64):
                    file.seek(max(0, size - 4096) * block // 63)
                    digest.update(file.read(4096))
        return digest.hexdigest()
