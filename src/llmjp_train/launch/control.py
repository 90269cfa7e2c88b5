"""What people ask of a run that is in a queue or runs: save, stop, end."""

import time
from collections.abc import Callable
from pathlib import Path

from llmjp_train.errors import UserError
from llmjp_train.launch.job import JobFolder
from llmjp_train.launch.schedulers import scheduler
from llmjp_train.launch.submit import open_jobs
from llmjp_train.runlog.lease import read_epochs
from llmjp_train.runlog.reading import holder_age


def writer_lives(run_dir: Path) -> bool:
    """Whether some process writes into the run directory now."""
    epochs = read_epochs(run_dir)
    return bool(epochs) and holder_age(run_dir, epochs[-1]) is not None


def ask_save(run_dir: Path) -> None:
    """Ask for a checkpoint at the next step.

    Raises:
        UserError: nothing runs.
    """
    if not writer_lives(run_dir) and not _running(run_dir):
        raise UserError(
            f"{run_dir} is not running, so nothing can save it: 'llmjp status {run_dir}' says how it is"
        )
    (run_dir / "save").touch()


def ask_stop(run_dir: Path) -> list[str]:
    """Save and end what runs, take what waits out of the queue; what was done, in words.

    Raises:
        UserError: nothing runs or waits.
    """
    done = _drop_pending(run_dir)
    if writer_lives(run_dir) or _running(run_dir):
        (run_dir / "stop").touch()
        done.append("asked the run to save and end")
    if not done:
        raise UserError(f"{run_dir} neither runs nor waits: 'llmjp status {run_dir}' says how it is")
    return done


def cancel(run_dir: Path, *, gently: bool, say: Callable[[str], None]) -> None:
    """End everything of a run: saved, within the job's lead time, or now.

    Raises:
        UserError: nothing runs or waits.
    """
    dropped = _drop_pending(run_dir)
    for line in dropped:
        say(line)
    running = _running(run_dir)
    if not running:
        if not dropped:
            raise UserError(
                f"{run_dir} has no job that runs or waits: 'llmjp status {run_dir}' says how it is"
            )
        return
    for folder in running:
        folder.cancel()
    if gently:
        (run_dir / "stop").touch()
        lead = max(folder.read().lead for folder in running)
        say(f"asked the run to save and end; its job is ended by the scheduler if it has not after {lead} s")
        end = time.monotonic() + lead
        while _running(run_dir) and time.monotonic() < end:
            time.sleep(0.5)
    for folder in _running(run_dir):
        job = folder.read()
        scheduler(job.scheduler).cancel([folder.scheduler_id])
        # No scheduler kills what does not end: the supervisors do, and asking them twice changes nothing.
        left = f": its ranks save if they can, and are killed {job.lead} s from the first time"
        say(
            f"cancelled running job {folder.scheduler_id}"
            + (left if job.scheduler in ("local", "hosts") else "")
        )
    (run_dir / "stop").unlink(missing_ok=True)


def _running(run_dir: Path) -> list[JobFolder]:
    return [folder for folder, state in open_jobs(run_dir) if state == "running"]


def _drop_pending(run_dir: Path) -> list[str]:
    done = []
    for folder, state in reversed(
        open_jobs(run_dir)
    ):  # the last first: none may start when the one before goes
        if state == "pending":
            folder.cancel()
            scheduler(folder.read().scheduler).cancel([folder.scheduler_id])
            folder.note("skip", reason="cancelled before it began")
            done.append(f"took job {folder.scheduler_id} out of the queue")
    return done
