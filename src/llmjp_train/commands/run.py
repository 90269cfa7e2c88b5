"""`llmjp run`: look at one run, compare two, or list those under a folder. Reads records alone."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes

if TYPE_CHECKING:
    from rich.console import Console

    from llmjp_train.runlog.compare import Change, Difference, LossPair, TokenPair
    from llmjp_train.runlog.reading import Summary

SUMMARY = "show a run, compare two, or list them"
USES_CONFIG = False

_EVENTS = 8
_COLOURS = {"running": "green", "ended": "green", "stopped": "yellow", "failed": "red", "new": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|diff|list")
    show = actions.add_parser("show", help="state, losses, checkpoints and newest events of a run")
    show.add_argument("run", type=Path, metavar="RUN")
    diff = actions.add_parser(
        "diff", help="what differs between two runs: settings, data, code, machine, results"
    )
    diff.add_argument("before", type=Path, metavar="RUN_A")
    diff.add_argument("after", type=Path, metavar="RUN_B")
    listing = actions.add_parser("list", help="one row a run under a folder")
    listing.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="default: runs"
    )
    for action in (show, diff, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Show, compare or list."""
    if args.action == "show":
        return _show(args.run, as_json=args.json)
    if args.action == "diff":
        return _diff(args.before, args.after, as_json=args.json)
    return _list(args.folder, as_json=args.json)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)  # into a file or pipe: nothing is cut to fit a screen
    return console


def _table(title: str | None, left: tuple[str, ...], right: tuple[str, ...] = ()) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _show(path: Path, *, as_json: bool) -> int:
    from rich.text import Text

    from llmjp_train.checkpoint.listing import committed
    from llmjp_train.config.derive import human
    from llmjp_train.runlog.reading import describe, open_run, summary

    record = open_run(path)
    found, checkpoints, events = summary(record), committed(path), record.read_events()
    evaluations = list(record.read_evaluations())
    if as_json:
        kept = [asdict(one) | {"path": str(one.path)} for one in checkpoints]
        more = {"checkpoints": kept, "evaluations": evaluations, "events": events[-_EVENTS:]}
        _print_json(found.to_dict() | more)
        return exit_codes.OK
    console = _console()
    head = Text(found.name + "  ").append(found.state, _COLOURS[found.state])
    console.print(head.append(f"  {found.reason}" if found.reason else ""))
    rows = _table(None, ("", ""))
    rows.show_header = False
    for name, value in _lines(found):
        rows.add_row(name, Text(value))
    rows.add_row(
        "checkpoints", Text(", ".join(f"{c.step:,} ({human(c.bytes)})" for c in checkpoints) or "none")
    )
    rows.add_row("evaluations", Text(", ".join(evaluations) or "none"))
    console.print(rows)
    if events:
        table = _table(f"newest events ({len(events)} in all)", ("time (UTC)", "step", "event", "what"))
        for event in events[-_EVENTS:]:
            step = "" if event.get("step") is None else f"{event['step']:,}"
            table.add_row(event["time"][:19].replace("T", " "), step, event["kind"], Text(describe(event)))
        console.print(table)
    for problem in found.problems:
        console.print(f"config.yaml cannot be read by this version: {problem}")
    return exit_codes.OK


def _lines(found: "Summary") -> list[tuple[str, str]]:
    best, last = found.best_validation, found.validation
    validation = "none"
    if best and last:
        bits = "" if last.bits_per_byte is None else f", {last.bits_per_byte:.4f} bits a byte"
        validation = (
            f"{last.loss:.4f} at step {last.step:,}{bits}; best {best.loss:.4f} at step {best.step:,}"
        )
    parameters = "?" if found.parameters is None else f"{found.parameters:,}"
    speed = "none" if found.tokens_per_s is None else f"{found.tokens_per_s:,.0f} tokens/s"
    return [
        ("model", f"{found.model}, {parameters} parameters"),
        ("step", _of_total(found.step, found.total_steps)),
        ("tokens", "none" if found.tokens is None else _of_total(found.tokens, found.total_tokens)),
        ("loss", "none" if found.loss is None else f"{found.loss:.4f}"),
        ("validation", validation),
        ("speed", speed + ("" if found.mfu is None else f", MFU {100 * found.mfu:.1f} %")),
        ("starts", f"{found.starts}, with {found.incidents} incidents"),
    ]


def _of_total(value: int, total: int | None) -> str:
    return f"{value:,}" if total is None else f"{value:,} of {total:,}"


def _diff(before: Path, after: Path, *, as_json: bool) -> int:
    from llmjp_train.runlog.compare import compare
    from llmjp_train.runlog.reading import open_run

    found = compare(open_run(before), open_run(after))
    if as_json:
        _print_json(_diff_json(found))
        return exit_codes.OK
    console, names = _console(), _headings(before, after)
    if found.nothing:
        console.print("nothing differs but names and folders, as far as both records go")
    for title, part in (
        ("configuration", found.config),
        ("data", found.data),
        ("code", found.code),
        ("environment", found.environment),
    ):
        _print_changes(console, title, part, names)
        if title in found.unknown:
            console.print(f"{title}: {found.unknown[title]}")
    _print_results(console, found, names)
    _print_losses(console, found, names)
    return exit_codes.OK


