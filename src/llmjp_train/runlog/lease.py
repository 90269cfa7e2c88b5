"""One writer at a time: a lease on a run directory, with an epoch that names what its holder commits.

No file system stops a stale job from writing, so the epoch is what readers go by: a new holder makes
``lease/epoch-0003.json`` by an exclusive link and lists the checkpoints that count so far. Readers take
those, and what is committed under the newest epoch; a checkpoint that an older holder commits later is
nobody's.
"""

import json
import os
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from llmjp_train.errors import UserError

STALE_SECONDS = 60.0
"""A holder on another machine that has not been heard of for this long is taken for dead."""


class LeaseLostError(RuntimeError):
    """Another process has become the writer of the run directory."""


@dataclass(frozen=True)
class Epoch:
    """One holder's period."""

    number: int
    path: Path
    inherited: list[str]
    """Checkpoint folders that counted when it began."""
    host: str
    machine: str
    """Boot and pid namespace in which ``pid`` means something; a container has its own."""
    pid: int
    process_start: str
    """When the process began, so that a reused pid is not taken for it."""
    time: str
    """UTC, ISO 8601."""


def read_epochs(run_dir: Path) -> list[Epoch]:
    """All epochs of a run directory, oldest first.

    Raises:
        UserError: a lease file is damaged.
    """
    found = []
    for path in (run_dir / "lease").glob("epoch-*.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                Epoch(
                    number=int(value["number"]),
                    path=path,
                    inherited=list(value["inherited"]),
                    host=value["host"],
                    machine=value["machine"],
                    pid=value["pid"],
                    process_start=value["process_start"],
                    time=value["time"],
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"lease file {path} is damaged ({error!r}): it says which checkpoints count; restore it, or remove "
                "it if no run writes here and its start committed nothing"
            ) from None
    return sorted(found, key=lambda epoch: epoch.number)


def check_epoch(run_dir: Path, epoch: int) -> None:
    """Check that ``epoch`` is the newest; without any lease file, anyone may write.

    Raises:
        LeaseLostError: a newer holder exists.
    """
    epochs = read_epochs(run_dir)
    if epochs and epochs[-1].number != epoch:
        newest = epochs[-1]
        raise LeaseLostError(
            f"{run_dir} was taken over as epoch {newest.number} (process {newest.pid} on {newest.host}); "
            f"this process, epoch {epoch}, must not write there any more"
        )


def committed_folders(run_dir: Path, epochs: list[Epoch]) -> list[str]:
    """Names of the checkpoint folders that count: inherited by the newest epoch, or committed under it."""
    folders = (run_dir / "checkpoints").glob("step-*.epoch-*/COMMITTED")
    found = sorted(path.parent.name for path in folders)
    if not epochs:
        return found
    newest = epochs[-1]
    own = f".epoch-{newest.number:04d}"
    return [name for name in found if name in newest.inherited or name.endswith(own)]


class Lease:
    """The right to write into a run directory; a background thread shows that the holder lives."""

    def __init__(self, run_dir: Path, epoch: int, heartbeat_seconds: float) -> None:
        """For `acquire`, which has made the epoch's files."""
        self.run_dir, self.epoch = run_dir, epoch
        self.beat_error = ""
        """Why the last sign of life could not be given; empty when it was."""
        self._stop = threading.Event()
        self._beat_path = _beat_path(run_dir, epoch)
        self._thread = threading.Thread(
            target=self._run, args=(heartbeat_seconds,), name="lease", daemon=True
        )
        self._thread.start()

    @classmethod
    def acquire(cls, run_dir: Path, *, heartbeat_seconds: float = 10.0, takeover: bool = False) -> "Lease":
        """Become the writer of ``run_dir``.

        Args:
            takeover: also when another process seems to hold it; that one finds out at its next save.

        Raises:
            UserError: another process holds it and lives, or took it in this moment; or nothing can be
                written there.
        """
        folder = run_dir / "lease"
        part = folder / f".{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.touch()
            epochs = read_epochs(run_dir)
            if epochs and not takeover:
                _refuse_living(run_dir, epochs[-1], now=part.stat().st_mtime)
            number = epochs[-1].number + 1 if epochs else 1
            write_synced(part, _epoch_json(number, committed_folders(run_dir, epochs)))
            # Before the link, so that whoever sees the epoch sees a sign of life.
            _beat_path(run_dir, number).touch()
            os.link(part, folder / f"epoch-{number:04d}.json")
        except FileExistsError:
            raise UserError(f"{run_dir} was taken by another process in this moment: try again") from None
        except OSError as error:
            raise UserError(
                f"run directory {run_dir} cannot be written ({error.strerror}): correct its permissions, or choose "
                "another with run_dir=DIR on a file system that has hard links"
            ) from error
        finally:
            if part.exists():
                part.unlink()
        return cls(run_dir, number, heartbeat_seconds)

    def check(self) -> None:
        """Check that nothing newer holds the directory.

        Raises:
            LeaseLostError: something does, or the lease's file is gone: nothing more may be committed.
        """
        if not (self.run_dir / "lease" / f"epoch-{self.epoch:04d}.json").exists():
            raise LeaseLostError(
                f"the lease of {self.run_dir} (epoch {self.epoch}) was removed while it was held"
            )
        check_epoch(self.run_dir, self.epoch)

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        self._beat_path.unlink(missing_ok=True)

    def _run(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                os.utime(self._beat_path)  # needs no space: a full disk must not make the holder look dead
                self.beat_error = ""
            except OSError as error:  # a file server that is away for a moment; the next beat tries again
                self.beat_error = str(error)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _epoch_json(number: int, inherited: list[str]) -> str:
    value = {
        "version": 1,
        "number": number,
        "inherited": inherited,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(value, indent=1)


def _beat_path(run_dir: Path, number: int) -> Path:
    return run_dir / "lease" / f"alive-{number:04d}"


def _refuse_living(run_dir: Path, epoch: Epoch, now: float) -> None:
    """``now`` by the clock of the file server, which also dates the signs of life."""
    beat = _beat_path(run_dir, epoch.number)
    try:
        age = max(0.0, now - beat.stat().st_mtime)
    except FileNotFoundError:
        return  # given back
    if epoch.machine and epoch.machine == _machine():
        living = _process_start(epoch.pid) == epoch.process_start
    else:
        living = age < STALE_SECONDS
    if living:
        raise UserError(
            f"{run_dir} is being written by process {epoch.pid} on {epoch.host} (sign of life {age:.0f} s ago): "
            "stop that run first, or choose another run_dir; --takeover takes it if you know that it is gone"
        )


def _machine() -> str:
    """Identity of this boot and pid namespace; empty where the system does not tell."""
    try:
        return (
            Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            + " "
            + os.readlink("/proc/self/ns/pid")
        )
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process of this machine began, in clock ticks since boot; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # from the third field, the state, on
    return "" if fields[0] in ("Z", "X") else fields[19]
