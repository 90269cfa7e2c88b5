"""Train, evaluate and publish Japanese-strong language models with DeepSpeed and Hydra."""

__version__ = "0.1.0"
