"""The supervisor on its own: ranks that end, die, hang; nothing left behind, and one reason told."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmjp_train import exit_codes
from llmjp_train.launch.supervisor import ASKED, FAILED, Result, Supervisor


def supervised(folder: Path, main: Callable[[], int], local: int = 2, **values: object) -> Result:
    """Run in a forked child, so that what it does to signals stays there."""
    attempt = folder / "attempt"
    attempt.mkdir()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            supervisor = Supervisor(
                attempt, folder / "node.txt", main, node=0, local=local, size=local, address="127.0.0.1", port=1,
                **{"grace_seconds": 0.5, **values},
            )  # fmt: skip
            code = supervisor.run().code
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    result = Result(**json.loads((attempt / "node-0000.json").read_text()))
    assert os.waitstatus_to_exitcode(status) == result.code
    return result


def rank() -> int:
    return int(os.environ["RANK"])


def test_ranks_get_their_place_and_their_lines_are_kept(tmp_path: Path) -> None:
    def main() -> int:
        print("hello from", rank(), os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"])
        return exit_codes.OK

    result = supervised(tmp_path, main, local=3)
    assert (result.code, result.kind, result.codes) == (exit_codes.OK, "", [0, 0, 0])
    lines = (tmp_path / "node.txt").read_text().splitlines()
    assert sorted(line.split(" ", 1)[1] for line in lines) == [
        f"{i} hello from {i} 3 127.0.0.1" for i in range(3)
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(exit_codes.STOPPED, exit_codes.STOPPED), (exit_codes.UNHEALTHY, exit_codes.UNHEALTHY),
     (exit_codes.BAD_INPUT, exit_codes.BAD_INPUT)],
)  # fmt: skip
def test_orderly_ends_keep_their_code(code: int, expected: int, tmp_path: Path) -> None:
    result = supervised(tmp_path, lambda: code)
    assert (result.code, result.kind) == (expected, "")


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    def main() -> int:
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
        return exit_codes.OK

    began = time.monotonic()
    result = supervised(tmp_path, main)
    assert time.monotonic() - began < 30
    assert (result.code, result.kind, result.rank) == (exit_codes.FAILED, "rank_died", 1)
    assert result.reason == "rank 1 was killed by SIGKILL"
    assert result.codes[1] == -signal.SIGKILL
    assert "rank 1 was killed" in (tmp_path / "attempt" / FAILED).read_text()


def test_an_exception_is_a_failure_with_its_traceback_kept(tmp_path: Path) -> None:
    def main() -> int:
        if rank() == 0:
            raise RuntimeError("no such kernel")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in a collective
        time.sleep(100)
        return exit_codes.OK

    result = supervised(tmp_path, main)
    assert (result.code, result.kind, result.rank) == (exit_codes.FAILED, "rank_died", 0)
    assert result.codes == [exit_codes.FAILED, -signal.SIGKILL]
    assert result.reason == "rank 0 ended with exit code 1: RuntimeError: no such kernel"
    assert "RuntimeError: no such kernel" in (tmp_path / "node.txt").read_text()


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_rank_that_runs_out_of_memory_says_so(tmp_path: Path, where: str) -> None:
    def main() -> int:
        import torch

        if rank() == 1 and where == "host":
            torch.empty(1 << 50)
        if rank() == 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 96.00 GiB."
            )  # no GPU here to fill
        time.sleep(100)
        return exit_codes.OK

    result = supervised(tmp_path, main)
    assert (result.kind, result.rank) == ("out_of_memory", 1)
    assert "rank 1 ended with exit code 1: " in result.reason


def test_the_failure_of_another_node_ends_this_one(tmp_path: Path) -> None:
    def main() -> int:
        if rank() == 0:
            said = {"kind": "rank_died", "reason": "rank 9 was killed by SIGKILL on a007"}
            part = tmp_path / "attempt" / "part"
            part.write_text(json.dumps(said))
            part.replace(tmp_path / "attempt" / FAILED)
        time.sleep(100)
        return exit_codes.OK

    result = supervised(tmp_path, main)
    assert (result.code, result.kind) == (exit_codes.FAILED, "peer")
    assert "rank 9 was killed by SIGKILL on a007" in result.reason


def test_ranks_that_hang_show_their_stacks_and_end(tmp_path: Path) -> None:
    def main() -> int:
        import faulthandler

        faulthandler.enable()
        wait_in_a_collective()
        return exit_codes.OK

    result = supervised(tmp_path, main, hang=lambda: "nothing was logged for 500 s")
    assert (result.code, result.kind) == (exit_codes.FAILED, "hang")
    assert result.codes == [-signal.SIGABRT, -signal.SIGABRT]
    assert (tmp_path / "node.txt").read_text().count("in wait_in_a_collective") == 2


def wait_in_a_collective() -> None:
    time.sleep(100)


def test_the_deadline_is_a_signal_to_save(tmp_path: Path) -> None:
    def main() -> int:
        got: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        while not got:
            time.sleep(0.05)
        return exit_codes.STOPPED

    result = supervised(tmp_path, main, deadline=time.time() + 0.5)
    assert (result.code, result.codes) == (exit_codes.STOPPED, [exit_codes.STOPPED] * 2)


def save_when_told(name: str, folder: Path) -> int:
    """A rank that prints while it saves, and says in a file that it has."""
    got: list[int] = []
    signal.signal(signal.Signals[name], lambda number, frame: got.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.Signals[name]])
    (folder / f"ready-{rank()}").touch()
    while not got:
        time.sleep(0.05)
    for _ in range(10):
        print("saving", flush=True)
        time.sleep(0.05)
    (folder / f"saved-{rank()}").touch()
    return exit_codes.STOPPED


def test_a_signal_that_the_script_cannot_send_lies_in_a_file(tmp_path: Path) -> None:
    def main() -> int:
        (tmp_path / "attempt" / ASKED).write_text("USR1\n")
        return save_when_told("SIGUSR1", tmp_path)

    assert supervised(tmp_path, main).codes == [exit_codes.STOPPED] * 2


def test_ranks_save_though_the_terminal_of_their_supervisor_is_gone(tmp_path: Path) -> None:
    """As on a host whose ssh line broke: what rank 0 prints can be written nowhere any more."""
    (tmp_path / "attempt").mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        supervisor = Supervisor(
            tmp_path / "attempt", tmp_path / "node.txt", lambda: save_when_told("SIGTERM", tmp_path),
            node=0, local=2, size=2, address="127.0.0.1", port=1,
        )  # fmt: skip
        os._exit(supervisor.run().code)
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == exit_codes.STOPPED
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert "0 saving" in (tmp_path / "node.txt").read_text()


def test_ranks_go_on_though_nobody_reads_what_they_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host whose ssh has gone silent: its terminal takes some kilobytes, and then no more."""

    def main() -> int:
        for _ in range(3000):
            print("x" * 100)
        return exit_codes.OK

    monkeypatch.setattr("llmjp_train.launch.supervisor.PATIENCE", 1.0)
    (tmp_path / "attempt").mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        supervisor = Supervisor(
            tmp_path / "attempt", tmp_path / "node.txt", main, node=0, local=1, size=1, address="", port=1
        )
        os._exit(supervisor.run().code)
    end = time.monotonic() + 20
    while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if done == (0, 0):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(terminal)
    assert done == (pid, 0)
    assert (tmp_path / "node.txt").read_text().count("\n") == 3000


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "node.txt").symlink_to("/dev/full")

    def main() -> int:
        print("a line for which there is no room")
        time.sleep(0.3)
        return exit_codes.OK

    assert supervised(tmp_path, main).codes == [exit_codes.OK] * 2


