"""A job's folder, RUN/jobs/0001: what was submitted, the code that it runs, and what became of it.

Written by who submits, and afterwards by the job's own script on its first node. Reads and writes no torch.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError

SCHEMA = 1
_NUMBER = re.compile(r"\d{4}\Z")


@dataclass(frozen=True)
class Job:
    """What was submitted; job.json."""

    run_dir: str
    """Absolute path of the run directory."""
    number: int
    """Counts the jobs of a run, from 1."""
    name: str
    """Name for the scheduler: letters, digits and dashes."""
    scheduler: str
    nodes: int
    ranks_per_node: int
    submitted: str
    """UTC, ISO 8601."""
    minutes: int | None = None
    """Time limit that was asked for."""
    lead: int = 300
    """Seconds before it at which the run saves and ends."""
    max_restarts: int = 3
    requeue: bool = False
    """Whether it puts itself back into the queue when its time is over."""
    bare: bool = False
    """One task a rank instead of one a node that forks its ranks."""
    budget_hours: float | None = None
    """Device hours that the run's jobs may use together; none: no limit."""
    after_stop: bool = False
    """Whether it goes on although a person stops the run meanwhile: that is what it was submitted for."""
    chain: tuple[int, int] = (1, 1)
    """Which of how many jobs that go on one after another."""

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node


class JobFolder:
    """One job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run_dir(self) -> Path:
        """The run that it belongs to."""
        return self.path.parent.parent

    @property
    def log(self) -> Path:
        """What the job's script and rank 0 print."""
        return self.path / "log.txt"

    def read(self) -> Job:
        """What was submitted.

        Raises:
            UserError: job.json is missing, damaged, or of a newer version.
        """
        path = self.path / "job.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["schema"] > SCHEMA:
                raise UserError(f"{path} has schema {value['schema']}: update llmjp-train")
            known = {field.name for field in fields(Job)}
            values = {key: item for key, item in value.items() if key in known}
            return Job(**{**values, "chain": tuple(values["chain"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} cannot be read ({error}): the job was not submitted by 'llmjp submit'"
            ) from None

    def write(self, job: Job) -> None:
        """Write job.json."""
        text = json.dumps({"schema": SCHEMA, **asdict(job)}, ensure_ascii=False, indent=1)
        (self.path / "job.json").write_text(text + "\n", encoding="utf-8")

    def attempt(self, name: str) -> Path:
        """What the nodes leave of an attempt."""
        return self.path / f"attempt-{name}"

    @property
    def scheduler_id(self) -> str:
        """The scheduler's own name of the job; empty before it has one."""
        path = self.path / "scheduler_id"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    @scheduler_id.setter
    def scheduler_id(self, value: str) -> None:
        (self.path / "scheduler_id").write_text(value + "\n", encoding="utf-8")

    @property
    def cancelled(self) -> bool:
        """Whether a person gave it up."""
        return (self.path / "cancelled").exists()

    def cancel(self) -> None:
        """Remember that a person gave it up, so that nothing of it starts any more."""
        (self.path / "cancelled").touch()

    def note(self, kind: str, **values: Any) -> None:
        """Append to history.jsonl, in one write."""
        append_line(self.path / "history.jsonl", {"schema": SCHEMA, "time": now(), "kind": kind, **values})

    def history(self) -> list[dict[str, Any]]:
        """What happened to it: begin and end of each attempt."""
        return read_lines(self.path / "history.jsonl")


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append an object to a .jsonl file, in one write, on disk before this returns."""
    with path.open("ab") as file:
        file.write((json.dumps(value, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a .jsonl file; lines that a killed writer left unfinished are passed over."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
    return found


def folders(run_dir: Path) -> list[JobFolder]:
    """Folders of a run's jobs, oldest first."""
    jobs = run_dir / "jobs"
    if not jobs.is_dir():
        return []
    return [JobFolder(path) for path in sorted(jobs.iterdir()) if _NUMBER.match(path.name)]


def new_folder(run_dir: Path) -> JobFolder:
    """The next job's folder, made.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        (run_dir / "jobs").mkdir(parents=True, exist_ok=True)
        for number in _numbers(run_dir):
            path = run_dir / "jobs" / f"{number:04d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue  # another submission in this moment
            return JobFolder(path)
    except OSError as error:
        raise UserError(
            f"run directory {run_dir} cannot be written ({error.strerror}): choose another with run_dir=DIR"
        ) from None
    raise UserError(f"{run_dir} holds 9999 jobs: start a new run directory")


def _numbers(run_dir: Path) -> Iterator[int]:
    taken = folders(run_dir)
    yield from range(int(taken[-1].path.name) + 1 if taken else 1, 10_000)


def find_run(said: str) -> Path:
    """The run directory that a person means: a path, or the name of a run under runs/.

    Raises:
        UserError: there is none.
    """
    for path in (Path(said), Path("runs") / said):
        if (path / "config.yaml").is_file() or (path / "jobs").is_dir():
            return path
    raise UserError(
        f"{said} is neither a run directory nor the name of one under runs/: 'llmjp run list' shows them"
    )


def job_name(name: str) -> str:
    """A run's name as every scheduler takes it: it begins with a letter and holds no more than 60."""
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "run"
    return (clean if clean[0].isalpha() else f"run-{clean}")[:60]
