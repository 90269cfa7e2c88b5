"""A random schedule of faults over one run on a throw-away Slurm; each must end as docs/faults.md promises.

`make chaos SEED=7 FAULTS=50` prints a table of one; tests/slurm/test_chaos.py runs it, by itself a short one.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.processes import processes, ranks, wait
from helpers.runs import events, last_row, losses, train
from helpers.throwaway import ENDED, Slurm

from llmjp_train.checkpoint.listing import committed
from llmjp_train.launch.job import folders
from llmjp_train.runlog.goodput import goodput
from llmjp_train.runlog.reading import STARTS
from llmjp_train.runlog.record import RunRecord, counting

LLMJP = (sys.executable, "-m", "llmjp_train.cli")
EVERY = 50
"""Steps between checkpoints."""
SETTINGS = (
    "schedule.length=1000000", "schedule.kind=constant", "schedule.min_lr=0", f"checkpoint.every_steps={EVERY}",
    "checkpoint.keep_last=4", "evaluation.validation_every=null", "metrics.agreement_every=1000",
    "metrics.health_every=1000", "metrics.grad_norm_every=1000", "metrics.trackers=[helpers.poison:Poison]",
    "spikes.policy=skip", "spikes.most=1000", "metrics.spike_sigma=1000",
)  # fmt: skip
NODES = (
    "cluster=dev-slurm",
    "cluster.devices_per_node=1",
    "nodes=2",
    "cluster.hang_seconds=6",
    "cluster.time_limit=600",
)
PATIENCE = 150.0
"""Seconds that a run may take to go on after a fault, on a busy machine."""


@dataclass(frozen=True)
class Report:
    """What one fault did."""

    kind: str
    step: int
    """Newest step that was logged when it struck."""
    detected: float | None
    """Seconds until the record or the scheduler told of it; none where nothing is to be told."""
    resumed: float | None
    """Seconds until the first step of the next start; none where the run went on."""
    lost: int | None
    """Steps that were taken again; none where the run went on."""


class BrokenPromiseError(AssertionError):
    """A fault did not end as its row says."""


class Chaos:
    """One run, and who hurts it."""

    def __init__(self, slurm: Slurm, folder: Path, words: Sequence[str], seed: int) -> None:
        self.slurm, self.run_dir, self.words = slurm, folder / "run", list(words)
        self.draw = random.Random(seed)
        tests = str(Path(__file__).parents[1])
        slurm.env["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])

    def llmjp(self, *words: object, check: bool = True) -> str:
        """A command as a person would give it."""
        return self.slurm.run(*LLMJP, *words, check=check, cwd=self.run_dir.parent)

    def submit(self) -> None:
        """Start the run."""
        self.llmjp("submit", "--requeue", *self.words)
        self.progress(5)

    # What is seen of it.

    @property
    def step(self) -> int:
        """Newest step in the file; 0 before the first."""
        return int((last_row(self.run_dir) or {"step": 0})["step"])

    @property
    def job(self) -> str:
        """The newest job's number."""
        return folders(self.run_dir)[-1].scheduler_id

    def starts(self) -> list[dict[str, Any]]:
        """Starts so far."""
        return [event for event in events(self.run_dir) if event["kind"] in STARTS]

    def progress(self, steps: int) -> None:
        """Wait for so many more rows; a job that has ended is gone on with, as a person would in the morning."""
        begun, wanted = self._rows(), steps
        end = time.monotonic() + PATIENCE
        while self._rows() - begun < wanted:
            if time.monotonic() > end:
                log = "".join(folder.log.read_text()[-3000:] for folder in folders(self.run_dir)[-1:])
                raise BrokenPromiseError(
                    f"no {steps} steps within {PATIENCE:.0f} s of step {self.step}:\n{log}"
                )
            if self.slurm.job(self.job).get("JobState", "GONE") in ENDED:
                self.llmjp("resume", "--requeue", self.run_dir, check=False)
                wait(lambda: self._pending_or_running(), 60, "a job that goes on")
            time.sleep(0.2)

    def evidence(self) -> str:
        """What a person would look at first after a promise was broken; the disk goes with the test."""
        commands = (
            ["squeue", "-l"], ["sinfo", "-N", "-l"], ["scontrol", "show", "job", self.job],
            [*LLMJP, "status", self.run_dir], [*LLMJP, "incidents", self.run_dir],
        )  # fmt: skip
        said = {
            " ".join(map(str, words[-2:])): self.slurm.run(*words, check=False, cwd=self.run_dir.parent)
            for words in commands
        }
        files = [self.slurm.root / "log" / "slurmctld.log", self.run_dir / "events.jsonl"]
        for folder in folders(self.run_dir)[-2:]:
            files += sorted(path for path in folder.path.iterdir() if path.is_file())
        files += (self.slurm.root / "log").glob("127*.log")
        said |= {str(path): path.read_text(errors="replace")[-4000:] for path in files if path.exists()}
        return "\n".join(f"== {what}\n{text}" for what, text in said.items())

    def _pending_or_running(self) -> bool:
        return self.slurm.job(self.job).get("JobState", "GONE") not in ENDED

    def _rows(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def node(self) -> str:
        """A node of the job."""
        return self.draw.choice(
            self.slurm.run("scontrol", "show", "hostnames", self.slurm.job(self.job)["NodeList"]).split()
        )

    # One fault after another.

    def strike(self, kind: str) -> Report:
        """Let one fault happen, wait until the run goes on, and hold it to its promise.

        Raises:
            BrokenPromiseError: it did not end as its row says.
        """
        self.progress(EVERY + self.draw.randrange(2 * EVERY))
        if len(ranks(self.run_dir)) != 2:
            raise BrokenPromiseError(f"before {kind}: {len(ranks(self.run_dir))} ranks instead of 2")
        before, saved = self.starts(), self._saved()
        known = len(events(self.run_dir))
        struck, step = time.time(), self.step
        FAULTS[kind](self)
        goes_on = kind in GO_ON
        if not goes_on:
            wait(lambda: len(self.starts()) > len(before), PATIENCE, f"a start after {kind}")
        self.progress(5)
        after = self.starts()
        told = [event for event in events(self.run_dir)[known:] if event["kind"] in TOLD.get(kind, ())]
        detected = _since(struck, told[0]["time"]) if told else None
        if goes_on:
            if len(after) != len(before):
                raise BrokenPromiseError(f"{kind} at step {step} ended the run, which should have gone on")
            return Report(kind, step, detected, None, None)
        resumed = next(row for row in self._rows_after(after[-1]["time"]))
        least = {"stop": None, "corrupt": saved[-2] if len(saved) > 1 else 0}.get(
            kind, saved[-1] if saved else 0
        )
        ended = max(
            step, *(event["step"] for event in events(self.run_dir)[known:] if event["kind"] == "stop"), 0
        )
        at = int(after[len(before)]["step"])
        if least is None and at != ended:
            raise BrokenPromiseError(f"a gentle {kind} at step {ended} went on at {at}: no step may be lost")
        if least is not None and at < least:
            raise BrokenPromiseError(f"{kind} at step {step} went back to {at}, though {least} was saved")
        return Report(kind, step, detected, _since(struck, resumed["time"]), max(0, ended - at))

    def _saved(self) -> list[int]:
        return [info.step for info in committed(self.run_dir)]

    def _rows_after(self, time: str) -> Iterator[dict[str, Any]]:
        rows = RunRecord(self.run_dir).read_metrics(latest=False)
        return (row for row in rows if row["time"] > time)

    # The faults.

    def kill_rank(self) -> None:
        os.kill(self.draw.choice(ranks(self.run_dir)), signal.SIGKILL)

    def hang(self) -> None:
        os.kill(self.draw.choice(ranks(self.run_dir)), signal.SIGSTOP)

    def slow(self) -> None:
        rank = self.draw.choice(ranks(self.run_dir))
        for _ in range(10):
            os.kill(rank, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(rank, signal.SIGCONT)
            time.sleep(0.05)

    def kill_supervisor(self) -> None:
        found = processes(self.run_dir)
        os.kill(
            self.draw.choice(sorted({parent for parent in found.values() if parent in found})), signal.SIGKILL
        )

    def lose_node(self) -> None:
        node, job = self.node(), self.job
        self.slurm.daemon("lose", node)
        wait(lambda: self.slurm.job(job).get("JobState") != "RUNNING", 90, "the loss being seen")
        self.slurm.daemon("start", node)

    def drain(self) -> None:
        node = self.node()
        self.slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=chaos")
        self.progress(EVERY)
        self.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def kill_controller(self) -> None:
        self.slurm.daemon("kill", "slurmctld")
        time.sleep(self.draw.uniform(0.5, 4))
        self.slurm.daemon("start", "slurmctld")

    def stop(self) -> None:
        job = self.job
        self.llmjp("stop", self.run_dir)
        self.slurm.wait_job(job, seconds=90)
        self.llmjp("resume", "--requeue", self.run_dir)

    def cancel(self) -> None:
        """Past llmjp: what a person does who has lost patience. Slurm gives the ranks five seconds."""
        job = self.job
        self.slurm.run("scancel", job)
        self.slurm.wait_job(job, seconds=90)
        self.llmjp("resume", "--requeue", self.run_dir)

    def corrupt(self) -> None:
        """A byte of the newest checkpoint turns and all ranks die: refused by name; a person takes the one before."""
        job = self.job
        newest = committed(self.run_dir)[-1].path
        victim = max(newest.glob("rank-*.bin"), key=lambda path: path.stat().st_size)
        with victim.open("r+b") as file:
            file.seek(victim.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0xFF]))
        for rank in ranks(self.run_dir):
            os.kill(rank, signal.SIGKILL)
        self.slurm.wait_job(job, seconds=PATIENCE)
        self.llmjp("resume", "--requeue", self.run_dir, "resume=latest-valid")

    def nan(self) -> None:
        (self.run_dir.parent / "poison-now").touch()
        wait(lambda: not (self.run_dir.parent / "poison-now").exists(), 60, "the poison being taken")

    def fill_disk(self) -> None:
        """Nothing fits any more until a save has failed."""
        filler, log = self.run_dir.parent / "filler", folders(self.run_dir)[-1].log
        printed = log.stat().st_size
        with filler.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
        time.sleep(3)
        filler.unlink()
        wait(lambda: b"FAILED" in log.read_bytes()[printed:], 60, "a save that failed")


