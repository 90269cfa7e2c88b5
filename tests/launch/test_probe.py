"""What a node measures of itself, and what the first node makes of it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.launch import probe as probing
from llmjp_train.launch.judging import Needs, judge, slow_links
from llmjp_train.launch.probe import disk, node_name, parse_gpus, probe, xids

LONG, SHORT = probing._QUERIES
ECC = "ecc.errors.uncorrected.volatile.total"
H100 = """\
0, 0, 1980, 1980, Not Active, No
1, 0, 345, 1980, Active, No
2, [N/A], [N/A], [N/A], [N/A], [N/A]
3, 2, 1755, 1980, Not Active, Yes
4, ERR!, [Unknown Error], 1980, [GPU requires reset], [Not Supported]
"""
DMESG = """\
[    2.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15
[88213.4] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[88213.9] NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.
[88214.0] NVRM: Xid (PCI:0000:86:00): 31, pid=77, name=python3, Ch 00000008, intr 10000000. MMU Fault
"""


def figures(**changed: Any) -> dict[str, Any]:
    """A sound node of eight GPUs."""
    device = {"free_gib": 78.6, "total_gib": 79.1, "tflops": 700.0}
    gpus = [{"index": index, ECC: 0, "remapped_rows.failure": False} for index in range(8)]
    sound = {
        "seconds": 4.0, "devices": [dict(device) for _ in range(8)], "gpus": gpus, "xids": {},
        "disk": {"write_s": 0.1, "read_s": 0.1, "rename_s": 0.01, "free_gb": 50_000.0, "total_gb": 90_000.0},
    }  # fmt: skip
    return {**sound, **changed}


def told(*nodes: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {number: {"host": f"n{number}", "probe": one} for number, one in enumerate(nodes)}


NEEDS = Needs(devices=8, cuda=True, memory_gib=80, checkpoint_bytes=2 * 10**12)


def test_this_node_is_measured_in_about_a_second(tmp_path: Path) -> None:
    found = probe(tmp_path, cuda=False)
    assert found["seconds"] < 5, "0.3 s on a quiet machine"
    (device,) = found["devices"]
    assert device["tflops"] > 0
    assert set(found["disk"]) == {"write_s", "read_s", "rename_s", "free_gb", "total_gb"}
    assert found["disk"]["free_gb"] > 0
    assert (found["gpus"], found["xids"]) == ([], {})
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert judge(told(found), Needs(devices=2)).bad == {}


def test_without_a_driver_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probing.nvidia_smi() == []
    assert probing.output_of("dmesg") == ""


def test_an_old_driver_is_asked_for_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvidia-smi gives up a question of which it does not know one field."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/bash\nif [[ "$*" == *remapped* ]]; then\n'
        "  echo 'Field \"remapped_rows.failure\" is not a valid field to query.'; exit 2\nfi\n"
        "[ \"$1 $2\" = '-i 0,1' ] && printf '0, 0, 1410, 1410\\n1, 7, 1410, 1410\\n'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [(gpu["index"], gpu[ECC]) for gpu in probing.nvidia_smi()] == [(0, 0), (1, 7)]


def test_what_nvidia_smi_prints() -> None:
    gpus = parse_gpus(H100, LONG)
    assert [gpu["index"] for gpu in gpus] == [0, 1, 2, 3, 4]
    assert [gpu[ECC] for gpu in gpus] == [0, 0, None, 2, "ERR!"]
    assert [gpu["clocks_throttle_reasons.hw_slowdown"] for gpu in gpus[:3]] == [False, True, None]
    assert [gpu["remapped_rows.failure"] for gpu in gpus] == [False, False, None, True, None]


@pytest.mark.parametrize(
    "text",
    ["", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "No devices were found\n",
     "0, 0, 1980\n", "index, ecc, clocks, max, slow, failure\n", "\x00\xff,,,,,\n"],
)  # fmt: skip
def test_lines_that_are_no_gpu_are_passed_over(text: str) -> None:
    assert parse_gpus(text, LONG) == []


def test_xid_errors_are_counted() -> None:
    assert xids(DMESG) == {"79": 2, "31": 1}
    assert xids("") == {}


def test_a_disk_that_is_full_or_missing_is_told_in_words(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    found = disk(full)
    assert (found["error"], found["full"]) == (f"cannot write in {tmp_path}: No space left on device", True)
    assert disk(tmp_path / "no" / "folder")["error"].endswith("No such file or directory")
    (tmp_path / "kept.moved").mkdir()
    assert disk(tmp_path / "kept")["error"] == f"cannot rename in {tmp_path}: Is a directory"


def test_a_disk_that_takes_a_part_is_full_and_does_not_give_other_bytes_back(
    small_disk: Callable[[str], Path],
) -> None:
    """A write that finds room for a part of it succeeds: this once made bad nodes of two that were sound."""
    folder = small_disk("3m")
    found = disk(folder / "probe")
    assert found["error"] == f"cannot write in {folder}: No space left on device"
    assert found["full"] is True
    assert found["total_gb"] == 0.003
    assert list(folder.iterdir()) == []


def test_devices_that_do_not_answer_are_told(tmp_path: Path) -> None:
    (hung,) = probing._Child(lambda: time.sleep(60)).answer(0.1)
    assert hung == {"error": "no answer from the devices in 0.1 s"}
    (dead,) = probing._Child(lambda: os._exit(7)).answer(20)
    assert dead["error"].startswith("the process that measured the devices ended with code 7")


def test_a_node_has_the_name_that_its_scheduler_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert node_name() == os.uname().nodename
    monkeypatch.setenv("LLMJP_HOST", "10.0.0.7")
    assert node_name() == "10.0.0.7"
    monkeypatch.setenv("SLURMD_NODENAME", "a012")
    assert node_name() == "a012"


def test_sound_nodes_are_let_go(tmp_path: Path) -> None:
    judged = judge(told(figures(), figures()), NEEDS)
    assert (judged.bad, judged.refused, judged.warnings) == ({}, "", ())


def seven() -> list[dict[str, Any]]:
    return figures()["devices"][:7]  # type: ignore[no-any-return]


def gpu(**values: Any) -> list[dict[str, Any]]:
    return [{"index": 3, ECC: 0, **values}]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"devices": seven()}, "7 usable devices instead of 8"),
        ({"devices": [*seven(), {"error": "CUDA error: uncorrectable ECC error encountered"}]}, "uncorrectable ECC"),
        ({"devices": [*seven(), {"free_gib": 20.0, "total_gib": 79.1, "tflops": 700.0}]}, "only 20 of 79.1 GiB"),
        ({"devices": [*seven(), {"free_gib": 39.0, "total_gib": 39.4, "tflops": 700.0}]}, "device 7 has 39.4 GiB"),
        ({"gpus": gpu(**{ECC: 2})}, "GPU 3 has 2 uncorrected memory"),
        ({"gpus": gpu(**{ECC: "GPU requires reset"})}, "GPU 3: GPU requires reset"),
        ({"gpus": gpu(**{"remapped_rows.failure": True})}, "no spare memory rows"),
        ({"disk": {"error": "cannot rename in /r: Permission denied", "full": False}}, "cannot rename"),
        ({"disk": {**figures()["disk"], "free_gb": 3.0, "total_gb": 9.0}},
         "3.0 GB are free for the run, two checkpoints take 4,000.0"),
    ],
)  # fmt: skip
def test_a_bad_node_is_named_with_why(bad: dict[str, Any], said: str) -> None:
    judged = judge(told(figures(), figures(**bad), figures()), NEEDS)
    assert list(judged.bad) == ["n1"]
    assert said in judged.bad["n1"]
    assert judged.refused == ""


@pytest.mark.parametrize(
    "alike",
    [{"devices": seven()}, {"disk": {"error": "cannot write in /r: Read-only file system", "full": False}}],
)
def test_what_all_nodes_lack_is_none_of_theirs(alike: dict[str, Any]) -> None:
    """A full file system, or a cluster's file that asks for too many devices, must not empty the cluster."""
    judged = judge(told(figures(**alike), figures(**alike)), NEEDS)
    assert judged.bad == {}
    assert "all 2 nodes, n0 among them" in judged.refused


def test_alone_storage_is_refused_and_a_missing_device_is_the_nodes(tmp_path: Path) -> None:
    full = {"error": "cannot write in /r: No space left on device", "full": True, "total_gb": 90_000.0}
    assert "node n0: cannot write" in judge(told(figures(disk=full)), NEEDS).refused
    assert list(judge(told(figures(devices=seven())), NEEDS).bad) == ["n0"]


@pytest.mark.parametrize(
    "scarce",
    [
        {"error": "cannot write in /r: No space left on device", "full": True, "total_gb": 90_000.0},
        {**figures()["disk"], "free_gb": 3.0},
    ],
)
def test_the_node_that_finds_the_shared_disk_full_is_not_a_bad_one(scarce: dict[str, Any]) -> None:
    judged = judge(told(figures(), figures(disk=scarce), figures()), NEEDS)
    assert judged.bad == {}
    assert judged.refused.startswith("node n1: ")
    assert "make room" in judged.refused


def test_slow_and_odd_nodes_are_warnings() -> None:
    slow = [
        {**device, "tflops": 500.0} if place == 5 else device
        for place, device in enumerate(figures()["devices"])
    ]
    hot = [{"index": 0, ECC: None, "clocks_throttle_reasons.hw_slowdown": True}]
    judged = judge(told(figures(), figures(devices=slow), figures(gpus=hot, xids={"31": 2})), NEEDS)
    assert judged.bad == {}
    assert judged.warnings == (
        "node n1 is slow: device 5 reached 500 TFLOP/s, the median is 700",
        "node n2: GPU 0 is slowed down by its hardware (heat or power)",
        "node n2: its kernel's log holds Xid 31 2 times since it was started",
    )
    cpus = [figures(devices=[{"tflops": rate}], gpus=[]) for rate in (0.1, 0.06, 0.1)]
    assert judge(told(*cpus), Needs(devices=2)).warnings == (), "CPUs are often shared"


def test_nodes_without_figures_are_not_judged() -> None:
    assert judge({0: {"host": "n0", "probe": {}}}, NEEDS).bad == {}


def test_links_far_below_the_clusters_figures_are_told() -> None:
    links = {"node": [300.0, 300.0, 10.0, 300.0], "network": [20.0, 20.0, 1.0, 1.0]}
    assert slow_links(links, 2, node_link_gbs=450, network_gbs=50) == [
        "rank 2 receives 10 GB/s within its node, the cluster's file says 450",
        "node 1 receives 2 GB/s from the node before it, the cluster's file says 50",
    ]
    assert slow_links(links, 2, node_link_gbs=None, network_gbs=None) == []
    assert slow_links({}, 1, node_link_gbs=450, network_gbs=50) == []
