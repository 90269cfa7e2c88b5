"""Documents from files: JSON lines (plain, gzip, xz, zstd), text, Parquet, and folders of `datasets`."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmjp_train.data import catalogue
from llmjp_train.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".txt", ".parquet")
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


def _named(text: str) -> Path:
    """A path, or where the corpus of that name lies."""
    path = Path(text)
    if path.exists():
        return path
    names = catalogue.corpora()
    if text in names:
        return catalogue.get(text)
    raise UserError(
        f"input {text} does not exist and is no corpus by name ({', '.join(names)}): correct input=[…]"
    )


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Files and `datasets` folders of the input, sorted within each folder, each once.

    Raises:
        UserError: an input is missing or has nothing that can be read.
    """
    found: list[Path] = []
    for text in inputs:
        path = _named(text)
        if path.is_file() and not path.name.endswith(SUFFIXES):
            raise UserError(
                f"input {path} is of no known kind; known are {', '.join(SUFFIXES)} and folders of datasets"
            )
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            raise UserError(f"input {path} holds several splits: name them, e.g. input=[{path / splits[0]}]")
        if path.is_file() or (path / "dataset_info.json").is_file():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if not inside:
            raise UserError(f"input folder {path} holds no {', '.join(SUFFIXES)}")
        found.extend(inside)
    if not found:
        raise UserError("no input: give files or folders with input=[FILE,FOLDER]")
    return list(dict.fromkeys(found))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in inside)


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
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(raw, "rb"))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(raw, "rb"))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw), 1 << 18))
    return raw


def records(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    """Records of one file, and how many of its bytes were read when each came (an estimate for folders).

    Raises:
        UserError: the file is damaged or truncated, or has no such column.
    """
    import pyarrow
    import zstandard

    damage = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, UnicodeDecodeError)
    try:
        if path.is_dir():
            yield from _dataset(path, text_key)
        elif path.suffix == ".parquet":
            yield from _parquet(path, text_key)
        elif path.suffix == ".txt":
            # Not read_text(), which would change carriage returns unasked.
            yield path.read_bytes().decode("utf-8-sig"), path.stat().st_size
        else:
            with path.open("rb") as raw, _decompressed(path, raw) as file:
                read = 0
                for line in file:
                    read = read + len(line) if file is raw else raw.tell()
                    yield line, read
    except (*damage, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} is damaged or truncated ({error}): copy it again") from error


def _dataset(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    from datasets import load_from_disk

    dataset = load_from_disk(str(path))
    _check_column(path, text_key, dataset.column_names)
    size, seen = size_of(path), 0
    for batch in dataset.select_columns([text_key]).iter(batch_size=_BATCH):
        for value in batch[text_key]:
            seen += 1
            yield value, size * seen // len(dataset)


def _parquet(path: Path, text_key: str) -> Iterator[tuple[Record, int]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    _check_column(path, text_key, file.schema_arrow.names)
    size, rows, seen = path.stat().st_size, file.metadata.num_rows, 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=[text_key]):
        for value in batch.column(0).to_pylist():
            seen += 1
            yield value, size * seen // rows


def _check_column(path: Path, text_key: str, names: Sequence[str]) -> None:
    if text_key not in names:
        raise UserError(f"{path} has no column '{text_key}', only {', '.join(names)}: set text_key")


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
    for path in files:
        for number, (record, _) in enumerate(records(path, text_key), 1):
            text, wrong = parse(record, text_key)
            if wrong:
                told(f"{path}:{number}: {wrong}")
            elif text:
                yield text


def parse(record: Record, text_key: str) -> tuple[str, str]:
    """(text, "") or ("", what is wrong with the record); an empty line is an empty text."""
    if isinstance(record, bytes):
        if not record.strip():
            return "", ""
        try:
            value = json.loads(record.rstrip().decode("utf-8-sig"), parse_int=_any_integer)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            return "", f"no JSON ({error})"
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
