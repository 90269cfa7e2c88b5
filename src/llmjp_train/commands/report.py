"""`llmjp report`: one HTML file that tells a run, and a model card in English and Japanese.

Every number comes from the run record. The report can be read offline, on a phone and in dark mode.
"""

import argparse
from pathlib import Path

from llmjp_train import exit_codes

SUMMARY = "tell a run in one HTML file, and write its model card"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (RUN/report.html otherwise)")
    parser.add_argument("--card-only", action="store_true", help="write the model card alone")
    parser.add_argument(
        "--licence", metavar="ID", help="for the card: the model's licence, e.g. apache-2.0; else not stated"
    )
    parser.add_argument(
        "--language", metavar="CODES", default="ja", help="for the card: languages, e.g. ja,en (default: ja)"
    )


def run(args: argparse.Namespace) -> int:
    """Write RUN/report.html, RUN/README.en.md and RUN/README.ja.md."""
    from llmjp_train.publish.card import write_cards
    from llmjp_train.publish.facts import facts
    from llmjp_train.publish.report import render, write_text
    from llmjp_train.runlog.reading import open_run

    record = open_run(args.run)
    found = facts(record)
    written = []
    if not args.card_only:
        written.append(write_text(args.out or args.run / "report.html", render(found)))
    languages = [code.strip() for code in args.language.split(",") if code.strip()]
    written += write_cards(found, args.run, licence=args.licence, languages=languages)
    for path in written:
        print(path)
    return exit_codes.OK
