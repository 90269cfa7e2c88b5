"""`llmjp prepare`: text to token files.

  llmjp prepare 'input=[text.jsonl]' output=my-data tokenizer.path=my-tokenizer
  llmjp prepare 'input=[wiki/,news.parquet]' output=my-data tokenizer=llm-jp-v3 workers=16
  llmjp prepare --dry-run 'input=[llmjp-small-ja]' output=my-data tokenizer.path=my-tokenizer

Keys: input output tokenizer text_key licence origin filters workers seed validation_share append_eod unicode
unify_newlines max_malformed shard_mb.
"""

import argparse
from typing import Any

from llmjp_train import exit_codes

SUMMARY = "text (JSONL, .txt, Parquet, datasets) to token files, with a manifest"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--dry-run", action="store_true", help="show input, tokenizer and settings, and stop")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def configuration(args: argparse.Namespace) -> Any:
    """The composed configuration; what is to be given stays ??? where it is only shown."""
    from llmjp_train.config.compose import compose

    return compose("prepare", args.overrides, args.config_dir, partial=args.cfg)


def run(args: argparse.Namespace) -> int:
    """Tokenise, shuffle once, split validation off, write the manifest."""
    config = configuration(args)
    if args.dry_run:
        return _dry_run(config)
    from llmjp_train.data.prepare import prepare

    manifest = prepare(config)
    if args.json:
        import json

        print(json.dumps(manifest, ensure_ascii=False, indent=1))
    else:
        _print(config.output, manifest)
    return exit_codes.OK


def _print(output: str, manifest: dict[str, Any]) -> None:
    for name in ("train", "validation"):
        part = manifest[name]
        size = part["text_bytes"]
        print(f"{name}: {part['documents']:,} documents, {part['tokens']:,} tokens, {size:,} bytes of text")
    if manifest["settings"]["validation_share"] and not manifest["validation"]["documents"]:
        print(
            "warning: no document went to validation, for all have the same text: give more, or validation files"
        )
    bad = manifest["malformed"]
    if bad["count"]:
        print(f"malformed and left out: {bad['count']:,} of {bad['records']:,} records")
        for line in bad["located"][:5]:
            print(f"  {line}")
        if bad["count"] > 5:
            print(f"  … the first {len(bad['located'])} are in {output}/manifest.json")
    if manifest["special_tokens_in_text"]:
        print(f"special tokens that the text itself spells: {manifest['special_tokens_in_text']:,}")
    print(f"in {output}: train on it with data.sources.NAME.path={output}")


def _dry_run(config: Any) -> int:
    from llmjp_train.config.compose import dump_config
    from llmjp_train.data.inputs import size_of, survey
    from llmjp_train.data.prepare import check
    from llmjp_train.data.reading import sample
    from llmjp_train.data.tokenizers import load_tokenizer

    check(config)
    found = survey(config.input)
    files = found.files
    tokenizer = load_tokenizer(config.tokenizer)
    first, malformed, seen = sample(files, config.text_key, texts=50, records=1000)
    tokens = sum(map(len, tokenizer.encode_many(first)))
    size = sum(len(text.encode()) for text in first)
    print(dump_config(config), end="")
    print(f"input        {len(files)} files, {sum(map(size_of, files)):,} bytes as stored")
    for remark in found.remarks():
        print(f"             {remark}")
    print(f"tokenizer    {tokenizer.vocab_size:,} ids, end of document {tokenizer.eod_id}")
    if doubt := tokenizer.eod_doubt():
        print(f"             {doubt}")
    print(f"             its own encode() {tokenizer.habit()}; here nothing is added but the end of document")
    if tokens:
        print(f"sample       {len(first)} documents: {size / tokens:.2f} bytes a token")
    if malformed:
        print(f"malformed    {len(malformed):,} of the first {seen:,} records")
        for line in malformed[:5]:
            print(f"             {line}")
    if not first:
        print(f"             no text in the first {seen:,} records: check input and text_key")
    return exit_codes.OK
