"""What differs between two checkpoints, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmjp_train.checkpoint.store import CheckpointReader


@dataclass(frozen=True)
class Difference:
    """A tensor that differs."""

    name: str
    what: str
    """In words, where the two cannot be subtracted; else empty."""
    largest: float = 0.0
    """Largest difference of an element."""
    relative: float = 0.0
    """2-norm of the difference over that of the first."""


def differences(left: CheckpointReader, right: CheckpointReader) -> Iterator[Difference]:
    """Tensors that are not bit-equal, by name; one pair in memory at a time."""
    names = set(left.names()), set(right.names())
    for name in sorted(names[0] | names[1]):
        if name not in names[1] or name not in names[0]:
            yield Difference(name, "only in the first" if name in names[0] else "only in the second")
            continue
        shapes = left.shape(name), right.shape(name)
        if shapes[0] != shapes[1]:
            yield Difference(name, f"shapes {list(shapes[0])} and {list(shapes[1])}")
            continue
        first = left.read(name)
        apart = right.read(name).sub_(first)
        largest = float(apart.abs().max()) if apart.numel() else 0.0
        if largest > 0 or apart.isnan().any():
            yield Difference(name, "", largest, float(apart.norm() / first.norm().clamp(min=1e-30)))
