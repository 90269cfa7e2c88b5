"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Amount done, rate and time left, on standard error."""

    def __init__(
        self, title: str, total: float, unit: str, scale: float = 1.0, *, every: float = 5.0
    ) -> None:
        """``total`` and amounts, divided by ``scale``, are in ``unit``; ``every``: seconds between lines."""
        self._title, self._total, self._unit, self._scale, self._every = title, total, unit, scale, every
        self._done = self._counted = 0.0
        self._began = self._printed = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            shown = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}")
            self._bar = Bar(*shown, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=self._total, rate="")
            self._bar.start()
        return self

    def add(self, amount: float, note: str = "", *, worked: bool = True) -> None:
        """Count ``amount`` as done; work of an earlier run (``worked=False``) does not count for the rate."""
        self._done += amount
        self._counted += amount if worked else 0.0
        now = time.monotonic()
        rate = self._counted / max(1e-9, now - self._began)
        shown = f"{rate / self._scale:,.1f} {self._unit}/s{f', {note}' if note else ''}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=shown)
        elif now - self._printed > self._every:
            self._printed = now
            left = max(0.0, self._total - self._done) / rate if rate else 0.0
            print(
                f"{self._title}: {self._done / self._scale:,.0f} of {self._total / self._scale:,.0f} "
                f"{self._unit}, {shown}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
