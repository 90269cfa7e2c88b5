"""Runs a program that a model wrote: in bubblewrap, without network, files, processes or much of anything.

The program sees the Python standard library, read-only, and nothing else of the machine. A seccomp filter refuses
new processes, sockets and the calls that reach into the kernel, whoever runs it (a limit on processes does not
bind root). Time, processor time, memory and file size are limited too.
"""

import os
import platform
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmjp_train.evaluate.tasks import MissingDataError

SECONDS = 10.0
MEMORY = 512 << 20
_REFUSED = {
    # clone3's flags lie behind a pointer: "no such call" makes the C library use clone, whose flags show.
    "x86_64": {"arch": 0xC000003E, "clone": 56, "clone3": 435, "refuse": (
        41, 57, 58, 62, 101, 155, 161, 165, 166, 175, 176, 246, 248, 249, 250, 272, 298, 304, 308, 313, 321, 323, 425,
    )},
    "aarch64": {"arch": 0xC00000B7, "clone": 220, "clone3": 435, "refuse": (
        198, 129, 117, 41, 51, 40, 39, 105, 106, 104, 217, 218, 219, 97, 241, 265, 268, 273, 280, 282, 425,
    )},
}  # fmt: skip
"""Numbers of calls by machine: socket, fork, vfork, kill, ptrace, pivot_root, chroot, mount, umount, modules, kexec,
keys, unshare, perf_event_open, open_by_handle_at, setns, bpf, userfaultfd, io_uring_setup."""
_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38
_START = """
import os, resource, sys
for limit, value in ((resource.RLIMIT_AS, {memory}), (resource.RLIMIT_CPU, {cpu}), (resource.RLIMIT_FSIZE, 0),
                     (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    resource.setrlimit(limit, (value, value))
source, verdict, nothing = sys.stdin.read(), os.dup(1), os.open("/dev/null", os.O_WRONLY)
os.dup2(nothing, 1)
os.dup2(nothing, 2)
word, source = source.split("\\n", 1)
try:
    exec(compile(source, "program", "exec"), {{"__name__": "__main__"}})
except BaseException as error:
    os.write(verdict, (type(error).__name__ + ": " + str(error)[:200]).encode("utf-8", "replace"))
else:
    os.write(verdict, word.encode())
os._exit(0)
"""
"""What it prints goes nowhere: nobody's memory is filled with it."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """It ran to its end."""
    reason: str
    """``ok``, ``time``, its error, or how the process ended."""


def _filter() -> bytes | None:
    """The seccomp program (Linux's struct sock_filter) for this machine; none: it is not known."""
    calls = _REFUSED.get(platform.machine())
    if calls is None:
        return None
    load, equal, test, stop = 0x20, 0x15, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    errno = 0x00050000
    refuse = calls["refuse"]
    assert isinstance(refuse, tuple)
    # (code, jump if true, jump if false, value); the data are nr at 0, arch at 4, the first argument at 16.
    lines = [(load, 0, 0, 4), (equal, 1, 0, calls["arch"]), (stop, 0, 0, kill), (load, 0, 0, 0)]
    # The x32 calls of x86-64 have their own numbers from 0x40000000 on.
    lines += [(0x35, 0, 1, 0x40000000), (stop, 0, 0, errno | _EPERM)]
    for number in refuse:
        lines += [(equal, 0, 1, number), (stop, 0, 0, errno | _EPERM)]
    lines += [(equal, 0, 1, calls["clone3"]), (stop, 0, 0, errno | _ENOSYS)]
    lines += [
        (equal, 0, 3, calls["clone"]),
        (load, 0, 0, 16),
        (test, 1, 0, _THREAD),
        (stop, 0, 0, errno | _EPERM),
    ]
    lines += [(stop, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _command(filter_fd: int, memory: int, cpu: int) -> list[str]:
    base = str(Path(sys.base_prefix).resolve())
    python = os.path.realpath(sys.executable)
    words = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    words += ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64", "lib32", "bin"):
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    if not base.startswith("/usr"):
        words += ["--ro-bind", base, base]
    words += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        "/",
        "--seccomp",
        str(filter_fd),
    ]
    return [*words, "--", python, "-I", "-S", "-B", "-c", _START.format(memory=memory, cpu=cpu)]


def run(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run a program to its end, or stop it.

    Args:
        seconds: of wall time; processor time has the next whole second.
        memory: bytes of address space.

    Raises:
        MissingDataError: there is no sandbox on this machine.
    """
    if reason := why_not():
        raise MissingDataError(reason)
    return _run(program, seconds, memory)


def _run(program: str, seconds: float, memory: int) -> Outcome:
    # A program that leaves early (os._exit) has not passed: only its end says this word.
    word = secrets.token_hex(16)
    rules = _filter()
    assert rules is not None
    with tempfile.TemporaryFile() as file:
        file.write(rules)
        file.seek(0)
        started = subprocess.Popen(
            _command(file.fileno(), memory, int(seconds) + 1),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(file.fileno(),),
        )  # fmt: skip
        try:
            said, wrong = started.communicate(
                f"{word}\n{program}".encode("utf-8", "replace"), timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, "time")
        finally:
            # The namespace's first process: nothing in it outlives that.
            started.kill()
            started.wait()
    if said == word.encode():
        return Outcome(True, "ok")
    text = (said or wrong).decode("utf-8", "replace").strip().splitlines()
    return Outcome(False, text[-1] if text else f"ended with {started.returncode}")


@cache
def why_not() -> str | None:
    """Why programs cannot be run safely here; none where they can."""
    if shutil.which("bwrap") is None:
        return "programs are run in bubblewrap alone, and there is no bwrap here: install bubblewrap"
    if _filter() is None:
        return f"the sandbox does not know the system calls of {platform.machine()}"
    outcome = _run("x = sum(range(10))\nassert x == 45", 20.0, MEMORY)
    if not outcome.passed:
        return (
            f"bubblewrap cannot make a sandbox here ({outcome.reason}): user namespaces may be switched off"
        )
    return None
