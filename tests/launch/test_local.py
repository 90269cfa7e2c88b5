"""Real processes on this machine: pinning, exit codes, signals."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmjp_train import exit_codes
from llmjp_train.launch.local import start_processes


def _program(code: str) -> list[str]:
    return [sys.executable, "-c", "import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + code]


HANDLER = """
from llmjp_train.train.stops import Stops
time.sleep(0.3)  # as a rank that is slow to start: the signal comes before it can handle one
stops = Stops().install()
end = time.monotonic() + 60
while not stops.stop and time.monotonic() < end:
    time.sleep(0.01)
"""


def _signal_soon(number: int, marks: list[Path], delay: float = 0.0) -> None:
    def send() -> None:
        while not all(mark.exists() for mark in marks):
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_before_the_ranks_can_handle_it_is_not_lost_and_kills_none(number: int, tmp_path: Path):
    ready = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').close()\n"
    finish = f"open({str(tmp_path)!r} + f'/reason{{rank}}', 'w').write(stops.reason)\nsys.exit(75)\n"
    _signal_soon(number, [tmp_path / "0", tmp_path / "1"])
    assert start_processes(_program(ready + HANDLER + finish), 2) == exit_codes.STOPPED
    assert {(tmp_path / f"reason{rank}").read_text() for rank in range(2)} == {signal.Signals(number).name}


def test_a_stop_that_was_asked_for_already_starts_nothing(tmp_path: Path):
    code = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').close()"
    assert start_processes(_program(code), 2, asked=lambda: True) == exit_codes.STOPPED
    assert not list(tmp_path.iterdir())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "signals are as they were"


def test_ranks_stay_on_their_cores(tmp_path: Path):
    code = f"""
from llmjp_train.launch.local import take_place
take_place()
open({str(tmp_path)!r} + f"/{{rank}}", "w").write(",".join(map(str, sorted(os.sched_getaffinity(0)))))
sys.exit(0 if ",".join(map(str, sorted(os.sched_getaffinity(0)))) == os.environ["LLMJP_CORES"] else 9)
"""
    assert start_processes(_program(code), 2) == exit_codes.OK


def test_ranks_know_their_place_and_share_the_cores(tmp_path: Path):
    code = f"""
open({str(tmp_path)!r} + f"/{{rank}}", "w").write(os.environ["WORLD_SIZE"] + " " + os.environ["LLMJP_CORES"])
"""
    assert start_processes(_program(code), 2) == exit_codes.OK
    worlds, cores = zip(*((tmp_path / str(rank)).read_text().split() for rank in range(2)), strict=True)
    assert worlds == ("2", "2")
    if len(os.sched_getaffinity(0)) >= 2:
        assert not set(cores[0].split(",")) & set(cores[1].split(","))


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), exit_codes.OK),
        ((75, 75), exit_codes.STOPPED),
        ((0, 2), exit_codes.BAD_INPUT),
        ((76, 1), exit_codes.UNHEALTHY),
        ((3, 0), exit_codes.FAILED),
        ((130, 130), exit_codes.INTERRUPTED),
    ],
)
def test_the_worst_exit_code_is_told(codes: tuple[int, int], expected: int):
    assert start_processes(_program(f"sys.exit({codes}[rank])"), 2) == expected


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(capfd: pytest.CaptureFixture[str]):
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)"
    began = time.monotonic()
    assert start_processes(_program(code), 2) == exit_codes.FAILED
    assert time.monotonic() - began < 20
    assert "rank 1 ended with signal SIGKILL" in capfd.readouterr().err


def test_signals_reach_every_rank(tmp_path: Path):
    code = f"""
folder = {str(tmp_path)!r}
def stop(number, frame):
    open(f"{{folder}}/stopped{{rank}}", "w").write(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
open(f"{{folder}}/ready{{rank}}", "w").close()
time.sleep(60)
"""

    _signal_soon(signal.SIGTERM, [tmp_path / "ready0", tmp_path / "ready1"])
    assert start_processes(_program(code), 2) == exit_codes.STOPPED
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in range(2)] == ["SIGTERM", "SIGTERM"]


REPEATED = """
import resource
from llmjp_train.launch.local import keep_memory
keep_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * (100 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_used_again_without_the_kernel_unless_the_user_has_own_settings(
    settings: dict[str, str], kept: bool
) -> None:
    environment = {**os.environ, **settings}
    command = [sys.executable, "-c", REPEATED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    pages = (100 << 20) // resource.getpagesize()
    assert (int(done.stdout) < pages // 100) is kept
