"""SentencePiece models as fast tokenizers, and a Unigram tokenizer trained on the spot."""

import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llmjp_train.errors import UserError

SPACE = "▁"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
"""Special tokens of a tokenizer trained here, ids 0 to 3; </s> ends a document."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIXED = len(SPECIAL) + len(BYTES) + 1
"""Ids of a tokenizer trained here that no text decides: special tokens, bytes, the newline."""
UNIGRAM, BPE = 1, 2
_UNKNOWN, _CONTROL = 2, 3
"""Kinds of pieces in a SentencePiece model."""
_NEVER = -200.0
"""Score of special and byte pieces: their names in other pieces are better, so text never is one."""
_PIECE = 4000
"""Characters of the stretches that a training sample is made of."""


def from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """A SentencePiece model as a fast tokenizer with the same ids.

    A model with rules of normalisation other than ``identity`` may differ where these join characters
    (half-width kana and their voicing marks): the `tokenizers` library applies them more narrowly.

    Raises:
        UserError: no such model, one without byte pieces, or of a kind other than Unigram and BPE.
    """
    model = _model(path)
    kind, spec = model.trainer_spec.model_type, model.normalizer_spec
    if kind not in (UNIGRAM, BPE):
        raise UserError(
            f"{path} is a SentencePiece model of type {kind}: only Unigram and BPE models are read"
        )
    if not model.trainer_spec.byte_fallback:
        raise UserError(
            f"{path} has no byte fallback: text outside its vocabulary would be lost; train it with it"
        )
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)
    fast = tokenizers.Tokenizer(
        models.Unigram(pieces, unknown, byte_fallback=True) if kind == UNIGRAM else _bpe(pieces, unknown)
    )
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    # The prefix is a normaliser, not Metaspace, which leaves it out before a text that begins with a space.
    steps += [normalizers.Prepend(SPACE)] * bool(spec.add_dummy_prefix)
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] * bool(spec.add_dummy_prefix)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    trainer = model.trainer_spec
    named = {
        "unk": trainer.unk_piece,
        "bos": trainer.bos_piece,
        "eos": trainer.eos_piece,
        "pad": trainer.pad_piece,
    }
    return _wrap(fast, {key: piece for key, piece in named.items() if piece in special}, special)


def _model(path: Path) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    content = path.read_bytes()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(f"{path} is no SentencePiece model ({error}): copy or download it again") from error
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    return model


def _bpe(pieces: list[tuple[str, float]], unknown: int) -> models.BPE:
    """Merges in the order of the scores, as SentencePiece applies them."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        parts = [(left, right) for left, right in cuts if left in ids and right in ids]
        merges += [
            (score, left, right) for left, right in sorted(parts, key=lambda p: (ids[p[0]], ids[p[1]]))
        ]
    merges.sort(key=lambda merge: -merge[0])
    pairs = [(left, right) for _, left, right in merges]
    return models.BPE(ids, pairs, unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=True)


def _wrap(
    fast: tokenizers.Tokenizer, named: dict[str, str], special: Sequence[str]
) -> PreTrainedTokenizerFast:
    others = [piece for piece in special if piece not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        **{f"{key}_token": piece for key, piece in named.items()},
        extra_special_tokens=others,
        clean_up_tokenization_spaces=False,
    )


def train_unigram(
    texts: Iterable[str], vocab_size: int, character_coverage: float, max_piece: int = 8
) -> PreTrainedTokenizerFast:
    """Train a Unigram tokenizer with byte fallback (Kudo, 2018) that gives every text back exactly.

    SentencePiece's own trainer is used: that of the `tokenizers` library takes ten times as long and fails
    where not every character fits. Nothing is normalised, digits stand alone, a newline is a token.

    Args:
        max_piece: longest piece in characters.

    Raises:
        UserError: the text is too small for the vocabulary.
    """
    import sentencepiece

    lines = [line for text in texts for line in _lines(text)]
    if not lines:
        raise UserError("there is no text to train a tokenizer on: check input and text_key")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_by_whitespace=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=max_piece,
            user_defined_symbols=["\n"],
            required_chars="".join(sorted(set("".join((*SPECIAL, *BYTES))))),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=4 * _PIECE + 1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _untrainable(vocab_size, sum(map(len, lines)), str(error)) from error
    return _own(model.getvalue())


def _untrainable(vocab_size: int, characters: int, reason: str) -> UserError:
    """What the trainer complained of, with the remedy for it."""
    least = re.search(r"(\d+) vs (\d+)", reason)
    most = re.search(r"a value <= (\d+)", reason)
    if least:
        remedy = (
            f"its characters alone need {int(least[2]):,} ids: set vocab_size well above that, "
            "or a smaller character_coverage, which spells rare ones in bytes"
        )
    elif most:
        remedy = (
            f"it has no more than {int(most[1]):,} pieces to offer: give more text or a smaller vocab_size"
        )
    else:
        remedy = f"{reason.strip().splitlines()[-1]}: give more text or another vocab_size"
    return UserError(
        f"a vocabulary of {vocab_size} could not be trained on {characters:,} characters: {remedy}"
    )


def _own(proto: bytes) -> PreTrainedTokenizerFast:
    """Pieces spelled with real spaces, so that a text that holds the sign for them comes back too."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    named = {*SPECIAL, *BYTES}
    pieces = []
    for number in range(processor.get_piece_size()):
        piece, score = processor.id_to_piece(number), processor.get_score(number)
        pieces.append((piece, _NEVER) if piece in named else (piece.replace(SPACE, " "), score))
    fast = tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(fast, dict(zip(("unk", "bos", "eos", "pad"), SPECIAL, strict=True)), SPECIAL)


def _lines(text: str) -> list[str]:
    """Lines short enough for the trainer; a newline is a symbol of its own and need not be learned."""
    found = []
    for line in text.split("\n"):
        found += [line[start : start + _PIECE] for start in range(0, len(line), _PIECE)]
    return found


def sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """About ``size`` bytes of the texts, taken evenly from all of them in stretches of 4,000 characters.

    Holds no more than that in memory, and does not depend on anything but the texts and the seed.
    """
    chosen: list[tuple[int, int, str]] = []  # a heap whose first has the largest key
    total = number = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
            heapq.heappush(chosen, (-int.from_bytes(digest, "little"), number, piece))
            total += len(piece.encode())
            number += 1
            while total - len(chosen[0][2].encode()) >= size:
                total -= len(heapq.heappop(chosen)[2].encode())
    return [piece for _, _, piece in sorted(chosen, key=lambda item: item[1])]