def _diff_json(found: "Difference") -> dict[str, Any]:
    parts = asdict(found)
    for name in ("config", "data", "code", "environment", "results"):
        for row, one in zip(parts[name], getattr(found, name), strict=True):
            row["relative"] = one.relative
    apart = found.apart_from
    return parts | {
        "nothing_differs": found.nothing,
        "first_different_step": found.first_different_step,
        "largest_gap": found.largest_gap,
        "apart_from_step": None if apart is None else apart.step,
    }


def _headings(before: Path, after: Path) -> tuple[str, str]:
    """Names of the two folders; their paths where the names are one."""
    names = before.resolve().name, after.resolve().name
    return names if names[0] != names[1] else (str(before), str(after))


def _relative(value: float | None) -> str:
    return "" if value is None else "same" if value == 0 else f"{100 * value:+.3g} %"


def _print_changes(console: "Console", title: str, part: "list[Change]", names: tuple[str, str]) -> None:
    from rich.text import Text

    if not part:
        console.print(f"{title}: nothing differs")
        return
    table = _table(title, ("key", *names), ("relative",))
    for change in part:
        values = (Text(_value(change.before)), Text(_value(change.after)))
        table.add_row(change.key, *values, _relative(change.relative))
    console.print(table)


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_results(console: "Console", found: "Difference", names: tuple[str, str]) -> None:
    table = _table("result", ("figure", "unit"), (*names, "relative"))
    for one in found.results:
        if one.before is not None or one.after is not None:
            values = ("not recorded" if v is None else _figure(v) for v in (one.before, one.after))
            table.add_row(
                one.name, one.unit, *values, "same" if one.before == one.after else _relative(one.relative)
            )
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _print_losses(console: "Console", found: "Difference", names: tuple[str, str]) -> None:
    from llmjp_train.runlog.compare import WINDOW, relative, sample

    if not found.losses:
        console.print("losses: no step was logged by both")
        return
    validations = {pair.step: pair for pair in found.validations}
    columns = (*names, "difference", "relative")
    table = _table("losses at equal steps, nats a token", (), ("step", *columns, "validation"))
    for pair in sample(found.losses):
        check = validations.get(pair.step)
        both = f"{_loss(check.before)} / {_loss(check.after)}" if check else ""
        table.add_row(f"{pair.step:,}", *_gap(pair), _relative(relative(pair.before, pair.after)), both)
    console.print(table)
    if found.losses_at_tokens:
        table = _table("losses at equal tokens, nats a token", (), ("tokens", *columns))
        for one in sample(found.losses_at_tokens):
            table.add_row(f"{one.tokens:,}", *_gap(one), _relative(relative(one.before, one.after)))
        console.print(table)
    first = found.first_different_step
    if first is None:
        console.print(f"the losses of all {len(found.losses)} common steps are equal")
        return
    gap = "" if found.largest_gap is None else f"; the largest difference is {found.largest_gap:.3g}"
    console.print(f"the losses differ from step {first:,} on{gap}")
    if len(found.losses) >= WINDOW:
        apart = found.apart_from
        said = "nowhere at the end" if apart is None else f"from step {apart.step:,} on"
        console.print(f"their mean gap over {WINDOW} steps is larger than the curves' own scatter {said}")


def _gap(pair: "LossPair | TokenPair") -> tuple[str, str, str]:
    gap = "" if pair.before is None or pair.after is None else f"{pair.after - pair.before:+.6f}"
    return _loss(pair.before), _loss(pair.after), gap


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _list(folder: Path, *, as_json: bool) -> int:
    from rich.text import Text

    from llmjp_train.errors import UserError
    from llmjp_train.runlog.reading import find_runs, open_run, summary

    found, damaged = [], {}
    for path in find_runs(folder):
        try:
            found.append(summary(open_run(path)))
        except UserError as error:
            damaged[str(path)] = str(error)
    if as_json:
        _print_json({"runs": [one.to_dict() for one in found], "damaged": damaged})
        return exit_codes.OK
    console = _console()
    if not found and not damaged:
        console.print(f"no run under {folder}: 'llmjp train experiment=tiny-cpu …' makes one")
    if found:
        table = _table(
            None,
            ("run", "state", "model"),
            ("step", "of", "tokens", "loss", "best validation", "changed (UTC)"),
        )
        for one in found:
            table.add_row(Text(str(one.path)), Text(one.state, _COLOURS[one.state]), one.model, *_cells(one))
        console.print(table)
    for name, message in damaged.items():
        console.print(f"{name}: {message}")
    return exit_codes.OK


def _cells(one: "Summary") -> list[str]:
    """Figures of a row, empty where the record holds none."""
    return [
        f"{one.step:,}",
        "" if one.total_steps is None else f"{one.total_steps:,}",
        "" if one.tokens is None else f"{one.tokens:,}",
        "" if one.loss is None else f"{one.loss:.4f}",
        "" if one.best_validation is None else f"{one.best_validation.loss:.4f}",
        "" if one.changed is None else one.changed[:16].replace("T", " "),
    ]
