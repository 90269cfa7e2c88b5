"""`llmjp publish`: send a release to a folder, over ssh, or to the Hugging Face hub.

A release is checked first (its hashes, and every place that must agree). It is sent aside, checked there, and shown
under its step and tokens; the pointer (a link `latest`, the branch main) moves last, and never back to an earlier
step. Cut at any moment, the same command goes on.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.publish.upload import Target

SUMMARY = "send a release to a folder, over ssh, or to the Hugging Face hub"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The release, the target, and how."""
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder that llmjp release made")
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="FOLDER, [user@]host:FOLDER, ssh://[user@]host[:port]/FOLDER, or hf:ORGANISATION/NAME",
    )
    parser.add_argument("--dry-run", action="store_true", help="look at both sides, and send nothing")
    parser.add_argument("--ssh", metavar="COMMAND", help="ssh with its options, e.g. 'ssh -i key -p 2222'")
    parser.add_argument("--limit", type=int, metavar="KIB", help="send no more than so many KiB a second")
    parser.add_argument("--private", action="store_true", help="hub: make a new repository private")
    parser.add_argument("--gated", choices=("auto", "manual"), help="hub: readers ask before they get it")


def run(args: argparse.Namespace) -> int:
    """Publish; see `add_arguments`."""
    from llmjp_train.publish.upload import plan, publish

    target = _target(args)
    planned = plan(args.release, target)
    for line in planned.lines(target):
        print(line, flush=True)
    if args.dry_run:
        return exit_codes.OK

    from llmjp_train.publish.verification import check_arithmetic, check_hashes

    checks = [*check_hashes(args.release), *check_arithmetic(args.release)]
    wrong = [f"{check.name}: {check.said}" for check in checks if not check.passed]
    if wrong:
        raise UserError(f"{args.release} is not sound, nothing was sent:\n  " + "\n  ".join(wrong))
    publish(args.release, target, planned, lambda text: print(text, flush=True))
    print(f"published {planned.revision} at {target.where}")
    return exit_codes.OK


def _target(args: argparse.Namespace) -> "Target":
    scheme, colon, rest = args.to.partition(":")
    if scheme == "hf" and colon:
        from llmjp_train.publish.upload_hub import HubTarget

        return HubTarget(
            rest.strip("/"), private=args.private, gated=args.gated, say=lambda text: print(text, flush=True)
        )
    if args.private or args.gated:
        raise UserError("--private and --gated are the hub's: give them with --to hf:ORGANISATION/NAME")
    from llmjp_train.publish.upload_folder import folder_target

    return folder_target(args.to, args.ssh, args.limit)
