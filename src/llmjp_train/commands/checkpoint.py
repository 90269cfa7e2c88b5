"""`llmjp checkpoint`: what a run's checkpoints are, whether they are whole, how two differ, and removing some."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.checkpoint.listing import CheckpointInfo

SUMMARY = "a run's checkpoints (list, verify, diff, prune)"
USES_CONFIG = False

_GUIDE = """\
what it does:
  list RUN              step, size, time and layout of each
  verify RUN[@STEP]     reads every byte and checks it; without a step, all of them
  diff A[@STEP] B[@STEP]
                        tensors that are not bit-equal, those furthest apart first; the layouts may differ.
                        Without a step, the newest. Exit code 1 when something differs
  prune RUN             removes what --keep-last, --keep-every and --keep do not keep; shows it alone without --yes

examples:
  llmjp checkpoint verify runs/tiny-cpu@40
  llmjp checkpoint diff runs/one@100 runs/two@100
  llmjp checkpoint prune runs/tiny-cpu --keep-last 1 --keep-every 1000 --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _GUIDE
    parser.add_argument("action", choices=("list", "verify", "diff", "prune"), help="what to do, see below")
    parser.add_argument("runs", nargs="+", metavar="RUN[@STEP]", help="run directory, and a step of it")
    parser.add_argument("--keep-last", type=int, default=2, help="prune: newest ones to keep (2)")
    parser.add_argument("--keep-every", type=int, help="prune: keep each multiple of this step")
    parser.add_argument("--keep", type=int, nargs="*", default=[], metavar="STEP", help="prune: keep these")
    parser.add_argument("--yes", action="store_true", help="prune: remove them")
    parser.add_argument("--json", action="store_true", help="list, diff: print JSON")


def run(args: argparse.Namespace) -> int:
    """Dispatch."""
    count = 2 if args.action == "diff" else 1
    if len(args.runs) != count:
        raise UserError(
            f"llmjp checkpoint {args.action} takes {count} run{'s' * (count > 1)}, not {len(args.runs)}"
        )
    action = {"list": _list, "verify": _verify, "diff": _diff, "prune": _prune}[args.action]
    return action(args)


def _run_dir(text: str) -> tuple[Path, int | None]:
    name, at, step = text.rpartition("@")
    if not at:
        name, step = text, ""
    if step and not step.isdigit():
        raise UserError(f"'{text}': after @ comes a step, a number")
    path = Path(name)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} holds no checkpoints: give a run directory")
    return path, int(step) if step else None


def _one(text: str) -> "CheckpointInfo":
    from llmjp_train.checkpoint.listing import choose

    path, step = _run_dir(text)
    return choose(path, "latest" if step is None else step, setting=f"{path}@")


def _list(args: argparse.Namespace) -> int:
    from llmjp_train.checkpoint.listing import committed
    from llmjp_train.config.derive import human

    infos = committed(_run_dir(args.runs[0])[0])
    if args.json:
        rows = [
            {"step": i.step, "path": str(i.path), "bytes": i.bytes, "time": i.time, "layout": i.layout}
            for i in infos
        ]
        print(json.dumps(rows, indent=1))
        return exit_codes.OK
    for info in infos:
        layout = " ".join(f"{axis}={size}" for axis, size in info.layout.items())
        print(f"step {info.step:>8}  {human(info.bytes):>9}  {info.time}  {layout}")
    if not infos:
        print("no complete checkpoint")
    return exit_codes.OK


def _verify(args: argparse.Namespace) -> int:
    from llmjp_train.checkpoint.listing import committed
    from llmjp_train.checkpoint.store import CheckpointReader

    path, step = _run_dir(args.runs[0])
    infos = [info for info in committed(path) if step in (None, info.step)]
    if not infos:
        raise UserError(
            f"{path} holds no complete checkpoint" + (f" of step {step}" if step is not None else "")
        )
    damaged = 0
    for info in infos:
        try:
            chunks = CheckpointReader(info.path).verify()
            print(f"step {info.step}: {chunks:,} chunks are what was written")
        except UserError as error:
            damaged += 1
            print(f"step {info.step}: {error}")
    return exit_codes.FAILED if damaged else exit_codes.OK


def _diff(args: argparse.Namespace, most: int = 20) -> int:
    from llmjp_train.checkpoint.diff import differences
    from llmjp_train.checkpoint.store import CheckpointReader

    left, right = (CheckpointReader(_one(text).path) for text in args.runs)
    found = sorted(differences(left, right), key=lambda d: (not d.what, -d.relative))
    if args.json:
        print(json.dumps([vars(difference) for difference in found], indent=1))
        return exit_codes.FAILED if found else exit_codes.OK
    for difference in found[:most]:
        figures = f"{difference.relative:.3g} of its norm, at most {difference.largest:.3g}"
        print(f"{difference.name}: {difference.what or figures}")
    if len(found) > most:
        print(f"... and {len(found) - most} more")
    steps = left.state.get("step"), right.state.get("step")
    if steps[0] != steps[1]:
        print(f"steps {steps[0]} and {steps[1]}")
    print(f"{len(found)} of {len(set(left.names()) | set(right.names()))} tensors differ")
    return exit_codes.FAILED if found else exit_codes.OK


def _prune(args: argparse.Namespace) -> int:
    from llmjp_train.checkpoint.listing import committed
    from llmjp_train.checkpoint.retention import kept, prune
    from llmjp_train.config.training import CheckpointConfig
    from llmjp_train.runlog.lease import Lease

    path = _run_dir(args.runs[0])[0]
    if args.keep_last < 1 or (args.keep_every is not None and args.keep_every < 1):
        raise UserError("--keep-last and --keep-every must be at least 1: the newest checkpoint always stays")
    config = CheckpointConfig(
        keep_last=args.keep_last, keep_every=args.keep_every, keep_steps=sorted(args.keep)
    )
    steps = [info.step for info in committed(path)]
    going = [step for step in steps if step not in kept(steps, config)]
    if not args.yes or not going:
        print(f"would remove {len(going)} of {len(steps)}: {', '.join(map(str, going)) or 'none'}")
        if going:
            print("with --yes they are removed")
        return exit_codes.OK
    lease = Lease.acquire(path)  # nobody else may be saving into it meanwhile
    try:
        removed, left = prune(path, config, lease.epoch)
    finally:
        lease.release()
    print(f"removed {len(removed)}: {', '.join(removed)}")
    if left:
        print(f"llmjp checkpoint: could not be removed, try again: {', '.join(left)}", file=sys.stderr)
    return exit_codes.FAILED if left else exit_codes.OK
