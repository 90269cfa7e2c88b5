"""What the figures of all nodes mean: which nodes are bad, what is no node's fault, and what should be known."""

from dataclasses import dataclass, field
from statistics import median, mode
from typing import Any

SLOW = {"cuda": 0.8, "cpu": 0.5}
"""Share of the median matmul rate below which a device is told to be slow; CPUs are often shared."""
FREE = 0.85
"""Least share of a device's memory that must be free before the first step."""
LINK = 0.25
"""Share of a link's rated bandwidth below which its node is told; a short message never reaches all of it."""
_ECC = "ecc.errors.uncorrected.volatile.total"


@dataclass(frozen=True)
class Needs:
    """What a run asks of each of its nodes."""

    devices: int
    """Ranks, each with a device of its own on CUDA."""
    cuda: bool = False
    memory_gib: float | None = None
    """Of a device, by the cluster's file; none: not known."""
    checkpoint_bytes: int = 0


@dataclass(frozen=True)
class Judgement:
    """What follows from the figures."""

    bad: dict[str, str] = field(default_factory=dict)
    """Nodes that must be left out, and why."""
    refused: str = ""
    """What every node says, so that it is none's fault."""
    warnings: tuple[str, ...] = ()


def judge(found: dict[int, dict[str, Any]], needs: Needs) -> Judgement:
    """Judge what nodes said in `hello`; those without figures (``cluster.preflight`` is off) are passed over."""
    nodes = {value["host"]: value["probe"] for _, value in sorted(found.items()) if value.get("probe")}
    shared = {host: why for host, one in nodes.items() if (why := _storage(one, needs))}
    faults = {host: why for host, one in nodes.items() if (why := _devices(one, needs))}
    broken = {host: why for host, one in nodes.items() if (why := _broken(one))}
    # What all of several nodes lack is asked wrongly or shared; storage is shared even where there is one node.
    for alike, least in ((shared, 1), (faults, 2)):
        if alike and len(alike) == len(nodes) >= least:
            host, why = next(iter(alike.items()))
            where = f"node {host}" if len(nodes) == 1 else f"all {len(nodes)} nodes, {host} among them"
            return Judgement(refused=f"{where}: {why}; nothing was started")
    for host, why in shared.items():
        if _lacks_room(nodes[host], needs) and _on_the_same_disk(nodes[host], nodes):
            return Judgement(refused=f"node {host}: {why}; nothing was started")
    return Judgement({**shared, **faults, **broken}, "", tuple(_odd(nodes, needs)))


def _storage(one: dict[str, Any], needs: Needs) -> str:
    disk = one["disk"]
    if "error" in disk:
        return str(disk["error"]) + (": make room" if disk.get("full") else "")
    if _lacks_room(one, needs):
        return (
            f"{disk['free_gb']:,.1f} GB are free for the run, two checkpoints take {_wanted(needs):,.1f} GB: "
            "make room, or go on without this check with cluster.preflight=false"
        )
    return ""


def _wanted(needs: Needs) -> float:
    """GB that must be free."""
    return 2 * needs.checkpoint_bytes / 1e9


def _lacks_room(one: dict[str, Any], needs: Needs) -> bool:
    disk = one["disk"]
    return bool(disk.get("full")) if "error" in disk else float(disk["free_gb"]) < _wanted(needs)


def _on_the_same_disk(one: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> bool:
    """Whether a node's disk is as large as most nodes' is: they share it, and whichever wrote last found it full.

    Another size is another disk, its own perhaps, because the shared one is not mounted.
    """
    sizes = [other["disk"].get("total_gb") for other in nodes.values()]
    return bool(one["disk"].get("total_gb") == mode(sizes))


def _devices(one: dict[str, Any], needs: Needs) -> str:
    if not needs.cuda:
        return next((str(device["error"]) for device in one["devices"] if "error" in device), "")
    sound = [device for device in one["devices"] if "error" not in device]
    if len(sound) < needs.devices:
        errors = [str(device["error"]) for device in one["devices"] if "error" in device]
        return "; ".join([f"{len(sound)} usable devices instead of {needs.devices}", *errors[:1]])
    for index, device in enumerate(sound):
        free, total = device["free_gib"], device["total_gib"]
        # What the driver keeps is not given; makers' figures are GB as often as GiB.
        if needs.memory_gib is not None and total < FREE * needs.memory_gib:
            return f"device {index} has {total:g} GiB, the cluster's file says {needs.memory_gib:g}"
        if free < FREE * total:
            return f"only {free:g} of {total:g} GiB of device {index} are free: something else uses it"
    return ""


def _broken(one: dict[str, Any]) -> str:
    """What a driver says of its own hardware, which is always the node's fault."""
    for gpu in one["gpus"]:
        errors = gpu.get(_ECC)
        if isinstance(errors, str):
            return f"the driver cannot tell the state of GPU {gpu['index']}: {errors}"
        if errors:
            return f"GPU {gpu['index']} has {errors:g} uncorrected memory (ECC) errors: it must be reset"
        if gpu.get("remapped_rows.failure") is True:
            return f"GPU {gpu['index']} has no spare memory rows left: it must be replaced"
    return ""


def _odd(nodes: dict[str, dict[str, Any]], needs: Needs) -> list[str]:
    """What does not forbid a start but should be known."""
    lines, kind = [], "cuda" if needs.cuda else "cpu"
    rates = [device["tflops"] for one in nodes.values() for device in one["devices"] if "tflops" in device]
    middle = median(rates) if rates else 0.0
    for host, one in nodes.items():
        for index, device in enumerate(one["devices"]):
            if "tflops" in device and device["tflops"] < SLOW[kind] * middle:
                what = f"device {index}" if needs.cuda else "its CPU"
                lines.append(
                    f"node {host} is slow: {what} reached {device['tflops']:.3g} TFLOP/s, the median is {middle:.3g}"
                )
        for gpu in one["gpus"]:
            if gpu.get("clocks_throttle_reasons.hw_slowdown") is True:
                lines.append(
                    f"node {host}: GPU {gpu['index']} is slowed down by its hardware (heat or power)"
                )
        if one["xids"]:
            said = ", ".join(f"Xid {number} {count} times" for number, count in sorted(one["xids"].items()))
            lines.append(f"node {host}: its kernel's log holds {said} since it was started")
    return lines


def slow_links(
    links: dict[str, list[float]], per_node: int, *, node_link_gbs: float | None, network_gbs: float | None
) -> list[str]:
    """Links far below the cluster file's figures, by the node that receives; nothing where it has none.

    Args:
        links: what `parallel.links` measured: GB/s by rank.
        per_node: ranks of a node.
        node_link_gbs: between devices of a node, of one device; none: not known.
        network_gbs: of a node's adapters together; none: not known.
    """
    lines = []
    for rank, rate in enumerate(links.get("node", [])):
        if node_link_gbs is not None and rate < LINK * node_link_gbs:
            lines.append(
                f"rank {rank} receives {rate:g} GB/s within its node, the cluster's file says {node_link_gbs:g}"
            )
    network = links.get("network", [])
    for first in range(0, len(network), per_node):
        rate = sum(network[first : first + per_node])
        if network_gbs is not None and rate < LINK * network_gbs:
            lines.append(
                f"node {first // per_node} receives {rate:.3g} GB/s from the node before it, the cluster's file says "
                f"{network_gbs:g}"
            )
    return lines
