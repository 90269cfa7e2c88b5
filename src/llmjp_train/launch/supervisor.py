"""One process a node: it forks the node's ranks, watches them, and leaves none behind.

Imports are paid once a node, not once a rank; a rank dies with its supervisor (PDEATHSIG), and the ranks end
together: when one dies, or the nodes of the others say that theirs did.
"""

import errno
import json
import os
import re
import select
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from llmjp_train import exit_codes
from llmjp_train.launch.local import die_with
from llmjp_train.parallel.world import become_rank

FAILED = "failed"
"""File in an attempt's folder: a node's ranks have failed, so that the others' must end."""
ASKED = "asked"
"""File in an attempt's folder that names a signal, where the job's script cannot send it to the nodes."""
PATIENCE = 10.0
"""Seconds that a reader of what rank 0 prints may take before it is given up."""
_EXCEPTION = re.compile(rb"[\w.]*(Error|Exception)(: |\s*\Z)")
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|MemoryError|out of memory|can't allocate memory")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


@dataclass
class Result:
    """How an attempt ended on a node; node-0000.json of its folder."""

    code: int
    reason: str = ""
    """What ended it, in words; empty after an orderly end."""
    kind: str = ""
    """rank_died, out_of_memory, hang, crash, peer, bad_node, node_lost, or empty."""
    rank: int | None = None
    """The rank that was first."""
    host: str = ""
    codes: list[int] = field(default_factory=list)
    """Exit code of each rank of the node; minus the signal where one killed it."""
    bad: dict[str, str] = field(default_factory=dict)
    """Nodes that the first one found to be bad before anything was started, and why."""

    def write(self, attempt: Path, node: int, *, by: str = "") -> None:
        """Leave it in the attempt's folder for the arbiter.

        Args:
            by: who says it in the node's place, which may still live and say something itself.
        """
        text = json.dumps(asdict(self), ensure_ascii=False)
        (attempt / f"node-{node:04d}{by}.json").write_text(text, encoding="utf-8")


def end_others(attempt: Path, node: int, kind: str, reason: str) -> None:
    """Tell the supervisors of an attempt that ``node`` has failed, so that their ranks end too."""
    part = attempt / f"{FAILED}.{node}"
    part.write_text(json.dumps({"kind": kind, "reason": reason}, ensure_ascii=False), encoding="utf-8")
    part.replace(attempt / FAILED)


