"""`llmjp submit`: put a run into a cluster's queue, to start, save and go on by itself.

  llmjp submit experiment=llm-jp-3-13b cluster=sakura-h100 nodes=32 cluster.account=us
  llmjp submit --chain 4 experiment=... cluster=abci-3       four jobs, each going on from the one before
  llmjp submit --print experiment=... cluster=...            the script and the commands, nothing done
  llmjp submit runs/mine --after 1234                        go on with a run, after another job
  llmjp submit -m optimizer.lr=1e-4,2e-4 experiment=...      a run for each value, one array in Slurm

nodes=N is short for cluster.nodes=N with parallel.data to match. The job runs a snapshot of code,
configuration and environment: editing a file changes nothing that waits.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.launch.submit import Asked

SUMMARY = "put a run into a cluster's queue"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run to go on with: its directory or name")
    parser.add_argument("--dry-run", action="store_true", help="check everything, submit nothing")
    parser.add_argument("--print", action="store_true", help="the script and the commands, nothing else")
    parser.add_argument("--plain", action="store_true", help="with --print: a script to submit by hand")
    parser.add_argument("--chain", type=int, default=1, metavar="N", help="N jobs, one after another")
    parser.add_argument(
        "--after", default="", metavar="JOB", help="begin when this job, or that run's, has ended"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values given with commas"
    )
    parser.add_argument("--requeue", action="store_true", help="one job that queues itself again (Slurm)")
    parser.add_argument("--bare", action="store_true", help="one task a rank, unsupervised")
    parser.add_argument(
        "--budget", type=float, metavar="HOURS", help="device hours that the run's jobs may use"
    )
    parser.add_argument(
        "--force", action="store_true", help="submit although the plan says that memory does not suffice"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="HOST", help="leave a node out from now on"
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="HOST", help="use a node again that was left out"
    )
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Compose, check, then print or submit."""
    from llmjp_train.launch.submit import Asked

    asked = Asked(
        chain=args.chain, after=args.after, requeue=args.requeue, bare=args.bare, budget_hours=args.budget,
        exclude=tuple(args.exclude), include=tuple(args.include),
    )  # fmt: skip
    if args.multirun:
        return _sweep(args, asked)
    config = configuration(args)
    _check(config, asked, starting=not (args.dry_run or args.print), force=args.force)
    if args.print:
        return _print(config, asked, _words(args) if args.plain else None)
    refuse("without --print", {"--plain": args.plain}, {"--plain": "add it"})
    if args.prepare:
        from llmjp_train.launch.submit import prepare

        print(prepare(config, asked).path.resolve())
        return exit_codes.OK
    return dry_run(config, asked) if args.dry_run else submit(config, asked)


def _sweep(args: argparse.Namespace, asked: "Asked") -> int:
    """Check every run, then submit them together.

    Raises:
        ConfigError: what is wrong with any of them; nothing is submitted.
    """
    from llmjp_train.config.sweep import at_once, sweep_runs
    from llmjp_train.launch.submit import submit_sweep

    refused = {
        "RUN": args.run, "--print": args.print, "--chain": args.chain > 1, "--exclude": args.exclude,
        "--include": args.include,
    }  # fmt: skip
    for flag, given in refused.items():
        if given:
            raise UserError(f"-m does not go with {flag}: each run of a sweep is one job of its own")

    def checked(words: tuple[str, ...]) -> "TrainConfig":
        config = configuration(argparse.Namespace(**{**vars(args), "overrides": list(words)}))
        _check(config, asked, starting=not args.dry_run, force=args.force)
        return config

    runs = sweep_runs(args.overrides)
    parent = Path(at_once(runs, lambda one: checked(one.overrides))[0].run_dir)
    configs = [checked((*one.overrides, f"run_dir={parent / one.folder}")) for one in runs]
    if args.dry_run:
        for config in configs:
            dry_run(config, asked)
        if configs[0].cluster.scheduler.name == "slurm":
            print(f"{len(configs)} runs, submitted together as one array: --array=1-{len(configs)}")
        return exit_codes.OK
    for folder in submit_sweep(configs, asked):
        print(f"submitted {folder.scheduler_id}: {folder.path}")
    print(f"watch them with: llmjp status {parent}/*")
    return exit_codes.OK


