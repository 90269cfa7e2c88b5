"""`llmjp train`: start a run, or go on with it.

  llmjp train experiment=tiny-cpu tokenizer.path=TOKENIZER data.sources.small.path=DATA
  llmjp train runs/tiny-cpu                          go on with it
  llmjp train runs/tiny-cpu parallel.data=2          on two processes
  llmjp train --dry-run experiment=llm-jp-3-13b      every number, nothing started
  llmjp train experiment=llm-jp-3-13b scale=rehearsal    the same form at a size for this machine
  llmjp train fork.run=RUN fork.step=N run_dir=NEW   a branch of a saved run, with its settings and yours on top
  llmjp train -m experiment=tiny-cpu optimizer.lr=1e-3,3e-3 ...   a sweep: one run after another

Groups: model tokenizer data optimizer schedule precision parallel cluster evaluation experiment.
Exit codes: 0 finished, 2 bad input, 75 stopped and saved, 76 stopped by a safety check.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.parallel.world import World
    from llmjp_train.train.stops import Stops

SUMMARY = "train a model, or go on with a run that was stopped"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="run directory to go on with (its config.yaml)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print every derived number and stop")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values given with commas"
    )
    parser.add_argument("--ranks", action="store_true", help="with --dry-run: also the place of every rank")
    parser.add_argument(
        "--takeover", action="store_true", help="take a run directory whose last writer left no trace"
    )
    parser.add_argument(
        "--force", action="store_true", help="start although the plan says that memory does not suffice"
    )


def run(args: argparse.Namespace) -> int:
    """Compose, check, print; then train here, or start this machine's ranks."""
    from llmjp_train.train.stops import Stops

    if not args.dry_run:
        refuse("without --dry-run", {"--ranks": args.ranks}, {"--ranks": "add it"})
    stops = Stops().install()
    if args.multirun:
        from llmjp_train.commands.train_sweep import sweep

        return sweep(args, stops)
    from llmjp_train.parallel.world import world

    place = world()
    try:
        config, refused = checked(args)
    except UserError:
        if place.rank:
            return exit_codes.BAD_INPUT  # rank 0 tells it for all
        raise
    if place.rank == 0:
        _announce(config, dry_run=args.dry_run)
        if args.dry_run:
            _show_places(config, every=args.ranks)
        if refused:
            print(f"  warning: {refused}", flush=True)
    if args.dry_run:
        return exit_codes.OK
    size = config.parallel.tensor * config.parallel.pipeline * config.parallel.data
    if place.size == 1 and not place.launcher and size > 1:
        return _start_ranks(config, args, size, stops)
    return _train(config, stops, takeover=args.takeover)


def checked(args: argparse.Namespace) -> "tuple[TrainConfig, str]":
    """The configuration, and why it does not fit its devices where that is no error.

    Raises:
        UserError: it cannot start here, or, with ``--dry-run``, nowhere.
    """
    from llmjp_train.parallel.world import world

    config = configuration(args)
    _check(config, world(), dry_run=args.dry_run)
    refused = _unfit(config)
    if refused and not (args.force or args.dry_run):
        raise UserError(f"{refused}\n  --force starts it all the same")
    return config, refused


def configuration(args: argparse.Namespace) -> "TrainConfig":
    """A new run's configuration, or that of RUN, or of the run that it branches from, with overrides of values on
    top; what is to be given stays ???."""
    from llmjp_train.config.compose import compose
    from llmjp_train.config.runs import load_run, stem_of

    stem = args.run
    if stem is None and args.config_dir is None:
        stem = stem_of(args.overrides)
    if stem is None:
        from llmjp_train.plan.auto import with_auto

        config: TrainConfig = compose("train", args.overrides, args.config_dir, partial=True)
        return with_auto(config)
    path = stem / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{stem} holds no config.yaml, so it is not a run; start one with 'llmjp train experiment=…'"
        )
    refuse("with RUN, whose configuration is resolved", {"--config-dir": args.config_dir})
    return load_run(stem, path, args.overrides)


def _unfit(config: "TrainConfig") -> str:
    """Why the run does not fit its cluster's devices, in the words of `llmjp plan`; else empty."""
    from llmjp_train.plan.account import unfit

    return unfit(config)


def _announce(config: "TrainConfig", *, dry_run: bool) -> None:
    from llmjp_train.config.derive import derived, table
    from llmjp_train.config.validate import not_startable, warnings

    rows = table(derived(config))
    width = max(len(name) for name, _ in rows)
    print(f"{config.name}: {config.model.name}, {config.data.name}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    for note in config.notes:
        print(f"  note: {note}")
    for warning in warnings(config):
        print(f"  warning: {warning}")
    for need in not_startable(config) if dry_run else ():
        print(f"  before a start: {need}")
    sys.stdout.flush()


def _show_places(config: "TrainConfig", *, every: bool) -> None:
    """Which node and device each rank is, and what it holds."""
    from llmjp_train.config.layouts import node_lines, rank_table

    for line in rank_table(config) if every else node_lines(config):
        print(f"  {line}")


def wrong_with(config: "TrainConfig", *, starting: bool) -> list[str]:
    """All that is wrong with a configuration, names of tasks among it, before anything heavy is imported."""
    from llmjp_train.checkpoint.listing import first_step
    from llmjp_train.config.validate import problems

    found = problems(config, starting=starting, step=first_step(config))
    if config.evaluation.every:
        from llmjp_train.evaluate.suites import in_loop_problems

        found += in_loop_problems(config.evaluation.suite, config.evaluation.tasks)
    return found


def _check(config: "TrainConfig", place: "World", *, dry_run: bool) -> None:
    from llmjp_train.config.compose import ConfigError

    found = wrong_with(config, starting=not dry_run)
    if not dry_run:
        found += _misplaced(config, place)
    if found:
        raise ConfigError(found)


def _misplaced(config: "TrainConfig", place: "World") -> list[str]:
    """What does not fit between the layout and the processes that are there."""
    from llmjp_train.config.derive import nodes_of

    parallel, nodes = config.parallel, nodes_of(config)
    size = parallel.tensor * parallel.pipeline * parallel.data
    if place.launcher and place.size != size:
        return [
            f"parallel.tensor={parallel.tensor} x parallel.pipeline={parallel.pipeline} x parallel.data="
            f"{parallel.data} needs {size} processes, but {place.launcher} started {place.size}: change parallel.data, "
            "or start as many"
        ]
    if not place.launcher and nodes > 1:
        return [
            f"cluster {config.cluster.name} would be {nodes} nodes, but nothing started processes on them: use "
            f"srun, mpirun or torchrun ({config.cluster.devices_per_node} processes a node), or cluster=local for "
            "this machine alone"
        ]
    return []


def _start_ranks(config: "TrainConfig", args: argparse.Namespace, size: int, stops: "Stops") -> int:
    """This machine's own ranks read the resolved configuration, so that it is composed once."""
    import tempfile

    from llmjp_train.config.compose import dump_config
    from llmjp_train.launch.local import start_processes

    with tempfile.TemporaryDirectory(prefix="llmjp-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "llmjp_train.commands.train_rank", str(path)]
        command += ["--takeover"] if args.takeover else []
        return start_processes(command, size, asked=lambda: stops.stop)


def _train(config: "TrainConfig", stops: "Stops", *, takeover: bool) -> int:
    from llmjp_train.commands.train_rank import train_rank

    return train_rank(config, stops, takeover=takeover)
