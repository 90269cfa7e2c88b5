"""Does attention stay inside documents? Asked of the real engine before the first step."""

import torch

from llmjp_train.config.training import Dtype
from llmjp_train.data.stream import MicroBatch
from llmjp_train.engine.base import Engine


def allowed(dtype: Dtype) -> float:
    """What rounding alone may move a token's loss, in nats."""
    return 1e-4 if dtype is Dtype.fp32 else 2e-2


def leaks(engine: Engine, vocab_size: int, length: int) -> float:
    """Largest change of a token's loss (nats) when another document in its sequence is changed. Collective.

    Three documents share a sequence; the middle one gets other tokens. 0 up to rounding unless the
    mask or the positions leak.
    """
    length = max(6, min(length, 96))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (1, length), generator=generator)
    bounds = (length // 3, 2 * length // 3)
    place = torch.arange(length)
    documents = ((place >= bounds[0]).long() + (place >= bounds[1]).long())[None]
    starts = torch.tensor([0, *bounds])[documents]
    targets = torch.roll(tokens, -1, dims=1)
    targets[:, [bounds[0] - 1, bounds[1] - 1, length - 1]] = -100
    before = _nll(engine, tokens, targets, documents, place[None] - starts)
    changed = tokens.clone()
    changed[:, bounds[0] : bounds[1]] = (changed[:, bounds[0] : bounds[1]] + 1) % vocab_size
    after = _nll(engine, changed, targets, documents, place[None] - starts)
    others = documents[0] != 1
    return float((before - after)[0][others].abs().max())


def _nll(
    engine: Engine,
    tokens: torch.Tensor,
    targets: torch.Tensor,
    documents: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    batch = MicroBatch(tokens, targets, documents, positions, torch.zeros(1, dtype=torch.int64))
    return engine.token_nll(batch).cpu()
