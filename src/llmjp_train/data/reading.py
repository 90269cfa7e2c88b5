"""Documents from files: JSON lines (plain, gzip, xz, zstd), text, Parquet, and folders of `datasets`."""

import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmjp_train.data.inputs import COMPRESSED, size_of
from llmjp_train.errors import UserError

_BATCH = 1000
_SHALLOW = 500
"""Levels of lists and objects that are read on any stack."""

Record = bytes | str | None
"""A JSON line as bytes, a text as it is, or none where a column holds none."""


@dataclass
class Block:
    """Records that are worked on together; where it begins and ends depends on the input alone."""

    number: int
    file: Path
    first: int
    """Number of its first record in the file, from 1."""
    records: list[Record] = field(default_factory=list)
    size: int = 0
    """Bytes of the records, decompressed."""
    consumed: int = 0
    """Bytes of the file that were read for it."""


class _Zstd(io.RawIOBase):
    """Frames of zstd one after the other; unlike the library's reader it sees that the last is cut off."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw, self._make = raw, zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if self._frame is None or self._frame.eof:
                chunk = chunk or self._raw.read(1 << 18)
                if not chunk:
                    return 0
                self._frame = self._make()
            else:
                chunk = self._raw.read(1 << 18)
                if not chunk:
                    raise EOFError("the last frame is not complete")
            self._ready = self._frame.decompress(chunk)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix.lower() in COMPRESSED and not os.fstat(raw.fileno()).st_size:
        raise EOFError("0 bytes, which no compressed file has")
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(raw, "rb"))
    if path.suffix.lower() == ".xz":
        return cast(BinaryIO, lzma.open(raw, "rb"))
    if path.suffix.lower() == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw), 1 << 18))
    return raw


def records(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    """Records of one file, and how many of its bytes were read when each came (an estimate for folders).

    Raises:
        UserError: the file is damaged, truncated or no UTF-8, cannot be read, or has no such column.
    """
    import pyarrow
    import zstandard

    damage = (
        EOFError,
        lzma.LZMAError,
        gzip.BadGzipFile,
        zlib.error,
        zstandard.ZstdError,
        json.JSONDecodeError,
    )
    try:
        if path.is_dir():
            yield from _dataset(path, text_key)
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path, text_key)
        elif path.suffix.lower() == ".txt":
            # Not read_text(), which would change carriage returns unasked.
            yield path.read_bytes().decode("utf-8-sig"), path.stat().st_size
        else:
            with path.open("rb") as raw, _decompressed(path, raw) as file:
                read = 0
                for line in file:
                    read = read + len(line) if file is raw else raw.tell()
                    yield line, read
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is {_not_utf8(error)}") from error
    except (*damage, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged or truncated ({error}): copy it again") from error
    except OSError as error:  # pyarrow's too, which has no number of an error when the bytes are wrong
        raise UserError(f"{path} cannot be read, or is damaged ({error}): copy it again") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    content: bytes = error.object
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in content[:100]
    return (
        f"not UTF-8 ({error.reason} at byte {error.start + 1}): convert it, for example with "
        f"'iconv -f {'utf-16' if utf16 else 'cp932'} -t utf-8'"
    )


def _dataset(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    from datasets import load_from_disk

    dataset = load_from_disk(str(path))
    _check_column(path, text_key, dataset.features.arrow_schema)
    size, seen = size_of(path), 0
    for batch in dataset.select_columns([text_key]).iter(batch_size=_BATCH):
        for value in batch[text_key]:
            seen += 1
            yield value, size * seen // len(dataset)


def _parquet(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    _check_column(path, text_key, file.schema_arrow)
    size, rows, seen = path.stat().st_size, file.metadata.num_rows, 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=[text_key]):
        for value in batch.column(0).to_pylist():
            seen += 1
            yield value, size * seen // rows


def _check_column(path: Path, text_key: str, schema: Any) -> None:
    from pyarrow import types

    if text_key not in schema.names:
        raise UserError(f"{path} has no column '{text_key}', only {', '.join(schema.names)}: set text_key")
    kind = schema.field(text_key).type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        raise UserError(
            f"column '{text_key}' of {path} holds bytes ({kind}), not text: cast it to string, or set text_key"
        )


def blocks(files: Sequence[Path], text_key: str, size: int) -> Iterator[Block]:
    """Records in blocks of about ``size`` bytes, none over a file's end."""
    number = 0
    for path in files:
        block = Block(number, path, 1)
        seen = before = position = 0
        for seen, (record, position) in enumerate(records(path, text_key), 1):
            block.records.append(record)
            block.size += len(record) if isinstance(record, bytes) else 3 * len(str(record))
            if block.size >= size:
                block.consumed, before = position - before, position
                yield block
                number += 1
                block = Block(number, path, seen + 1)
        if block.records:
            block.consumed = position - before
            yield block
            number += 1


