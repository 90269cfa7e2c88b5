"""Text to token files: the same output for any number of workers, and after any number of kills."""

import fcntl
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers

from llmjp_train import __version__
from llmjp_train.config.prepare import PrepareConfig
from llmjp_train.data.catalogue import statement
from llmjp_train.data.download import sha256
from llmjp_train.data.earlier import digest_of, finished_output, resume, state_again, write_manifest
from llmjp_train.data.inputs import Found, size_of, survey
from llmjp_train.data.progress import Progress
from llmjp_train.data.reading import Block, blocks
from llmjp_train.data.shards import LOCATED, Shards, merge, threshold
from llmjp_train.data.token_files import TokenFileWriter
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError

SCHEMA = 1
_MB = 1_000_000


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write train and validation files and the manifest, going on where a killed run stopped; the manifest.

    Raises:
        UserError: nothing to read, too much malformed, an output of other settings in the way, no space.
    """
    check(config)
    found = survey(config.input)
    files = found.files
    tokenizer = load_tokenizer(config.tokenizer)
    out = Path(config.output)
    settings = _settings(config, tokenizer)
    finished = finished_output(out, settings, files)
    for remark in found.remarks():
        print(f"note: {remark}", file=sys.stderr)
    if finished is not None:
        return state_again(out, finished, _statements(config))
    try:
        with _only_one(out):
            return _run(config, found, tokenizer, out, settings)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}. What was done is kept in {out / 'parts'}: "
            "make room or repair it, then run the same command again"
        ) from error


def check(config: PrepareConfig) -> None:
    """Refuse values out of range.

    Raises:
        UserError: names the key.
    """
    if not 0 <= config.validation_share < 1:
        raise UserError(f"validation_share={config.validation_share}: it must be 0 or more and below 1")
    if not 0 <= config.max_malformed <= 1:
        raise UserError(f"max_malformed={config.max_malformed}: it must be between 0 and 1")
    for key in ("workers", "shard_mb"):
        if getattr(config, key) < 0:
            raise UserError(f"{key}={getattr(config, key)}: it must be 0 or more")
    if not -(2**63) <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: it must fit into 64 bits")


def _run(
    config: PrepareConfig, found: Found, tokenizer: Tokenizer, out: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    parts, files = out / "parts", found.files
    resume(parts, settings | {"work": {"shard_mb": config.shard_mb}}, files)
    shards = Shards(config, tokenizer, parts)
    with _Workers(config.workers, shards) as workers:
        facts = _tokenise(config, files, shards, workers)
        digests = workers.digests(files)
    malformed = _malformed(config, facts, parts)
    with ExitStack() as stack:
        train, validation = (
            stack.enter_context(TokenFileWriter(out / name, tokenizer.vocab_size))
            for name in ("train", "validation")
        )
        paths = [shards.path(number) for number in range(len(facts))]
        totals = merge(paths, threshold(paths, config.validation_share), train, validation)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "made_with": {"llmjp_train": __version__, "tokenizers": tokenizers.__version__},
        **settings,
        "input": [
            _input(path, digest, [f for f in facts if f["file"] == str(path)])
            for path, digest in zip(files, digests, strict=True)
        ],
        "statements": _statements(config),
        "passed_over": {"count": len(found.passed_over), "files": found.passed_over[:LOCATED]},
        "texts_beside_other_kinds": {"count": len(found.loose_texts), "files": found.loose_texts[:LOCATED]},
        "malformed": malformed,
        "empty": sum(f["empty"] for f in facts),
        "special_tokens_in_text": sum(f["special"] for f in facts),
    }
    for name, total in zip(("train", "validation"), totals, strict=True):
        both = {suffix: sha256(out / f"{name}{suffix}") for suffix in (".bin", ".idx")}
        manifest[name] = {**asdict(total), "dtype": train.dtype.name, "sha256": both}
    write_manifest(out, manifest)
    shutil.rmtree(parts)
    return manifest


def _statements(config: PrepareConfig) -> list[dict[str, Any]]:
    said = [statement(name, config.licence, config.origin) for name in config.input]
    return [{**each, "filters": config.filters or None} for each in said]


def _settings(config: PrepareConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the output besides the text; the number of workers does not."""
    return {
        "settings": {
            "text_key": config.text_key,
            "seed": config.seed,
            "validation_share": config.validation_share,
            "append_eod": config.append_eod,
            "unicode": config.unicode.value,
            "unify_newlines": config.unify_newlines,
            "newlines": "kept",
            "special_tokens_in_text": "encoded as text where the tokenizer can",
        },
        "tokenizer": {
            "name": config.tokenizer.name if not config.tokenizer.path else Path(config.tokenizer.path).name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "habit": tokenizer.habit(),
        },
    }


