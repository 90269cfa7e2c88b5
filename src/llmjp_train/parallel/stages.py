"""Which layers each pipeline stage holds, from analytic counts: nothing is built to be counted."""

from dataclasses import replace
from functools import cache

from llmjp_train.config.derive import flops_per_token, parameter_count
from llmjp_train.config.model import ModelConfig


def end_costs(model: ModelConfig, sequence_length: int) -> tuple[float, float]:
    """What the embedding and the head cost, in layers.

    Memory counts for both (each end holds its own copy of a tied embedding), time for the head alone, whose matrix
    product is the widest of the model: the larger of the two is its cost.
    """
    one, two = (replace(model, num_layers=count) for count in (1, 2))
    layer = parameter_count(two).total - parameter_count(one).total
    matrix = model.vocab_size * model.hidden_size
    embedding = (parameter_count(one).embeddings - matrix * (not model.tied_embeddings)) / layer
    layer_flops = flops_per_token(two, sequence_length) - flops_per_token(one, sequence_length)
    return embedding, max(matrix / layer, 6.0 * matrix / layer_flops)


def layer_bounds(model: ModelConfig, pipeline: int, sequence_length: int) -> list[int]:
    """First layer of each stage, and the number of layers at the end: stage s holds layers b[s] .. b[s + 1].

    The embedding goes with the first stage and the head with the last. The costliest stage is as cheap as can be, and
    among those the sum of squares is least. With the 175B's 96 layers on 49 stages, both ends hold one layer and
    all others two, as its authors had it.

    Raises:
        AssertionError: more stages than layers, which validation refuses.
    """
    layers = model.num_layers
    assert 1 <= pipeline <= layers, "each stage holds a layer at least"
    first, last = end_costs(model, sequence_length)

    def cost(stage: int, start: int, stop: int) -> float:
        return stop - start + first * (stage == 0) + last * (stage == pipeline - 1)

    @cache
    def best(stage: int, start: int) -> tuple[float, float, int]:
        """Costliest stage, sum of squares and end of ``stage``, for all stages from it on."""
        if stage == pipeline - 1:
            value = cost(stage, start, layers)
            return value, value**2, layers
        found = []
        for stop in range(start + 1, layers - (pipeline - stage - 1) + 1):
            value, rest = cost(stage, start, stop), best(stage + 1, stop)
            found.append((round(max(value, rest[0]), 9), round(value**2 + rest[1], 9), stop))
        return min(found)

    bounds = [0]
    for stage in range(pipeline):
        bounds.append(best(stage, bounds[-1])[2])
    return bounds
