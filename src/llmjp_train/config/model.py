"""The model group: one decoder with typed choices that cover GPT-2/3, GPT-NeoX, Llama and Qwen2."""

from dataclasses import dataclass
from enum import Enum


class Position(Enum):
    """How a token's position enters the network."""

    rope = "rope"
    learned = "learned"


class Norm(Enum):
    """Normalisation before attention, before the MLP and at the end."""

    rmsnorm = "rmsnorm"
    layernorm = "layernorm"


class Mlp(Enum):
    """The feed-forward block: gated SiLU, exact GELU, or the tanh approximation of GELU."""

    swiglu = "swiglu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"


class Bias(Enum):
    """Which linear layers carry a bias."""

    none = "none"
    all = "all"
    qkv = "qkv"


@dataclass
class ModelConfig:
    """Shape and choices of one decoder. Sizes are counts of elements unless said otherwise."""

    name: str = "???"
    """Name of the model's file in the model group, e.g. ``13b``; used in cards and reports."""
    num_layers: int = 4
    """Decoder layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    ffn_size: int = 344
    """Inner width of the feed-forward block."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; fewer than ``num_heads`` gives grouped-query attention."""
    head_size: int = 32
    """Width of one head; need not be hidden_size / num_heads."""
    vocab_size: int = 4096
    """True vocabulary (rows of the embedding), never padded for a layout."""
    max_positions: int = 4096
    """Longest sequence the exported model states; rows of the table for learned positions."""
    position: Position = Position.rope
    """Rotary or learned positions."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_fraction: float = 1.0
    """Share of each head that is rotated (GPT-NeoX's rotary_pct), in (0, 1]."""
    norm: Norm = Norm.rmsnorm
    """Normalisation layer."""
    norm_eps: float = 1e-5
    """Epsilon of the normalisation."""
    mlp: Mlp = Mlp.swiglu
    """Feed-forward form."""
    bias: Bias = Bias.none
    """Linear layers with a bias."""
    tied_embeddings: bool = False
    """Whether the output head is the embedding matrix."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before rotation."""
    init_std: float = 0.02
    """Standard deviation of the normal initial weights."""
    init_scale_residual: bool = True
    """Divide the standard deviation of both residual output projections by sqrt(2 num_layers)."""
