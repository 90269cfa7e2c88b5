"""How the nodes of an attempt find each other: files in the job's folder, which every node sees.

Each node says hello with what it runs and what it measured of itself; the first one compares and judges, and
answers with the address and port where the ranks meet, or with why they must not.
"""

import json
import os
import resource
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import llmjp_train
from llmjp_train.errors import UserError
from llmjp_train.launch.judging import Judgement, Needs, judge
from llmjp_train.launch.local import free_port
from llmjp_train.launch.probe import node_name, output_of, probe
from llmjp_train.launch.snapshot import fingerprint

COMPARED = ("code", "config", "data", "python", "torch", "deepspeed")
"""What must be the same on every node."""
LARGEST_SKEW = 5.0
"""Seconds between a node's clock and the file server's before it is told."""
OPEN_FILES = 65_536
_PACKAGE = Path(llmjp_train.__file__).parent


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of an attempt meet."""

    address: str
    port: int
    warnings: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    """What each node measured of itself, by its name."""


class BadNodesError(UserError):
    """Nodes that must be left out; the others are told the same."""

    def __init__(self, bad: dict[str, str]) -> None:
        super().__init__("; ".join(f"bad node {host}: {why}" for host, why in bad.items()))
        self.bad = bad
        """Why, by the node's name."""


def hello(job: Path, data: list[str], figures: dict[str, Any] | None = None) -> dict[str, Any]:
    """What this node runs, and the figures of its `probe`."""
    return {
        "host": node_name(),
        "code": _code(job),
        "package": str(_PACKAGE),
        "config": (job / "config.yaml").read_text(encoding="utf-8"),
        "data": _sizes(data),
        "python": sys.version.split()[0],
        "torch": _version("torch"),
        "deepspeed": _version("deepspeed"),
        "open_files": raise_open_files(),
        "memory_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "skew_s": _skew(job),
        "probe": figures or {},
    }


def measured_hello(job: Path, data: list[str], run_dir: Path, *, cuda: bool) -> dict[str, Any]:
    """`hello` with this node's figures; where it cannot even do that, its name and ``error``."""
    try:
        return hello(job, data, probe(run_dir, cuda=cuda))
    except Exception as error:
        traceback.print_exc()
        return {"host": node_name(), "error": f"{type(error).__name__}: {error}"}


def meet(
    folder: Path,
    node: int,
    nodes: int,
    mine: dict[str, Any],
    interface: str,
    seconds: float,
    needs: Needs | None = None,
) -> Meeting:
    """Say hello as ``node`` of ``nodes`` in an attempt's folder and hear where the ranks meet.

    Raises:
        BadNodesError: nodes that cannot do what ``needs`` asks, by their own figures.
        UserError: nodes differ in code, configuration, data or versions; one did not come in time; all of them
            lack something; or the interface has no address.
    """
    _put(folder / f"hello-{node:04d}.json", mine)
    end = time.monotonic() + seconds
    answer = folder / "meeting.json"
    if node == 0:
        _put(answer, _answer(folder, nodes, interface, end, needs))
    while (value := _get(answer)) is None:
        if time.monotonic() > end + 30:
            raise UserError(
                f"node {node} heard nothing from the first node in {seconds + 30:.0f} s: see its log"
            )
        time.sleep(0.05)
    if "refused" in value:
        raise UserError(str(value["refused"]))
    if "bad" in value:
        raise BadNodesError(value["bad"])
    return Meeting(value["address"], value["port"], tuple(value["warnings"]), value["figures"])


def _answer(folder: Path, nodes: int, interface: str, end: float, needs: Needs | None) -> dict[str, Any]:
    found: dict[int, dict[str, Any]] = {}
    while len(found) < nodes:
        for node in set(range(nodes)) - set(found):
            value = _get(folder / f"hello-{node:04d}.json")
            if value is not None:
                found[node] = value
        if len(found) < nodes and time.monotonic() > end:
            return _silent(folder, nodes, found)
        time.sleep(0.02)
    broken = {value["host"]: value["error"] for value in found.values() if "error" in value}
    if broken and 2 * len(broken) <= nodes:
        return {"bad": broken}
    if broken:  # so many that it is hardly theirs
        host, why = next(iter(broken.items()))
        return {"refused": f"{len(broken)} of {nodes} nodes could not begin, {host} among them: {why}"}
    refused = disagreement(found)
    if refused:
        return {"refused": refused}
    judged = judge(found, needs) if needs else Judgement()
    if judged.bad:
        return {"bad": judged.bad}
    if judged.refused:
        return {"refused": judged.refused}
    try:
        address = address_of(interface)
    except UserError as error:
        return {"refused": str(error)}
    return {
        "address": address,
        "port": free_port(),
        "warnings": [*oddities(found), *judged.warnings],
        "figures": {value["host"]: value["probe"] for value in found.values()},
    }


