"""Scores as they come, on disk: an evaluation that was killed goes on without repeating finished items."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def key_of(*parts: Any) -> str:
    """Name of a request: sha256 over its tokens and settings, shortened."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:24]


class Journal:
    """A JSONL file of request keys and results, for one model and one way of running it.

    Lines are flushed with every batch, so that a killed process loses at most the batch in work.
    """

    def __init__(self, path: Path, about: dict[str, Any], rank: int = 0) -> None:
        """
        Args:
            rank: of several processes each writes a file of its own, and reads those of all.
            about: what results depend on beside the request: model, checkpoint, format, context. A file about
                something else is begun anew.
        """
        self._rank = rank
        self._first = path
        self.path = path if rank == 0 else path.with_suffix(f".{rank}{path.suffix}")
        self.resumed = 0
        """Results that an earlier process left."""
        self._found: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in self._files():
            self._read(other, about)
        self.resumed = len(self._found)
        if not self._read(self.path, about):
            self.path.write_text(json.dumps({"about": about}, ensure_ascii=False) + "\n", encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        if not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a torn last line must not swallow the next one

    def _files(self) -> list[Path]:
        """Files of all processes."""
        return [self._first, *self._first.parent.glob(f"{self._first.stem}.[0-9]*{self._first.suffix}")]

    def _read(self, path: Path, about: dict[str, Any]) -> bool:
        """Take up a file's results; whether it is about the same thing."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not lines or _parsed(lines[0]) != {"about": about}:
            return False
        for line in lines[1:]:
            entry = _parsed(line)
            if entry is not None:
                self._found[entry["key"]] = entry["value"]
        return True

    def get(self, key: str) -> Any:
        """An earlier result; none: there is none."""
        return self._found.get(key)

    def add(self, results: Iterable[tuple[str, Any]]) -> None:
        """Keep results."""
        for key, value in results:
            self._found[key] = value
            self._file.write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """The evaluation is written: the journal has served. The first process removes those of all."""
        self._file.close()
        if self._rank == 0:
            for path in self._files():
                path.unlink(missing_ok=True)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
