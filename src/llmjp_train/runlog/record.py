"""A run directory: what was configured, on what, what was measured, and what happened (docs/run-record.md)."""

import errno
import heapq
import json
import math
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError

SCHEMA = 1
"""Version of every file of the record; a reader refuses newer ones."""
BESIDE = ("incidents.jsonl", "notes.jsonl")
"""Events of others than the holder of the lease: the supervisor's incidents, people's notes."""
_MOST_WAITING = 100_000
_REMEDY = "restore it from a copy, or move it away: what it held then counts as not recorded"


_OWN_ROWS = ("validation", "eps_dominated", "agreement_us_per_step", "slowest")
"""What stands in a row of its own, beside the step's."""


class RunRecord:
    """Reads and writes one run directory. Writing is for the holder of its lease."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._repaired: set[Path] = set()
        self._waiting: dict[Path, deque[str]] = {}

    def create(self, config_yaml: str) -> None:
        """Make the directory and write its resolved configuration.

        Raises:
            UserError: the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(self.path / "config.yaml", config_yaml)
        except OSError as error:
            raise UserError(
                f"run directory {self.path} cannot be written ({error.strerror}): "
                "choose another with run_dir=…, or correct its permissions"
            ) from error

    @property
    def config_text(self) -> str:
        """The resolved configuration."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def write_environment(self) -> None:
        """Write environment.json: versions, hardware, source revision."""
        from llmjp_train.runlog.environment import environment

        self._write_json("environment.json", {"schema": SCHEMA, **environment()})

    def write_data(self, fingerprints: dict[str, Any]) -> None:
        """Write data.json: what the run was trained on, by content."""
        self._write_json("data.json", {"schema": SCHEMA, **fingerprints})

    def write_evaluation(self, name: str, payload: dict[str, Any]) -> Path:
        """Write evaluations/NAME.json and give its path."""
        return self._write_json(f"evaluations/{name}.json", {"schema": SCHEMA, **payload})

    def metrics(self, **row: Any) -> None:
        """Append a row to metrics.jsonl; numbers that are not finite become null."""
        self._append("metrics.jsonl", {"schema": SCHEMA, "time": _now(), **row})

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl, on disk before this returns."""
        self._append("events.jsonl", {"schema": SCHEMA, "time": _now(), "kind": kind, **fields}, sync=True)

    def read_metrics(self, *, latest: bool = True) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl in the order of steps.

        With ``latest``, only those that count (`counting`).
        """
        rows = self.read_lines("metrics.jsonl")
        return counting(rows) if latest else rows

    def read_events(self) -> list[dict[str, Any]]:
        """Events in the order in which they happened, with what others than the writer wrote beside them."""
        found = (self.read_lines(name) for name in ("events.jsonl", *BESIDE))
        return list(heapq.merge(*found, key=lambda event: str(event.get("time", ""))))

    def beside(self, name: str, kind: str, **fields: Any) -> None:
        """Append to a file of `BESIDE`, which needs no lease: what people and supervisors write."""
        assert name in BESIDE
        self._append(name, {"schema": SCHEMA, "time": _now(), "kind": kind, **fields}, sync=True)

    def read_evaluations(self) -> dict[str, dict[str, Any]]:
        """Evaluations by name."""
        folder = self.path / "evaluations"
        return {path.stem: _read_json(path) for path in sorted(folder.glob("*.json"))}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the record, empty when it was not written."""
        path = self.path / name
        return _read_json(path) if path.is_file() else {}

    def _write_json(self, name: str, value: dict[str, Any]) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(_finite(value), ensure_ascii=False, indent=1) + "\n")
        return path

    def _append(self, name: str, value: dict[str, Any], *, sync: bool = False) -> None:
        """Append a line; on a full disk it waits in memory for the next one, since training must go on."""
        path = self.path / name
        waiting = self._waiting.setdefault(path, deque(maxlen=_MOST_WAITING))
        waiting.append(json.dumps(_finite(value), ensure_ascii=False) + "\n")
        text = "".join(waiting)
        if path not in self._repaired:
            text = _repair(path) + text
        before = path.stat().st_size if path.exists() else 0
        try:
            # One write of whole lines: a reader sees all of a line or nothing.
            with path.open("ab") as file:
                file.write(text.encode())
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if path.exists():
                os.truncate(path, before)  # part of it may have found room
                os.utime(path)  # a sign of life for who watches the run
            return
        self._repaired.add(path)
        waiting.clear()

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Every line of a file of the record, without one that a killed writer left unfinished."""
        path = self.path / name
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a killed writer left unfinished, or the empty one at the end
            _check_schema(row, path)
            rows.append(row)
        return rows


def counting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without those that a resume took again or gave up, in the order of steps.

    For each step and kind of row the newest counts; steps after the one that a resume went back to are dropped
    until they are redone.
    """
    newest: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        kind = next((key for key in _OWN_ROWS if key in row), "step")
        newest[row["step"], kind] = row
    end = int(rows[-1]["step"]) if rows else 0
    return [newest[key] for key in sorted(newest) if key[0] <= end]


def _repair(path: Path) -> str:
    """What must come before the next line: a newline where a killed writer left half a line."""
    if not path.is_file() or path.stat().st_size == 0:
        return ""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return "" if file.read(1) == b"\n" else "\n"


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the record.

    Raises:
        UserError: it is damaged, or of a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8
        raise UserError(f"{path} is damaged ({error}): {_REMEDY}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no keys): {_REMEDY}")
    _check_schema(value, path)
    return value


def _check_schema(value: dict[str, Any], path: Path) -> None:
    if value.get("schema", SCHEMA) > SCHEMA:
        raise UserError(
            f"{path} has schema {value['schema']}, this version reads up to {SCHEMA}: update llmjp-train"
        )


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
