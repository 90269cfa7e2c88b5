"""`llmjp plan`: whether a run fits, how long it takes and what it costs, before anyone pays for it.

  llmjp plan experiment=llm-jp-175b-abci
  llmjp plan experiment=llm-jp-175b-abci cluster=abci-3 nodes=49 parallel=auto
  llmjp plan --search experiment=llm-jp-3-13b nodes=16
  llmjp plan --calibrate runs/mine experiment=llm-jp-3-13b

nodes=N is short for cluster.nodes=N with parallel.data to match. Exit code 2: it does not fit.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.plan.account import Account
    from llmjp_train.plan.constants import Constants

SUMMARY = "memory, time and cost of a run, before it starts"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--explain", action="store_true", help="each term's formula and source")
    parser.add_argument("--json", action="store_true", help="the plan as JSON, every stage in full")
    parser.add_argument("--search", action="store_true", help="the best layouts of these devices")
    parser.add_argument("--write", type=Path, metavar="FILE", help="with --search: the fastest as a preset")
    parser.add_argument("--calibrate", type=Path, metavar="RUN", help="take the speed of a run of yours")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="memory and step as a page of its own (.html)"
    )


def run(args: argparse.Namespace) -> int:
    """Compose, plan, print."""
    from llmjp_train.plan.account import account, refusal
    from llmjp_train.plan.text import lines, successor_lines

    if not args.search:
        refuse("without --search", {"--write": args.write}, {"--write": "add it"})
    config, constants = _planned(args)
    if args.search:
        return _search(config, constants, args)
    plan = account(config, constants)
    today = _today(config, constants, args)
    if args.json:
        more = {} if today is None else {"successor": account(today, constants).to_dict()}
        print(json.dumps(plan.to_dict() | more, ensure_ascii=False, indent=1))
    else:
        print("\n".join(lines(plan, explain=args.explain)))
        if today is not None:
            print("\n".join(successor_lines(plan, account(today, constants))))
    if args.picture:
        _picture(plan, args.picture)
    refused = refusal(plan.name, plan.job, plan.memory)
    if refused:
        sys.stdout.flush()
        print(f"llmjp plan: {refused}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    return exit_codes.OK


def configuration(args: argparse.Namespace) -> "TrainConfig":
    """The run's configuration with nodes=N applied and parallel=auto replaced by the best layout."""
    return _planned(args)[0]


def _planned(args: argparse.Namespace) -> "tuple[TrainConfig, Constants]":
    """The configuration and the constants that it is planned with."""
    from llmjp_train.config.compose import ConfigError, compose
    from llmjp_train.config.validate import problems
    from llmjp_train.plan.auto import AUTO, with_auto, with_nodes
    from llmjp_train.plan.calibrate import calibrate
    from llmjp_train.plan.constants import shipped
    from llmjp_train.plan.job import check_cluster

    nodes = [word.partition("=")[2] for word in args.overrides if word.startswith("nodes=")]
    overrides = [word for word in args.overrides if not word.startswith("nodes=")]
    if nodes:
        overrides.append(f"cluster.nodes={nodes[-1]}")
    config: TrainConfig = compose("train", overrides, args.config_dir, partial=True)
    check_cluster(config.cluster)
    constants = shipped()
    if args.calibrate is not None:
        found = calibrate(args.calibrate, config)
        config, constants = found.config, found.constants
        print(found.line(), file=sys.stderr)
    if args.search:
        return config, constants
    if nodes and config.parallel.name != AUTO and not any(w.startswith("parallel.data=") for w in overrides):
        config = with_nodes(config)
    config = with_auto(config, constants)
    wrong = problems(config)
    if wrong:
        raise ConfigError(wrong)
    return config, constants


def _today(config: "TrainConfig", constants: "Constants", args: argparse.Namespace) -> "TrainConfig | None":
    """On a cluster that has closed: the same run, on as many devices of its successor, in the best layout there."""
    from llmjp_train.config.compose import compose
    from llmjp_train.plan.auto import with_auto
    from llmjp_train.plan.job import job_from

    if config.cluster.successor is None:
        return None
    here = ("cluster", "parallel", "nodes=")
    words = [word for word in args.overrides if not word.lstrip("+~").startswith(here)]
    words += [f"cluster={config.cluster.successor}", "parallel=auto"]
    found: TrainConfig = compose("train", words, args.config_dir, partial=True)
    nodes = -(-job_from(config).ranks // (found.cluster.devices_per_node or 1))
    try:
        return with_auto(replace(found, cluster=replace(found.cluster, nodes=nodes)), constants)
    except (
        UserError
    ):  # what was asked for is planned; that there is no place for it elsewhere is no error of it
        return None


def _search(config: "TrainConfig", constants: "Constants", args: argparse.Namespace) -> int:
    from llmjp_train.plan.account import account_of
    from llmjp_train.plan.auto import all_devices, preset
    from llmjp_train.plan.search import best, search
    from llmjp_train.plan.text import search_lines

    job = all_devices(config)
    found = search(job, constants)
    if not found.front:
        best(job, constants)  # tells by how much nothing fits
    front = [account_of(config, one.job, constants) for one in found.front]
    if args.json:
        told = {"schema": 1, "tried": found.tried, "fitting": found.fitting}
        print(json.dumps({**told, "front": [one.to_dict() for one in front]}, indent=1))
    else:
        print("\n".join(search_lines(front, found, constants)))
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(preset(found.front[0].job, args.write.stem), encoding="utf-8")
        if not args.json:
            print(f"  written: {args.write}; use it with --config-dir and parallel={args.write.stem}")
    return exit_codes.OK


def _picture(plan: "Account", path: Path) -> None:
    from llmjp_train.plan.picture import page

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(plan), encoding="utf-8")
