"""How a checkpoint lies on disk: a raw payload file per rank and one JSON index. No pickles.

docs/checkpoints.md describes the format for other tools.
"""

import io
import json
import os
import sys
from collections import deque
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from isal.isal_zlib import crc32
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from llmjp_train.checkpoint.listing import FILE_BYTES
from llmjp_train.errors import UserError
from llmjp_train.runlog.lease import write_synced

INDEX = "index.json"
VERSION = 1
ALIGNMENT = 64
"""Each chunk begins at a multiple of this many bytes in its file."""
FIELDS = ["offset", "shape", "file", "position", "crc32"]
"""What the index says of a chunk, in this order."""


class DamagedError(UserError):
    """A checkpoint's files are not what was written."""


def damage(path: Path, what: str) -> DamagedError:
    """The error for a damaged file of a checkpoint."""
    return DamagedError(f"checkpoint {path.parent.name} is damaged: {path.name} {what}")


@dataclass(frozen=True)
class Chunk:
    """Where a box of a tensor lies."""

    shape: tuple[int, ...]
    file: str
    position: int
    """First byte."""
    crc32: int

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 * prod(self.shape)


class Writer(StorageWriter):
    """Streams each rank's chunks into its own files; the coordinator writes the index."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.sizes: dict[str, int] = {}
        """Bytes of every rank's file; known to the coordinator when all is written."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is made by the caller."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Unchanged."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks, one view at a time, and wait until the disk has them."""
        results: list[WriteResult] = []
        left = deque(plan.items)
        for number in count():
            if not left:
                break
            name = f"rank-{self.rank:05d}{f'.{number}' if number else ''}.bin"
            position = 0
            with (self.folder / name).open("wb") as file:
                while left and position < FILE_BYTES:
                    item = left.popleft()
                    position += file.write(bytes(-position % ALIGNMENT))
                    view = planner.resolve_data(item)
                    assert isinstance(view, Tensor)
                    values = as_bytes(view.detach().cpu().contiguous())
                    chunk = Chunk(tuple(view.shape), name, position, crc32(values))
                    position += file.write(values)
                    results.append(WriteResult(item.index, chunk.size, chunk))
                file.flush()
                os.fsync(file.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index."""
        places: dict[MetadataIndex, Chunk] = {r.index: r.storage_data for rank in results for r in rank}
        # From what the ranks told, since a folder listing may lag behind on a network file system.
        for chunk in places.values():
            self.sizes[chunk.file] = max(self.sizes.get(chunk.file, 0), chunk.position + chunk.size)
        tensors = {}
        for name, value in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(value, TensorStorageMetadata)
            chunks = []
            for box in sorted(value.chunks, key=lambda box: tuple(box.offsets)):
                place = places[MetadataIndex(name, box.offsets)]
                chunks.append([list(box.offsets), list(place.shape), place.file, place.position, place.crc32])
            tensors[name] = {"shape": list(value.size), "chunks": chunks}
        index = {"version": VERSION, "dtype": "float32", "chunk": FIELDS, "tensors": tensors}
        write_synced(self.folder / INDEX, json.dumps(index))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Folders are given to the constructor."""
        return False

    def storage_meta(self) -> StorageMeta | None:
        """None kept."""
        return None


class Payload:
    """Reads chunks of a checkpoint's payload files and checks them; keeps the last file open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._file: io.BufferedReader | None = None
        self._buffer = torch.empty(0)

    def read(self, name: str, chunk: Chunk, into: Tensor | None = None) -> Tensor:
        """A chunk's values, in ``into`` if it is given, else in a buffer that the next call overwrites.

        Reusing memory matters: first touching a fresh page costs as much as reading it from disk.

        Args:
            name: tensor that it is of, for messages.
            into: contiguous, on the CPU, fp32, of the chunk's shape.

        Raises:
            DamagedError: the file is missing or shorter, or its bytes are not those that were written.
        """
        if into is None:
            if self._buffer.numel() < prod(chunk.shape):
                self._buffer = torch.empty(prod(chunk.shape))
            into = self._buffer[: prod(chunk.shape)].view(chunk.shape)
        values = as_bytes(into)
        path = self._folder / chunk.file
        try:
            file = self._open(chunk.file)
            file.seek(chunk.position)
            count = file.readinto(values)
        except FileNotFoundError:
            raise damage(path, f"is missing; it holds part of {name}") from None
        except OSError as error:
            raise damage(path, f"cannot be read for {name} ({error.strerror})") from None
        if count != chunk.size:
            raise damage(
                path, f"ends inside {name} ({count:,} of {chunk.size:,} bytes of the chunk are there)"
            )
        found = crc32(values)
        if found != chunk.crc32:
            raise damage(
                path,
                f"holds other bytes for {name} than were written (crc32 {found:08x}, expected {chunk.crc32:08x})",
            )
        return into

    def _open(self, name: str) -> io.BufferedReader:
        if self._file is None or self._name != name:
            self.close()
            self._file, self._name = (self._folder / name).open("rb"), name
        return self._file

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Payload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reader(StorageReader):
    """Reads whole chunks, checks each and hands out the parts that are asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the index.

        Raises:
            UserError: it is damaged or of a newer version.
        """
        self.folder = folder
        self.metadata = read_index(folder)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index."""
        return self.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Already read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planned tensors; each chunk is read once, in the order of the files."""
        wanted: dict[MetadataIndex, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(item.storage_index, []).append(item)
        places: dict[MetadataIndex, Chunk] = self.metadata.storage_data
        with Payload(self.folder) as payload:
            for index in sorted(wanted, key=lambda index: (places[index].file, places[index].position)):
                self._fill(payload, index, wanted[index], planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _fill(
        self, payload: Payload, index: MetadataIndex, items: list[ReadItem], planner: LoadPlanner
    ) -> None:
        chunk: Chunk = self.metadata.storage_data[index]
        targets = [planner.resolve_tensor(item).detach() for item in items]
        first = targets[0]
        same = len(targets) == 1 and tuple(first.shape) == chunk.shape and first.is_contiguous()
        if same and first.device.type == "cpu" and first.dtype == torch.float32:
            payload.read(index.fqn, chunk, into=first)
        else:
            values = payload.read(index.fqn, chunk)
            for item, target in zip(items, targets, strict=True):
                bounds = zip(item.storage_offsets, item.lengths, strict=True)
                target.copy_(values[tuple(slice(start, start + length) for start, length in bounds)])
        for item, target in zip(items, targets, strict=True):
            planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Folders are given to the constructor."""
        return False


def read_index(folder: Path) -> Metadata:
    """The index as DCP's metadata.

    Raises:
        UserError: it is missing, inconsistent or of a newer version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] > VERSION:
            raise UserError(
                f"{path} has version {index['version']}, this reads up to {VERSION}: update llmjp-train"
            )
        tensors: dict[str, Any] = {}
        places: dict[MetadataIndex, Chunk] = {}
        for name, value in index["tensors"].items():
            tensors[name] = _tensor(path, name, value, places)
    except FileNotFoundError:
        raise damage(path, "is missing") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise damage(path, f"is no index ({error!r})") from None
    return Metadata(tensors, storage_data=places)


def _tensor(path: Path, name: str, value: Any, places: dict[MetadataIndex, Chunk]) -> TensorStorageMetadata:
    """One tensor of the index; its chunks go into ``places``. Its numbers are not trusted."""
    shape = torch.Size(value["shape"])
    boxes = []
    for offset, box, file, position, crc in value["chunks"]:
        inside = len(offset) == len(box) == len(shape) and all(
            start >= 0 and length > 0 and start + length <= limit
            for start, length, limit in zip(offset, box, shape, strict=True)
        )
        if not inside or position < 0 or Path(file).name != file:
            raise damage(
                path, f"places {name} where it cannot be ({offset} + {box} of {list(shape)} in {file})"
            )
        boxes.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(box)))
        places[MetadataIndex(name, torch.Size(offset))] = Chunk(tuple(box), file, position, crc)
    held = sum(prod(box.sizes) for box in boxes)
    if held != prod(shape):
        raise damage(path, f"holds {held:,} of the {prod(shape):,} elements of {name}")
    return TensorStorageMetadata(TensorProperties(dtype=torch.float32), shape, boxes)


def as_bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory."""
    assert sys.byteorder == "little"
    assert tensor.dtype == torch.float32
    return tensor.view(-1).numpy().data.cast("B")
