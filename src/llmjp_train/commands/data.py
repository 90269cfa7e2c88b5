"""`llmjp data`: what there is by name, and what token files hold."""

import argparse
import json
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

SUMMARY = "the data catalogue (list, get, convert), and token files (show, verify)"
USES_CONFIG = False

_GUIDE = """\
what it does:
  list             corpora, tokenizers, prompts and benchmarks, each with its size, its licence, and whether it is
                   here, can be downloaded, or has to be copied
  get NAME         gives its path: from --root or LLMJP_DATA, else from earlier downloads, else downloads it. A broken
                   download goes on where it ended; the licence is shown, the sha256 compared
  convert NAME SOURCE... --out FILE
                   a benchmark's own files, had by hand, to the JSON lines that the catalogue wants
  show FOLDER      documents, tokens and tokenizer of token files: a folder of 'llmjp prepare', or any prefix
  verify FOLDER    reads every byte of them: index, ids, and the checksums of the manifest

examples:
  llmjp data list
  llmjp data get jcommonsenseqa
  LLMJP_DATA=/where/copies/lie llmjp data get aozora
  llmjp data show corpora/wiki          (for corpora/wiki.bin and corpora/wiki.idx)

Downloads lie in ~/.cache/llmjp-train, or where LLMJP_CACHE says. Without a network, copy a folder that has the data and
set LLMJP_DATA to it. 'llmjp-small-ja', the project's own text, needs neither.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _GUIDE
    parser.add_argument(
        "action", choices=("list", "get", "convert", "show", "verify"), help="what to do, see below"
    )
    parser.add_argument(
        "name", nargs="?", help="get: a name of the list; show, verify: a folder, or a prefix of token files"
    )
    parser.add_argument("sources", nargs="*", type=Path, help="convert: the source's files")
    parser.add_argument("--out", type=Path, metavar="FILE", help="convert: where the JSON lines go")
    parser.add_argument("--root", type=Path, help="folder of data instead of LLMJP_DATA")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Dispatch."""
    if args.action != "convert":
        names = {"name": args.name} if args.action == "list" else {}
        refuse(f"with {args.action}", {**names, "sources": args.sources, "--out": args.out})
    if args.action == "list":
        return _list(args)
    if not args.name:
        raise UserError(f"llmjp data {args.action} needs a name, e.g. 'llmjp data {args.action} NAME'")
    action = {"get": _get, "show": _show, "verify": _verify, "convert": _convert}[args.action]
    return action(args)


def _list(args: argparse.Namespace) -> int:
    from llmjp_train.data import catalogue

    rows = []
    for wanted in catalogue.entries().values():
        here = catalogue.located(wanted.name, args.root) is not None
        rows.append({**catalogue.facts(wanted), "here": here})
    if args.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return exit_codes.OK
    for kind in dict.fromkeys(row["kind"] for row in rows):
        print(f"{kind}:")
        for row in (row for row in rows if row["kind"] == kind):
            print(f"  {row['name']:<24}{row['size'] / 1e6:5.1f} MB  {_had_by(row):<9} {row['licence']}")
            print(f"    {row['about']}")
    print("\ndownload: 'llmjp data get NAME'; copy: set LLMJP_DATA to a folder that holds it")
    return exit_codes.OK


def _had_by(row: dict[str, Any]) -> str:
    if row["here"]:
        return "here"
    return "download" if row["download"] and row["files"] else "copy"


def _get(args: argparse.Namespace) -> int:
    import sys

    from llmjp_train.data import catalogue

    wanted = catalogue.entry(args.name)
    path = catalogue.get(args.name, args.root, told=lambda line: print(line, file=sys.stderr))
    if args.json:
        print(json.dumps({**catalogue.facts(wanted), "path": str(path)}, ensure_ascii=False))
        return exit_codes.OK
    print(f"{path}\n  {wanted.about}")
    print(f"  licence: {wanted.licence}; source: {wanted.source} {wanted.revision}".rstrip())
    if wanted.changes:
        print(f"  changes: {wanted.changes}")
    recorded = sum(file.sha256 is not None for file in wanted.files.values())
    print(f"  {recorded} of {len(wanted.files)} files compared with the catalogue's sha256")
    return exit_codes.OK


def _convert(args: argparse.Namespace) -> int:
    from llmjp_train.data.converters import CONVERTERS, convert_files

    known = sorted([*CONVERTERS, "alt"])
    if args.name not in known:
        raise UserError(f"llmjp data convert {args.name}: no such form; there are {', '.join(known)}")
    if not args.sources or args.out is None:
        raise UserError(
            f"name the source's files and the result: llmjp data convert {args.name} SOURCE... --out FILE"
        )
    if args.name == "alt" and len(args.sources) != 3:
        raise UserError("alt takes three files in this order: data_ja.txt data_en.txt URL-test.txt")
    try:
        content = convert_files([path.read_bytes() for path in args.sources], args.name)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise UserError(
            f"{', '.join(map(str, args.sources))}: not in the form of {args.name} ({type(error).__name__}: {error})"
        ) from error
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(content)
    print(f"{args.out}: {content.count(bytes([10]))} items")
    return exit_codes.OK


def _prefixes(name: str) -> list[Path]:
    """Prefixes of a prepared folder, or the one that is named."""
    from llmjp_train.data.manifest import train_prefix

    path = Path(name)
    if path.suffix in (".bin", ".idx"):
        path = path.with_suffix("")
    found = [train_prefix(path)]
    if path.is_dir() and (path / "validation.idx").is_file():
        found.append(path / "validation")
    return found


def _show(args: argparse.Namespace) -> int:
    from llmjp_train.data.manifest import manifest_of
    from llmjp_train.data.token_files import TokenFile

    values = []
    for prefix in _prefixes(args.name):
        file = TokenFile(prefix)
        value: dict[str, Any] = {
            "prefix": str(prefix),
            "documents": file.num_documents,
            "tokens": file.num_tokens,
            "dtype": file.dtype.name,
            "fingerprint": file.fingerprint,
        }
        made = manifest_of(prefix)
        if made is not None:
            value["tokenizer"] = f"{made['tokenizer']['name']} {made['tokenizer']['fingerprint'][:12]}"
            value["text bytes"] = made[prefix.name]["text_bytes"]
        values.append(value)
    if args.json:
        print(json.dumps(values, ensure_ascii=False))
        return exit_codes.OK
    for value in values:
        for key, item in value.items():
            print(f"{key:<12} {item:,}" if isinstance(item, int) else f"{key:<12} {item}")
    return exit_codes.OK


def _verify(args: argparse.Namespace) -> int:
    from llmjp_train.data.verify import problems

    found = {str(prefix): problems(prefix) for prefix in _prefixes(args.name)}
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for prefix, lines in found.items():
            print(f"{prefix}: {'; '.join(lines) if lines else 'sound'}")
    return exit_codes.FAILED if any(found.values()) else exit_codes.OK