FAULTS: dict[str, Callable[[Chaos], None]] = {
    "rank killed": Chaos.kill_rank,
    "rank hangs": Chaos.hang,
    "rank slowed": Chaos.slow,
    "supervisor killed": Chaos.kill_supervisor,
    "node lost": Chaos.lose_node,
    "node drained": Chaos.drain,
    "controller killed": Chaos.kill_controller,
    "stop": Chaos.stop,
    "scancel": Chaos.cancel,
    "corrupt": Chaos.corrupt,
    "nan": Chaos.nan,
    "disk full": Chaos.fill_disk,
}
GO_ON = ("rank slowed", "node drained", "controller killed", "nan", "disk full")
"""What costs no restart."""
TOLD = {
    "rank killed": ("incident",), "rank hangs": ("incident",), "supervisor killed": ("incident",),
    "corrupt": ("incident",), "stop": ("stop",), "nan": ("spike",), "disk full": ("save_failed",),
}  # fmt: skip
"""Events that tell of a fault, where the run itself does."""


def schedule(seed: int, faults: int, kinds: Sequence[str]) -> list[str]:
    """Every kind once before any comes again, in a random order."""
    draw, found = random.Random(seed), []
    while len(found) < faults:
        found += draw.sample(list(kinds), len(kinds))
    return found[:faults]


