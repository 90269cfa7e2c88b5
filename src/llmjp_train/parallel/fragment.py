"""A rank's part of a tensor, named and placed independently of the layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Rectangle:
    """A box of a logical tensor that lies contiguously in a fragment."""

    offset: tuple[int, ...]
    """First index in the logical tensor, per dimension."""
    shape: tuple[int, ...]
    view: Tensor
    """The values, of shape ``shape``, sharing memory with the fragment."""

    def parts(self, most: int) -> "Iterator[Rectangle]":
        """The box cut along its first dimension into boxes of at most ``most`` elements, or of one row."""
        rows = max(1, most // max(1, prod(self.shape[1:])))
        if not self.shape or self.shape[0] <= rows:
            yield self
            return
        for first in range(0, self.shape[0], rows):
            view = self.view[first : first + rows]
            yield Rectangle((self.offset[0] + first, *self.offset[1:]), tuple(view.shape), view)


@dataclass(frozen=True)
class Fragment:
    """A flat range of one tensor's local part, as ZeRO cuts it."""

    name: str
    """Kind and logical name, e.g. ``exp_avg.layers.0.mlp.up.weight``."""
    shape: tuple[int, ...]
    """Logical shape of the whole tensor."""
    local_shape: tuple[int, ...]
    """Shape of this rank's tensor-parallel part; ``shape`` without tensor parallelism."""
    local_offset: tuple[int, ...]
    """Where that part starts in the logical tensor."""
    start: int
    """First element of the range in the flattened local part."""
    view: Tensor
    """The range itself, 1-D and fp32; loading writes into it."""

    def rectangles(self) -> Iterator[Rectangle]:
        """Boxes that cover the range: at most ``2 * ndim - 1``, each a view.

        A range of a row-major tensor is a partial first row, whole rows and a partial last row; the
        partial rows are ranges of one dimension less.
        """
        for local, shape, begin in _boxes(self.local_shape, self.start, self.start + self.view.numel()):
            offset = tuple(a + b for a, b in zip(self.local_offset, local, strict=True))
            view = self.view[begin - self.start : begin - self.start + prod(shape)].view(shape)
            yield Rectangle(offset, shape, view)


def _boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """(offset, box shape, flat start) of the boxes that cover ``start <= flat < stop``."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape), start
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows are first <= r < last
    if first > last:  # the range lies inside one row
        first = last = start // row
        yield from _in_row(shape, first, start, stop, row)
        return
    if start < first * row:
        yield from _in_row(shape, first - 1, start, min(stop, first * row), row)
    if first < last:
        yield (first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:]), first * row
    if stop > last * row and last * row >= start:
        yield from _in_row(shape, last, last * row, stop, row)


def _in_row(
    shape: tuple[int, ...], index: int, start: int, stop: int, row: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    base = index * row
    for offset, box, begin in _boxes(shape[1:], start - base, stop - base):
        yield (index, *offset), (1, *box), base + begin
