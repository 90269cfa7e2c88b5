"""Causal attention inside documents, rotary positions, grouped queries."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from llmjp_train.config.model import Bias, ModelConfig, Position
from llmjp_train.model.norm import rms_norm


@dataclass(frozen=True)
class Context:
    """What all layers share for one micro batch."""

    mask: Tensor | None
    """(B, 1, T, T) boolean, true where a query may see a key; none: causal over the whole sequence."""
    cos: Tensor | None
    """(B or 1, 1, T, rotated) fp32; none for learned positions."""
    sin: Tensor | None
    segments: list[list[tuple[int, int]]] | None = None
    """Start and end of each document of each sequence, where a loop over documents is faster than a mask."""


def make_context(
    config: ModelConfig, documents_BT: Tensor | None, positions_BT: Tensor, *, loop: bool = True
) -> Context:
    """Mask and rotary tables of a micro batch.

    Args:
        loop: on a CPU, bounds for a loop over documents instead of a mask.
    """
    cos = sin = None
    if config.position is Position.rope:
        cos, sin = rotary_tables(config, positions_BT)
    if documents_BT is None or bool((documents_BT == documents_BT[:, :1]).all()):
        return Context(None, cos, sin)
    if loop and documents_BT.device.type == "cpu":
        return Context(None, cos, sin, _segments(documents_BT))
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    length = documents_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return Context(same & causal, cos, sin)


def _segments(documents_BT: Tensor) -> list[list[tuple[int, int]]]:
    found = []
    for row in documents_BT:
        edges = [0, *((row[1:] != row[:-1]).nonzero()[:, 0] + 1).tolist(), len(row)]
        found.append(list(pairwise(edges)))
    return found


def rotary_tables(config: ModelConfig, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, rotated) in fp32 for the rotated part of each head (Su et al., 2021)."""
    rotated = int(config.head_size * config.rope_fraction)
    exponent = torch.arange(0, rotated, 2, dtype=torch.int64, device=positions_BT.device).float() / rotated
    frequency = 1.0 / (config.rope_theta**exponent)
    angle = positions_BT[:, None, :, None].float() * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first ``cos.shape[-1]`` features of each head, halves paired as in Llama and GPT-NeoX."""
    rotated = cos.shape[-1]
    cos, sin = cos.to(x_BHTD.dtype), sin.to(x_BHTD.dtype)
    part = x_BHTD[..., :rotated]
    first, second = part.chunk(2, dim=-1)
    turned = part * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if rotated == x_BHTD.shape[-1] else torch.cat((turned, x_BHTD[..., rotated:]), dim=-1)


class Attention(nn.Module):
    """Multi-head attention with grouped queries; heads need not fill the hidden size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, head = config.hidden_size, config.head_size
        qkv_bias = config.bias is not Bias.none
        self.query = nn.Linear(hidden, config.num_heads * head, bias=qkv_bias)
        self.key = nn.Linear(hidden, config.num_kv_heads * head, bias=qkv_bias)
        self.value = nn.Linear(hidden, config.num_kv_heads * head, bias=qkv_bias)
        self.output = nn.Linear(config.num_heads * head, hidden, bias=config.bias is Bias.all)
        if config.qk_norm:
            self.query_norm = rms_norm(head, config.norm_eps)
            self.key_norm = rms_norm(head, config.norm_eps)

    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        batch, length, _ = x_BTH.shape
        query, key, value = (
            project(x_BTH).view(batch, length, -1, self.config.head_size).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if context.cos is not None and context.sin is not None:
            query, key = rotate(query, context.cos, context.sin), rotate(key, context.cos, context.sin)
        mixed = attend(query, key, value, context)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, -1))
        return result


def attend(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, context: Context) -> Tensor:
    """Scaled dot-product attention over each token's own document and its past."""
    grouped = key_BKTD.shape[1] != query_BHTD.shape[1]
    if grouped:
        repeat = query_BHTD.shape[1] // key_BKTD.shape[1]
        key_BKTD, value_BKTD = (t.repeat_interleave(repeat, dim=1) for t in (key_BKTD, value_BKTD))
    sdpa = nn.functional.scaled_dot_product_attention
    if context.segments is None:
        return sdpa(query_BHTD, key_BKTD, value_BKTD, attn_mask=context.mask, is_causal=context.mask is None)
    # On a CPU a loop over documents takes 0.7 to 0.9 of plain causal time, a mask 1.1 to 1.9 (docs/benchmarks.md).
    rows = []
    for row, segments in enumerate(context.segments):
        parts = [
            sdpa(
                query_BHTD[row : row + 1, :, a:b],
                key_BKTD[row : row + 1, :, a:b],
                value_BKTD[row : row + 1, :, a:b],
                is_causal=True,
            )
            for a, b in segments
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)
