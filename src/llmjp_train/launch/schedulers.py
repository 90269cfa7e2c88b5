"""Schedulers behind one small interface: submit, ask, cancel. Their own messages are passed on with ours."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmjp_train.errors import UserError
from llmjp_train.launch.job import Job
from llmjp_train.runlog.machine import began

SECONDS = 60.0
"""How long a scheduler's command may take."""


@dataclass(frozen=True)
class JobState:
    """What a scheduler says of a job."""

    state: str
    """pending, running, ended, or unknown (it no longer says)."""
    detail: str = ""
    """In the scheduler's own words: reason of the wait, nodes."""


class SchedulerApi(Protocol):
    """One scheduler."""

    def submit_command(self, job: Job, script: Path, after: Sequence[str], account: str = "") -> list[str]:
        """Words that submit a script, to run when the jobs ``after`` have ended in whatever way."""

    def parse_id(self, output: str) -> str:
        """The job's id in what that command printed; empty when there is none."""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """States of jobs by id."""

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs now, pending or running."""

    def exclude(self, identity: str, hosts: Sequence[str]) -> None:
        """Let a job that waits leave out these hosts and no others; nothing where the scheduler cannot."""


def scheduler(name: str) -> SchedulerApi:
    """The interface to a scheduler by its name in a cluster's file."""
    if name == "slurm":
        return Slurm()
    if name == "pbs":
        return Pbs()
    if name == "grid_engine":
        return GridEngine()
    return Processes()


def call(
    words: Sequence[str],
    *,
    seconds: float = SECONDS,
    allow: tuple[int, ...] = (0,),
    gone: str = "",
    advice: str = "",
) -> str:
    """Standard output of a scheduler's command.

    Args:
        gone: what it says where it refuses because it has forgotten the job; then nothing is returned.
        advice: what a person may do about a refusal.

    Raises:
        UserError: it is not there, takes too long, or fails; with what it said.
    """
    try:
        done = subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on this machine: run this where the cluster's jobs are submitted from"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{words[0]} gave no answer in {seconds:g} s: the scheduler may be down; try again later"
        ) from None
    if done.returncode not in allow:
        if gone and gone in done.stderr:
            return ""
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise UserError(
            f"{words[0]} refused with code {done.returncode}: {' / '.join(said[:5])}"
            + (f"\n{advice}" if advice else "")
        )
    return done.stdout


def submit(api: SchedulerApi, words: Sequence[str]) -> str:
    """Run a submit command; the job's id.

    Raises:
        UserError: as `call`, or no id could be found in what it printed.
    """
    advice = "correct cluster.account, cluster.partition, cluster.options, nodes or the time limit, whichever it means"
    output = call(words, advice=advice)
    found = api.parse_id(output)
    if not found:
        raise UserError(
            f"{words[0]} printed no job id but {output.strip()[:200]!r}: whether the job was submitted is not "
            "known; look at the queue"
        )
    return found


_FORGOTTEN = "Invalid job id"
"""Slurm's word for a job that it has forgotten; a controller that is down is another error."""


