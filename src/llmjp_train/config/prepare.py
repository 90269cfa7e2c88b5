"""Root configurations of `llmjp prepare` and `llmjp tokenizer train`."""

from dataclasses import dataclass, field
from enum import Enum

from llmjp_train.config.data import TokenizerConfig


class Unicode(Enum):
    """Normalisation of text before tokens: none, or Unicode's NFC or NFKC."""

    none = "none"
    nfc = "nfc"
    nfkc = "nfkc"


@dataclass
class PrepareConfig:
    """Text to token files."""

    input: list[str] = field(default_factory=list)
    """Files or folders: .jsonl, .ndjson (also .gz, .xz, .zst), .txt, .parquet, or folders saved by `datasets`."""
    output: str = "???"
    """Folder for train.bin/.idx, validation.bin/.idx and manifest.json."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """What turns text into ids (group tokenizer)."""
    text_key: str = "text"
    """Field of a JSONL object, or column, that holds the text."""
    licence: str = ""
    """Licence of the text, for cards and releases, e.g. CC BY-SA 4.0; texts of the catalogue know theirs."""
    origin: str = ""
    """Where the text comes from, for cards and releases; texts of the catalogue know it."""
    filters: str = ""
    """What was left out of the text before it came here, for cards and releases: filters, deduplication."""
    workers: int = 0
    """Processes; 0: one a core. The output does not depend on it."""
    seed: int = 1234
    """Seed of the order of documents."""
    validation_share: float = 0.02
    """Share of the documents that goes into the validation files, chosen by the hash of their text."""
    append_eod: bool = True
    """End each document with the tokenizer's end-of-document id."""
    unicode: Unicode = Unicode.none
    """Normalisation of the text; none leaves it as it is."""
    unify_newlines: bool = True
    """Write carriage returns, alone or before a newline, as newlines; newlines are always kept."""
    max_malformed: float = 0.001
    """Largest share of malformed records that is accepted; they are counted and located in any case."""
    shard_mb: int = 0
    """Text per unit of work, in MB: what a kill can cost. 0: a 256th of the input, 1 to 64. The output
    does not depend on it."""


@dataclass
class TokenizerTrainConfig:
    """A Unigram tokenizer with byte fallback, trained on text."""

    input: list[str] = field(default_factory=list)
    """Files or folders, as for `llmjp prepare`."""
    output: str = "???"
    """Folder for the tokenizer, in Hugging Face form."""
    text_key: str = "text"
    """Field of a JSONL object, or column, that holds the text."""
    vocab_size: int = 4096
    """Number of ids, special tokens and the 256 byte pieces included."""
    character_coverage: float = 0.995
    """Share of the text's characters that get ids of their own; the rest are spelled in bytes."""
    max_piece: int = 8
    """Longest piece, in characters."""
    max_mb: float = 2.0
    """Text to train on, in MB, taken evenly from the input; 2 MB take about 5 seconds."""
    seed: int = 1234
    """Seed of the choice of text."""
