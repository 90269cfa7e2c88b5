"""Greedy generation in batches: a shared prefix once, finished texts leave the batch, stops as strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmjp_train.errors import UserError
from llmjp_train.evaluate.network import Network, Prefix, growing

DEFAULT_MOST = 256
"""lm-evaluation-harness's greatest length where a task states none."""


@dataclass(frozen=True)
class Asked:
    """A text to continue."""

    tokens: tuple[int, ...]
    """At least one; cut from the left where the answer would not fit behind it."""
    stops: tuple[str, ...]
    most: int
    """Greatest number of new tokens."""
    truncated: bool


@dataclass(frozen=True)
class Answer:
    """What was written."""

    text: str
    finished: bool
    """An end or a stop came before the greatest length."""
    tokens_run: int
    """Its share of the batch's tokens, padding included."""
    tokens_plain: int


def wanted(arguments: tuple[str, dict[str, Any]], tokens: list[int], max_length: int) -> Asked:
    """A request of the harness in our form.

    Raises:
        UserError: sampling is asked for, or more new tokens than the model's context has.
    """
    settings = arguments[1]
    if settings.get("do_sample") or float(settings.get("temperature") or 0.0) > 0:
        raise UserError(
            "a task asks for sampled text (do_sample or temperature); texts are decoded greedily here, so that a score "
            "can be had again: set do_sample: false in the task file"
        )
    stops = settings.get("until") or []
    stops = tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)
    most = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or DEFAULT_MOST)
    if most >= max_length:
        raise UserError(
            f"a task asks for up to {most} new tokens, the model's context has {max_length}: leave the task out, or "
            "give a smaller max_gen_toks in its file"
        )
    room = max_length - most
    return Asked(tuple(tokens[-room:]), stops, most, len(tokens) > room)


class _Batch:
    """The texts that are still being written."""

    def __init__(self, network: Network, asked: Sequence[Asked], prefix: Prefix) -> None:
        self.network = network
        self.alive = list(range(len(asked)))
        rests = [each.tokens[prefix.length :] for each in asked]
        longest = max(map(len, rests))
        tokens = torch.zeros(len(asked), longest, dtype=torch.int64)
        valid = torch.zeros(len(asked), longest, dtype=torch.bool)
        for row, rest in enumerate(rests):
            tokens[row, longest - len(rest) :] = torch.tensor(rest)
            valid[row, longest - len(rest) :] = True
        valid = valid.to(network.device)
        positions = (valid.long().cumsum(1) - 1).clamp(min=0) + prefix.length
        causal = torch.ones(longest, longest, dtype=torch.bool, device=network.device).tril()
        own = (causal & valid[:, None, :]) | torch.eye(longest, dtype=torch.bool, device=network.device)
        before = torch.ones(len(asked), longest, prefix.length, dtype=torch.bool, device=network.device)
        self.cache = growing(prefix, len(asked))
        self.seen = torch.cat((before[:, 0], valid), dim=1)
        self.position = positions[:, -1]
        mask = torch.cat((before, own), dim=2)[:, None]
        self.state = network.hidden(tokens, positions, mask, self.cache)[:, -1]
        self.tokens_run = len(asked) * longest

    def next_tokens(self) -> list[int]:
        """The likeliest next token of each text that is alive.

        Raises:
            UserError: the model's figures are not finite.
        """
        logits: Tensor = self.network.head(self.state)
        # Of a row with a NaN, that and its place. On CPUs argmax alone takes three times as long.
        greatest, likeliest = logits.max(-1)
        if not bool(torch.isfinite(greatest).all()):
            raise UserError(
                "the model gives logits that are not finite while it writes: its weights are damaged, or the format is "
                "too narrow (dtype=float32)"
            )
        found: list[int] = likeliest.tolist()
        return found

    def go_on(self, tokens: list[int], staying: list[int]) -> None:
        """Feed the texts at the places ``staying`` their new tokens; the others leave."""
        if len(staying) < len(self.alive):
            keep = torch.tensor(staying, device=self.network.device)
            self.cache.batch_select_indices(keep)
            self.seen, self.position = self.seen[keep], self.position[keep]
            self.alive = [self.alive[place] for place in staying]
        one = torch.ones(len(staying), 1, dtype=torch.bool, device=self.network.device)
        self.seen = torch.cat((self.seen, one), dim=1)
        self.position = self.position + 1
        fed = torch.tensor([tokens[place] for place in staying])[:, None]
        mask = self.seen[:, None, None]
        self.state = self.network.hidden(fed, self.position[:, None], mask, self.cache)[:, -1]
        self.tokens_run += len(staying)


@torch.inference_mode()
def generate(
    network: Network,
    asked: Sequence[Asked],
    prefix: Prefix,
    decode: Callable[[list[int]], str],
    ends: frozenset[int],
) -> list[Answer]:
    """Answer each, in their order.

    Args:
        prefix: what every text starts with, run once; each has at least one token more.
        ends: tokens that end a text.
    """
    batch = _Batch(network, asked, prefix)
    written: list[list[int]] = [[] for _ in asked]
    finished = [False] * len(asked)
    while True:
        tokens = batch.next_tokens()
        staying = []
        for place, number in enumerate(batch.alive):
            each, token = asked[number], tokens[place]
            if token in ends:
                finished[number] = True
                continue
            written[number].append(token)
            finished[number] = _stopped(written[number], each.stops, decode)
            if not finished[number] and len(written[number]) < each.most:
                staying.append(place)
        if not staying:
            break
        batch.go_on(tokens, staying)
    share = batch.tokens_run // len(asked)
    return [
        Answer(_cut(decode(written[i]), each.stops), finished[i], share, len(each.tokens) + len(written[i]))
        for i, each in enumerate(asked)
    ]


def _stopped(written: list[int], stops: Sequence[str], decode: Callable[[list[int]], str]) -> bool:
    """Whether the last token ended a stop. Looks at the end alone: decoding all of a long text at each step is slow."""
    if not stops:
        return False
    # A character takes up to four byte tokens; some more, as the first ones may be decoded otherwise.
    window = 4 * max(map(len, stops)) + 8
    end = decode(written[-window:])
    # Bytes that are no character alone: the window may begin inside one, which hides what follows.
    if "\ufffd" not in end and not any(stop in end for stop in stops):
        return False
    text = decode(written)
    return any(stop in text for stop in stops)


def _cut(text: str, stops: Sequence[str]) -> str:
    """What stands before the first stop."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
