"""Trackers: views of metrics.jsonl in other tools. TensorBoard by default; a user's class by its name."""

import importlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from llmjp_train.errors import UserError


class Tracker(Protocol):
    """Where figures go besides metrics.jsonl. A user's own is a class with these methods (docs/metrics.md)."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step; keys are those of metrics.jsonl, nested ones joined by slashes."""

    def close(self) -> None:
        """Flush."""


class TensorBoard:
    """TensorBoard files in a folder; written by a thread of its own.

    One event holds all figures of a step: torch's SummaryWriter makes one of each, 70 microseconds a figure.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
            EventFileWriter,
        )

        _quieten_writers()
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer: Any = EventFileWriter(str(folder))

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Queue the figures."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()


def _quieten_writers() -> None:
    """Print no traceback of TensorBoard's writing thread: its error, a full disk say, is raised at the next figure."""
    told = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            told(args)

    threading.excepthook = hook


def load_trackers(run_dir: Path, *, tensorboard: bool, names: list[str]) -> list[Tracker]:
    """TensorBoard where asked for, and the user's classes ``module:Class``, each made with the run directory.

    Raises:
        UserError: a name leads to no class with ``log`` and ``close``.
    """
    found: list[Tracker] = [TensorBoard(run_dir / "tensorboard")] if tensorboard else []
    return found + [kind(run_dir) for kind in tracker_classes(names)]


def tracker_classes(names: list[str]) -> list[Callable[[Path], Tracker]]:
    """The user's classes ``module:Class``; nothing is made of them.

    Raises:
        UserError: a name leads to no class with ``log`` and ``close``.
    """
    found: list[Callable[[Path], Tracker]] = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"metrics.trackers: {name} cannot be loaded ({error}); write it as module:Class, of a module "
                "that Python finds (PYTHONPATH)"
            ) from error
        if not all(callable(getattr(kind, method, None)) for method in ("log", "close")):
            raise UserError(f"metrics.trackers: {name} has no methods log and close")
        found.append(kind)
    return found


def flat_numbers(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a row, those of nested tables under keys like ``validation/loss``."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[prefix + key] = float(value)
    return found
