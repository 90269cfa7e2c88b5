"""Whether a run still moves, from the rows that its leader writes, against its own pace."""

import itertools
import statistics
import time
from pathlib import Path

from llmjp_train.runlog.record import RunRecord, counting

FACTOR = 20.0
"""Times its own median step that a run may be silent, saves and validations left out."""
START_SECONDS = 3600.0
"""What the first step of a start may take: data, weights, compilation, communicators."""


class HangWatch:
    """Learns how long steps take and says when the run has been silent for too long."""

    def __init__(self, run_dir: Path, *, least_seconds: float) -> None:
        self._record = RunRecord(run_dir)
        self._least = least_seconds
        self._moved = time.monotonic()
        self._seen: tuple[int, ...] = ()
        self._limit = START_SECONDS
        self._learned = float("-inf")
        self._rows_before = len(self._record.read_metrics(latest=False))

    def verdict(self) -> str:
        """Why the run is taken to hang; empty while it is not."""
        # Not the sizes: on a full disk rows wait in memory, and the file is touched alone.
        seen = tuple(
            path.stat().st_mtime_ns if path.exists() else 0
            for path in (self._record.path / "metrics.jsonl", self._record.path / "events.jsonl")
        )
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._moved = seen, now
            return ""
        silent = now - self._moved
        if silent <= self._least:
            return ""
        # The record is read once a silence, and then alone: a run that falls silent within its first second
        # has shown its pace in those rows, however often it was looked at before.
        if self._learned <= self._moved:
            self._limit, self._learned = self.limit(), now
        if silent <= self._limit:
            return ""
        return f"nothing was logged for {silent:.0f} s, where {self._limit:.0f} s are the run's own limit"

    def limit(self) -> float:
        """Seconds of silence that are not normal for this run; a start counts as one until its first row."""
        every_row = self._record.read_metrics(latest=False)
        if len(every_row) == self._rows_before:
            return max(self._least, START_SECONDS)
        rows = counting(every_row)[-200:]
        steps = [row["step_s"] for row in rows if row.get("step_s")]
        apart = [b["step"] - a["step"] for a, b in itertools.pairwise(rows) if b["step"] > a["step"]]
        longest: float = max(
            (row["validation"].get("seconds") or 0 for row in rows if "validation" in row), default=0
        )
        saves: list[float] = [
            e.get("seconds") or 0 for e in self._record.read_events()[-200:] if e["kind"] == "save"
        ]
        if not steps:
            return max(self._least, START_SECONDS)
        usual: float = statistics.median(steps) * max(1, statistics.median(apart) if apart else 1)
        return max(self._least, FACTOR * usual) + 3 * (longest + max(saves, default=0))
