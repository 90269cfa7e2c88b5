"""Tokenizers: any Hugging Face folder, SentencePiece models, and those of the catalogue by name."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data import catalogue
from llmjp_train.data.sentencepieces import BYTES, from_sentencepiece
from llmjp_train.errors import UserError

_BATCH = 64
"""Texts at a time: what the library makes of them is many times their size, and slow where it leaves the caches."""
_EOD = ("<EOD|LLM-jp>", "<|endoftext|>", "</s>", "<EOD>")


class Tokenizer:
    """Text to ids and back, never adding a token by itself.

    (LLM-jp's 2.x tokenizers append <EOD|LLM-jp> and its 3.x prepend <s> in an ordinary ``encode()``;
    see ``habit``.)
    """

    def __init__(self, hf: PreTrainedTokenizerFast, eod: str = "") -> None:
        """``eod``: the token that ends a document, where the tokenizer's own configuration does not tell.

        Raises:
            UserError: no token can be told to end a document.
        """
        self.hf = hf
        if eod:
            hf.eos_token = eod  # so that it is saved with the tokenizer
        self.fingerprint = fingerprint(hf)
        """sha256 of what decides ids."""
        self._vocabulary: dict[str, int] = hf.get_vocab()
        self.vocab_size = max(self._vocabulary.values()) + 1
        """Ids from 0, added tokens included."""
        self.eod_id = self._eod()
        """Ends a document: LLM-jp's ``eod_token``, else the end-of-sequence token."""
        self.bos_id: int | None = hf.bos_token_id
        self.pad_id: int | None = hf.pad_token_id

    def _eod(self) -> int:
        # A chat tokenizer's end of sequence is that of a turn, so eod_token comes first (LLM-jp v4).
        named = self.hf.special_tokens_map.get("eod_token") or self.hf.init_kwargs.get("eod_token")
        for token in (named, self.hf.eos_token, *_EOD):
            if token and str(token) in self._vocabulary:
                return self._vocabulary[str(token)]
        raise UserError(
            "the tokenizer has no end-of-document token: name one as eos_token in its tokenizer_config.json"
        )

    def eod_doubt(self) -> str:
        """That LLM-jp's own token for the end of a document is there and not in use, in words; else empty.

        A SentencePiece file does not tell which is meant.
        """
        piece = _EOD[0]
        if self._vocabulary.get(piece, self.eod_id) == self.eod_id:
            return ""
        return (
            f"and not {piece} ({self._vocabulary[piece]}), which it has too: if that is to end documents, take a "
            "folder whose tokenizer_config.json names it as eod_token"
        )

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no beginning-of-sequence and no end-of-document token.

        A special token that is spelled out in the text becomes that token, as in the Hugging Face library.
        """
        return list(self.hf.encode(text, add_special_tokens=False))

    def encode_many(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of several texts; special tokens spelled out in them stay text, as far as the tokenizer can.

        Not for several threads at a time. Parallel over cores unless TOKENIZERS_PARALLELISM is false.
        """
        backend = self.hf.backend_tokenizer
        for start in range(0, len(texts), _BATCH):
            before = backend.encode_special_tokens
            backend.encode_special_tokens = True
            try:
                found = backend.encode_batch_fast(
                    list(texts[start : start + _BATCH]), add_special_tokens=False
                )
            finally:
                backend.encode_special_tokens = before
            yield from (each.ids for each in found)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens."""
        added = self.hf.added_tokens_decoder.items()
        return frozenset(number for number, token in added if token.special) | frozenset(
            self.hf.all_special_ids
        )

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        return frozenset(self._vocabulary[name] for name in BYTES if name in self._vocabulary)

    def leading_bytes(self, first: int) -> int:
        """UTF-8 bytes of a text that its first token spells, for bits per byte without that token."""
        return 1 if first in self._byte_ids else len(self.decode([first]).encode())

    def pieces(self) -> dict[str, int]:
        """Id of each piece, added tokens included."""
        return dict(self._vocabulary)

    def pieces_by_id(self) -> list[str]:
        """Piece of each id; empty where an id has none."""
        found = [""] * self.vocab_size
        for piece, number in self._vocabulary.items():
            found[number] = piece
        return found

    def habit(self) -> str:
        """What an ordinary ``encode()`` of this tokenizer adds to a text, in words."""
        bare, usual = self.encode("日本"), list(self.hf.encode("日本"))
        for before in range(len(usual) - len(bare) + 1):
            if usual[before : before + len(bare)] == bare:
                head = self._names(usual[:before])
                tail = self._names(usual[before + len(bare) :])
                said = [f"prepends {head}"] * bool(head) + [f"appends {tail}"] * bool(tail)
                return " and ".join(said) or "adds nothing"
        return f"changes the ids: {self._names(usual)}"

    def _names(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, self.hf.convert_ids_to_tokens(list(ids))))

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        self.hf.save_pretrained(str(folder))


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer by folder, SentencePiece file or catalogue name. No network but the catalogue's.

    Raises:
        UserError: it is not there, is no tokenizer, or has another size than the configuration states.
    """
    path = Path(config.path) if config.path else catalogue.get(config.name)
    eod = "" if config.path else catalogue.entry(config.name).eod
    if not path.exists():
        raise UserError(
            f"tokenizer.path={path} does not exist: train one with 'llmjp tokenizer train' or correct it"
        )
    found = Tokenizer(_load(path), eod)
    if config.vocab_size is not None and config.vocab_size != found.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size is {config.vocab_size}, but {path} has {found.vocab_size} ids: "
            "it is another tokenizer than the configuration means; correct the path or the figure"
        )
    return found