def chaos(slurm: Slurm, folder: Path, words: Sequence[str], kinds: Sequence[str], seed: int) -> list[Report]:
    """Let faults of ``kinds`` happen to one run, one after another, then stop it and compare it with a calm one.

    Raises:
        BrokenPromiseError: a fault, the end, or the losses are not as promised.
    """
    one = Chaos(slurm, folder, [*words, *NODES, *SETTINGS], seed)
    one.submit()
    found = []
    for number, kind in enumerate(kinds, 1):
        try:
            found.append(report := one.strike(kind))
        except AssertionError:
            print(f"{number:3} of {len(kinds)}  {kind}: broken\n{one.evidence()}", flush=True)
            raise
        print(f"{number:3} of {len(kinds)}  {_line(report)}", flush=True)
    one.progress(20)
    job = one.job
    one.llmjp("stop", one.run_dir)
    slurm.wait_job(job, seconds=90)
    if processes(one.run_dir):
        raise BrokenPromiseError(f"processes are left: {processes(one.run_dir)}")
    return found


def same_as_calm(folder: Path, words: Sequence[str]) -> int:
    """Number of steps whose loss and norm are bit-equal to those of a run that nobody hurt, the same updates left out.

    Raises:
        BrokenPromiseError: names the first step that is not.
    """
    hurt = losses(folder / "run")
    rows = RunRecord(folder / "run").read_metrics()
    skipped = [row["step"] for row in rows if row.get("applied") is False]
    calm = folder / "calm"
    calm.mkdir()
    (calm / "poison-steps").write_text(" ".join(map(str, skipped)))
    train(2, [*words, *SETTINGS, f"run_dir={calm / 'run'}"], stop_after=len(hurt), timeout=1800)
    for mine, other in zip(hurt, losses(calm / "run"), strict=False):
        if mine != other:
            raise BrokenPromiseError(f"step {mine[0]}: {mine[1:]} where an undisturbed run has {other[1:]}")
    if [row[0] for row in hurt] != list(range(1, len(hurt) + 1)):
        raise BrokenPromiseError("a step is missing or stands twice")
    return len(hurt)


