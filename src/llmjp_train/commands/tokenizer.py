"""`llmjp tokenizer`: train one, look at one, or check that one fits a model and data.

  llmjp tokenizer train 'input=[text.jsonl]' output=my-tokenizer vocab_size=4096
  llmjp tokenizer show my-tokenizer --text '吾輩は猫である。'
  llmjp tokenizer check my-tokenizer --vocab-size 4096 --data my-data

Keys of train: input output text_key vocab_size character_coverage max_piece max_mb seed.
"""

import argparse
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

SUMMARY = "train a tokenizer on your text (seconds), look at one, or check that it fits"
USES_CONFIG = True

EXAMPLE = "吾輩は猫である。\n名前はまだ無い。"
HARD = (
    EXAMPLE,
    "  字下げ\n\n\t表 ＡＢＣ①",
    "e\u0301 が か\u3099",
    "😀👨\u200d👩\u200d👧 𠮷野家",
    "x = {'a': 10}\n",
)
"""Texts that a tokenizer for Japanese should give back as they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "action", choices=("train", "show", "check"), help="train input=[…] output=FOLDER vocab_size=4096"
    )
    parser.add_argument(
        "tokenizer", nargs="?", help="show, check: a folder, a .model file, or a catalogue name"
    )
    parser.add_argument("--text", help="show: text to split")
    parser.add_argument("--vocab-size", type=int, help="check: number of ids that the model has")
    parser.add_argument("--data", type=Path, help="check: folder written by 'llmjp prepare'")


def configuration(args: argparse.Namespace) -> Any:
    """The composed configuration of `train`; what is to be given stays ??? where it is only shown."""
    from llmjp_train.config.compose import compose

    return compose("tokenizer_train", args.overrides, args.config_dir, partial=args.cfg)


def run(args: argparse.Namespace) -> int:
    """Train, show or check."""
    _refuse_idle(args)
    if args.action != "train":
        return _show(args) if args.action == "show" else _check(args)
    return _train(configuration(args))


def _refuse_idle(args: argparse.Namespace) -> None:
    """See that nothing was typed that belongs to another action."""
    action, size, overrides = args.action, args.vocab_size, args.overrides
    flags = {"--text": args.text, "--vocab-size": size, "--data": args.data}
    idle: dict[str, dict[str, Any]] = {
        "train": {"tokenizer": args.tokenizer, **flags},
        "show": {"overrides": overrides, "--vocab-size": size, "--data": args.data},
        "check": {"overrides": overrides, "--text": args.text},
    }
    remedies = {
        "train": {
            "tokenizer": "it takes overrides, output=FOLDER",
            "--vocab-size": f"write vocab_size={size}",
            "--data": "the text to learn from is input=[FILE,…]",
        },
        "show": {"overrides": "they are for train; --text TEXT is split"},
        "check": {"overrides": "they are for train; a model's ids are compared with --vocab-size N"},
    }
    refuse(f"with {action}", idle[action], remedies[action])


def _check_training(config: Any) -> None:
    """Refuse values out of range, and an output that cannot be written, before any time goes into training.

    Raises:
        UserError: names the key.
    """
    import math
    import tempfile

    from llmjp_train.data.sentencepieces import FIXED

    for key, right, said in (
        (
            "vocab_size",
            config.vocab_size > FIXED,
            f"more than {FIXED}, the special tokens, bytes and newline",
        ),
        ("character_coverage", 0.98 <= config.character_coverage <= 1, "between 0.98 and 1"),
        ("max_piece", 1 <= config.max_piece <= 512, "between 1 and 512 characters"),
        ("max_mb", math.isfinite(config.max_mb) and config.max_mb * 1e6 >= 1, "more than 0, in MB"),
    ):
        if not right:
            raise UserError(f"{key}={getattr(config, key)}: it must be {said}")
    out = Path(config.output)
    if (out / "tokenizer.json").exists():
        raise UserError(f"{out} holds a tokenizer already: choose another output, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(
            f"output={out} cannot be written ({error.strerror}): choose another folder"
        ) from error


def _train(config: Any) -> int:
    import sys

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data.inputs import find_files
    from llmjp_train.data.reading import texts
    from llmjp_train.data.sentencepieces import sample, train_unigram
    from llmjp_train.data.tokenizers import load_tokenizer

    _check_training(config)
    out = Path(config.output)
    malformed: list[str] = []
    found = texts(find_files(config.input), config.text_key, malformed.append)
    chosen = sample(found, int(config.max_mb * 1e6), config.seed)
    for line in malformed[:5]:
        print(f"malformed, left out: {line}", file=sys.stderr)
    hf = train_unigram(chosen, config.vocab_size, config.character_coverage, config.max_piece)
    hf.save_pretrained(str(out))
    tokenizer = load_tokenizer(TokenizerConfig(name=out.name, path=str(out)))
    size = sum(len(text.encode()) for text in chosen)
    tokens = sum(map(len, tokenizer.encode_many(chosen)))
    print(
        f"{tokenizer.vocab_size:,} ids in {out}, from {size / 1e6:.1f} MB: {size / tokens:.2f} bytes a token"
    )
    return exit_codes.OK


def _load(args: argparse.Namespace) -> Any:
    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data.tokenizers import load_tokenizer

    if not args.tokenizer:
        raise UserError(f"name a tokenizer: llmjp tokenizer {args.action} FOLDER|FILE.model|NAME")
    path = args.tokenizer if Path(args.tokenizer).exists() else ""
    return load_tokenizer(TokenizerConfig(name=args.tokenizer, path=path))


def _show(args: argparse.Namespace) -> int:
    tokenizer = _load(args)
    text = EXAMPLE if args.text is None else args.text
    ids = tokenizer.encode(text)
    back = tokenizer.decode(ids)
    pieces = tokenizer.hf.convert_ids_to_tokens(ids)
    print(f"ids              {tokenizer.vocab_size:,}")
    print(f"end of document  {tokenizer.eod_id} ({tokenizer.hf.convert_ids_to_tokens(tokenizer.eod_id)})")
    if doubt := tokenizer.eod_doubt():
        print(f"                 {doubt}")
    print(f"beginning        {tokenizer.bos_id}")
    print(f"padding          {tokenizer.pad_id}")
    print(f"its encode()     {tokenizer.habit()}; training and evaluation here add nothing unasked")
    print(f"fingerprint      {tokenizer.fingerprint}")
    print(f"the text         {len(ids)} tokens: {' '.join(map(repr, pieces))}")
    print(f"round trip       {'exact' if back == text else f'NOT exact: {back!r}'}")
    return exit_codes.OK


def _check(args: argparse.Namespace) -> int:
    from llmjp_train.data.manifest import manifest_of, other_tokenizer
    from llmjp_train.data.tokenizers import check_special_tokens

    tokenizer = _load(args)
    back = {text: tokenizer.decode(tokenizer.encode(text)) for text in HARD}
    wrong = [f"{text!r} comes back as {found!r}" for text, found in back.items() if found != text]
    if args.vocab_size is not None:
        check_special_tokens(tokenizer, args.vocab_size)
    if args.data is not None:
        made = manifest_of(args.data)
        if made is None:
            raise UserError(f"{args.data} has no manifest: nothing tells which tokenizer made it")
        other = other_tokenizer(made, tokenizer.fingerprint, tokenizer.eod_id)
        if other:
            wrong.append(f"{args.data} was {other}")
    for line in wrong:
        print(f"wrong: {line}")
    if not wrong:
        print(
            "round trips are exact, special tokens fit" + (", and the data are its own" if args.data else "")
        )
    return exit_codes.FAILED if wrong else exit_codes.OK
