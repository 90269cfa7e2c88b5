"""Whether a job's ranks start, start again, or not any more; the one place that decides it.

`python -m llmjp_train.launch.arbiter begin JOB SIGNALS` prints a name for the attempt that begins; exit code 3:
there is nothing to do any more. `... end JOB CODE SIGNALS` says what an attempt's end meant: 10 start the ranks again,
11 queue the job again, else the job's exit code. CODE is the launcher's, which counts for nodes that have not said how
they ended. SIGNALS: those that the job's script got, in order, e.g. "USR1 TERM"; this process ignores them itself.
`... excluded JOB` prints the nodes that a job which is queued again must leave out; `... hosts JOB` the plain hosts
that it is to use now. Called by the job's script on its first node.
"""

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import committed
from llmjp_train.config.compose import load_config
from llmjp_train.config.derive import derived
from llmjp_train.errors import UserError
from llmjp_train.launch.bad_nodes import excluded, leave_out, left_out
from llmjp_train.launch.job import Job, JobFolder, folders
from llmjp_train.launch.schedulers import scheduler
from llmjp_train.runlog.lease import STALE_SECONDS, read_epochs
from llmjp_train.runlog.reading import holder_age
from llmjp_train.runlog.record import RunRecord

NOTHING_TO_DO = 3
AGAIN = 10
REQUEUE = 11
_BY_PEOPLE = ("stop file",)
"""Reasons of a stop after which the rest of a chain does not go on."""


@dataclass(frozen=True)
class Verdict:
    """What the end of an attempt meant."""

    code: int
    """For the job's script."""
    action: str
    """restart, requeue, next of the chain, halt, done."""
    reason: str


def begin(folder: JobFolder, signalled: str = "") -> str:
    """Why there is nothing to do; empty when the ranks may start. Waits for a dead writer to be seen as dead.

    Raises:
        UserError: somebody else writes into the run directory and lives.
    """
    job, run_dir = folder.read(), folder.run_dir
    if folder.cancelled:
        return "the job was cancelled"
    if "TERM" in signalled.split():
        return "the job was told to end (SIGTERM)"
    if _asked_to_stop(folder, job):
        return "a person asked the run to stop, and no rank lived to see it"
    for other in folders(run_dir):
        halted = next((row for row in reversed(other.history()) if row["kind"] == "end"), None)
        if halted and halted["action"] == "halt" and halted["time"] > job.submitted:
            return f"the chain ended: {halted['reason']} (job {other.path.name})"
    events = RunRecord(run_dir).read_events()
    if complete(folder, events):
        return "the run is complete"
    stop = next((event for event in reversed(events) if event["kind"] == "stop"), None)
    if not job.after_stop and stop and stop.get("reason") in _BY_PEOPLE and stop["time"] > job.submitted:
        return "the run was stopped by a person after this job was submitted"
    if job.budget_hours is not None and (used := device_hours(run_dir)) >= job.budget_hours:
        return f"the budget of {job.budget_hours:g} device hours is used up ({used:.1f})"
    _wait_for_the_dead(run_dir)
    return ""


def _asked_to_stop(folder: JobFolder, job: Job) -> bool:
    """Whether RUN/stop, which a rank removes when it obeys, was asked of this job; an older one was of another."""
    try:
        asked = (folder.run_dir / "stop").stat().st_mtime
    except FileNotFoundError:
        return False
    if any(row["kind"] == "begin" for row in folder.history()):  # the older one was removed then
        return True
    return not job.after_stop and asked > (folder.path / "job.json").stat().st_mtime


def complete(folder: JobFolder, events: list[dict[str, Any]]) -> bool:
    """Whether the run has reached the length that this job's configuration asks for, or ended early by itself."""
    ends = [event for event in events if event["kind"] in ("end", "start", "resume", "fork", "stop")]
    if not ends or ends[-1]["kind"] != "end":
        return False
    config = load_config(folder.path / "config.yaml")
    early = str(ends[-1].get("reason", "")).startswith("validation loss was best")
    return early or int(ends[-1].get("step", 0)) >= derived(config).steps


