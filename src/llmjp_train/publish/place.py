"""Where an export goes: made beside its place under another name, so that what bears the name is finished."""

import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llmjp_train.errors import UserError
from llmjp_train.publish.parity import CERTIFICATE
from llmjp_train.runlog.machine import alive

_STALE_SECONDS = 24 * 3600
"""After so long without a change, another machine's unfinished folder counts as left behind."""


def check_place(out: Path, force: bool) -> None:
    """See that an export may be written to ``out``.

    Raises:
        UserError: it exists and is not to be replaced, or holds what no export made.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} exists and is no folder: take another --out")
    if any(out.iterdir()):
        if not force:
            raise UserError(f"{out} exists: take another --out, or --force to replace the export in it")
        if not (out / CERTIFICATE).is_file() or not (out / "config.json").is_file():
            raise UserError(
                f"{out} was not made by an export (no {CERTIFICATE}), so --force does not replace it: "
                "take another --out"
            )


@contextmanager
def partial_folder(out: Path, size: int, what: str = "export") -> Iterator[Path]:
    """A folder beside ``out`` with room for ``size`` bytes, gone at the end unless it was renamed.

    Raises:
        UserError: there is not enough room, or the disk refuses.
    """
    partial = _beside(out, "partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise UserError(f"the {what} needs {size:,} bytes, {out.parent} has {free:,}: take another --out")
        partial.mkdir()
        yield partial
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else 0
        raise UserError(
            f"the {what} to {out} failed: {error}. It needs {size:,} bytes, {free:,} are free there: "
            "make room, or take another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, out: Path) -> None:
    """Rename into place; an earlier export goes only when the new one stands."""
    before = _beside(out, "before")
    if out.exists():
        out.rename(before)
    partial.rename(out)
    shutil.rmtree(before, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove what killed exports to ``out`` left; bring back an earlier export that one had moved aside."""
    for kind in ("before", "partial"):
        for path in out.parent.glob(f".{glob.escape(out.name)}.{kind}-*"):
            if not _left_behind(path):
                continue
            if kind == "before" and not out.exists():
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _left_behind(path: Path) -> bool:
    """Whether nobody works on a folder any more: its process is gone, or nothing in it changed for a day."""
    if not path.is_dir():
        return False
    machine, _, number = path.name.rpartition("-")
    if machine.endswith(f"-{socket.gethostname()}") and number.isdigit() and not alive(int(number)):
        return True
    try:
        newest = max(each.stat().st_mtime for each in (path, *path.iterdir()))
    except FileNotFoundError:  # another export cleans up too
        return False
    return time.time() - newest > _STALE_SECONDS
