"""The tokenizer and data groups: what text becomes tokens, and how sources mix."""

from dataclasses import dataclass, field


@dataclass
class TokenizerConfig:
    """A tokenizer folder or a name of the catalogue."""

    name: str = "???"
    """Name of the tokenizer's file in the tokenizer group."""
    path: str = ""
    """Folder with tokenizer.json, or a SentencePiece .model file; empty: taken from the catalogue by name."""
    vocab_size: int | None = None
    """Number of ids, where it is known before the files are read; the model's must not be smaller."""


@dataclass
class SourceConfig:
    """One corpus as token files, and its part in the mixture."""

    path: str = "???"
    """Prefix of a .bin/.idx pair (``x/wiki`` for ``x/wiki.bin`` and ``x/wiki.idx``), or a folder that
    `llmjp prepare` wrote."""
    validation: str = ""
    """Prefix of the validation pair; empty: the prepared folder's own, if it has one."""
    weight: float | None = None
    """Relative share of the samples; give every source a weight, or every source epochs."""
    epochs: float | None = None
    """Share of the samples relative to the source's size: 2 is read twice as often as 1. How many times it is passed
    over in the whole run follows from schedule.length, and is told when the run starts."""
    tokens: int | None = None
    """Size in tokens, stated so that a dry run needs no files; checked against the files at start."""


@dataclass
class DataConfig:
    """The training mixture."""

    name: str = "???"
    """Name of the data's file in the data group."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name."""
    document_mask: bool = True
    """Attention never crosses a document, and positions restart in each (recorded; default on)."""
    seed: int = 1234
    """Seed of the order of windows; independent of the seed of the weights."""
    prefetch: int = 4
    """Micro batches made ahead in a background thread."""
