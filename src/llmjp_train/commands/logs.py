"""`llmjp logs`: what a run's jobs printed: the newest job's own log, every rank's lines by time, or one rank's.

llmjp logs mine               the job and rank 0
llmjp logs mine --ranks       all ranks, merged by time
llmjp logs mine --rank 3 -f
llmjp logs mine --errors      lines that look like errors, of the job and all ranks
"""

import argparse
import heapq
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.launch.job import JobFolder

SUMMARY = "what a run's jobs and ranks printed"
USES_CONFIG = False
_ERROR = re.compile(
    r"error|exception|traceback|fault|killed|abort|out of memory|refused|bad node|lost|could not|timed out|halt:",
    re.IGNORECASE,
)
_QUIET = 15
"""Seconds without a line after which the scheduler is asked whether the job still is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", help="directory or name")
    parser.add_argument(
        "--job", metavar="NUMBER", help="which job, as 'llmjp status' numbers them; default: newest"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ranks", action="store_true", help="lines of all ranks, by time")
    which.add_argument("--rank", type=int, metavar="N", help="lines of one rank")
    which.add_argument(
        "--errors", action="store_true", help="lines that look like errors, of the job and all ranks"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument(
        "-n", "--lines", type=int, default=0, metavar="N", help="the last N lines; default: all"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Print, and follow when asked."""
    from llmjp_train.launch.job import JobFolder, find_run
    from llmjp_train.launch.status import lives, newest_job

    run_dir = find_run(args.run)
    folder = newest_job(run_dir)
    if args.job is not None:
        folder = JobFolder(run_dir / "jobs" / args.job.zfill(4))
        if not folder.path.is_dir():
            raise UserError(f"{run_dir} has no job {args.job}: 'ls {run_dir}/jobs' shows them")
    lines = list(_lines(folder, args))
    for line in lines[-args.lines :] if args.lines else lines:
        _print(line, as_json=args.json)
    quiet, over = 0, not args.follow
    while not over:
        time.sleep(1)
        # One that was killed with its script never says that it ended; looked at before the last lines are read.
        over = _ended(folder) or (quiet > 0 and quiet % _QUIET == 0 and not lives(folder))
        before, lines = Counter(lines), list(_lines(folder, args))
        fresh = Counter(lines) - before  # by count: lines of several files come in between
        quiet = 0 if fresh else quiet + 1
        for line in lines:
            if fresh[line] > 0:
                fresh[line] -= 1
                _print(line, as_json=args.json)
    return exit_codes.OK


def _ended(folder: "JobFolder") -> bool:
    rows = folder.history()
    return bool(rows) and rows[-1]["kind"] != "begin" and rows[-1].get("action") not in ("restart", "requeue")


def _lines(folder: "JobFolder", args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """(time, rank, text); time and rank are empty for the job's own log."""
    if not (args.ranks or args.errors or args.rank is not None):
        yield from (("", "", text) for text in _text(folder.log))
        return
    files = sorted(folder.path.glob("node-*.txt"))
    if args.errors:  # of the launcher and the nodes too: what the job's log has besides rank 0's lines
        known = {text for path in files[:1] for _, rank, text in _node(path) if rank == "0"}
        yield from (("", "", text) for text in _text(folder.log) if _ERROR.search(text) and text not in known)
    for when, rank, text in heapq.merge(*(_node(path) for path in files), key=lambda line: line[0]):
        wanted = args.rank is None or rank == str(args.rank)
        if wanted and (not args.errors or _ERROR.search(text)):
            yield when, rank, text


def _node(path: Path) -> Iterator[tuple[str, str, str]]:
    for line in _text(path):
        when, _, rest = line.partition(" ")
        rank, _, text = rest.partition(" ")
        yield when, rank, text


def _text(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _print(line: tuple[str, str, str], *, as_json: bool) -> None:
    when, rank, text = line
    if as_json:
        print(json.dumps({"time": when, "rank": rank, "text": text}, ensure_ascii=False), flush=True)
    elif when:
        print(f"{when[11:23]} [{rank}] {text}", flush=True)
    else:
        print(text, flush=True)
