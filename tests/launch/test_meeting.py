"""Nodes that meet, disagree, or do not come."""

import resource
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.job_scripts import HELLO

from llmjp_train.errors import UserError
from llmjp_train.launch import meeting
from llmjp_train.launch.judging import Needs
from llmjp_train.launch.meeting import (
    BadNodesError,
    Meeting,
    address_of,
    hello,
    measured_hello,
    meet,
    raise_open_files,
)

SOUND = {
    "seconds": 0.3, "devices": [{"tflops": 0.1}], "gpus": [], "xids": {},
    "disk": {"write_s": 0.1, "read_s": 0.1, "rename_s": 0.1, "free_gb": 9.0},
}  # fmt: skip
FULL = {**SOUND, "disk": {"error": "cannot write in /r: No space left on device"}}


def together(
    folder: Path, *hellos: dict[str, Any], seconds: float = 20, needs: Needs | None = None
) -> list[Any]:
    """What each node hears."""
    heard: list[Any] = [None] * len(hellos)

    def node(number: int) -> None:
        try:
            heard[number] = meet(folder, number, len(hellos), hellos[number], "lo", seconds, needs)
        except BadNodesError as error:
            heard[number] = error.bad
        except UserError as error:
            heard[number] = str(error)

    threads = [threading.Thread(target=node, args=(number,)) for number in range(len(hellos))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_nodes_meet_at_one_address_and_a_free_port(tmp_path: Path) -> None:
    first, second = together(tmp_path, HELLO, {**HELLO, "host": "n1"})
    assert isinstance(first, Meeting)
    assert first == second
    assert first.address == "127.0.0.1"
    assert 1024 < first.port < 65536


@pytest.mark.parametrize(
    ("change", "said"),
    [({"code": "b"}, "node 2 (n2): code"), ({"torch": "2.9.1"}, "torch 2.9.1 instead of 2.13.0"),
     ({"data": {"x.bin": 5}}, "data"), ({"python": "3.12.1"}, "python 3.12.1 instead of 3.11.2"),
     ({"config": "d"}, "config"),
     ({"code": "b", "package": "/opt/llmjp_train"}, "node 2 (n2): code (it runs /opt/llmjp_train)")],
)  # fmt: skip
def test_a_node_that_differs_is_named_to_all_and_nothing_starts(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    heard = together(tmp_path, HELLO, {**HELLO, "host": "n1"}, {**HELLO, "host": "n2", **change})
    assert len(set(heard)) == 1
    assert said in heard[0]
    assert "nothing was started" in heard[0]
    assert "node 1" not in heard[0]


def test_a_node_of_an_older_version_that_says_less_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "hello-0001.json").write_text('{"host": "n1", "code": "old"}')
    with pytest.raises(UserError, match=r"node 1 \(n1\): code .*torch None instead of 2\.13\.0"):
        meet(tmp_path, 0, 2, HELLO, "lo", 20)


def test_a_node_that_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sign of node 1 of 2"):
        meet(tmp_path, 0, 2, HELLO, "lo", 0.2)


def test_a_silent_node_is_bad_where_its_name_is_known(tmp_path: Path) -> None:
    attempt = tmp_path / "attempt-1"
    attempt.mkdir()
    (tmp_path / "hosts-1").write_text("n0\nn1\n")
    with pytest.raises(BadNodesError) as caught:
        meet(attempt, 0, 2, HELLO, "lo", 0.2)
    assert caught.value.bad == {"n1": "it gave no sign when the job began"}
    (attempt / "meeting.json").unlink()
    (tmp_path / "hosts-1").write_text("n1\nn0\n")
    with pytest.raises(
        UserError, match="no sign of node 1 of 2"
    ):  # the file's order is not that of the nodes
        meet(attempt, 0, 2, HELLO, "lo", 0.2)
    (attempt / "meeting.json").unlink()
    (tmp_path / "hosts-1").write_text("n0\nn1\nn2\nn3\n")
    with pytest.raises(UserError, match="no sign of node 1, 2, 3 of 4"):  # hardly their fault
        meet(attempt, 0, 4, HELLO, "lo", 0.2)


def test_a_node_that_cannot_begin_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = measured_hello(tmp_path / "no-job", [], tmp_path, cuda=False)
    assert broken["error"].startswith("FileNotFoundError: ")
    assert "Traceback" in capsys.readouterr().err
    heard = together(tmp_path, HELLO, {**broken, "host": "n1"}, needs=Needs(devices=1))
    assert [list(one) for one in heard] == [["n1"], ["n1"]]
    (tmp_path / "next").mkdir()
    heard = together(tmp_path / "next", {**broken, "host": "n0"}, {**broken, "host": "n1"})
    assert "2 of 2 nodes could not begin, n0 among them: FileNotFoundError" in heard[0]


def test_odd_clocks_and_limits_are_warnings(tmp_path: Path) -> None:
    (only,) = together(tmp_path, {**HELLO, "skew_s": 40.0, "open_files": 256})
    assert only.warnings == (
        "node 0 (n0): its clock is +40.0 s from the file server's", "node 0 (n0): only 256 open files (ulimit -n)",
    )  # fmt: skip


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_node_is_named_to_all_and_its_host_is_told(bad: int, tmp_path: Path) -> None:
    hellos = [
        {**HELLO, "host": f"n{number}", "probe": FULL if number == bad else SOUND} for number in range(3)
    ]
    heard = together(tmp_path, *hellos, needs=Needs(devices=1))
    assert heard == [{f"n{bad}": "cannot write in /r: No space left on device"}] * 3


def test_what_all_nodes_lack_is_bad_input_and_sound_nodes_hear_all_figures(tmp_path: Path) -> None:
    both = [{**HELLO, "host": host, "probe": FULL} for host in ("n0", "n1")]
    refused = together(tmp_path, *both, needs=Needs(devices=1))
    assert refused[0] == refused[1]
    assert "all 2 nodes, n0 among them: cannot write in /r" in refused[0]
    (tmp_path / "next").mkdir()
    sound = [{**HELLO, "host": host, "probe": SOUND} for host in ("n0", "n1")]
    first, second = together(tmp_path / "next", *sound, needs=Needs(devices=1, checkpoint_bytes=4 * 10**9))
    assert first == second
    assert first.figures == {"n0": SOUND, "n1": SOUND}


def test_an_interface_without_an_address_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cluster\.interface=nope0 has no IPv4 address on .*; there are: .*lo"
    ):
        address_of("nope0")
    assert address_of("lo") == "127.0.0.1"


def test_hello_tells_what_runs_here(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    (tmp_path / "config.yaml").write_text("name: a\n")
    first = hello(tmp_path, [str(prepared)])
    assert set(first) == set(HELLO)
    assert first["torch"].startswith("2.")
    assert all(size > 0 for size in first["data"].values())
    assert abs(first["skew_s"]) < 5
    (tmp_path / "code" / "a.py").write_text("2")
    second = hello(tmp_path, [])
    assert second["code"] != first["code"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.py").write_text("1")
    monkeypatch.setattr(meeting, "_PACKAGE", other)
    third = hello(tmp_path, [])
    assert third["code"] != second["code"], "the snapshot is the same, but another package runs"
    assert third["package"] == str(other)


def test_a_hard_limit_below_the_wish_is_taken_and_no_error() -> None:
    """A script of LLM-jp's asks for soft and hard at once and dies where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64 if soft < 0 else soft, 512), hard))
        found = raise_open_files()
        assert found == (65_536 if hard < 0 else min(hard, 65_536))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
