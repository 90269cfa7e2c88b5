"""What one forward pass can share: the examples before every item, and the context of an item's choices.

Kept free of models: from rows to score to the tokens, places and masks of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmjp_train.evaluate.encoding import Row

LEAST_PREFIX = 8
"""A shorter common start is not worth a pass of its own."""


@dataclass
class Item:
    """A context and the continuations that are scored after it."""

    context: tuple[int, ...]
    continuations: list[tuple[int, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Place of each continuation among the requests."""

    def length(self, prefix: int) -> int:
        """Tokens of its row after a shared prefix of so many: a continuation's last one is not fed."""
        return len(self.context) - prefix + sum(len(each) - 1 for each in self.continuations)


def items_of(rows: Sequence[Row], places: Sequence[int], max_length: int) -> list[Item]:
    """Rows with the same context (after the cut from the left) as one item, in the order of their first."""
    found: dict[tuple[int, ...], Item] = {}
    for row, place in zip(rows, places, strict=True):
        tokens, scored = row.window(max_length)
        context = tuple(tokens[:-scored])
        item = found.setdefault(context, Item(context))
        item.continuations.append(tuple(tokens[-scored:]))
        item.places.append(place)
    return list(found.values())


def common_prefix(contexts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest start that most contexts share, short of a whole one; empty where it is not worth it.

    Inputs that were cut from the left start elsewhere and do not count: the start is that of the median in
    sorted order, and those that lack it go without.
    """
    if len(contexts) < 2:
        return ()
    ordered = sorted(tuple(context) for context in contexts)
    middle = ordered[len(ordered) // 2]
    lengths = sorted((_shared(middle, other) for other in ordered), reverse=True)
    # Three quarters must have it; one token of each context is left to be run.
    length = min(lengths[(3 * len(lengths) - 1) // 4], min(len(c) for c in contexts) - 1)
    return middle[:length] if length >= LEAST_PREFIX else ()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def dealt(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Places in so many parts of about the same length: the longest first, each to the shortest part."""
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        part = loads.index(min(loads))
        found[part].append(place)
        loads[part] += lengths[place]
    return [sorted(places) for places in found]


def batches_of(lengths: Sequence[int], budget: int, most: int = 1024) -> list[list[int]]:
    """Places in batches of at most ``budget`` tokens with their padding, longest first; one alone may be longer."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for place in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget and len(batches[-1]) < most:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@dataclass(frozen=True)
class Packed:
    """A batch of items as the model takes it: a row an item, its choices side by side."""

    tokens: Tensor
    """(B, T)."""
    positions: Tensor
    """(B, T)."""
    segments: Tensor
    """(B, T): 0 for the context, 1, 2, ... for the choices, -1 for padding."""
    asked: list[tuple[int, int]]
    """Row and place of each hidden state that predicts something, once each."""
    predicted: list[tuple[int, int, int]]
    """Of each scored token: its continuation (counted over the batch), the index in ``asked``, the token."""
    continuations: int


def pack(items: Sequence[Item], prefix: int) -> Packed:
    """Lay items out. The choices start at the position after the context; each sees it and itself alone."""
    longest = max(item.length(prefix) for item in items)
    shape = (len(items), longest)
    tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    segments = torch.full(shape, -1, dtype=torch.int64)
    asked: list[tuple[int, int]] = []
    predicted: list[tuple[int, int, int]] = []
    count = 0
    for row, item in enumerate(items):
        rest = item.context[prefix:]
        end = len(rest)
        tokens[row, :end] = torch.tensor(rest)
        positions[row, :end] = torch.arange(prefix, prefix + end)
        segments[row, :end] = 0
        first = len(asked)
        asked.append((row, end - 1))
        for number, continuation in enumerate(item.continuations, 1):
            size = len(continuation) - 1
            tokens[row, end : end + size] = torch.tensor(continuation[:-1], dtype=torch.int64)
            start = len(item.context)
            positions[row, end : end + size] = torch.arange(start, start + size)
            segments[row, end : end + size] = number
            predicted.append((count, first, continuation[0]))
            for offset in range(size):
                predicted.append((count, len(asked), continuation[offset + 1]))
                asked.append((row, end + offset))
            end += size
            count += 1
    return Packed(tokens, positions, segments, asked, predicted, count)


def sees(segments_BT: Tensor, prefix: int) -> Tensor:
    """Mask (B, 1, T, prefix + T), true where a token may look: the prefix, the context, its own choice."""
    length = segments_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril()
    key, query = segments_BT[:, None, :], segments_BT[:, :, None]
    # Padding sees itself, so that its rows, which nobody reads, stay finite.
    own = causal & ((key == 0) | ((key == query) & (key >= 0)))
    own = own | torch.eye(length, dtype=torch.bool, device=segments_BT.device)
    before = torch.ones(len(segments_BT), length, prefix, dtype=torch.bool, device=segments_BT.device)
    return torch.cat((before, own), dim=2)[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to attention scores: 0, or the least number of the format."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
