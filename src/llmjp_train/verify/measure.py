"""What a layout computes: losses, norms, gradients and weights of a few steps, put together from all ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llmjp_train.config.root import TrainConfig
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine.base import Engine
from llmjp_train.engine.make import make_engine
from llmjp_train.parallel import layout as layouts
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.world import world
from llmjp_train.train.optimizer import parameter_groups

Tensors = dict[str, Tensor]


@dataclass
class Measurement:
    """Figures of some steps; tensors are whole, by logical name."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    initial: Tensors = field(default_factory=dict)
    """Masters before the first step."""
    gradients: Tensors = field(default_factory=dict)
    """Clipped gradients of the first step, from Adam's first moment."""
    squares: list[Tensors] = field(default_factory=list)
    """Bias-corrected second moments after each step."""
    weights: Tensors = field(default_factory=dict)
    """Masters after the last step."""


def measure(
    rank: int,
    size: int,
    config: TrainConfig,
    steps: int,
    between: Callable[[int, Engine, Layout], None] | None = None,
) -> Measurement | None:
    """Train ``steps`` steps as one rank on made-up ragged documents; the measurement on rank 0. Collective.

    Args:
        between: called before each step.
    """
    torch.manual_seed(rank)  # nothing may depend on it
    layout = layouts.start(config.parallel, world(), cuda=False)
    engine = make_engine(config, layout, 2, parameter_groups(config))
    found = Measurement(initial=whole(engine, layout, "master"))
    beta1, beta2 = config.optimizer.beta1, config.optimizer.beta2
    for step in range(steps):
        if between is not None:
            between(step, engine, layout)
        batches = made_up(config, step)
        result = engine.step(batches[layout.data_rank :: layout.data], config.optimizer.lr)
        assert result is not None
        found.losses.append(result.loss)
        found.norms.append(result.grad_norm)
        if step == 0:
            moment = whole(engine, layout, "exp_avg")
            found.gradients = {name: value / (1 - beta1) for name, value in moment.items()}
        squares = whole(engine, layout, "exp_avg_sq")
        found.squares.append({name: value / (1 - beta2 ** (step + 1)) for name, value in squares.items()})
    found.weights = whole(engine, layout, "master")
    engine.close()
    return found if layout.leader else None


def whole(engine: Engine, layout: Layout, kind: str) -> Tensors:
    """Every tensor of a kind, from the parts that each rank would save; NaN where none would. Collective."""
    mine = [
        (fragment.name.partition(".")[2], fragment.shape, box.offset, box.view.clone().numpy())
        for fragment in engine.fragments(owned=True)
        if fragment.name.startswith(f"{kind}.")
        for box in fragment.rectangles()
    ]
    tensors: Tensors = {}
    for part in layout.gather(mine):
        for name, shape, offset, values in part:
            tensor = tensors.setdefault(name, torch.full(shape, torch.nan))
            place = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
            tensor[place] = torch.from_numpy(values)
    return tensors


def made_up(config: TrainConfig, step: int) -> list[MicroBatch]:
    """Micro batches of the global batch at a step: random tokens, several documents, uneven numbers of targets."""
    length, size, found = config.batch.sequence_length, config.batch.micro_batch, []
    generator = torch.Generator().manual_seed(1000 + step)
    for first in range(0, config.batch.global_batch, size):
        tokens = torch.randint(0, config.model.vocab_size, (size, length), generator=generator)
        starts = torch.rand(size, length, generator=generator) < 0.08
        starts[:, 0] = False
        documents = starts.long().cumsum(1)
        place = torch.arange(length).expand(size, length)
        begins = torch.where(starts, place, 0).cummax(1).values
        targets = tokens.roll(-1, 1)
        targets[:, :-1][starts[:, 1:]] = -100
        targets[:, -1] = -100
        targets[:, : (first * 5) % (length // 2)] = -100
        sources = (torch.arange(size) + first) % 2
        found.append(MicroBatch(tokens, targets, documents, place - begins, sources))
    return found


ORDERS = (0.25, 0.75)
"""Where a matrix product is cut in two, as a share of its inner size; one alone may agree with none by chance."""


@contextmanager
def other_order(cut: float) -> Iterator[None]:
    """Matrix products as the sum of two parts: the same numbers in another order of reduction.

    Args:
        cut: where the inner size is cut, as a share of it.
    """
    plain = nn.functional.linear

    def parts(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        at = round(cut * x.shape[-1])
        product = plain(x[..., :at], weight[:, :at]) + plain(x[..., at:], weight[:, at:])
        return product if bias is None else product + bias

    nn.functional.linear = parts  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = plain


def measure_in_order(rank: int, size: int, config: TrainConfig, steps: int, cut: float) -> Measurement | None:
    """`measure` with `other_order`."""
    with other_order(cut):
        return measure(rank, size, config, steps)
