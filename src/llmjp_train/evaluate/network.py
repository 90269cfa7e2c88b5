"""A transformers model as the fast runner drives it: hidden states with any mask, a prefix run once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmjp_train.evaluate.packing import Item, additive, pack, sees

LOGITS_AT_A_TIME = 1024
ROOM = 64
"""Tokens that a cache has space for ahead, in generation."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}
"""Greatest difference of a probe's log-probabilities, in nats, before the fast way is given up."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that every input starts with, by layer, each (1, heads, length, head)."""

    length: int
    layers: list[tuple[Tensor, Tensor]]


NOTHING = Prefix(0, [])


class Network:
    """A causal language model of transformers."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @torch.inference_mode()
    def run_prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Keys and values of ``tokens``."""
        if not tokens:
            return NOTHING
        from transformers import DynamicCache

        cache = DynamicCache()
        self.body(torch.tensor([tokens], device=self.device), past_key_values=cache, use_cache=True)
        return Prefix(len(tokens), [(layer.keys, layer.values) for layer in cache.layers])

    @torch.inference_mode()
    def hidden(self, tokens_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Hidden states (B, T, hidden) after the final norm.

        Args:
            mask: (B, 1, T, cached + T), true where a token may look.
        """
        output: Tensor = self.body(
            input_ids=tokens_BT.to(self.device),
            position_ids=positions_BT.to(self.device),
            attention_mask=additive(mask.to(self.device), self.dtype),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return output

    @torch.inference_mode()
    def score(self, items: list[Item], prefix: Prefix) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would write it) of the items' continuations."""
        packed = pack(items, prefix.length)
        segments = packed.segments.to(self.device)
        cache = shared(prefix) if prefix.length else None
        hidden = self.hidden(packed.tokens, packed.positions, sees(segments, prefix.length), cache)
        rows, places = zip(*packed.asked, strict=True)
        states = hidden[torch.tensor(rows, device=self.device), torch.tensor(places, device=self.device)]
        totals = torch.zeros(packed.continuations, dtype=torch.float64)
        greedy = torch.ones(packed.continuations, dtype=torch.bool)
        owner, source, token = (torch.tensor(column) for column in zip(*packed.predicted, strict=True))
        for start in range(0, len(states), LOGITS_AT_A_TIME):
            logits = self.head(states[start : start + LOGITS_AT_A_TIME]).float()
            mine = (source >= start) & (source < start + LOGITS_AT_A_TIME)
            at, wanted = (source[mine] - start).to(self.device), token[mine].to(self.device)
            logprobs = logits[at, wanted] - logits.logsumexp(-1)[at]
            totals.index_add_(0, owner[mine], logprobs.double().cpu())
            right = (logits.argmax(-1)[at] == wanted).cpu()
            greedy[owner[mine][~right]] = False
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    @torch.inference_mode()
    def why_not(self, max_length: int) -> str | None:
        """Why the fast way does not give this model's own scores; none where it does.

        Asks the model itself: a probe with a prefix and two choices, against plain forward passes. A head
        that scales its logits, a model without keys and values, or masks that it ignores show here.
        """
        window = getattr(self.model.config, "sliding_window", None)
        kinds = getattr(self.model.config, "layer_types", None) or []
        if window and window < max_length and (not kinds or "sliding_attention" in kinds):
            return f"it attends to a window of {window} tokens only"
        size = int(self.model.config.vocab_size)
        drawn = [(7 * i * i + 3 * i + 1) % size for i in range(24)]
        context, choices = tuple(drawn[:16]), [tuple(drawn[16:19]), tuple(drawn[19:24])]
        try:
            found = self.score([Item(context, choices, [0, 1])], self.run_prefix(context[:9]))
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"it cannot take a prefix or a mask ({type(error).__name__}: {str(error)[:100]})"
        for (score, _), choice in zip(found, choices, strict=True):
            tokens = torch.tensor([context + choice], device=self.device)
            logprobs = self.model(tokens).logits[0].float().log_softmax(-1)
            plain = sum(float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(choice))
            if not abs(plain - score) <= TOLERANCE.get(self.dtype, 0.15) * len(choice):
                return f"a probe scored {score:.4f} in the place of {plain:.4f} nats"
        return None


def shared(prefix: Prefix) -> Any:
    """A cache that gives each row the prefix and keeps nothing: one layer's copy exists at a time."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Shared(DynamicLayer):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **rest: Any) -> Any:
            rows = key_states.shape[0]
            return tuple(
                torch.cat((kept.expand(rows, -1, -1, -1), new), dim=-2)
                for kept, new in ((self.keys, key_states), (self.values, value_states))
            )

    return _filled(DynamicCache(), Shared, prefix, rows=1)


def growing(prefix: Prefix, rows: int) -> Any:
    """A cache of ``rows`` sequences that start with the prefix, for generation.

    transformers' own copies all keys and values for each new token; this one writes into room that it has.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):  # type: ignore[misc]
        room: tuple[Tensor, ...] = ()

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **rest: Any) -> Any:
            start = self.keys.shape[-2]
            end = start + key_states.shape[-2]
            if not self.room or end > self.room[0].shape[-2]:
                self.room = tuple(_with_room(kept, end + ROOM) for kept in (self.keys, self.values))
            for room, new in zip(self.room, (key_states, value_states), strict=True):
                room[:, :, start:end] = new
            self._look(end)
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            length = self.keys.shape[-2]
            self.room = tuple(each[indices] for each in self.room or (self.keys, self.values))
            self._look(length)

        def _look(self, length: int) -> None:
            self.keys, self.values = (room[:, :, :length] for room in self.room)

    return _filled(DynamicCache(), Roomy, prefix, rows)


def _with_room(kept: Tensor, length: int) -> Tensor:
    """A copy with space for ``length`` tokens."""
    larger = kept.new_empty(*kept.shape[:2], length, kept.shape[-1])
    larger[:, :, : kept.shape[-2]] = kept
    return larger


def _filled(cache: Any, kind: Any, prefix: Prefix, rows: int) -> Any:
    for keys, values in prefix.layers:
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache
