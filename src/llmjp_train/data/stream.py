"""Training and validation batches, each a pure function of sample numbers."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmjp_train.config.data import DataConfig
from llmjp_train.config.phases import Phase
from llmjp_train.data.batches import MicroBatch, assemble
from llmjp_train.data.manifest import manifest_of, other_tokenizer, train_prefix, validation_prefix
from llmjp_train.data.mixture import Mixture, Segment
from llmjp_train.data.prefetch import Prefetcher
from llmjp_train.data.token_files import TokenFile
from llmjp_train.errors import UserError

__all__ = [
    "MicroBatch",
    "Prefetcher",
    "TrainingStream",
    "ValidationStream",
    "train_prefix",
    "validation_prefix",
]

_LOOKED_AT = 1_000_000
"""Tokens at the start of a source that are compared with the vocabulary: a foreign tokenizer shows there."""


class TrainingStream:
    """The mixture of a run. Any batch at any time, from any thread, at the same cost."""

    def __init__(self, config: DataConfig, table: list[Phase], vocab_size: int) -> None:
        """Open the sources.

        Raises:
            UserError: a source is missing, damaged, too small, or holds ids that the model has not.
        """
        if not config.sources:
            raise UserError(
                "data.sources is empty: choose a data group (data=…), or name one: data.sources.NAME.path=…"
            )
        self.source_names = list(config.sources)
        self._paths = [Path(source.path) for source in config.sources.values()]
        self._files = [TokenFile(train_prefix(path)) for path in self._paths]
        self._mask = config.document_mask
        self.source_tokens = {n: f.num_tokens for n, f in zip(self.source_names, self._files, strict=True)}
        window = max(phase.sequence_length for phase in table)
        windows = [max(0, file.num_tokens - 1) // window for file in self._files]
        for name, file, count in zip(self.source_names, self._files, windows, strict=True):
            _check_source(config, name, file, count, window, vocab_size)
        self.mixture = Mixture(windows, window, _segments(config, table, windows, window), config.seed)
        self.fingerprint = self._fingerprint(config, window)

    def _fingerprint(self, config: DataConfig, window: int) -> dict[str, Any]:
        """What decides sample i besides the seed and the declared changes; a JSON object."""
        found: dict[str, Any] = {}
        for name, path, file in zip(self.source_names, self._paths, self._files, strict=True):
            source, made = config.sources[name], manifest_of(path)
            found[name] = {"tokens": file.num_tokens, "fingerprint": file.fingerprint}
            found[name] |= {"weight": source.weight, "epochs": source.epochs}
            found[name]["tokenizer"] = made["tokenizer"]["fingerprint"] if made else None
        return {"window": window, "sources": found}

    def batch(self, first_sample: int, count: int, sequence_length: int) -> MicroBatch:
        """Samples ``first_sample .. first_sample + count`` of the run, all of one phase."""
        places = self.mixture.places(first_sample, count, sequence_length)
        return assemble(self._files, places, sequence_length, mask=self._mask)

    def check_tokenizer(self, fingerprint: str, name: str, eod_id: int) -> None:
        """Refuse sources that were prepared with another tokenizer than the run's; foreign files do not tell.

        Raises:
            UserError: names the source and both tokenizers.
        """
        for source, path in zip(self.source_names, self._paths, strict=True):
            _check_made(f"source {source}", path, fingerprint, name, eod_id)

    def epochs(self, config: DataConfig, samples: int) -> tuple[list[str], list[str]]:
        """How often a run of so many samples passes over each source, a line each; and where that is not as stated."""
        told, warned = [], []
        passed = self.mixture.epochs(samples)
        for (name, tokens), real in zip(self.source_tokens.items(), passed, strict=True):
            told.append(f"source {name}: {real:.4g} epochs of {tokens:,} tokens")
            stated = config.sources[name].epochs
            if stated is not None and abs(real - stated) > 0.01 * stated:
                warned.append(
                    f"data.sources.{name}.epochs is {stated:g}, but this run passes over it {real:.4g} times: "
                    "epochs set the sources' proportions alone, the run's length is schedule.length"
                )
        return told, warned


class HasDecode(Protocol):
    """What `bytes_per_token` needs of a tokenizer."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""


class ValidationStream:
    """Validation files, each token once, in a fixed order that mixes the sources by their sizes."""

    def __init__(self, config: DataConfig, sequence_length: int, vocab_size: int) -> None:
        """Open the sources' validation files; sources without one are left out.

        Raises:
            UserError: a file is missing, damaged, or holds ids that the model has not.
        """
        self.source_names = list(config.sources)
        self._length, self._mask = sequence_length, config.document_mask
        self._prefixes = [validation_prefix(s.path, s.validation) for s in config.sources.values()]
        self._files = [TokenFile(prefix) if prefix else None for prefix in self._prefixes]
        for name, file in zip(self.source_names, self._files, strict=True):
            if file is not None:
                _check_vocabulary(f"the validation of source {name}", file, vocab_size)
        # The last sequence of a file is filled up: no token is left out.
        windows = [-(-max(0, f.num_tokens - 1) // sequence_length) if f else 0 for f in self._files]
        self.num_samples = sum(windows)
        self._mixture: Mixture | None = None
        if self.num_samples:
            # Over the first num_samples samples these weights give each window exactly once.
            segment = Segment(0, sequence_length, tuple(Fraction(count) for count in windows))
            self._mixture = Mixture(windows, sequence_length, [segment], seed=0)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the validation losses are of: tokens and fingerprint of each source's file; a JSON object."""
        files = zip(self.source_names, self._files, strict=True)
        return {n: {"tokens": f.num_tokens, "fingerprint": f.fingerprint} for n, f in files if f is not None}

    def check_tokenizer(self, fingerprint: str, name: str, eod_id: int) -> None:
        """Refuse files that were prepared with another tokenizer than the run's; foreign files do not tell.

        Raises:
            UserError: names the source and both tokenizers.
        """
        for source, prefix in zip(self.source_names, self._prefixes, strict=True):
            if prefix is not None:
                _check_made(f"the validation of source {source}", prefix, fingerprint, name, eod_id)

    def batch(self, first: int, count: int) -> MicroBatch:
        """Validation samples ``first .. first + count``, below ``num_samples``."""
        if self._mixture is None or not 0 <= first <= first + count <= self.num_samples:
            raise IndexError(f"validation samples {first} to {first + count} of {self.num_samples}")
        return assemble(
            self._files, self._mixture.places(first, count, self._length), self._length, mask=self._mask
        )

    def bytes_per_token(self, tokenizer: HasDecode) -> float:
        """UTF-8 bytes of validation text per target token, for bits per byte = nats / ln 2 / this.

        End-of-document tokens are targets and have no bytes. The first token of a document is no target
        when documents are kept apart, so its bytes are not counted either. The manifest has the figures;
        of foreign files the first 100,000 tokens are decoded for an estimate. 0 without validation files.
        """
        targets = size = 0.0
        for prefix, file in zip(self._prefixes, self._files, strict=True):
            if prefix is None or file is None or file.num_tokens < 2:
                continue
            made = manifest_of(prefix)
            count = file.num_tokens - (file.num_documents if self._mask else 1)
            targets += count
            if made and prefix.name in made:
                part = made[prefix.name]
                size += part["text_bytes"] - (part["leading_bytes"] if self._mask else 0)
            else:
                ids = file.read(0, 100_000).tolist()
                size += len(tokenizer.decode(ids).encode()) * count / len(ids)
        return size / targets if targets else 0.0


def _check_made(what: str, path: Path, fingerprint: str, name: str, eod_id: int) -> None:
    made = manifest_of(path)
    wrong = other_tokenizer(made, fingerprint, eod_id) if made else ""
    if wrong:
        raise UserError(
            f"{what} ({path}) was {wrong}, the run has {name} ({fingerprint[:12]}); "
            "prepare the text again, or take the tokenizer that it was prepared with"
        )


def _check_source(
    config: DataConfig, name: str, file: TokenFile, windows: int, window: int, vocab_size: int
) -> None:
    stated = config.sources[name].tokens
    if windows == 0:
        raise UserError(
            f"source {name} ({file.prefix}) has {file.num_tokens} tokens, too few for a sequence of {window} "
            "and the token after it: shorten batch.sequence_length or take more text"
        )
    if stated is not None and stated != file.num_tokens:
        raise UserError(
            f"data.sources.{name}.tokens is {stated}, but {file.prefix} holds {file.num_tokens}: "
            "correct the figure, or the path"
        )
    _check_vocabulary(f"source {name}", file, vocab_size)


def _check_vocabulary(what: str, file: TokenFile, vocab_size: int) -> None:
    ids = file.read(0, _LOOKED_AT)
    largest = int(ids.max()) if ids.size else 0
    if largest >= vocab_size:
        raise UserError(
            f"{what} ({file.prefix}) holds token {largest}, but model.vocab_size is {vocab_size}: "
            "the files were made with another tokenizer"
        )


def _segments(config: DataConfig, table: list[Phase], windows: list[int], window: int) -> list[Segment]:
    found: list[Segment] = []
    for phase in table:
        if window % phase.sequence_length:
            raise UserError(
                f"sequence length {phase.sequence_length} at step {phase.first_step} does not divide "
                f"the run's longest, {window}: take lengths that do"
            )
        weights = _weights(config, windows, phase.weights)
        if not found or (found[-1].length, found[-1].weights) != (phase.sequence_length, weights):
            found.append(Segment(phase.first_sample, phase.sequence_length, weights))
    return found


def _weights(config: DataConfig, windows: list[int], changed: dict[str, float]) -> tuple[Fraction, ...]:
    """Weights by a declared change, by epochs, by weight, or by size (every source once an epoch)."""
    sources = config.sources
    unknown = sorted(set(changed) - set(sources))
    if unknown:
        raise UserError(
            f"a change gives weight to {', '.join(unknown)}, but data.sources has {', '.join(sources)}"
        )
    if changed:
        found = tuple(_exact(f"the weight of {name}", changed.get(name, 0.0)) for name in sources)
    elif any(source.epochs is not None for source in sources.values()):
        found = tuple(
            _exact(f"data.sources.{name}.epochs", source.epochs or 0) * count
            for (name, source), count in zip(sources.items(), windows, strict=True)
        )
    elif any(source.weight is not None for source in sources.values()):
        found = tuple(_exact(f"data.sources.{n}.weight", s.weight or 0) for n, s in sources.items())
    else:
        found = tuple(Fraction(count) for count in windows)
    if not any(found):
        raise UserError(
            f"every source of data.sources ({', '.join(sources)}) has weight 0: give one a weight"
        )
    return found


def _exact(key: str, value: float) -> Fraction:
    """The decimal number as it was written."""
    if not np.isfinite(value) or value < 0:
        raise UserError(f"{key} is {value}: it must be a number of 0 or more")
    return Fraction(str(value))