class Supervisor:
    """Ranks of one node in one attempt."""

    def __init__(
        self,
        folder: Path,
        output: Path,
        main: Callable[[], int],
        *,
        node: int,
        local: int,
        size: int,
        address: str,
        port: int,
        deadline: float | None = None,
        lead: float = 300,
        grace_seconds: float = 10,
        hang: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            folder: the attempt's, which every node sees.
            output: file for what this node's ranks print, a line each with time and rank.
            main: what a rank does; its exit code.
            local: ranks of this node; its first is ``node * local``.
            deadline: Unix time at which the ranks are told to save and end, as the scheduler's signal would.
            lead: seconds that the ranks may take to save and end after a SIGTERM.
            grace_seconds: how long the others may take to end after one died.
            hang: called about once a second; says why the ranks are taken to hang, or nothing.
        """
        self.folder, self.main = folder, main
        self.node, self.local, self.size = node, local, size
        self.address, self.port = address, port
        self.deadline, self.lead, self.grace = deadline, lead, grace_seconds
        self._hang = hang
        self._output: IO[bytes] = output.open("ab", buffering=0)
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._pipes: dict[int, bytes] = {}
        self._errors: dict[int, str] = {}
        """The last line of a rank that names an exception."""
        self._selector = selectors.DefaultSelector()
        self._failed_at = 0.0
        self._gone_by = float("inf")
        self._asked = ""
        self.result = Result(0, host=os.uname().nodename)

    def run(self) -> Result:
        """Fork, wait, end all; the result is also written into the attempt's folder."""
        before = {number: signal.signal(number, self._forward) for number in _SIGNALS}
        try:
            for local_rank in range(self.local):
                self._fork(local_rank)
            self._watch()
            self._kill_all()
            self.result.codes = [self._codes.get(rank, -signal.SIGKILL) for rank in range(self.local)]
            self.result.code = _worst(self.result)
            self.result.write(self.folder, self.node)
        finally:
            self._kill_all()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._output.close()
        return self.result

    def _fork(self, local_rank: int) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        # A signal in this moment waits until the rank can handle it (`Stops.install` unblocks them).
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become_rank(local_rank, reading, writing, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(writing)
        os.set_blocking(reading, False)
        self._pids[local_rank] = pid
        self._pipes[reading] = b""
        self._selector.register(reading, selectors.EVENT_READ, local_rank)

    def _become_rank(self, local_rank: int, reading: int, writing: int, parent: int) -> None:
        code = exit_codes.FAILED
        try:
            die_with(parent)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            # By lines: what a rank that is killed printed before it must not be lost in a buffer.
            sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
            rank = self.node * self.local + local_rank
            become_rank(rank, self.size, local_rank, self.address, self.port)
            code = self.main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Every request to end is one to save and end; SIGHUP is a lost connection to the first node."""
        if number == signal.SIGHUP:
            _nobody_listens()
        self._ask(signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number))

    def _ask(self, number: signal.Signals) -> None:
        """Have the ranks save and end; after a SIGTERM in the lead time, since no scheduler may come to kill them."""
        if number == signal.SIGTERM:
            self._gone_by = min(self._gone_by, time.monotonic() + self.lead)
        self._signal_ranks(signal.SIGUSR1 if number == signal.SIGUSR2 else number)

    def _signal_ranks(self, number: int) -> None:
        for local_rank, pid in self._pids.items():
            if local_rank not in self._codes:
                # One may have been reaped in this moment, where a handler interrupts `_reap`.
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _watch(self) -> None:
        looked = time.monotonic()
        while len(self._codes) < self.local:
            self._drain(0.1)
            self._reap()
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                self._look()
            if self._failed_at and time.monotonic() - self._failed_at > self.grace:
                self._kill_all()
        self._drain(0)

    def _look(self) -> None:
        if self.deadline is not None and time.time() >= self.deadline:
            self.deadline = None
            self._signal_ranks(signal.SIGUSR1)
        asked = self.folder / ASKED
        if not self._asked and asked.exists() and (word := asked.read_text(encoding="utf-8").strip()):
            self._asked = word
            self._ask(signal.Signals[f"SIG{word}"])
        if not self._failed_at and (self.folder / FAILED).exists():
            said = json.loads((self.folder / FAILED).read_text(encoding="utf-8"))
            if said["kind"] == "hang":  # who waits for whom is seen on all nodes together
                self._signal_ranks(signal.SIGABRT)
            self._fail("peer", f"another node's ranks ended: {said['reason']}", None)
        if not self._failed_at:
            why = self._hang() if self._hang is not None else ""
            if not why and time.monotonic() > self._gone_by:
                why = f"the ranks had not ended {self.lead:g} s after SIGTERM"
            if why:
                self._signal_ranks(signal.SIGABRT)  # faulthandler prints the stacks of each rank's threads
                self._fail("hang", why, None)

    def _reap(self) -> None:
        ended = {}
        for local_rank, pid in self._pids.items():
            if local_rank not in self._codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[local_rank] = os.waitstatus_to_exitcode(status)
        self._codes.update(ended)
        bad = {rank: code for rank, code in ended.items() if code not in (exit_codes.OK, exit_codes.STOPPED)}
        if bad and not self._failed_at:
            # Of two that ended in one moment the one that a signal killed came first: the other missed it.
            local_rank = min(bad, key=lambda one: (bad[one] >= 0, one))
            code, rank = bad[local_rank], self.node * self.local + local_rank
            self._drain(0)
            error = self._errors.get(local_rank, "") if code == exit_codes.FAILED else ""
            kind = "rank_died" if code < 0 or code == exit_codes.FAILED else ""
            if _OUT_OF_MEMORY.search(error):
                kind = "out_of_memory"
            self._fail(kind, _said(rank, code) + (f": {error}" if error else ""), rank)

    def _fail(self, kind: str, reason: str, rank: int | None) -> None:
        self._failed_at = time.monotonic()
        self.result.kind, self.result.reason, self.result.rank = kind, reason, rank
        _tell(f"node {self.node} ({self.result.host}): {reason}; ending the others\n".encode(), sys.stderr)
        if kind != "peer":
            with suppress(OSError):  # a full disk: the others find their connections closed
                end_others(self.folder, self.node, kind, f"{reason} on {self.result.host}")
        # A rank that failed by itself leaves the others waiting for it in a collective: they cannot save.
        self._signal_ranks(signal.SIGTERM)

    def _kill_all(self) -> None:
        for local_rank, pid in self._pids.items():
            if local_rank not in self._codes:
                os.kill(pid, signal.SIGKILL)
                self._codes[local_rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _drain(self, seconds: float) -> None:
        """Lines of the ranks into the node's file; those of rank 0 into the job's log as well."""
        for key, _ in self._selector.select(seconds):
            descriptor = key.fd
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                continue
            *lines, rest = (self._pipes[descriptor] + data).split(b"\n")
            if not data:
                self._selector.unregister(descriptor)
                os.close(descriptor)
                lines, rest = ([rest] if rest else []), b""
            self._pipes[descriptor] = rest
            self._print(key.data, lines)

    def _print(self, local_rank: int, lines: list[bytes]) -> None:
        if not lines:
            return
        rank = self.node * self.local + local_rank
        stamp = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {rank} ".encode()
        with suppress(OSError):  # a disk that is full for a while is to cost lines, and not the run
            self._output.write(b"".join(stamp + line + b"\n" for line in lines))
        for line in lines:
            if _EXCEPTION.match(line):
                self._errors[local_rank] = line.decode(errors="replace")[:300]
        if rank == 0:
            _tell(b"".join(line + b"\n" for line in lines), sys.stdout)


def _tell(data: bytes, stream: TextIO) -> None:
    """Print for who started this node; ranks must neither die nor wait because nobody reads that any more.

    An ssh whose network is gone leaves a terminal that takes some kilobytes, and then blocks who writes to it.
    """
    end, rest = time.monotonic() + PATIENCE, memoryview(data)
    try:
        while rest:
            if not select.select([], [stream], [], max(0.0, end - time.monotonic()))[1]:
                _nobody_listens()
                return
            # What a pipe that is ready takes without waiting; O_NONBLOCK would stay on a terminal that others use.
            rest = rest[os.write(stream.fileno(), rest[: select.PIPE_BUF]) :]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _nobody_listens()


def _nobody_listens() -> None:
    """The first node, or the terminal of an ssh, is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _said(rank: int, code: int) -> str:
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    return f"rank {rank} ended with exit code {code}"


def _worst(result: Result) -> int:
    """The code that says most: a rank's own before that of those that were ended for it."""
    code = exit_codes.worst(result.codes)
    return exit_codes.FAILED if result.kind and code in (exit_codes.OK, exit_codes.STOPPED) else code