def device_hours(run_dir: Path) -> float:
    """What all jobs of a run have used, from their own histories."""
    total = 0.0
    for folder in folders(run_dir):
        began = 0.0
        for row in folder.history():
            at = datetime.fromisoformat(row["time"]).timestamp()
            if row["kind"] == "begin":
                began = at
            elif row["kind"] == "end" and began:
                total += (at - began) * folder.read().ranks
                began = 0.0
    return total / 3600


def _wait_for_the_dead(run_dir: Path) -> None:
    """A job that the controller runs twice, or one on a lost node, may still hold the lease: never both."""
    end = time.monotonic() + STALE_SECONDS + 15
    while (epochs := read_epochs(run_dir)) and (age := holder_age(run_dir, epochs[-1])) is not None:
        if time.monotonic() > end:
            newest = epochs[-1]
            raise UserError(
                f"{run_dir} is being written by process {newest.pid} on {newest.host} (sign of life {age:.0f} s ago): "
                "this job ends without a step, so that two never write"
            )
        time.sleep(1)


def end(folder: JobFolder, attempt: str, code: int, signalled: str) -> Verdict:
    """Judge the end of an attempt, write it down, and wait before a restart."""
    job, record = folder.read(), RunRecord(folder.run_dir)
    found = _results(folder.attempt(attempt))
    evidence, code = {**_evidence(found), "launcher": code}, _code(job, found, code)
    verdict = _judge(folder, job, record, code, signalled, evidence)
    step = _last_step(record)
    folder.note(
        "end", attempt=attempt, code=code, signal=signalled, action=verdict.action, reason=verdict.reason,
        step=step, fault=evidence.get("kind") or "", saved=_saved(folder.run_dir),
    )  # fmt: skip
    wait = min(60, 2 ** _faults_in_a_row(folder)) if verdict.code == AGAIN else 0
    while wait > 0 and not folder.cancelled:
        time.sleep(1)
        wait -= 1
    return verdict


def _code(job: Job, found: list[dict[str, Any]], launcher: int) -> int:
    """What the nodes say, each for itself; the launcher's code speaks for those that say nothing."""
    codes = [int(value["code"]) for value in found]
    if job.bare:
        return launcher
    if len(codes) < job.nodes:  # and none of them ended well
        codes.append(launcher or exit_codes.FAILED)
    return exit_codes.worst(codes)


def _judge(
    folder: JobFolder, job: Job, record: RunRecord, code: int, signalled: str, evidence: dict[str, Any]
) -> Verdict:
    events = record.read_events()
    if code == exit_codes.OK:
        return Verdict(exit_codes.OK, "done", "the run is complete")
    if code == exit_codes.STOPPED:
        # The time limit says USR1 first; who says TERM alone wants the job gone (a person's scancel), or queues it
        # again by himself (preemption).
        return _stopped(folder, job, events, wanted_gone=signalled.split() == ["TERM"])
    if code in (exit_codes.BAD_INPUT, exit_codes.UNHEALTHY):
        faults = [str(event.get("message", "")) for event in events if event["kind"] == "fault"]
        said = " ".join(str(evidence.get("reason") or "see the job's log").split())  # a line of status
        reason = f"bad input: {said}" if code == exit_codes.BAD_INPUT else (faults or ["unhealthy"])[-1]
        _incident(
            folder, record, "bad_input" if code == exit_codes.BAD_INPUT else "unhealthy", evidence, "halt"
        )
        return Verdict(code, "halt", reason)
    if folder.cancelled or "TERM" in signalled.split():
        return Verdict(exit_codes.FAILED, "cancelled", "ended by the scheduler before it could save")
    return _fault(folder, job, record, evidence)


