"""The sandbox: right programs pass, wrong ones fail, and those that reach out find nothing to reach."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.errors import UserError
from llmjp_train.evaluate import code, sandbox
from llmjp_train.evaluate.suites import choice
from llmjp_train.evaluate.tasks import find_tasks


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> None:
    if reason := sandbox.why_not():
        if os.environ.get("LLMJP_CI"):
            pytest.fail(f"CI runs programs in a sandbox: {reason}")
        pytest.skip(reason)


@pytest.mark.parametrize(
    "program",
    [
        "assert sum(range(5)) == 10",
        "import math, re, typing, collections, hashlib, itertools\nassert hashlib.md5(b'').hexdigest()[:4] == 'd41d'",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "print('x' * 10**7)",
        "import os\nassert 'HOME' not in os.environ and 'PATH' not in os.environ",
        "import os\nassert sorted(os.listdir('/')) <= ['bin', 'dev', 'lib', 'lib64', 'proc', 'sbin', 'usr']\n",
    ],
)
def test_ordinary_programs_run(program: str) -> None:
    assert sandbox.run(program) == sandbox.Outcome(True, "ok")


PLANTED = {
    "wrong": ("assert 1 == 2", "AssertionError"),
    "syntax": ("def f(:", "SyntaxError"),
    "leaves": ("import sys; sys.exit(0)", "SystemExit"),
    "leaves at once": ("import os; os._exit(0)", "ended with 0"),
    "socket": ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", "PermissionError"),
    "name": ("import urllib.request; urllib.request.urlopen('http://example.org', timeout=2)", "Error"),
    "forks": ("import os\nwhile True: os.fork()", "PermissionError"),
    "spawns": ("import subprocess; subprocess.run(['/usr/bin/env'])", "PermissionError"),
    "kills": ("import os; os.kill(1, 9)", "PermissionError"),
    "memory": ("x = bytearray(2 << 30)", "MemoryError"),
    "writes": ("open('/x', 'w').write('a')", "Read-only file system"),
    "shared memory": ("open('/dev/shm/x', 'w').write('a')", "Read-only file system"),
    "reads": ("open('{secret}').read()", "FileNotFoundError"),
    "home": ("import os; os.listdir(os.path.expanduser('~root'))", "FileNotFoundError"),
    "passwords": ("open('/etc/passwd').read()", "FileNotFoundError"),
    "mounts": ("import ctypes; assert ctypes.CDLL(None, use_errno=True).mount(b'a', b'/', b'tmpfs', 0, None) == 0",
               "AssertionError"),
    "namespaces": ("import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "limits": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_programs_fail_and_reach_nothing(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("for nobody")
    program, reason = PLANTED[name]
    outcome = sandbox.run(program.replace("{secret}", str(secret)))
    assert not outcome.passed
    assert reason in outcome.reason
    assert secret.read_text() == "for nobody"


def test_a_program_without_an_end_is_stopped_and_leaves_nothing_behind() -> None:
    began = time.monotonic()
    marker = f"marker_{os.getpid()}"
    outcome = sandbox.run(f"{marker} = 1\nwhile True: pass", seconds=1.0)
    assert outcome == sandbox.Outcome(False, "time")
    assert time.monotonic() - began < 30
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "resource.RLIMIT_AS" not in left


def test_canonical_solutions_pass_and_broken_ones_fail(llmjp_data: Path) -> None:
    docs = find_tasks()["jhumaneval"].scored()
    assert len(docs) == 164
    for doc in docs[:6]:
        assert code.jhumaneval_scores(doc, [doc["canonical_solution"]]) == {"pass_at_1": 1.0}
        assert code.jhumaneval_scores(doc, ["    return None\n"]) == {"pass_at_1": 0.0}


@pytest.mark.full
def test_every_canonical_solution_passes(llmjp_data: Path) -> None:
    docs = find_tasks()["jhumaneval"].scored()
    failed = [
        d["task_id"] for d in docs if not code.jhumaneval_scores(d, [d["canonical_solution"]])["pass_at_1"]
    ]
    assert failed == ["JHumanEval/64"], "whose prompt is no Python as published"


def test_without_a_sandbox_the_task_is_left_out_or_refused(
    monkeypatch: pytest.MonkeyPatch, llmjp_data: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.why_not.cache_clear()
    try:
        found = choice("japanese", limit=1)
        assert "jhumaneval" not in {entry.task.name for entry in found.chosen}
        assert any("there is no bwrap here: install bubblewrap" in line for line in found.skipped)
        with pytest.raises(UserError, match="no bwrap here"):
            choice("", ["jhumaneval"])
        with pytest.raises(UserError, match="no bwrap here"):
            sandbox.run("pass")
    finally:
        monkeypatch.undo()
        sandbox.why_not.cache_clear()


def test_the_filter_knows_both_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {}
    for machine in ("x86_64", "aarch64", "riscv64"):
        monkeypatch.setattr(sandbox.platform, "machine", lambda machine=machine: machine)
        rules = sandbox._filter()
        sizes[machine] = rules if rules is None else len(rules) % 8
    assert sizes == {"x86_64": 0, "aarch64": 0, "riscv64": None}