def _silent(folder: Path, nodes: int, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The answer when nodes gave no sign in time: they are bad where their names are known and most others came."""
    missing = sorted(set(range(nodes)) - set(found))
    names = hosts_of(folder, {node: value["host"] for node, value in found.items()}, nodes)
    if names and 2 * len(missing) <= nodes:
        return {"bad": {names[node]: "it gave no sign when the job began" for node in missing}}
    said = ", ".join(str(node) for node in missing)
    return {"refused": f"no sign of node {said} of {nodes}: look whether it is up and sees {folder}"}


def hosts_of(attempt: Path, known: dict[int, str], nodes: int) -> list[str]:
    """Names of a job's nodes in their order, by its launcher's file or Slurm; empty where they are not sure.

    Args:
        known: names of those that came, with which the others must be in line.
    """
    file = attempt.parent / attempt.name.replace("attempt-", "hosts-")
    if file.is_file():
        names = file.read_text(encoding="utf-8").split()
    else:
        names = output_of("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split()
    alike = len(names) == nodes and all(names[node] == name for node, name in known.items())
    return names if alike else []


def disagreement(found: dict[int, dict[str, Any]]) -> str:
    """One message that names the nodes which differ from the first, and in what; empty when none does."""
    first, lines = found[0], []
    for node, value in sorted(found.items()):
        # A node whose code is of another version may say less.
        what = [key for key in COMPARED if value.get(key) != first[key]]
        if what:
            shown = ", ".join(_difference(key, value, first) for key in what)
            lines.append(f"  node {node} ({value['host']}): {shown}")
    if not lines:
        return ""
    head = f"nodes differ from node 0 ({first['host']}), so nothing was started:"
    return "\n".join([head, *lines, "make them see the same files, or leave them out"])


def _difference(key: str, value: dict[str, Any], first: dict[str, Any]) -> str:
    if key in ("python", "torch", "deepspeed"):
        return f"{key} {value.get(key)} instead of {first[key]}"
    if key == "code" and value.get("package") != first["package"]:
        return f"code (it runs {value.get('package')})"
    return key


def oddities(found: dict[int, dict[str, Any]]) -> list[str]:
    """What does not forbid a start but should be known."""
    lines = []
    for node, value in sorted(found.items()):
        where = f"node {node} ({value['host']})"
        if abs(value["skew_s"]) > LARGEST_SKEW:
            lines.append(f"{where}: its clock is {value['skew_s']:+.1f} s from the file server's")
        if 0 <= value["open_files"] < 1024:
            lines.append(f"{where}: only {value['open_files']} open files (ulimit -n)")
    return lines


def address_of(interface: str) -> str:
    """IPv4 address of an interface of this machine, or that of its name where none is given.

    Raises:
        UserError: there is no such interface, or it has no IPv4 address.
    """
    if not interface:
        return socket.gethostname()
    known = psutil.net_if_addrs()
    found = [one.address for one in known.get(interface, []) if one.family == socket.AF_INET]
    if not found:
        names = ", ".join(sorted(known))
        raise UserError(
            f"cluster.interface={interface} has no IPv4 address on {socket.gethostname()}; there are: {names}"
        )
    return found[0]


def raise_open_files() -> int:
    """Raise the soft limit of open files as far as the hard one and need allow; the limit, -1 for none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return -1 if soft == resource.RLIM_INFINITY else soft


def _code(job: Path) -> str:
    """Of the job's snapshot and of the package that really runs here, which a node's own settings may put before it."""
    return "-".join(fingerprint(folder) for folder in (job / "code", _PACKAGE) if folder.is_dir())


def _sizes(prefixes: list[str]) -> dict[str, int]:
    """Sizes of token files, which are too large to be read by each node."""
    found = {}
    for prefix in prefixes:
        path = Path(prefix)
        files = (
            sorted(path.iterdir()) if path.is_dir() else [Path(f"{prefix}{end}") for end in (".bin", ".idx")]
        )
        for file in files:
            found[str(file)] = file.stat().st_size if file.is_file() else -1
    return found


def _skew(folder: Path) -> float:
    """Seconds by which this node's clock is ahead of that of the file server."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    before = time.time()
    probe.touch()
    skew = (before + time.time()) / 2 - probe.stat().st_mtime
    probe.unlink()
    return round(skew, 2)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _put(path: Path, value: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


def _get(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value