def configuration(args: argparse.Namespace) -> "TrainConfig":
    """The run's configuration with nodes=N applied and parallel=auto replaced."""
    from dataclasses import replace

    from llmjp_train.commands import train
    from llmjp_train.launch.job import find_run

    nodes = [word.partition("=")[2] for word in args.overrides if word.startswith("nodes=")]
    overrides = [word for word in args.overrides if not word.startswith("nodes=")]
    if nodes:
        overrides.append(f"cluster.nodes={nodes[-1]}")
    run_dir = None if args.run is None else find_run(args.run)
    if run_dir is not None and not (run_dir / "config.yaml").is_file():
        newest = sorted(run_dir.glob("jobs/*/config.yaml"))[-1]  # submitted, never started
        from llmjp_train.config.runs import load_run

        config = load_run(run_dir, newest, overrides)
    else:
        config = train.configuration(
            argparse.Namespace(**{**vars(args), "overrides": overrides, "run": run_dir})
        )
    per_node = config.cluster.devices_per_node
    fixed = any(word.startswith("parallel.data=") for word in overrides)
    if nodes and per_node and config.cluster.nodes and not fixed:
        replica = config.parallel.tensor * config.parallel.pipeline
        count = config.cluster.nodes * per_node
        if count % replica:
            raise UserError(
                f"nodes={nodes[-1]} is {count} devices, not a multiple of parallel.tensor x parallel.pipeline = "
                f"{replica}: take another number"
            )
        config = replace(config, parallel=replace(config.parallel, data=count // replica))
    return config


def _words(args: argparse.Namespace) -> list[str]:
    """The words that make the same configuration again."""
    words = [] if args.run is None else [args.run]
    words += [] if args.config_dir is None else ["--config-dir", str(args.config_dir)]
    flags = ("--requeue", args.requeue), ("--bare", args.bare), ("--force", args.force)
    words += [flag for flag, on in flags if on]
    words += [] if args.budget is None else ["--budget", f"{args.budget:g}"]
    return [*words, *args.overrides]


def _check(config: "TrainConfig", asked: "Asked", *, starting: bool, force: bool) -> None:
    from llmjp_train.commands.train import wrong_with
    from llmjp_train.config.compose import ConfigError
    from llmjp_train.launch.submit import problems as unsubmittable

    found = wrong_with(config, starting=starting)
    if not found:  # the arithmetic below needs a sound configuration
        found = [*unsubmittable(config, asked), *_against_plan(config, force=force)]
    if found:
        raise ConfigError(found)


def _against_plan(config: "TrainConfig", *, force: bool) -> list[str]:
    """A run that does not fit its devices, as the plan says, and a lead time in which no step and save fit."""
    from llmjp_train.config.machine import Device

    if config.cluster.device is Device.cpu or config.cluster.scheduler.name == "local":
        return []
    from dataclasses import replace

    from llmjp_train.config.derive import nodes_of
    from llmjp_train.plan.account import account, refusal

    plan = account(replace(config, cluster=replace(config.cluster, nodes=nodes_of(config))))
    found = []
    refused = refusal(plan.name, plan.job, plan.memory)
    if refused and force:
        print(f"warning: {refused}", file=sys.stderr)
    elif refused:
        found.append(f"{refused}\n  --force submits it all the same")
    lead, limit = config.cluster.signal_lead, config.cluster.time_limit
    if plan.lead is not None and limit is not None and lead < plan.lead.low:
        found.append(
            f"cluster.signal_lead={lead} s is shorter than a step and a save of this run, {plan.lead.text('.0f')} s "
            "by the plan: raise it"
        )
    if plan.step is not None and limit is not None and plan.lead is not None:
        first = plan.step.low + plan.lead.low
        if 60 * limit < first:
            found.append(
                f"cluster.time_limit={limit} minutes do not reach the first save, {first / 60:.0f} minutes by the "
                "plan: raise it"
            )
    return found


def _print(config: "TrainConfig", asked: "Asked", plain: list[str] | None) -> int:
    from llmjp_train.launch.submit import preview

    commands, script = preview(config, asked, plain or [], plain=plain is not None)
    if plain is None:
        for command in commands:
            print(f"# {shlex.join(command)}")
    print(script, end="")
    return exit_codes.OK


def dry_run(config: "TrainConfig", asked: "Asked") -> int:
    """Every number of the run and of its job; nothing is submitted."""
    from llmjp_train.commands.train import _announce
    from llmjp_train.launch.submit import preview

    _announce(config, dry_run=True)
    cluster = config.cluster
    limit = "no time limit" if cluster.time_limit is None else f"{cluster.time_limit} minutes each"
    print(
        f"  {asked.chain} job{'s' * (asked.chain > 1)} on {cluster.name} ({cluster.scheduler.name}), {limit}"
    )
    for command in preview(config, asked, [], plain=False)[0]:
        print(f"  would run: {shlex.join(command)}")
    return exit_codes.OK


def submit(config: "TrainConfig", asked: "Asked") -> int:
    """Put it into the queue and say how to watch it."""
    import json

    from llmjp_train.launch.submit import submit_all

    made = submit_all(config, asked)
    source = json.loads((made[0].path / "source.json").read_text(encoding="utf-8"))
    if source.get("changed"):
        count = len(source["changed"])
        print(
            f"warning: {count} file{'s differ' if count > 1 else ' differs'} from commit {source['commit'][:10]}; the "
            f"job runs them as they are now, {made[0].path}/changes.diff says how",
            file=sys.stderr,
        )
    for folder in made:
        print(f"submitted {folder.scheduler_id}: {folder.path}")
    print(f"watch it with: llmjp status {Path(config.run_dir)}")
    return exit_codes.OK