def test_ranks_that_do_not_end_in_the_lead_time_after_sigterm_are_ended(tmp_path: Path) -> None:
    """Plain hosts have no scheduler that would kill them."""

    def main() -> int:
        import faulthandler

        faulthandler.enable()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in a collective
        (tmp_path / "attempt" / ASKED).write_text("TERM\n")
        time.sleep(100)
        return exit_codes.OK

    result = supervised(tmp_path, main, lead=1)
    assert (result.code, result.kind) == (exit_codes.FAILED, "hang")
    assert result.reason == "the ranks had not ended 1 s after SIGTERM"


def test_a_signal_for_a_rank_that_was_reaped_in_that_moment_is_lost(tmp_path: Path) -> None:
    supervisor = Supervisor(
        tmp_path, tmp_path / "node.txt", lambda: 0, node=0, local=1, size=1, address="", port=1
    )
    child = subprocess.Popen(["true"])
    child.wait()
    supervisor._pids[0] = child.pid  # as `_reap` has it before it notes the code
    supervisor._forward(signal.SIGUSR1, None)


def test_ranks_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from llmjp_train.launch.supervisor import Supervisor\n"
        "folder = Path(sys.argv[1])\n"
        "def main():\n"
        "    (folder / f'pid-{os.environ[\"RANK\"]}').write_text(str(os.getpid())); time.sleep(100)\n"
        "Supervisor(folder, folder / 'out', main, node=0, local=2, size=2, address='', port=1).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    pids: list[int] = []
    while len(pids) < 2:
        time.sleep(0.05)
        pids = [int(text) for path in tmp_path.glob("pid-*") if (text := path.read_text())]
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(living(pid) for pid in pids):
        assert time.monotonic() < end, "ranks outlived their supervisor"
        time.sleep(0.05)


def living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nccl_keeps_its_last_collectives_unless_a_person_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmjp_train.commands.train_node import flight_recorder
    from llmjp_train.config.machine import ClusterConfig, Device

    assert flight_recorder(ClusterConfig(device=Device.cpu), tmp_path) == {}
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    found = flight_recorder(ClusterConfig(device=Device.cuda), tmp_path)
    assert found == {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/nccl-rank-",
    }
