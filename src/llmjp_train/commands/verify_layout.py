"""`llmjp verify-layout`: does each layout compute what one process computes?

Without an experiment, small models of the Llama, GPT and GPT-NeoX forms; with one, its rehearsal form. Layouts are
written tp2-pp2-dp2-z1, with -sp for sequence parallelism and -bf16; layouts=[...] names them, layouts=full takes all
that there are with 1, 2 or 4 on an axis (an hour on a laptop), else a set is chosen in which every two choices meet.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.verify.spec import Spec

SUMMARY = "show that layouts compute what one process does"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--ranks", type=int, default=8, help="most processes of a layout (default 8)")
    parser.add_argument("--steps", type=int, default=4, help="steps that are compared (default 4)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table there (Markdown)")


def configuration(args: argparse.Namespace) -> "TrainConfig":
    """The experiment's rehearsal form, or the tiny one; ``layouts=`` is ours and not Hydra's."""
    from llmjp_train.config.compose import compose
    from llmjp_train.verify.run import prepared

    words = [word for word in args.overrides if not word.startswith("layouts=")]
    base = [] if _names_model(words) else ["experiment=tiny-cpu"]
    scale = [] if any(word.startswith("scale=") for word in words) or base else ["scale=rehearsal"]
    config: TrainConfig = compose("train", [*base, *words, *scale], args.config_dir, partial=True)
    return prepared(config)


def _names_model(words: list[str]) -> bool:
    return any(word.startswith(("experiment=", "model=")) for word in words)


def run(args: argparse.Namespace) -> int:
    """Verify each layout and print its line; 1 when one is not equal."""
    from llmjp_train.launch.forked import warm
    from llmjp_train.verify.run import HEAD, Verifier, table_line

    if args.steps < 1 or args.ranks < 1:
        raise UserError(f"--steps {args.steps}, --ranks {args.ranks}: both must be at least 1")
    config = configuration(args)
    specs = _specs(args, config)
    warm()
    lines = list(HEAD)
    print("\n".join(lines), flush=True)
    failures = []
    for row in Verifier(config, args.steps).all(specs):
        lines.append(table_line(row))
        print(lines[-1], flush=True)
        if not row.verdict.equal:
            failures.append(f"{row.spec}: first outside its bound: {row.verdict.failures[0]}")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(specs) - len(failures)} of {len(specs)} layouts compute what one process does")
    for line in failures:
        print(line)
    return exit_codes.FAILED if failures else exit_codes.OK


def _specs(args: argparse.Namespace, config: "TrainConfig") -> list["Spec"]:
    """The layouts that were named, all, or a covering set; impossible ones are refused before anything starts."""
    from llmjp_train.config.compose import ConfigError
    from llmjp_train.config.layouts import layout_problems
    from llmjp_train.verify.spec import FORMS, matrix, parse, possible

    named = [word.removeprefix("layouts=") for word in args.overrides if word.startswith("layouts=")]
    own = _names_model(args.overrides)
    forms = ("",) if own else tuple(FORMS)
    if not named:
        return matrix(config, args.ranks, forms, least=0 if own else 26)
    if named[-1] == "full":
        return list(possible(config, args.ranks, forms))
    texts = [text.strip() for text in named[-1].strip("[]").split(",") if text.strip()]
    specs = [parse(text) for text in texts]
    found = [f"{spec}: {line}" for spec in specs for line in layout_problems(spec.applied(config))]
    if found:
        raise ConfigError(found)
    return specs
