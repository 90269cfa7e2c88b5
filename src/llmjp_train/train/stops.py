"""Stopping is normal: signals, trigger files and a time limit all mean "save and end"."""

import signal
import time
from pathlib import Path
from types import FrameType


class Stops:
    """Collects requests of this process; the loop asks the ranks to agree on them."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.reason = ""
        self._interrupted = False
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._run_dir: Path | None = None

    def install(self) -> "Stops":
        """Take over the signals. Called before anything slow, so that none is lost during start-up.

        Who started this process may have blocked them until now (launch/local.py).
        """
        for number in self.SIGNALS:
            signal.signal(number, self._caught)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
        return self

    def watch(self, run_dir: Path | None, minutes: float | None) -> None:
        """Watch the trigger files RUN/stop and RUN/save, and a limit of ``minutes`` since this object was made.

        Args:
            run_dir: none on all ranks but one, since a thousand ranks that ask a file server at each micro
                batch are a load, and one that knows is enough.
        """
        self._run_dir = run_dir
        if minutes is not None:
            self._deadline = self._began + 60 * minutes

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt  # asked twice, by hand: do not wait for the save
            self._interrupted = True
        self.reason = self.reason or signal.Signals(number).name

    @property
    def stop(self) -> bool:
        """Whether this process was asked to stop."""
        if not self.reason and time.monotonic() > self._deadline:
            self.reason = "time limit"
        if not self.reason and self._run_dir is not None and (self._run_dir / "stop").exists():
            self.reason = "stop file"
        return bool(self.reason)

    @property
    def save(self) -> bool:
        """Whether somebody asked for a checkpoint now."""
        return self._run_dir is not None and (self._run_dir / "save").exists()

    def done(self) -> None:
        """Remove the trigger files, so that the next start does not stop at once."""
        if self._run_dir is not None:
            (self._run_dir / "save").unlink(missing_ok=True)
            (self._run_dir / "stop").unlink(missing_ok=True)
