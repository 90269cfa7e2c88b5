"""Cluster files: short, complete, and checked with key, value and remedy."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmjp_train import cli, exit_codes
from llmjp_train.commands.cluster import cluster_named
from llmjp_train.config.machine import ClusterConfig, Container, Device, Launcher, NetworkConfig, Scheduler
from llmjp_train.launch.clusters import lacks, odd

SHIPPED = ("abci-2", "abci-3", "dev-slurm", "gcp-a3", "local", "mdx", "sakura-h100", "tsubame4")
SCHEDULERS = {"abci-2": "grid_engine", "abci-3": "pbs", "tsubame4": "grid_engine", "local": "local"}
GOOD = ClusterConfig(
    name="good", scheduler=Scheduler.slurm, launcher=Launcher.srun, devices_per_node=8, partition="gpu",
    time_limit=60, interface="lo", shared=["/"], account="me",
)  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_short_and_complete(root: Path, name: str) -> None:
    lines = (root / "configs" / "cluster" / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 25
    cluster = cluster_named(name)
    assert lacks(cluster) == []
    assert cluster.scheduler.name == SCHEDULERS.get(name, "slurm")


def test_no_others_ship(root: Path) -> None:
    assert sorted(path.stem for path in (root / "configs" / "cluster").glob("*.yaml")) == sorted(SHIPPED)


def test_network_profiles_are_data() -> None:
    network = cluster_named("sakura-h100").network
    assert network.environment["NCCL_IB_GID_INDEX"] == "3"
    assert network.hosts["a*"] != network.hosts["b*"]
    assert cluster_named("gcp-a3").network.environment["NCCL_NET"] == "GPUDirectTCPX_v7"
    assert cluster_named("abci-3").network == NetworkConfig()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"launcher": Launcher.none}, "launcher=none does not go with scheduler=slurm: take srun or mpirun"),
        ({"scheduler": Scheduler.pbs, "launcher": Launcher.mpirun, "partition": ""}, "partition is empty"),
        ({"scheduler": Scheduler.hosts, "launcher": Launcher.ssh}, "hosts is empty"),
        ({"hosts": ["a"]}, "hosts has no effect with scheduler=slurm"),
        ({"image": "x.sif"}, "give both, or neither"),
        ({"container": Container.pyxis, "image": "x", "launcher": Launcher.mpirun}, "container=pyxis is srun's"),
        ({"container": Container.apptainer, "image": "x", "venv": "/v"}, "venv=/v has no effect"),
        ({"time_limit": 120, "max_time_limit": 60}, "time_limit=120 is above max_time_limit=60"),
        ({"signal_lead": 3600}, "signal_lead=3600 s is not below time_limit=60 minutes"),
        ({"nodes": 9, "max_nodes": 8}, "nodes=9 is above max_nodes=8"),
        ({"account": "x\n#SBATCH --uid=0"}, "account='x\\n#SBATCH --uid=0' holds a line break"),
        ({"environment": {"A B": "1"}}, "environment has 'A B', which is no name of a variable"),
        ({"network": NetworkConfig(hosts={"a*": {"1": ""}})}, "network.hosts.a* has '1'"),
        ({"devices_per_node": None}, "devices_per_node is missing"),
        ({"device": Device.cuda}, "device_memory_gib is missing: give the figure, or unknown"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_with_its_remedy(change: dict[str, Any], said: str) -> None:
    assert lacks(GOOD) == []
    found = lacks(replace(GOOD, **change))
    assert any(said in message for message in found), found


def test_what_is_odd_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    strange = replace(
        GOOD, account="", interface="", shared=[], signal_lead=30, environment={"RANK": "0"}, device=Device.cuda,
        network_gbs="unknown",
    )  # fmt: skip
    found = "\n".join(odd(strange))
    for part in ("account is", "interface is", "shared is", "signal_lead=30 is short", "sets RANK", "sbatch is not on",
                 "network_gbs is unknown"):  # fmt: skip
        assert part in found
    assert odd(cluster_named("local")) == []
    assert "time_limit is empty" in "\n".join(odd(replace(GOOD, time_limit=None)))


def test_check_reads_a_file_wherever_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("name: ours\nscheduler: slurm\nlauncher: srun\npartition: main\ndevices_per_node: 2\n")
    assert cli.main(["cluster", "check", str(file), "--json"]) == exit_codes.OK
    assert json.loads(capsys.readouterr().out)["lacks"] == []
    file.write_text("name: ours\nscheduler: pbs\nlaunchr: srun\n")
    assert cli.main(["cluster", "check", str(file)]) == exit_codes.BAD_INPUT
    assert "cluster.launchr: there is no such key. Did you mean launcher?" in capsys.readouterr().err
    file.write_text("name: ours\nscheduler: pbs\n")
    assert cli.main(["cluster", "check", str(file)]) == exit_codes.BAD_INPUT
    out = capsys.readouterr().out
    assert "error: launcher=none does not go with scheduler=pbs" in out
    assert "3 errors" in out


def test_an_unknown_cluster_is_told_with_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "check", "sakura-h10"]) == exit_codes.BAD_INPUT
    assert "Did you mean sakura-h100?" in capsys.readouterr().err
    assert cli.main(["cluster", "check", "nowhere.yaml"]) == exit_codes.BAD_INPUT
    assert "is no file" in capsys.readouterr().err


def test_list_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "list"]) == exit_codes.OK
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == sorted(SHIPPED)
    assert "abci-3         pbs          8 x NVIDIA H200, 1440 minutes a job" in out
