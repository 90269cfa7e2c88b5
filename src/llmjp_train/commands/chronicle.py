"""`llmjp chronicle`: a run's story on one page, HTML and Markdown, in English and Japanese.

What was planned, what happened day by day, incidents with evidence and cost, where the time went, what people
noted and what the figures say. It reads the record alone, of a finished run or of one that is running.

llmjp chronicle runs/a --beside runs/b      # and how its loss and health compare with another run's
"""

import argparse
from pathlib import Path

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

SUMMARY = "tell a run's story on one page, in English and Japanese"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--beside", type=Path, metavar="RUN_B", help="another run to compare with")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pages (RUN otherwise)")
    parser.add_argument(
        "--language", metavar="CODES", default="en,ja", help="languages of the pages (default: en,ja)"
    )


def run(args: argparse.Namespace) -> int:
    """Write chronicle.en.html, chronicle.en.md and the same in Japanese."""
    from llmjp_train.publish.card import LANGUAGES
    from llmjp_train.publish.chronicle import write_chronicle
    from llmjp_train.publish.facts import facts
    from llmjp_train.publish.story import story
    from llmjp_train.runlog.reading import open_run

    languages = [code.strip() for code in args.language.split(",") if code.strip()]
    unknown = [code for code in languages if code not in LANGUAGES]
    if unknown or not languages:
        raise UserError(f"--language {args.language}: the chronicle speaks {' and '.join(LANGUAGES)}")
    found = facts(open_run(args.run))
    other = None if args.beside is None else open_run(args.beside)
    for path in write_chronicle(story(found, other), args.out or args.run, languages):
        print(path)
    return exit_codes.OK
