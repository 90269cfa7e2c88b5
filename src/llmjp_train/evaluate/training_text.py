"""The text that a run was trained on, or that lies in files, document by document."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmjp_train.config.compose import load_config
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data import inputs, reading
from llmjp_train.data.manifest import train_prefix
from llmjp_train.data.token_files import TokenFile
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError


def training_text(source: str, text_key: str, told: Callable[[str], None]) -> Iterator[str]:
    """Documents of a run's token files (decoded), or of text files, folders of them and corpora by name.

    Raises:
        UserError: the run's files are gone, or the source is nothing that can be read.
    """
    path = Path(source)
    if not (path / "config.yaml").is_file():
        yield from reading.texts(inputs.find_files([source]), text_key, told)
        return
    if not (path / "tokenizer").is_dir():
        raise UserError(
            f"{path / 'tokenizer'} is missing: the run was not started, or its tokenizer was removed"
        )
    config = load_config(path / "config.yaml")
    tokenizer = load_tokenizer(TokenizerConfig(name=config.tokenizer.name, path=str(path / "tokenizer")))
    for name, part in config.data.sources.items():
        told(f"{name}: {part.path}")
        yield from decoded(TokenFile(train_prefix(Path(part.path))), tokenizer)


def decoded(file: TokenFile, tokenizer: Tokenizer) -> Iterator[str]:
    """The documents of a pair of token files, a thousand at a time."""
    for start in range(0, file.num_documents, 1000):
        end = min(start + 1000, file.num_documents)
        offsets = file.starts_of(np.arange(start, end + 1, dtype=np.int64))
        for first, last in pairwise(offsets.tolist()):
            yield tokenizer.decode(file.read(first, last - first).tolist())