def _input(path: Path, digest: str, facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = {key: sum(f[key] for f in facts) for key in ("records", "documents", "tokens", "malformed")}
    return {"file": path.name, "bytes": size_of(path), "sha256": digest, **counts}


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the output against a second run, as long as this process lives."""
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another 'llmjp prepare' is writing to {out}: wait for it, or choose another output"
        ) from error
    finally:
        os.close(folder)


def _tokenise(
    config: PrepareConfig, files: list[Path], shards: Shards, workers: "_Workers"
) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = []
    tokens = 0
    total = sum(map(size_of, files))
    with Progress("tokenising", total, "MB", 1e6) as progress:
        for result in workers.map(blocks(files, config.text_key, _block_size(config, total))):
            facts.append(result)
            tokens += result["tokens"]
            progress.add(result["consumed"], f"{tokens / 1e6:,.1f} M tokens", worked="kept" not in result)
    return facts


def _block_size(config: PrepareConfig, total: int) -> int:
    """Bytes of text in a shard: many enough to keep workers even, large enough not to litter the folder."""
    return config.shard_mb * _MB or min(max(total // 256, _MB), 64 * _MB)


def _malformed(config: PrepareConfig, facts: Sequence[dict[str, Any]], parts: Path) -> dict[str, Any]:
    """Counts and places of malformed records.

    Raises:
        UserError: there are more than the configuration accepts.
    """
    count, seen = (sum(f[key] for f in facts) for key in ("malformed", "records"))
    located = [place for f in facts for place in f["located"]]
    if count > config.max_malformed * seen:
        shown = "\n  ".join(located[:10])
        raise UserError(
            f"{count:,} of {seen:,} records are malformed, more than max_malformed={config.max_malformed}:"
            f"\n  {shown}\nAccept the share with max_malformed=…: what was tokenised is kept for that. Or correct "
            f"text_key or the files; if it then still asks for the earlier input, remove {parts}"
        )
    return {"count": count, "records": seen, "located": located[:LOCATED]}


_shards: Shards | None = None
"""What a worker works with; handed over by fork, so that the tokenizer is loaded once."""


class _Workers:
    """Processes that make shards; their results come in the order of the input."""

    def __init__(self, count: int, shards: Shards) -> None:
        self._count = count or len(os.sched_getaffinity(0))
        self._shards = shards
        self._pool: ProcessPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "_Workers":
        global _shards
        _shards = self._shards
        self._stack.enter_context(_one_thread())
        if self._count > 1:
            self._pool = ProcessPoolExecutor(
                self._count,
                multiprocessing.get_context("fork"),
                initializer=_end_with_parent,
                initargs=(os.getpid(),),
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def map(self, todo: Iterator[Block]) -> Iterator[dict[str, Any]]:
        """Facts of the shards; a few blocks for each worker are under way, so that memory stays bounded."""
        if self._pool is None:
            yield from map(_work, todo)
            return
        waiting: deque[Future[dict[str, Any]]] = deque()
        try:
            for block in todo:
                waiting.append(self._pool.submit(_work, block))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was killed, perhaps for want of memory: run the same command again to go on, "
                f"with fewer workers (now {self._count}) or a smaller shard_mb"
            ) from error

    def digests(self, files: Sequence[Path]) -> list[str]:
        """sha256 of the input."""
        return list(map(digest_of, files) if self._pool is None else self._pool.map(digest_of, files))


def _work(block: Block) -> dict[str, Any]:
    assert _shards is not None, "a worker was started without its shards"
    if _shards.started(block.number):
        kept = _shards.kept(block.number)
        if kept is not None:
            return kept
        print(f"shard {block.number} of the earlier run is damaged: made again", file=sys.stderr)
    return _shards.make(block)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One process a core is the parallelism here: the tokenizer library must not add threads."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
