"""Which layers a pipeline stage holds, and the parameters of each stage, by arithmetic alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from llmjp_train.config.model import ModelConfig
from llmjp_train.model.shapes import decayed, parameter_shapes, split_dimension
from llmjp_train.parallel.stages import layer_bounds
from llmjp_train.plan.job import Job


@dataclass(frozen=True)
class Stage:
    """A pipeline stage."""

    index: int
    layers: int
    first: bool
    """Holds the embedding."""
    last: bool
    """Holds the final norm and the head."""
    numels: tuple[tuple[int, ...], ...]
    """Elements of each parameter on one tensor-parallel rank, by optimizer group."""
    replicated: int
    """Elements that every tensor-parallel rank holds whole, for what is saved once."""

    @property
    def parameters(self) -> int:
        """Elements on one rank, before ZeRO."""
        return sum(sum(group) for group in self.numels)


def bounds(job: Job) -> tuple[int, ...]:
    """Layers of each stage: as given, else as the engine cuts them (`parallel.stages`)."""
    if job.stage_layers:
        return job.stage_layers
    edges = layer_bounds(job.model, job.pipeline, job.sequence_length)
    return tuple(stop - start for start, stop in pairwise(edges))


def stages(job: Job) -> list[Stage]:
    """Every stage of the pipeline."""
    table = parameter_shapes(replace(job.model, num_layers=1))  # all layers are alike
    counts = bounds(job)
    alike: dict[tuple[int, bool, bool], tuple[tuple[tuple[int, ...], ...], int]] = {}
    found = []
    for index, layers in enumerate(counts):
        form = layers, index == 0, index == len(counts) - 1
        if form not in alike:
            alike[form] = _numels(job, list(_held(job.model, table, *form)))
        found.append(Stage(index, *form, *alike[form]))
    return found


def _held(
    model: ModelConfig, table: dict[str, tuple[int, ...]], layers: int, first: bool, last: bool
) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, whole shape and number of what a stage holds; a tied embedding lies on both ends."""
    for name, shape in table.items():
        if name.startswith("layers."):
            yield name, shape, layers
        elif name.startswith("embedding."):
            if first or (last and model.tied_embeddings):
                yield name, shape, 1
        elif first if name.startswith("positions.") else last:
            yield name, shape, 1


def _numels(
    job: Job, held: list[tuple[str, tuple[int, ...], int]]
) -> tuple[tuple[tuple[int, ...], ...], int]:
    groups: dict[bool, list[int]] = {True: [], False: []}
    replicated = 0
    for name, shape, count in held:
        size = prod(shape)
        if name.startswith(("embedding.", "head.")):
            size = job.vocabulary // job.tensor * shape[1]
        elif job.tensor > 1 and split_dimension(name) is not None:
            size //= job.tensor
        else:
            replicated += count * size
        groups[decayed(name, shape, job.decay_embeddings)] += [size] * count
    return tuple(tuple(group) for group in groups.values() if group), replicated
