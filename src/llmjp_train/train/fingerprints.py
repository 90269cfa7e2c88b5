"""What a resumed run must find as it left it."""

from dataclasses import asdict
from enum import Enum
from typing import Any

from llmjp_train.config.model import ModelConfig
from llmjp_train.config.root import TrainConfig

_NOTES = {
    "window": " (the run's longest sequence, in which the data are cut: declare a longer one in changes from the start)"
}

LATER = (("tokenizer", "eod_id"), ("data", "validation"))
"""What older runs did not record, and runs without validation do not have."""


def fingerprints(config: TrainConfig, tokenizer: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Model shape, tokenizer and data, as JSON."""
    model = model_fingerprint(config.model)
    order = {"seed": config.data.seed, "document_mask": config.data.document_mask}
    return {"model": model, "tokenizer": tokenizer, "data": {**order, **data}}


def model_fingerprint(model: ModelConfig) -> dict[str, Any]:
    """A model's choices as JSON."""
    return {key: value.value if isinstance(value, Enum) else value for key, value in asdict(model).items()}


def comparable(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both without what only one of them could know."""
    both = tuple({part: dict(values) for part, values in each.items()} for each in (before, now))
    for part, key in LATER:
        if not all(key in each.get(part, {}) for each in both):
            for each in both:
                each.get(part, {}).pop(key, None)
    return both[0], both[1]


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: before -> now" for every leaf that differs."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}{_NOTES.get(prefix + key, '')}")
    return found
