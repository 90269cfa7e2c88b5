"""`llmjp selftest`: a site's first day, on one node: what this project claims, shown on the devices that are here.

Parts: parity (each form and format against fp32 on the CPU), attention (which implementation torch chose), leak (no
document sees another), layouts (tensor, pipeline, data and ZeRO against one device), checkpoint (save, load in another
layout, export). Without a GPU the CPU half is run, in about two minutes. Exit code 1 when something failed. The JSON
names no user, host or folder.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import __version__, exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmjp_train.config.machine import ClusterConfig
    from llmjp_train.verify.selftest import Finding

SUMMARY = "a site's first day: parity, attention, layouts and checkpoints on its own devices"
USES_CONFIG = True
PARTS = ("parity", "attention", "leak", "layouts", "checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, and where the result goes."""
    parser.add_argument("--only", metavar="PARTS", help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result there, as JSON")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def configuration(args: argparse.Namespace) -> Any:
    """The cluster that was named, in a configuration that is trained nowhere."""
    from llmjp_train.config.compose import compose

    return compose("train", ["experiment=tiny-cpu", *args.overrides], args.config_dir, partial=True)


def run(args: argparse.Namespace) -> int:
    """Ask one question after the other; see `add_arguments`."""
    chosen = [part.strip() for part in args.only.split(",")] if args.only else list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"--only {','.join(unknown)}: give some of {', '.join(PARTS)}")
    cluster = configuration(args).cluster

    from llmjp_train.runlog.environment import environment
    from llmjp_train.verify.selftest import SCHEMA, Finding, SelfTest

    began = time.perf_counter()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="llmjp-selftest-") as folder:
        test = SelfTest(Path(folder))
        findings += [Finding("cluster", *said) for said in _cluster(cluster, test.devices)]
        if not args.json:
            what = f"{test.devices} GPUs" if test.devices else "no GPU: the CPU half"
            print(f"self test of this node ({what})", flush=True)
            for finding in findings:
                _tell(finding)
        for part, ask in test.parts().items():
            if part not in chosen:
                continue
            for finding in _asked(part, ask):
                findings.append(finding)
                if not args.json:
                    _tell(finding)
    passed = all(finding.state != "failed" for finding in findings)
    content = {
        "schema": SCHEMA,
        "version": __version__,
        "cluster": cluster.name,
        "passed": passed,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": environment(),
        "findings": [asdict(finding) for finding in findings],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.json:
        print(text)
    else:
        counts = {state: sum(f.state == state for f in findings) for state in ("ok", "failed", "not run")}
        print(
            ", ".join(f"{count} {state}" for state, count in counts.items()) + f" in {content['seconds']:g} s"
        )
    return exit_codes.OK if passed else exit_codes.FAILED


def _asked(part: str, ask: "Callable[[], Iterator[Finding]]") -> "Iterator[Finding]":
    """A part's findings; what breaks it is one of them, and the next part is asked all the same."""
    from llmjp_train.verify.selftest import Finding

    try:
        yield from ask()
    except (UserError, RuntimeError, OSError) as error:
        yield Finding(part, "all", "failed", str(error))


def _tell(finding: Any) -> None:
    print(f"{finding.state:<8} {finding.part:<11} {finding.name}: {finding.said}", flush=True)


def _cluster(cluster: "ClusterConfig", devices: int) -> list[tuple[str, str, str]]:
    """Whether the node is what the cluster's file says: name, state, in words."""
    from llmjp_train.config.machine import Device

    if cluster.device is not Device.cuda:
        return []
    if not devices:
        return [
            (
                "devices",
                "not run",
                f"{cluster.name} has GPUs, this machine has none: run it on one of its nodes",
            )
        ]
    import torch

    wanted = cluster.devices_per_node
    said = f"{devices} here, {wanted} in the file"
    found = [("devices", "ok" if wanted in (None, devices) else "failed", said)]
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    if isinstance(cluster.device_memory_gib, int | float):
        # What the driver keeps is not given.
        fits = 0.9 * cluster.device_memory_gib <= memory <= 1.05 * cluster.device_memory_gib
        said = f"{memory:.1f} GiB here, {cluster.device_memory_gib:g} in the file"
        found.append(("memory", "ok" if fits else "failed", said))
    found.append(("name", "ok", f"{torch.cuda.get_device_name(0)} here, {cluster.device_name} in the file"))
    return found
