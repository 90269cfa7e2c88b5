"""`llmjp export`: a run's checkpoint as a Hugging Face folder with a parity certificate."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

SUMMARY = "write a run's checkpoint as a Hugging Face folder, checked against transformers"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the checkpoint, and the folder's form."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--step", default="latest", help="a step, latest (default) or latest-valid")
    parser.add_argument(
        "--out",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to make (RUN/export/step-XXXXXXXX otherwise)",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="format of the weights (bfloat16)",
    )
    parser.add_argument(
        "--max-shard", default="5GB", metavar="SIZE", help="largest file, e.g. 500MB, 5GB (default), 4GiB"
    )
    parser.add_argument(
        "--parity",
        default="auto",
        choices=("auto", "layers", "whole"),
        help="how far to compare: layer by layer, the whole model too, or as memory allows (auto)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--dry-run", action="store_true", help="show the files and the family, write nothing")


def run(args: argparse.Namespace) -> int:
    """Export; see `add_arguments`."""
    if not (args.run / "config.yaml").is_file():
        what = "is no run directory (no config.yaml in it)" if args.run.exists() else "does not exist"
        raise UserError(f"{args.run} {what}: give the directory of a run")
    limit = parse_size(args.max_shard)

    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.config.compose import load_config
    from llmjp_train.publish.export import describe, plan
    from llmjp_train.publish.weights import parse_step

    config = load_config(args.run / "config.yaml")
    shards = plan(config.model, args.dtype, limit)
    checkpoint = choose(args.run, parse_step(args.step))
    out = args.out or args.run / "export" / f"step-{checkpoint.step:08d}"
    if args.dry_run:
        rows = [("checkpoint", f"step {checkpoint.step}"), ("folder", str(out))]
        for what, value in rows + describe(config, shards, args.dtype):
            print(f"{what:<36} {value}")
        return exit_codes.OK
    return _export(args, config, checkpoint, out, limit)


def _export(args: argparse.Namespace, config: Any, checkpoint: Any, out: Path, limit: int) -> int:
    from transformers.utils.logging import disable_progress_bar

    from llmjp_train.checkpoint.store import CheckpointReader
    from llmjp_train.publish.export import ParityError, export
    from llmjp_train.publish.place import check_place

    disable_progress_bar()  # its bars would run into ours
    check_place(out, args.force)
    saved = args.run / "tokenizer"
    source = {"run": config.name, "step": checkpoint.step, "checkpoint": checkpoint.path.name}
    try:
        with Bars() as bars:
            done = export(
                CheckpointReader(checkpoint.path),
                config,
                saved if saved.is_dir() else None,
                out,
                dtype=args.dtype,
                max_shard_bytes=limit,
                whole={"auto": None, "layers": False, "whole": True}[args.parity],
                force=args.force,
                source=source,
                progress=bars,
            )
    except ParityError as error:
        print(f"llmjp export: {error}", file=sys.stderr)
        return exit_codes.FAILED
    _tell(done)
    return exit_codes.OK


def _tell(done: Any) -> None:
    certificate = done.certificate
    worst = max((row["relative"] for row in certificate["layers"]), default=0.0)
    print(f"step {certificate['source']['step']} written to {done.folder}")
    print(
        f"parity with transformers {certificate['versions']['transformers']}: level {certificate['level']}; "
        f"{certificate['tensors_compared']} tensors bit-equal to the checkpoint in {certificate['dtype']}; "
        f"layers differ by {worst:.1e} at most (bound {certificate['bounds']['layers']:g})"
    )
    if certificate["whole"] is None:
        print(f"the whole model's logits were not compared: {certificate['whole_left_out']}")
    else:
        print(
            f"logits of the whole model differ by {certificate['whole']['relative']:.1e} "
            f"(bound {certificate['bounds']['logits']:g})"
        )
    habit = certificate["tokenizer"]["habit"]
    if habit != "adds nothing":
        print(
            f"note: an ordinary call of the tokenizer {habit}, which the model never saw at that place; "
            "pass add_special_tokens=False"
        )


class Bars:
    """One progress bar for each thing that takes time."""

    def __enter__(self) -> "Bars":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``5GB`` (powers of 1000) or ``4GiB`` (powers of 1024).

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--max-shard {text}: give a size such as 500MB, 5GB or 4GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
