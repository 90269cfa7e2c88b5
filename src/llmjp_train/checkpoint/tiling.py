"""Whether boxes cover a tensor, each element once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Box:
    """A box of a tensor, and the rank that gives it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    rank: int

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share an element; a box without dimensions is one element."""
        spans = zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        return all(a < b + n and b < a + m for a, m, b, n in spans)


def check_tiling(name: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """Check that boxes lie inside ``shape``, overlap nowhere and leave no gap.

    Raises:
        RuntimeError: they do not; the engine gave wrong fragments.
    """
    for box in boxes:
        inside = zip(box.offset, box.shape, shape, strict=True)
        if not all(start >= 0 and start + length <= limit for start, length, limit in inside):
            raise RuntimeError(
                f"rank {box.rank} gives {name} at {box.offset} + {box.shape}, outside its shape {shape}"
            )
    # Sweep over the dimension with most different starts: boxes that are behind the current one are done.
    sweep = max(range(len(shape)), key=lambda d: len({box.offset[d] for box in boxes}), default=None)
    open_boxes: list[Box] = []
    for box in boxes if sweep is None else sorted(boxes, key=lambda box: box.offset[sweep]):
        if sweep is not None:
            open_boxes = [b for b in open_boxes if b.offset[sweep] + b.shape[sweep] > box.offset[sweep]]
        for other in open_boxes:
            if box.overlaps(other):
                raise RuntimeError(
                    f"{name} overlaps: rank {other.rank} gives {other.offset} + {other.shape}, "
                    f"rank {box.rank} gives {box.offset} + {box.shape}"
                )
        open_boxes.append(box)
    covered = sum(prod(box.shape) for box in boxes)
    if covered != prod(shape):
        raise RuntimeError(f"{name} has a gap: ranks give {covered:,} of its {prod(shape):,} elements")
