"""Which engine a layout needs."""

from typing import Any

from llmjp_train.config.root import TrainConfig
from llmjp_train.engine.base import Engine
from llmjp_train.parallel.layout import Layout


def make_engine(
    config: TrainConfig, layout: Layout, num_sources: int, groups: list[dict[str, Any]]
) -> Engine:
    """The engine of a layout, with initial weights.

    Args:
        num_sources: sources whose losses are told apart.
        groups: parameter groups with logical names under ``names`` and their ``weight_decay``.
    """
    if layout.pipeline > 1:
        from llmjp_train.engine.pipeline import PipelineEngine

        return PipelineEngine(config, layout, num_sources, groups)
    from llmjp_train.engine.flat import FlatEngine

    return FlatEngine(config, layout, num_sources, groups)