def _load(path: Path) -> PreTrainedTokenizerFast:
    if path.is_file():
        return from_sentencepiece(path)
    if not (path / "tokenizer.json").is_file():
        models = sorted(path.glob("*.model"))
        if len(models) == 1:
            return from_sentencepiece(models[0])
        raise UserError(
            f"{path} holds no tokenizer.json and no SentencePiece .model: it is no tokenizer folder"
        )
    try:
        hf: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its parsers do, plain Exception among it
        raise UserError(f"{path} is no tokenizer that transformers can read: {error}") from error
    if not hf.is_fast:
        raise UserError(f"{path} is not a fast tokenizer: convert it with transformers' own tools first")
    return hf


def fingerprint(hf: PreTrainedTokenizerFast) -> str:
    """sha256 of pieces, merges, normaliser, pre-tokenizer and added tokens: what decides ids, not their files' form.

    The library's own serialisation of each part is hashed as it is: parsing it would take most of the time in
    which a large tokenizer loads.
    """
    backend = hf.backend_tokenizer
    digest = hashlib.sha256()
    for part in (backend.model, backend.normalizer, backend.pre_tokenizer):
        state = b"" if part is None else part.__getstate__()
        digest.update(len(state).to_bytes(8, "little") + state)
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    for number, token in sorted(backend.get_added_tokens_decoder().items()):
        added = [number, *(getattr(token, flag) for flag in flags)]
        digest.update(json.dumps(added, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def check_special_tokens(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Compare the tokenizer with the number of ids that a model has.

    Raises:
        UserError: the model has too few, so that some token, a special one perhaps, has no row in it.
    """
    named = {"end of document": tokenizer.eod_id, "beginning": tokenizer.bos_id, "padding": tokenizer.pad_id}
    outside = [
        f"{what} {number}" for what, number in named.items() if number is not None and number >= vocab_size
    ]
    if outside or tokenizer.vocab_size > vocab_size:
        special = f" (among them {', '.join(outside)})" if outside else ""
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids{special}, but model.vocab_size is {vocab_size}: "
            f"set model.vocab_size={tokenizer.vocab_size} or more, or take another tokenizer"
        )
