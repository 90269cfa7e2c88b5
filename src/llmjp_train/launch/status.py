"""One table of runs and their jobs: what the scheduler says, and what the run directory says."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError
from llmjp_train.launch.bad_nodes import left_out
from llmjp_train.launch.job import Job, JobFolder, folders
from llmjp_train.launch.schedulers import JobState, scheduler
from llmjp_train.runlog.reading import Summary, is_incident, open_run, summary


@dataclass(frozen=True)
class Status:
    """A run now; none wherever nobody knows."""

    run: str
    state: str
    """queued, starting, running, waiting (stopped, the next of a chain is queued), stopped, failed, ended, new."""
    why: str
    step: int
    total_steps: int | None
    loss: float | None
    """Nats a token, of the newest logged step."""
    tokens_per_s: float | None
    mfu: float | None
    seconds_left: float | None
    """Of the run, at its present pace."""
    job_seconds_left: float | None
    """Until the job's time limit."""
    next_save_step: int | None
    last_incident: str
    jobs: list[dict[str, Any]]
    """Jobs of the run that have not ended: id, state, detail, folder."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Nodes that its next job does not get, and why."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def status(run_dir: Path) -> Status:
    """The state of a run; a scheduler that does not answer costs only what it alone knows."""
    jobs = _jobs(run_dir)
    if not (run_dir / "config.yaml").is_file():
        return _unstarted(run_dir, jobs)
    record = open_run(run_dir)
    found = summary(record)
    state, why = _state(found, jobs)
    if state in ("failed", "new") and (verdict := _verdict(run_dir)):
        why = f"{why}; {verdict}"
    incidents = [event for event in record.read_events() if is_incident(event)]
    pace = _pace(found)
    left = None if pace is None or found.total_steps is None else pace * (found.total_steps - found.step)
    return Status(
        run=str(run_dir),
        state=state,
        why=why,
        step=found.step,
        total_steps=found.total_steps,
        loss=found.loss,
        tokens_per_s=found.tokens_per_s,
        mfu=found.mfu,
        seconds_left=left if state != "ended" else 0.0,
        job_seconds_left=_job_left(run_dir, jobs),
        next_save_step=_next_save(run_dir, found),
        last_incident=_incident(incidents[-1]) if incidents else "",
        jobs=jobs,
        left_out=left_out(run_dir),
    )


def _jobs(run_dir: Path) -> list[dict[str, Any]]:
    from llmjp_train.launch.submit import _over

    found = []
    for folder in folders(run_dir):
        identity = folder.scheduler_id
        if identity and not _over(folder):
            state = _asked(folder.read(), identity)
            if state.state in ("pending", "running") or _unanswered(state):
                found.append(
                    {"id": identity, "state": state.state, "detail": state.detail, "folder": folder.path.name}
                )
    return found


def _unanswered(state: JobState) -> bool:
    """Whether a scheduler could not be asked; one that answers and does not know a job has forgotten it."""
    return state.state == "unknown" and bool(state.detail)


def _asked(job: Job, identity: str) -> JobState:
    try:
        return scheduler(job.scheduler).states([identity])[identity]
    except UserError as error:
        return JobState("unknown", str(error).splitlines()[0])


def _unstarted(run_dir: Path, jobs: list[dict[str, Any]]) -> Status:
    nearest = sorted(jobs, key=lambda job: ("running", "pending", "unknown").index(job["state"]))
    if nearest:
        first = nearest[0]
        state = "queued" if first["state"] == "pending" else "starting"
        why = " ".join(filter(None, (f"job {first['id']}", first["detail"] and f"({first['detail']})")))
    else:
        why = "; ".join(filter(None, ("no job of it took a step", _verdict(run_dir))))
        state, why = "failed", f"{why}: see 'llmjp logs {run_dir}'"
    return Status(
        str(run_dir), state, why, 0, None, None, None, None, None, _job_left(run_dir, jobs), None, "", jobs,
        left_out(run_dir),
    )  # fmt: skip


def _state(found: Summary, jobs: list[dict[str, Any]]) -> tuple[str, str]:
    """The record's own state, with what waits or starts in the queue."""
    if found.state in ("running", "ended"):
        return found.state, found.reason
    for job in jobs:
        if job["state"] == "running":
            return "starting", f"{found.reason}; job {job['id']} is starting"
    for job in jobs:
        if job["state"] == "pending":
            return "waiting", f"{found.reason}; job {job['id']} is queued ({job['detail']})"
    return found.state, found.reason


def _pace(found: Summary) -> float | None:
    """Seconds a step."""
    if not found.tokens_per_s or found.derived is None:
        return None
    return found.derived.tokens_per_step / found.tokens_per_s


def _verdict(run_dir: Path) -> str:
    """What became of the newest job that began, in the words of its log."""
    rows = [(folder, row) for folder in folders(run_dir) for row in folder.history()[-1:]]
    if not rows or rows[-1][1]["kind"] == "begin":
        return ""
    folder, row = rows[-1]
    return f"job {folder.path.name}: {row.get('action') or 'nothing to do'}: {row['reason']}"


def _job_left(run_dir: Path, jobs: list[dict[str, Any]]) -> float | None:
    """Of a job that runs; one that queued itself again has its time anew."""
    running = [job["folder"] for job in jobs if job["state"] == "running"]
    for folder in reversed(folders(run_dir)):
        rows = folder.history()
        if rows and rows[-1]["kind"] == "begin" and folder.path.name in running:
            minutes = folder.read().minutes
            if minutes is not None and "job_began" in rows[-1]:
                return max(0.0, float(rows[-1]["job_began"]) + 60 * minutes - time.time())
    return None


def lives(folder: JobFolder) -> bool:
    """Whether its scheduler still has a job, as far as it answers."""
    if not folder.scheduler_id:
        return False
    state = _asked(folder.read(), folder.scheduler_id)
    return state.state in ("pending", "running") or _unanswered(state)


def _next_save(run_dir: Path, found: Summary) -> int | None:
    from llmjp_train.config.compose import load_config
    from llmjp_train.config.derive import saved_steps

    if found.total_steps is None:
        return None
    steps = saved_steps(found.total_steps, load_config(run_dir / "config.yaml").checkpoint)
    return next((step for step in steps if step > found.step), None)


def _incident(event: dict[str, Any]) -> str:
    what = event.get("what") or event["kind"]
    said = event.get("evidence") or event.get("message") or event.get("reason") or ""
    return f"step {event.get('step', '?')}: {what}{': ' if said else ''}{said}"


def newest_job(run_dir: Path) -> JobFolder:
    """The newest job that has begun, else the newest.

    Raises:
        UserError: the run has no job.
    """
    found = folders(run_dir)
    if not found:
        raise UserError(
            f"{run_dir} has no job: 'llmjp submit' makes one; a run of this machine prints to its terminal"
        )
    begun = [folder for folder in found if folder.history()]
    return (begun or found)[-1]
