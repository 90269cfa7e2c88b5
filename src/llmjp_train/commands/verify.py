"""`llmjp verify`: check a release on any machine, with nothing but the release.

Levels, each with all before it: hashes (every file is as it was released), arithmetic (parameters, vocabulary,
tokenizer, steps, tokens, the chain of resumes and the cards agree with the record), layers (each decoder layer by
transformers' own class equals ours), whole (so do the whole model's logits, and a sample of the stored evaluation
items comes out again). Exit code 1 when a check fails.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from llmjp_train import exit_codes

SUMMARY = "check a release: hashes, arithmetic, parity with transformers"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The release and how far to go."""
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder that llmjp release made")
    parser.add_argument(
        "--level",
        default="auto",
        choices=("hashes", "arithmetic", "layers", "whole", "auto"),
        help="how far to check; auto (default): the whole model where memory allows, else its layers",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Check; see `add_arguments`."""
    from llmjp_train.publish.release_folder import read_manifest
    from llmjp_train.publish.verification import (
        check_arithmetic,
        check_hashes,
        check_items,
        check_parity,
        level_reached,
    )

    manifest = read_manifest(args.release)
    checks = check_hashes(args.release)
    if args.level != "hashes":
        checks += check_arithmetic(args.release)
    left_out: list[str] = []
    if args.level not in ("hashes", "arithmetic"):
        from transformers.utils.logging import disable_progress_bar

        from llmjp_train.commands.export import Bars

        disable_progress_bar()  # its bars would run into ours
        with Bars() as bars:
            whole = {"layers": False, "whole": True}.get(args.level)
            checks += check_parity(args.release, whole=whole, progress=bars)
        if any(check.level == "whole" for check in checks):
            again, left_out = check_items(args.release)
            checks += again
        else:
            left_out = ["evaluation items: they need the whole model in memory"]
    level, passed = level_reached(checks), all(check.passed for check in checks)
    if args.json:
        rows = [asdict(check) for check in checks]
        content = {
            "level": level,
            "passed": passed,
            "checks": rows,
            "missing": manifest["missing"],
            "not_checked": left_out,
        }
        print(json.dumps(content, ensure_ascii=False))
    else:
        for check in checks:
            print(f"{'ok  ' if check.passed else 'FAIL'} {check.level:<10} {check.name}: {check.said}")
        for what in manifest["missing"]:
            print(f"not in the release: {what}")
        for what in left_out:
            print(f"not checked: {what}")
        print(f"level reached: {level}" + ("" if passed else "; do not rely on this release"))
    return exit_codes.OK if passed else exit_codes.FAILED
