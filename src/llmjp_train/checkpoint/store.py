"""Save and load fragments; a checkpoint counts once its COMMITTED file is there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from llmjp_train.checkpoint.listing import COMMITTED, CheckpointInfo, folder_name, read_info
from llmjp_train.checkpoint.planners import LoadPlanner, SavePlanner, pieces
from llmjp_train.checkpoint.storage import INDEX, Chunk, Payload, Reader, Writer, damage
from llmjp_train.errors import UserError
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.runlog.lease import LeaseLostError, check_epoch, write_synced

STATE = "state.json"


def save(
    run_dir: Path,
    step: int,
    fragments: Sequence[Fragment],
    state: dict[str, Any],
    *,
    epoch: int,
    process_group: "dist.ProcessGroup | None" = None,
) -> CheckpointInfo:
    """Write a checkpoint and commit it. Collective; every element is given by exactly one rank.

    Args:
        state: what is not a tensor, as JSON; the leader's is written.

    Raises:
        UserError: the disk is full or cannot be written; on every rank, with nothing of it left behind.
        LeaseLostError: another process has become the writer of the run directory.
        RuntimeError: the fragments of all ranks do not make up each tensor once.
    """
    folder = run_dir / "checkpoints" / folder_name(step, epoch)
    size = sum(fragment.view.numel() * 4 for fragment in fragments)
    total = _total(size, process_group)
    writer = Writer(folder, dist.get_rank(process_group) if dist.is_initialized() else 0)
    try:
        _on_leader(lambda: _begin(folder, total), process_group)
        dcp_save(
            pieces(fragments),
            storage_writer=writer,
            planner=SavePlanner(),
            process_group=process_group,
            no_dist=not dist.is_initialized(),
        )
        _on_leader(lambda: commit(folder, step, epoch, state, writer.sizes), process_group)
    except CheckpointException as error:  # not an Exception, so nothing else would catch it
        _on_leader(lambda: shutil.rmtree(folder, ignore_errors=True), process_group)
        rank, (cause, _) = next(iter(error.failures.items()))
        if not isinstance(cause, OSError | UserError):
            raise RuntimeError(f"checkpoint {folder.name} was not saved (rank {rank}): {cause}") from cause
        raise UserError(_told(folder, rank, cause, total)) from cause
    except OSError as error:
        _on_leader(lambda: shutil.rmtree(folder, ignore_errors=True), process_group)
        raise UserError(_told(folder, 0, error, total)) from error
    return read_info(folder)


def _begin(folder: Path, total: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / COMMITTED).exists():
        raise UserError(f"{folder} is committed already and is never written twice")
    if folder.exists():
        shutil.rmtree(folder)  # left by a save that was killed
    free = shutil.disk_usage(folder.parent).free
    if free < total:
        raise OSError(28, f"No space left on device: {free:,} bytes free")
    folder.mkdir()


def commit(folder: Path, step: int, epoch: int, state: dict[str, Any], sizes: dict[str, int]) -> None:
    """Name everything that belongs to the checkpoint, then make it count by an exclusive link."""
    write_synced(folder / STATE, json.dumps(state, ensure_ascii=False, indent=1))
    written = {name: (folder / name).stat().st_size for name in (INDEX, STATE)}
    files = dict(sorted({**sizes, **written}.items()))
    check_epoch(folder.parent.parent, epoch)
    content = {
        "version": 1,
        "step": step,
        "epoch": epoch,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "layout": state.get("layout", {}),
        "files": files,
        "sha256": {name: _sha256(folder / name) for name in (INDEX, STATE)},
    }
    part = folder / f".{COMMITTED}.{os.getpid()}"
    write_synced(part, json.dumps(content, indent=1))
    os.link(part, folder / COMMITTED)
    part.unlink()
    for path in (folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _told(folder: Path, rank: int, cause: BaseException, total: int) -> str:
    if isinstance(cause, UserError):
        return str(cause)
    free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
    return (
        f"checkpoint {folder.name} was not saved (rank {rank}: {cause}): it needs {total:,} bytes, {free:,} are free. "
        "Earlier checkpoints are untouched; make room, or keep fewer with checkpoint.keep_last"
    )


def _total(size: int, group: "dist.ProcessGroup | None") -> int:
    if not dist.is_initialized():
        return size
    sizes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(sizes, size, group=group)
    return sum(sizes)


def _on_leader(action: Callable[[], None], group: "dist.ProcessGroup | None") -> None:
    """Run on rank 0; its error is raised on every rank, so that none waits for ever."""
    error: list[Any] = [None]
    if not dist.is_initialized() or dist.get_rank(group) == 0:
        try:
            action()
        except (OSError, UserError, LeaseLostError) as caught:
            error = [caught]
    if dist.is_initialized():
        dist.broadcast_object_list(error, src=0, group=group)
    if error[0] is not None:
        raise error[0]


def load(
    path: Path, fragments: Sequence[Fragment], process_group: "dist.ProcessGroup | None" = None
) -> dict[str, Any]:
    """Fill fragments of any layout from a checkpoint of any layout; its JSON state. Collective.

    Raises:
        UserError: a file is damaged, or the checkpoint is of another model.
    """
    check_commit(path)
    reader = Reader(path)
    stored = reader.metadata.state_dict_metadata
    wrong = [_mismatch(fragment, stored.get(fragment.name)) for fragment in fragments]
    lines = sorted({line for line in wrong if line})
    if lines:
        more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(
            f"checkpoint {path.name} is of another model:\n  "
            + "\n  ".join(lines[:5])
            + more
            + "\nUse the model that it was trained with."
        )
    try:
        dcp_load(
            pieces(fragments),
            storage_reader=reader,
            planner=LoadPlanner(),
            process_group=process_group,
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, UserError):
            raise cause from None
        raise RuntimeError(f"checkpoint {path.name} could not be loaded: {cause}") from cause
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors.

    Raises:
        UserError: it is damaged.
    """
    check_commit(path)
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def _mismatch(fragment: Fragment, stored: object) -> str:
    if not isinstance(stored, TensorStorageMetadata):
        return f"{fragment.name} is not in it"
    if tuple(stored.size) != fragment.shape:
        return f"{fragment.name} has shape {tuple(stored.size)} in it and {fragment.shape} here"
    return ""


