"""`llmjp release`: one checkpoint with all that a stranger needs to use and to check it.

The folder holds the model in Hugging Face format with its parity certificate, cards in English and Japanese, the
report, the run record up to the checkpoint, release.json and SHA256SUMS. `llmjp verify` checks it anywhere.
"""

import argparse
from pathlib import Path

from llmjp_train import exit_codes

SUMMARY = "make a folder to publish: model, cards, report and record, which anyone can check"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the checkpoint, and what to state."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--step", default="latest", help="a step, several (10000,20000), latest (default) or latest-valid"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to make, or to make several in (RUN/release/step-XXXXXXXX otherwise)",
    )
    parser.add_argument(
        "--licence", metavar="ID", help="the model's licence, e.g. apache-2.0; else listed as missing"
    )
    parser.add_argument(
        "--licence-text", type=Path, metavar="FILE", help="the licence's words, to lie in the release"
    )
    parser.add_argument(
        "--author", action="append", default=[], metavar="NAME", help="whom to cite; once for each"
    )
    parser.add_argument(
        "--language", metavar="CODES", default="ja", help="languages of the model, e.g. ja,en (default: ja)"
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="format of the weights (bfloat16)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave users, hosts, folders and secrets as the record has them (they are replaced otherwise)",
    )
    parser.add_argument(
        "--evaluations", type=Path, metavar="DIR", help="a folder of further evaluations (llmjp follow's)"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="release from a run that still runs: what comes later is not in it",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier release")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be released and what is missing"
    )


def run(args: argparse.Namespace) -> int:
    """Release; see `add_arguments`."""
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.publish.facts import facts
    from llmjp_train.publish.release import Wanted, missing_facts, release
    from llmjp_train.publish.weights import parse_step
    from llmjp_train.runlog.reading import open_run

    record = open_run(args.run)
    # All are looked for before the first is made.
    chosen = [choose(args.run, parse_step(word.strip())) for word in args.step.split(",")]
    languages = [code.strip() for code in args.language.split(",") if code.strip()]
    wanted = Wanted(
        args.licence,
        args.licence_text,
        args.author,
        languages,
        args.dtype,
        keep_names=args.keep,
        live=args.live,
        evaluations=args.evaluations,
    )
    parent = args.run / "release" if args.out is None else args.out
    alone = args.out is not None and len(chosen) == 1
    places = {args.out if alone else parent / f"step-{one.step:08d}": one for one in chosen}
    if args.dry_run:
        for out, checkpoint in places.items():
            print(f"checkpoint  {checkpoint.path.name}\nfolder      {out}")
            _tell(missing_facts(facts(record), checkpoint.step, wanted))
        return exit_codes.OK

    from transformers.utils.logging import disable_progress_bar

    from llmjp_train.commands.export import Bars

    disable_progress_bar()  # its bars would run into ours
    for out, checkpoint in places.items():
        with Bars() as bars:
            done = release(args.run, checkpoint, out, wanted, force=args.force, progress=bars)
        print(f"written to {done.folder}; {len(done.checks)} places agree; check it with: llmjp verify {out}")
        _tell(done.missing)
    return exit_codes.OK


def _tell(missing: list[str]) -> None:
    for what in missing:
        print(f"missing     {what}")
