"""One decoder with typed choices, of ordinary torch layers."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmjp_train.config.machine import Recompute
from llmjp_train.config.model import Bias, Mlp, ModelConfig, Position
from llmjp_train.model.attention import Attention, Context, make_context
from llmjp_train.model.loss import Head, LossSums
from llmjp_train.model.norm import make_norm


class FeedForward(nn.Module):
    """Gated SiLU (Shazeer, 2020), exact GELU, or GPT-2's tanh approximation of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.bias is Bias.all
        self.kind = config.mlp
        if config.mlp is Mlp.swiglu:
            self.gate = nn.Linear(config.hidden_size, config.ffn_size, bias=bias)
        self.up = nn.Linear(config.hidden_size, config.ffn_size, bias=bias)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=bias)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        if self.kind is Mlp.swiglu:
            inner = nn.functional.silu(self.gate(x_BTH)) * self.up(x_BTH)
        else:
            approximate = "tanh" if self.kind is Mlp.gelu_tanh else "none"
            inner = nn.functional.gelu(self.up(x_BTH), approximate=approximate)
        result: Tensor = self.down(inner)
        return result


class Block(nn.Module):
    """A decoder layer: normalise, attend, add; normalise, feed forward, add."""

    def __init__(self, config: ModelConfig, recompute: Recompute = Recompute.none) -> None:
        super().__init__()
        self.recompute = recompute
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        """(B, T, hidden) to (B, T, hidden); activations are made again in the backward pass where asked."""
        if self.training and self.recompute is Recompute.full:
            whole: Tensor = checkpoint(self._forward, x_BTH, context, use_reentrant=False)
            return whole
        return self._forward(x_BTH, context)

    def _forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        x_BTH = x_BTH + self.attention(self.attention_norm(x_BTH), context)
        if self.training and self.recompute is Recompute.selective:
            # The feed-forward block holds most of a layer's activations and is cheap to make again.
            again: Tensor = checkpoint(self._feed, x_BTH, use_reentrant=False)
            return x_BTH + again
        return x_BTH + self._feed(x_BTH)

    def _feed(self, x_BTH: Tensor) -> Tensor:
        result: Tensor = self.mlp(self.mlp_norm(x_BTH))
        return result


class Decoder(nn.Module):
    """Tokens to logits, or to the sums of the loss. Parameter names are those of checkpoints."""

    def __init__(
        self, config: ModelConfig, *, recompute: Recompute = Recompute.none, loss_chunk: int = 1024
    ) -> None:
        super().__init__()
        self.config = config
        self.loop_over_documents = True
        """Faster on a CPU than a mask; compiled layers would be compiled anew for each set of bounds."""
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position is Position.learned:
            self.positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, recompute) for _ in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = Head(config.hidden_size, config.vocab_size, loss_chunk)
        self.tie()

    def tie(self) -> None:
        """Make the head's weight the embedding's, where the model ties them; again after `to_empty`."""
        if self.config.tied_embeddings:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        z_loss: bool = False,
    ) -> Tensor | LossSums:
        """Logits (B, T, V) in fp32, or with ``targets_BT`` (-100: none) the sums of the loss.

        Args:
            documents_BT: number of each token's document; attention stays inside it. None: one document.
            positions_BT: place of each token in its document. None: 0, 1, 2, ...
        """
        hidden = self.hidden_states(tokens_BT, documents_BT, positions_BT)
        result: Tensor | LossSums = self.head(hidden, targets_BT, z_loss)
        return result

    def hidden_states(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """(B, T, hidden) after the final norm."""
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        x_BTH = self.embedding(tokens_BT)
        if self.config.position is Position.learned:
            x_BTH = x_BTH + self.positions(positions_BT)
        context = make_context(self.config, documents_BT, positions_BT, loop=self.loop_over_documents)
        for layer in self.layers:
            x_BTH = layer(x_BTH, context)
        result: Tensor = self.norm(x_BTH)
        return result