def texts(files: Sequence[Path], text_key: str, told: Callable[[str], None]) -> Iterator[str]:
    """Texts alone; ``told`` hears of malformed records, which are passed over."""
    for place, text, wrong in _parsed(files, text_key):
        if wrong:
            told(f"{place}: {wrong}")
        elif text:
            yield text


def sample(
    files: Sequence[Path], text_key: str, *, texts: int, records: int
) -> tuple[list[str], list[str], int]:
    """The first texts, malformed records with their places, and how many records were looked at for both.

    Args:
        texts: stop after so many.
        records: stop after so many, whatever they hold.
    """
    found: list[str] = []
    malformed: list[str] = []
    seen = 0
    for place, text, wrong in islice(_parsed(files, text_key), records):
        seen += 1
        if wrong:
            malformed.append(f"{place}: {wrong}")
        elif text:
            found.append(text)
        if len(found) >= texts:
            break
    return found, malformed, seen


def _parsed(files: Sequence[Path], text_key: str) -> Iterator[tuple[str, str, str]]:
    """Place, text, and what is wrong, of each record."""
    for path in files:
        for number, (record, _) in enumerate(records(path, text_key), 1):
            yield (f"{path}:{number}", *parse(record, text_key))


def parse(record: Record, text_key: str) -> tuple[str, str]:
    """(text, "") or ("", what is wrong with the record); an empty line is an empty text."""
    if isinstance(record, bytes):
        if not record.strip():
            return "", ""
        try:
            value = json.loads(record.rstrip().decode("utf-8-sig"), parse_int=_any_integer)
        except UnicodeDecodeError as error:
            return "", _not_utf8(error)
        except (json.JSONDecodeError, RecursionError) as error:
            return "", f"no JSON ({error})"
        if isinstance(value, list):
            return "", "a JSON array: write one object a line, for example with 'jq -c .[]'"
        if not isinstance(value, dict) or text_key not in value:
            return "", f"no field '{text_key}'"
        record = value[text_key]
    if not isinstance(record, str):
        return "", f"field '{text_key}' holds {type(record).__name__}, not text"
    try:
        record.encode()
    except UnicodeEncodeError as error:  # a lone half of a surrogate pair, which JSON can spell
        return "", f"text that is no Unicode ({error.reason} at character {error.start})"
    return record, ""


def _any_integer(digits: str) -> int:
    """An integer, whichever: it is no text, and Python would refuse one of more than 4,300 digits."""
    return len(digits)


def parse_all(records: Sequence[Record], text_key: str) -> list[tuple[str, str]]:
    """``parse`` of each record; several times as fast where all of them are well-formed JSON lines."""
    texts = _texts_by_arrow(records, text_key)
    if texts is None:
        return [parse(record, text_key) for record in records]
    found = iter(texts)
    return [(next(found), "") if record and record.strip() else ("", "") for record in records]


def _texts_by_arrow(records: Sequence[Record], text_key: str) -> list[str] | None:
    """Texts of JSON lines, blank ones left out; none where any of them needs a closer look."""
    import pyarrow
    import pyarrow.json

    lines = [record for record in records if isinstance(record, bytes)]
    objects = [line for line in lines if line.strip()]
    # Arrow does not care where lines end. Between a line that ends with } and one that begins with {, JSON can
    # only have the end of a record, so here each line is a record or fails to parse.
    framed = all(line.startswith(b"{") and line.endswith((b"}\n", b"}\r\n", b"}")) for line in objects)
    if len(lines) < len(records) or not objects or not framed:
        return None
    content = b"".join(lines)
    # Arrow looks into no field but the text, and has no limit of depth; where the lines are read one by one
    # they have both, and a record must not depend on what lies beside it.
    if not _decodes(content) or any(parse(line, text_key)[1] for line in objects if _may_be_deep(line)):
        return None
    options = pyarrow.json.ParseOptions(
        explicit_schema=pyarrow.schema([(text_key, pyarrow.string())]), unexpected_field_behavior="ignore"
    )
    block = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
    try:
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(content), read_options=block, parse_options=options
        )
        texts: list[str | None] = table.column(text_key).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError):
        return None
    whole = [text for text in texts if text is not None]
    return whole if len(whole) == len(texts) == len(objects) else None


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"[") + line.count(b"{") > _SHALLOW
