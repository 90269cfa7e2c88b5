"""Parameter groups: which weights are decayed."""

from typing import Any

from llmjp_train.config.root import TrainConfig
from llmjp_train.model.shapes import decayed, parameter_shapes


def parameter_groups(config: TrainConfig) -> list[dict[str, Any]]:
    """Logical names and weight decay of each group: matrices are decayed, vectors are not."""
    settings = config.optimizer
    groups: dict[float, list[str]] = {}
    for name, shape in parameter_shapes(config.model).items():
        decay = settings.weight_decay if decayed(name, shape, settings.decay_embeddings) else 0.0
        groups.setdefault(decay, []).append(name)
    return [{"weight_decay": decay, "names": names} for decay, names in sorted(groups.items(), reverse=True)]