class Slurm:
    """Slurm; accounting is not needed."""

    def submit_command(self, job: Job, script: Path, after: Sequence[str], account: str = "") -> list[str]:
        """sbatch."""
        depend = [f"--dependency=afterany:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        return ["sbatch", "--parsable", *depend, str(script)]

    def parse_id(self, output: str) -> str:
        """``12`` or ``12;cluster``."""
        lines = output.strip().splitlines()
        match = re.match(r"(\d+)(;\S+)?\Z", lines[-1].strip()) if lines else None
        return match.group(1) if match else ""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """From squeue, which knows a job until a while after its end."""
        found = {one: JobState("unknown") for one in ids}
        for one in ids:  # an id that it has forgotten is an error of the whole command
            words = ["squeue", "-h", "-r", "-t", "all", "-j", one, "-o", "%i|%T|%r|%N"]
            output = call(words, gone=_FORGOTTEN)
            for line in output.splitlines():
                parts = line.strip().split("|")
                if len(parts) == 4 and parts[0] == one:
                    found[one] = JobState(*_slurm_state(parts[1], parts[2], parts[3]))
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """scancel."""
        if ids:
            call(["scancel", *ids], gone=_FORGOTTEN)

    def exclude(self, identity: str, hosts: Sequence[str]) -> None:
        """scontrol update, which takes it of a pending job alone."""
        call(["scontrol", "update", f"jobid={identity}", f"excnodelist={','.join(hosts)}"])


def _slurm_state(state: str, reason: str, nodes: str) -> tuple[str, str]:
    if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"):
        return "pending", reason if reason not in ("None", "") else state
    if state in ("RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"):
        return "running", nodes
    return "ended", state


class Pbs:
    """PBS Professional (ABCI 3.0). Not run for real by the tests: docs/clusters.md."""

    def submit_command(self, job: Job, script: Path, after: Sequence[str], account: str = "") -> list[str]:
        """qsub."""
        depend = ["-W", f"depend=afterany:{':'.join(after)}"] if after else []
        return ["qsub", *depend, str(script)]

    def parse_id(self, output: str) -> str:
        """``1234.pbs1``."""
        match = re.search(r"^(\d+(\[\])?(\.[\w.-]+)?)\s*\Z", output.strip(), re.MULTILINE)
        return match.group(1) if match else ""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """From `qstat -x -f`, which shows ended jobs too."""
        found = {one: JobState("unknown") for one in ids}
        for one in ids:
            output = call(["qstat", "-x", "-f", one], allow=(0, 35, 153))
            match = re.search(r"job_state = (\w)", output)
            if match:
                nodes = re.search(r"exec_host = (\S+)", output)
                state = {
                    "Q": "pending",
                    "H": "pending",
                    "W": "pending",
                    "R": "running",
                    "E": "running",
                    "F": "ended",
                }
                found[one] = JobState(
                    state.get(match.group(1), "unknown"), nodes.group(1) if nodes else match.group(1)
                )
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """qdel; 35: it has ended already."""
        for one in ids:
            call(["qdel", one], allow=(0, 35))

    def exclude(self, identity: str, hosts: Sequence[str]) -> None:
        """PBS has no word for it."""


class GridEngine:
    """Grid Engine (ABCI 2.0, TSUBAME 4.0). Not run for real by the tests: docs/clusters.md."""

    def submit_command(self, job: Job, script: Path, after: Sequence[str], account: str = "") -> list[str]:
        """qsub; -g, the group that pays, is an option of these sites' qsub alone."""
        group = ["-g", account] if account else []
        hold = ["-hold_jid", ",".join(after)] if after else []
        return ["qsub", "-terse", *group, *hold, str(script)]

    def parse_id(self, output: str) -> str:
        """``1234``, or ``Your job 1234 ("name") has been submitted`` where -terse is not known."""
        match = re.search(r"^(\d+)\s*\Z|Your job (\d+) ", output.strip(), re.MULTILINE)
        return (match.group(1) or match.group(2)) if match else ""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """From qstat, which does not show ended jobs."""
        found = {one: JobState("ended", "no longer listed") for one in ids}
        for line in call(["qstat"]).splitlines():
            parts = line.split()
            if len(parts) > 4 and parts[0] in found:
                running = "r" in parts[4] or "t" in parts[4]
                found[parts[0]] = JobState("running" if running else "pending", parts[4])
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """qdel."""
        if ids:
            call(["qdel", *ids], allow=(0, 1))

    def exclude(self, identity: str, hosts: Sequence[str]) -> None:
        """Not for a job that waits: qalter would replace all that was asked for with -l."""


class Processes:
    """No scheduler: a process of this machine, known by its id and when it began."""

    def submit_command(self, job: Job, script: Path, after: Sequence[str], account: str = "") -> list[str]:
        """A background process; it waits for those before it."""
        import sys

        words = [sys.executable, "-m", "llmjp_train.launch.detach", str(script)]
        return [*words, *after]

    def parse_id(self, output: str) -> str:
        """``pid-ticks``."""
        match = re.match(r"(\d+-\d+)\Z", output.strip())
        return match.group(1) if match else ""

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """From /proc."""
        return {
            one: JobState("running", f"process {one}") if alive(one) else JobState("ended") for one in ids
        }

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM to the script's process group, which ends its launcher and with it the ranks."""
        for one in ids:
            with suppress(ProcessLookupError):  # it ended in this moment
                if alive(one):
                    os.killpg(int(one.split("-")[0]), signal.SIGTERM)

    def exclude(self, identity: str, hosts: Sequence[str]) -> None:
        """The script names its hosts."""


def alive(identity: str) -> bool:
    """Whether the process ``pid-ticks`` still runs."""
    pid, _, ticks = identity.partition("-")
    return bool(ticks) and began(int(pid)) == ticks
