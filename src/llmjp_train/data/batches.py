"""Sequences of token files as the arrays that a model takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmjp_train.data.mixture import Integers, Places
from llmjp_train.data.token_files import TokenFile

NO_TARGET = -100


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward pass; B sequences of T tokens."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64: the next token, -100 where that belongs to another document or does not exist."""
    documents: Tensor
    """(B, T) int64: number of the token's document within its sequence, from 0; 0 throughout when documents
    are not kept apart."""
    positions: Tensor
    """(B, T) int64: place of the token in its document, as far as that lies in the sequence; when documents
    are not kept apart, place in the sequence."""
    sources: Tensor
    """(B,) int64: index of the sequence's source."""


def assemble(files: Sequence[TokenFile | None], places: Places, length: int, *, mask: bool) -> MicroBatch:
    """Read ``length`` tokens and the one after them at each place.

    Past the end of a file the sequence is filled with id 0 in a document of its own, without targets.

    Args:
        mask: keep documents apart.
    """
    count = len(places.sources)
    ids = np.zeros((count, length + 1), dtype=np.int64)
    begins = np.zeros((count, length + 1), dtype=np.bool_)
    ends = np.full(count, length + 1, dtype=np.int64)
    for source in np.unique(places.sources).tolist():
        file = files[source]
        assert file is not None, "a source without a file has no samples"
        rows = np.flatnonzero(places.sources == source)
        for row in rows.tolist():
            ends[row] = file.read_into(int(places.starts[row]), ids[row])
        if mask:
            which, columns = file.starts_within(places.starts[rows], length + 1)
            begins[rows[which], columns] = True
    return _masked(ids, begins, ends, places.sources, mask)


def _masked(
    ids: Integers,
    begins: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    ends: Integers,
    sources: Integers,
    mask: bool,
) -> MicroBatch:
    count, length = ids.shape[0], ids.shape[1] - 1
    targets = ids[:, 1:].copy()
    short = np.flatnonzero(ends <= length)
    for row in short.tolist():
        targets[row, ends[row] - 1 :] = NO_TARGET
        begins[row, ends[row] :] = False
        begins[row, ends[row]] = mask
    targets[begins[:, 1:]] = NO_TARGET
    steps = np.broadcast_to(np.arange(length, dtype=np.int64), (count, length))
    if mask:
        documents = np.cumsum(begins[:, :-1], axis=1, dtype=np.int64)
        positions = steps - np.maximum.accumulate(np.where(begins[:, :-1], steps, 0), axis=1)
    else:
        documents, positions = np.zeros((count, length), dtype=np.int64), steps.copy()
    return MicroBatch(
        torch.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        torch.from_numpy(targets),
        torch.from_numpy(documents),
        torch.from_numpy(positions),
        torch.from_numpy(sources),
    )