def check_commit(path: Path) -> None:
    """Check what COMMITTED says of the checkpoint's files: sizes of all, sha256 of the JSON ones.

    Raises:
        UserError: something is missing or was changed.
    """
    try:
        info = json.loads((path / COMMITTED).read_text(encoding="utf-8"))
        files, digests = dict(info["files"]), dict(info["sha256"])
        named = folder_name(info["step"], info["epoch"])
    except FileNotFoundError:
        raise UserError(f"{path} is no complete checkpoint: it has no file {COMMITTED}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise damage(path / COMMITTED, f"says nothing that makes sense ({error!r})") from None
    if path.name.startswith("step-") and named != path.name:
        raise damage(path / COMMITTED, f"is that of {named}")
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            raise damage(file, "is missing")
        if file.stat().st_size != size:
            raise damage(file, f"has {file.stat().st_size:,} bytes, {size:,} were written")
    for name, digest in digests.items():
        if _sha256(path / name) != digest:
            raise damage(path / name, "was changed after it was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointReader:
    """Whole tensors of a checkpoint, one at a time, in one process without ranks."""

    def __init__(self, path: Path) -> None:
        """Check the commit and read the index.

        Raises:
            UserError: the checkpoint is damaged.
        """
        self.path = Path(path)
        check_commit(self.path)
        self._reader = Reader(self.path)
        self._places: dict[MetadataIndex, Chunk] = self._reader.metadata.storage_data
        self._payload = Payload(self.path)
        self.state: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))

    def names(self) -> list[str]:
        """Names of all tensors, with their kind in front."""
        return sorted(self._reader.metadata.state_dict_metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._stored(name).size)

    def read(
        self, name: str, dtype: torch.dtype = torch.float32, part: tuple[slice, ...] | None = None
    ) -> Tensor:
        """The tensor, or a box of it, the chunks that it needs checked; one of them at a time is held in fp32.

        Args:
            part: from where to where in each dimension, both stated; none: the whole tensor.

        Raises:
            UserError: there is no such tensor, or a chunk of it is damaged.
        """
        stored = self._stored(name)
        wanted = part if part is not None else tuple(slice(0, size) for size in stored.size)
        found = torch.empty([each.stop - each.start for each in wanted], dtype=dtype)
        for box in stored.chunks:
            sides = list(zip(wanted, box.offsets, box.sizes, strict=True))
            shared = [(max(w.start, o), min(w.stop, o + n)) for w, o, n in sides]
            if any(first >= end for first, end in shared):
                continue
            chunk = self._payload.read(name, self._places[MetadataIndex(name, box.offsets)])
            here = tuple(
                slice(a - w.start, b - w.start) for (a, b), (w, _, _) in zip(shared, sides, strict=True)
            )
            there = tuple(slice(a - o, b - o) for (a, b), (_, o, _) in zip(shared, sides, strict=True))
            found[here] = chunk[there]
        return found

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self._reader.metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise UserError(f"checkpoint {self.path.name} holds no tensor {name}")
        return stored

    def verify(self, part: int = 0, parts: int = 1) -> int:
        """Read and check every chunk, or a share of them, in the order of the files; how many there are in all.

        Raises:
            UserError: the first damaged one.
        """
        ordered = sorted(self._places.items(), key=lambda item: (item[1].file, item[1].position))
        for index, chunk in ordered[part::parts]:
            self._payload.read(index.fqn, chunk)
        return len(self._places)
