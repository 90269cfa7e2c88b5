"""`llmjp compare`: two or more evaluations, item by item, with intervals and a correction for many tasks.

Each of A, B, ... is an evaluation's JSON file, a run (its newest evaluation) or a folder of results. The page,
the JSON and the CSV go where --out says.
"""

import argparse
import json
from pathlib import Path

from llmjp_train import exit_codes

SUMMARY = "compare evaluations item by item, with intervals and what could have been seen"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="two or more")
    parser.add_argument("--names", metavar="A,B", default="", help="names to show instead of the models' own")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write an HTML page here, JSON and CSV beside it"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare; see `add_arguments`."""
    from llmjp_train.errors import UserError
    from llmjp_train.evaluate.compare import compare, read
    from llmjp_train.evaluate.table import show_comparison

    names = [name for name in args.names.split(",") if name]
    if names and len(names) != len(args.evaluations):
        raise UserError(
            f"--names has {len(names)} names for {len(args.evaluations)} evaluations: give one for each"
        )
    evaluations = [
        read(path, name)
        for path, name in zip(args.evaluations, names or [""] * len(args.evaluations), strict=True)
    ]
    found = compare(evaluations)
    if args.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        show_comparison(found)
    if args.out is not None:
        from llmjp_train.publish.evaluation_page import write_comparison

        for path in write_comparison(found, args.out):
            if not args.json:
                print(path)
    return exit_codes.OK
