"""`llmjp cluster`: the clusters that are known, and what a cluster's file lacks.

llmjp cluster list
llmjp cluster check sakura-h100
llmjp cluster check my-configs/cluster/ours.yaml
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.machine import ClusterConfig

SUMMARY = "list clusters, check a cluster's file"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|check")
    listing = actions.add_parser("list", help="name, scheduler and nodes of each")
    check = actions.add_parser("check", help="what a cluster's file lacks, and what in it is odd")
    check.add_argument("file", metavar="FILE", help="a YAML file, or the name of a shipped one")
    for action in (listing, check):
        action.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own configs")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List or check."""
    return _list(args) if args.action == "list" else _check(args)


def cluster_named(file: str, config_dir: Path | None = None) -> "ClusterConfig":
    """The cluster of a YAML file, or of a name in the cluster group.

    Raises:
        UserError: there is no such file or name, or it has unknown keys or values of a wrong type.
    """
    path = Path(file)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return _composed(file, config_dir)
    if not path.is_file():
        raise UserError(f"{path} is no file: name a cluster's YAML file, or one of 'llmjp cluster list'")
    with tempfile.TemporaryDirectory(prefix="llmjp-") as folder:
        # A copy of its folder under the name of the group, wherever it lies; network profiles come along.
        group = Path(folder) / "cluster"
        group.mkdir()
        shutil.copy(path, group / f"{path.stem}.yaml")
        if (path.parent / "network").is_dir():
            shutil.copytree(path.parent / "network", group / "network")
        return _composed(path.stem, Path(folder))


def _composed(name: str, config_dir: Path | None) -> "ClusterConfig":
    from llmjp_train.config.compose import compose

    cluster: ClusterConfig = compose("train", [f"cluster={name}"], config_dir, partial=True).cluster
    return cluster


def _list(args: argparse.Namespace) -> int:
    from llmjp_train.config.compose import group_files

    clusters = [cluster_named(name, args.config_dir) for name in group_files("cluster", args.config_dir)]
    rows = [
        {
            "name": one.name,
            "scheduler": one.scheduler.name,
            "devices_per_node": one.devices_per_node,
            "device": one.device_name,
            "time_limit": one.time_limit,
        }
        for one in clusters
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return exit_codes.OK
    for row in rows:
        count = "" if row["devices_per_node"] is None else f"{row['devices_per_node']} x "
        limit = "" if row["time_limit"] is None else f", {row['time_limit']} minutes a job"
        print(f"{row['name']:<14} {row['scheduler']:<12} {count}{row['device']}{limit}")
    return exit_codes.OK


def _check(args: argparse.Namespace) -> int:
    from llmjp_train.launch.clusters import lacks, odd

    cluster = cluster_named(args.file, args.config_dir)
    missing, notes = lacks(cluster), odd(cluster)
    if args.json:
        print(
            json.dumps({"name": cluster.name, "lacks": missing, "odd": notes}, indent=2, ensure_ascii=False)
        )
    else:
        for message in missing:
            print(f"error: {message}")
        for message in notes:
            print(f"note: {message}")
        head = f"{cluster.name}: {cluster.scheduler.name}, {cluster.devices_per_node or '?'} x {cluster.device_name}"
        print(f"{head}: {len(missing)} errors, {len(notes)} notes")
    return exit_codes.BAD_INPUT if missing else exit_codes.OK
