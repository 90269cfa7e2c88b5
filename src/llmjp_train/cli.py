"""`llmjp`: argument parsing and dispatch. Imports nothing heavy: the guide must show at once."""

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from llmjp_train import __version__, exit_codes
from llmjp_train.errors import UserError

GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "selftest"),
    "Data": ("data", "tokenizer", "prepare"),
    "Train": ("plan", "train", "run", "checkpoint", "verify-layout"),
    "Clusters": (
        "cluster",
        "submit",
        "status",
        "logs",
        "save",
        "stop",
        "cancel",
        "resume",
        "requeue",
        "incidents",
        "note",
    ),
    "Evaluate and publish": (
        "evaluate",
        "follow",
        "compare",
        "export",
        "import",
        "generate",
        "report",
        "chronicle",
        "release",
        "verify",
        "publish",
    ),
}
TOGETHER: dict[tuple[str, ...], str] = {
    ("save", "stop", "cancel"): "a checkpoint of a running run; the same and its end; the end of its jobs",
    ("resume", "requeue"): "submit a job that goes on with a run; save, end and queue a run again",
}
"""Commands that the guide tells in one line."""
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
_OVERRIDE = re.compile(r"^(\+{0,2}[A-Za-z_][\w./@-]*=|~[A-Za-z_])", re.DOTALL)

GUIDE = """\
llmjp {version}: from Japanese text to an evaluated, published language model

{commands}

The usual path, on your own machine:
  llmjp tokenizer train 'input=[text.jsonl]' output=my-tokenizer vocab_size=4096
  llmjp prepare 'input=[text.jsonl]' output=my-data tokenizer.path=my-tokenizer
  llmjp train experiment=tiny-cpu tokenizer.path=my-tokenizer data.sources.small.path=my-data
  llmjp train runs/tiny-cpu parallel.data=2      # go on with it, on two processes
  llmjp evaluate runs/tiny-cpu && llmjp release runs/tiny-cpu    # llmjp verify checks what is in the release

Everything that is not a flag is a Hydra override: experiment=llm-jp-3-13b, optimizer.lr=1e-4.
'llmjp COMMAND --help' says more. 'llmjp train --dry-run experiment=...' costs nothing and shows every number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code (`exit_codes`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_guide())
        return exit_codes.OK
    if words[0] in ("-V", "--version"):
        print(f"llmjp {__version__}")
        return exit_codes.OK
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        print(f"llmjp: there is no command '{name}'{hint} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    if "LLMJP_PARENT" in os.environ:
        from llmjp_train.launch.local import end_with_parent

        end_with_parent()
    return _run(name, words[1:])


def _guide() -> str:
    lines = []
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        left = list(names)
        while left:
            told = next((several for several in TOGETHER if several[0] == left[0]), (left[0],))
            del left[: len(told)]
            summary = TOGETHER.get(told) or _module(told[0]).SUMMARY
            lines.append(f"  {', '.join(told):<13} {summary}")
    return GUIDE.format(version=__version__, commands="\n".join(lines))


def _module(name: str) -> ModuleType:
    # A module cannot be called import.
    module = {"import": "import_folder"}.get(name, name.replace("-", "_"))
    return importlib.import_module(f"llmjp_train.commands.{module}")


def _run(name: str, words: list[str]) -> int:
    module = _module(name)
    parser = argparse.ArgumentParser(
        prog=f"llmjp {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    overrides: list[str] = []
    if module.USES_CONFIG:
        _add_config_arguments(parser)
        overrides = [word for word in words if _is_override(word)]
        words = _plain_cfg([word for word in words if not _is_override(word)])
    args = parser.parse_args(words)
    args.overrides = overrides
    return _guarded(name, module, args)


def _is_override(word: str) -> bool:
    """A sweep names run directories like ``runs/lr=1e-4``: what exists is a path."""
    return _OVERRIDE.match(word) is not None and not Path(word).exists()


def _plain_cfg(words: list[str]) -> list[str]:
    """Hydra's own form, ``--cfg job``, as the flag that it is here."""
    return [
        "--cfg" if word == "--cfg=job" else word
        for before, word in zip(["", *words], words, strict=False)
        if (before, word) != ("--cfg", "job") or Path(word).exists()
    ]


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [flags] [OVERRIDE ...]"
    group = parser.add_argument_group("configuration (Hydra)")
    group.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    group.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a folder of your own configs, looked at first"
    )
    parser.epilog = (
        "OVERRIDE is Hydra's: GROUP=NAME chooses a file, KEY=VALUE sets a value (with or without a + before it), "
        "~KEY takes one away. --cfg shows every key; docs/configuration.md explains them."
    )


def _guarded(name: str, module: ModuleType, args: argparse.Namespace) -> int:
    """Run the command; what a user can correct is told in one block, without a traceback."""
    try:
        if getattr(args, "cfg", False):
            from llmjp_train.config.compose import dump_config

            print(dump_config(module.configuration(args)), end="")
            return exit_codes.OK
        code: int = module.run(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"llmjp {name}: {error}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    except KeyboardInterrupt:
        print(f"llmjp {name}: interrupted", file=sys.stderr)
        return 128 + 2
    except SystemExit as error:
        # rich, where it finds that the reader of a table has gone
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return exit_codes.OK
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout elsewhere so that the interpreter's exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.OK
    return code


if __name__ == "__main__":
    sys.exit(main())
