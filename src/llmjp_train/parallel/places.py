"""Which part of a logical tensor a tensor-parallel rank holds, by arithmetic alone."""

from dataclasses import dataclass

from llmjp_train.config.derive import padded_vocab
from llmjp_train.config.model import ModelConfig
from llmjp_train.model.shapes import split_dimension


@dataclass(frozen=True)
class Place:
    """A rank's part of a tensor, as checkpoints see it: without the padding of the vocabulary."""

    logical: tuple[int, ...]
    """Shape of the whole tensor."""
    shape: tuple[int, ...]
    """Shape of the part; its first dimension may be 0."""
    offset: tuple[int, ...]
    """Where the part starts in the whole."""
    held: tuple[int, ...]
    """Shape in memory: ``shape`` and, at the end of the last ranks' vocabulary, rows of padding."""
    split: bool
    """Whether ranks hold different parts."""

    @property
    def slices(self) -> tuple[slice, ...]:
        """The part as an index into the whole."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))


def place(model: ModelConfig, name: str, logical: tuple[int, ...], tensor: int, rank: int) -> Place:
    """The part of parameter ``name`` on tensor-parallel rank ``rank`` of ``tensor``.

    The vocabulary is padded to a multiple of 128 times the ranks, as Megatron-LM does; other dimensions must divide.
    """
    dimension = split_dimension(name)
    if tensor == 1 or dimension is None:
        return Place(logical, logical, (0,) * len(logical), logical, False)
    size = logical[dimension]
    vocabulary = name.startswith(("embedding.", "head."))
    part = (padded_vocab(model, tensor) if vocabulary else size) // tensor
    assert vocabulary or part * tensor == size, (
        f"{name} does not divide by {tensor}: validation lets this through"
    )
    first = min(size, part * rank)
    real = min(size, part * (rank + 1)) - first

    def along(value: int) -> tuple[int, ...]:
        return (*logical[:dimension], value, *logical[dimension + 1 :])

    zeros = [0] * len(logical)
    zeros[dimension] = first
    return Place(logical, along(real), tuple(zeros), along(part), True)