def _since(began: float, time: str) -> float:
    return datetime.fromisoformat(time).timestamp() - began


def _line(one: Report) -> str:
    def said(value: float | None, unit: str) -> str:
        return "–" if value is None else f"{value:.1f} {unit}" if unit == "s" else f"{value} {unit}"

    return (
        f"{one.kind:18} at step {one.step:6}  told after {said(one.detected, 's'):>7}  "
        f"first step after {said(one.resumed, 's'):>7}  lost {said(one.lost, 'steps')}"
    )


def table(found: Sequence[Report]) -> str:
    """Markdown, a row per kind."""
    by_kind = defaultdict(list)
    for one in found:
        by_kind[one.kind].append(one)
    lines = [
        "| fault | times | told in (median, most) | first step in (median, most) | steps lost (most) |",
        "|---|---|---|---|---|",
    ]
    for kind, those in sorted(by_kind.items()):
        cells = []
        for values in ([one.detected for one in those], [one.resumed for one in those]):
            known = [value for value in values if value is not None]
            cells.append(f"{statistics.median(known):.1f} s, {max(known):.1f} s" if known else "–")
        lost = [one.lost for one in those if one.lost is not None]
        lines.append(f"| {kind} | {len(those)} | {cells[0]} | {cells[1]} | {max(lost) if lost else '–'} |")
    return "\n".join(lines)


def shares(run_dir: Path) -> str:
    """Where the time went."""
    record = RunRecord(run_dir)
    every = record.read_metrics(latest=False)
    found = goodput(every, counting(every), record.read_events(), logged_every=1)
    if found is None:
        return "goodput unknown"
    parts = ("steps", "again", "saving", "down", "rest")
    return f"{found.seconds:.0f} s in {found.starts} starts: " + ", ".join(
        f"{part} {getattr(found, part) / found.seconds:.1%}" for part in parts
    )


@contextmanager
def own_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 64 MB over a folder, where this user may."""
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