def _stopped(folder: JobFolder, job: Job, events: list[dict[str, Any]], *, wanted_gone: bool) -> Verdict:
    reason = next(
        (str(e.get("reason", "")) for e in reversed(events) if e["kind"] == "stop"), "stopped at start-up"
    )
    if folder.cancelled or reason in _BY_PEOPLE:
        return Verdict(exit_codes.STOPPED, "stopped", reason)
    if job.requeue and not wanted_gone:
        return Verdict(REQUEUE, "requeue", reason)
    return Verdict(exit_codes.STOPPED, "next", reason)


def _fault(folder: JobFolder, job: Job, record: RunRecord, evidence: dict[str, Any]) -> Verdict:
    """Start again, unless that would only repeat it."""
    what = evidence.get("reason") or f"the launcher ended with exit code {evidence['launcher']}"
    before = [row for row in _ends(folder.run_dir) if row.get("fault") or row["action"] == "restart"]
    step, saved = _last_step(record), _saved(folder.run_dir)
    same = [
        row
        for row in before
        if row["step"] == step and row["saved"] == saved and row.get("fault") == evidence.get("kind")
    ]
    in_a_row = _without_progress(before, saved)
    kind = evidence.get("kind") or "crash"
    if kind == "bad_node":
        return _bad_node(folder, job, record, evidence, again=in_a_row < job.max_restarts)
    if kind in ("rank_died", "out_of_memory") and evidence.get("own_error") and len(same) >= 1:
        reason = f"the same fault at step {step} twice, so it is deterministic: {what}"
    elif in_a_row >= job.max_restarts:
        reason = f"{in_a_row + 1} faults with no new checkpoint in between: {what}"
    else:
        _incident(folder, record, kind, evidence, "restart")
        return Verdict(AGAIN, "restart", what)
    _incident(folder, record, kind, evidence, "halt")
    return Verdict(exit_codes.FAILED, "halt", reason)


def _bad_node(
    folder: JobFolder, job: Job, record: RunRecord, evidence: dict[str, Any], *, again: bool
) -> Verdict:
    """Leave the nodes out of what comes next: a scheduler's job cannot change its nodes while it has them."""
    bad: dict[str, str] = evidence["bad"]
    if job.scheduler != "local":  # where there is no other node
        for host, why in bad.items():
            leave_out(folder.run_dir, host, why, folder.path.name)
    verdict = Verdict(exit_codes.FAILED, "halt", f"bad node {', '.join(bad)}: {evidence['reason']}")
    if again and job.scheduler == "hosts":
        spare = len(_hosts(folder)) >= job.nodes
        verdict = Verdict(AGAIN, "restart", verdict.reason) if spare else verdict
    elif again and job.requeue:
        verdict = Verdict(REQUEUE, "requeue", verdict.reason)
    elif again and job.scheduler != "local":
        verdict = Verdict(exit_codes.FAILED, "next", verdict.reason)
    for host, why in bad.items():
        _incident(folder, record, "bad_node", {**evidence, "host": host, "reason": why}, verdict.action)
    waiting = [
        one for one in folders(folder.run_dir)
        if one.path.name > folder.path.name and one.scheduler_id and not one.history()
    ]  # fmt: skip
    try:
        for one in waiting:
            scheduler(job.scheduler).exclude(one.scheduler_id, _excluded(one))
    except UserError as error:
        # It goes on all the same: should the next job get the node again, it will find it bad again.
        print(
            f"warning: the jobs that wait could not be told to leave {', '.join(bad)} out: {error}",
            flush=True,
        )
    return verdict


def _hosts(folder: JobFolder) -> list[str]:
    """Plain hosts that a job may use now."""
    absent = left_out(folder.run_dir)
    return [host for host in load_config(folder.path / "config.yaml").cluster.hosts if host not in absent]


def _excluded(folder: JobFolder) -> list[str]:
    return excluded(load_config(folder.path / "config.yaml").cluster, left_out(folder.run_dir))


