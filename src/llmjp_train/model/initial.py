"""Initial weights as a function of (seed, parameter name) alone, so that no layout changes them."""

import hashlib
import math

import torch
from torch import Tensor, nn

from llmjp_train.config.model import ModelConfig


def initial_value(config: ModelConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The whole parameter's initial value, fp32 on the CPU.

    Matrices are normal with ``init_std``; the two projections that write into the residual stream are
    narrower by sqrt(2 num_layers) (Radford et al., 2019) unless the configuration says otherwise.
    Norms start at 1, biases at 0.
    """
    module, kind = name.split(".")[-2:]
    if kind == "bias":
        return torch.zeros(shape)
    if "norm" in module:
        return torch.ones(shape)
    std = config.init_std
    if module in ("output", "down") and config.init_scale_residual:
        std /= math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


def fill(module: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give every parameter of a decoder its initial value, in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(initial_value(config, name, tuple(parameter.shape), seed))
