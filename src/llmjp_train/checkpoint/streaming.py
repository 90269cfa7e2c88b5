"""A checkpoint written one tensor at a time by one process, for weights that come from elsewhere."""

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from isal.isal_zlib import crc32
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from llmjp_train.checkpoint.listing import (
    CHUNK_BYTES,
    FILE_BYTES,
    CheckpointInfo,
    folder_name,
    read_info,
)
from llmjp_train.checkpoint.storage import ALIGNMENT, Chunk, Writer, as_bytes
from llmjp_train.checkpoint.store import commit


class StreamWriter:
    """Writes masters; the moments that belong to them are zero and lie as holes, which take no room on disk."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self._run_dir, self._step = run_dir, step
        self.folder = run_dir / "checkpoints" / folder_name(step, 0)
        self.folder.mkdir(parents=True)
        self._file: IO[bytes] | None = None
        self._name, self._position, self._count = "", 0, 0
        self._results: list[WriteResult] = []
        self._tensors: dict[str, Any] = {}

    def add(self, name: str, shape: tuple[int, ...], rows: Callable[[int, int], Tensor]) -> None:
        """Write a parameter.

        Args:
            rows: its elements ``[a, b)`` along the first dimension, in any float format.
        """
        step = max(1, CHUNK_BYTES // (4 * max(1, prod(shape[1:]))))
        for first in range(0, shape[0], step):
            last = min(shape[0], first + step)
            values = rows(first, last).to(torch.float32).contiguous()
            self._chunk(f"master.{name}", shape, first, as_bytes(values))
            zeros = memoryview(bytes(4 * values.numel()))
            for kind in ("exp_avg", "exp_avg_sq"):
                self._chunk(f"{kind}.{name}", shape, first, zeros, hole=True)

    def _chunk(
        self, name: str, shape: tuple[int, ...], first: int, values: memoryview, *, hole: bool = False
    ) -> None:
        if self._file is None or self._position > FILE_BYTES:
            self._next_file()
        assert self._file is not None
        self._position += -self._position % ALIGNMENT
        self._file.seek(self._position)
        if not hole:
            self._file.write(values)
        box = (len(values) // (4 * max(1, prod(shape[1:]))), *shape[1:])
        offset = torch.Size((first, *(0 for _ in shape[1:])))
        chunk = Chunk(box, self._name, self._position, crc32(values))
        self._results.append(WriteResult(MetadataIndex(name, offset), chunk.size, chunk))
        known = self._tensors.setdefault(
            name, TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size(shape), [])
        )
        known.chunks.append(ChunkStorageMetadata(offset, torch.Size(box)))
        self._position += chunk.size

    def _next_file(self) -> None:
        self._close_file()
        self._name = f"rank-{self._count:05d}.bin"
        self._file, self._position, self._count = (self.folder / self._name).open("wb"), 0, self._count + 1

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.truncate(self._position)  # a hole at the end is part of the file
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def commit(self, state: dict[str, Any]) -> CheckpointInfo:
        """Write the index and make the checkpoint count."""
        self._close_file()
        writer = Writer(self.folder, 0)
        writer.finish(Metadata(self._tensors), [self._results])
        commit(self.folder, self._step, 0, state, writer.sizes)
        return read_info(self.folder)

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