def _incident(folder: JobFolder, record: RunRecord, kind: str, evidence: dict[str, Any], action: str) -> None:
    step, saved = _last_step(record), _saved(folder.run_dir)
    lost = [row.get("step_s") or 0 for row in record.read_metrics() if row["step"] > saved and "loss" in row]
    record.beside(
        "incidents.jsonl", "incident", step=step, what=kind, rank=evidence.get("rank"), node=evidence.get("host"),
        evidence=evidence.get("reason", ""), action=action, job=folder.path.name,
        lost_steps=max(0, step - saved), lost_seconds=round(sum(lost), 3),
    )  # fmt: skip


def _results(attempt: Path) -> list[dict[str, Any]]:
    """How the nodes ended, by their own words."""
    found = []
    for path in sorted(attempt.glob("node-*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            continue
    return found


def _evidence(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the node says that was first: one lost, one whose rank a signal killed, any with a fault of its own."""
    own = [value for value in found if value.get("kind") not in ("", "peer", None)]
    own.sort(key=lambda value: (value["kind"] != "node_lost", "was killed by" not in value["reason"]))
    chosen: dict[str, Any] = own[0] if own else (found[0] if found else {})
    return {**chosen, "own_error": bool(own) and "was killed by" not in chosen["reason"]}


def _ends(run_dir: Path) -> list[dict[str, Any]]:
    return [row for folder in folders(run_dir) for row in folder.history() if row["kind"] == "end"]


def _without_progress(faults: list[dict[str, Any]], saved: int) -> int:
    """Newest faults in a row at which the newest checkpoint was the present one."""
    count = 0
    for row in reversed(faults):
        if row["saved"] != saved:
            break
        count += 1
    return count


def _faults_in_a_row(folder: JobFolder) -> int:
    ends = [row for row in folder.history() if row["kind"] == "end"]
    return _without_progress([row for row in ends if row["action"] == "restart"], _saved(folder.run_dir)) - 1


def _last_step(record: RunRecord) -> int:
    rows = record.read_metrics()
    return int(rows[-1]["step"]) if rows else 0


def _saved(run_dir: Path) -> int:
    found = committed(run_dir)
    return found[-1].step if found else 0


def main() -> int:
    """Entry point."""
    words = sys.argv[1:]
    folder = JobFolder(Path(words[1]))
    try:
        if words[0] == "begin":
            return _begin(folder, words[2] if len(words) > 2 else "")
        if words[0] == "excluded":
            print(",".join(_excluded(folder)))
            return exit_codes.OK
        if words[0] == "hosts":
            return _print_hosts(folder)
        verdict = end(
            folder, os.environ.get("LLMJP_ATTEMPT", ""), int(words[2]), words[3] if len(words) > 3 else ""
        )
    except UserError as error:
        print(f"llmjp: {error}", file=sys.stderr, flush=True)
        return exit_codes.BAD_INPUT
    print(f"job {folder.path.name}: {verdict.action}: {verdict.reason}", flush=True)
    return verdict.code


def _print_hosts(folder: JobFolder) -> int:
    hosts, nodes = _hosts(folder), folder.read().nodes
    if len(hosts) < nodes:
        raise UserError(
            f"cluster.hosts has {len(hosts)} hosts that are not left out, the job needs {nodes}: "
            f"'llmjp status {folder.run_dir}' says which are, and 'llmjp resume {folder.run_dir} --include HOST' takes "
            "one back"
        )
    print(*hosts[:nodes], sep="\n")
    return exit_codes.OK


def _begin(folder: JobFolder, signalled: str) -> int:
    try:
        why = begin(folder, signalled)
    except UserError as error:
        folder.note("skip", reason=str(error))
        raise
    if why:
        print(f"job {folder.path.name}: nothing to do: {why}", file=sys.stderr, flush=True)
        folder.note("skip", reason=why)
        return NOTHING_TO_DO
    for name in ("stop", "save"):  # of an earlier start that did not live to see it
        (folder.run_dir / name).unlink(missing_ok=True)
    number = sum(row["kind"] == "begin" for row in folder.history()) + 1
    attempt = f"{number:03d}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    began = float(os.environ.get("LLMJP_BEGAN") or time.time())
    folder.note("begin", attempt=attempt, host=socket.gethostname(), job_began=began)
    print(attempt)
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
