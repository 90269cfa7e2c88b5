"""Normalisation layers."""

import torch
from torch import Tensor, nn

from llmjp_train.config.model import ModelConfig, Norm


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, 2019), computed in fp32 as transformers does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rms_norm(size: int, eps: float) -> RMSNorm:
    """RMSNorm over ``size`` features."""
    return RMSNorm(size, eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The model's norm over the hidden size."""
    if config.norm is Norm.rmsnorm:
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
