"""What a run's configuration planned, for the chronicle."""

from typing import Any

from llmjp_train.config.derive import human
from llmjp_train.publish.card import betas, nested
from llmjp_train.publish.facts import Facts
from llmjp_train.publish.speech import Speech, compact

Pairs = list[tuple[str, str]]
"""Names and values."""


def planned(found: Facts, speech: Speech) -> Pairs:
    """Names and values, from the configuration and what follows from it."""
    config, numbers = found.config, found.derived
    rows: list[tuple[str, str | None]] = []
    if numbers is not None:
        rows += [
            ("model", speech.say(
                "parameters", name=found.summary.model, parameters=f"{numbers.parameters:,}",
                without=f"{numbers.parameters_without_embeddings:,}",
            )),
            ("length", speech.say(
                "length_of", steps=f"{numbers.steps:,}", tokens=f"{numbers.tokens:,}",
                samples=f"{numbers.samples:,}",
            )),
            ("step_size", speech.say(
                "step_of", batch=nested(config, "batch", "global_batch"),
                length=nested(config, "batch", "sequence_length"), tokens=f"{numbers.tokens_per_step:,}",
            )),
            ("rate", speech.say(
                "rate_of", lr=compact(nested(config, "optimizer", "lr")), kind=nested(config, "schedule", "kind"),
                min_lr=compact(nested(config, "schedule", "min_lr")), warmup=f"{numbers.warmup_steps:,}",
            )),
            ("flops", f"{numbers.flops_total:.4g}"),
            ("layout", speech.say(
                "layout_of", ranks=numbers.world_size, nodes=numbers.nodes,
                **{axis: nested(config, "parallel", axis) for axis in ("tensor", "pipeline", "data", "zero")},
            )),
            ("checkpoints", speech.say(
                "checkpoints_of", size=human(numbers.checkpoint_bytes), kept=numbers.checkpoints_kept,
            )),
        ]  # fmt: skip
    optimizer = config.get("optimizer")
    rows += [
        ("optimizer", betas(optimizer) if optimizer else None),
        ("precision", nested(config, "precision", "dtype")),
        ("seed", nested(config, "seed")),
        ("data", _sources(found, speech)),
    ]
    rows += [("declared", _declared(change, speech)) for change in config.get("changes") or []]
    rows += [("remarks", str(note)) for note in config.get("notes") or []]
    return [(speech.words[name], speech.words["missing"] if v is None else str(v)) for name, v in rows]


def _sources(found: Facts, speech: Speech) -> str | None:
    """The data's sources by name."""
    described = (found.data.get("data") or {}).get("sources") or {}
    epochs = found.derived.epochs if found.derived else {}
    parts = []
    for name, value in described.items():
        tokens = None if value.get("tokens") is None else f"{value['tokens']:,}"
        text = speech.say("source_of", name=name, tokens=tokens)
        if name in epochs:
            text += speech.say("epochs_of", epochs=f"{epochs[name]:.3g}")
        parts.append(text)
    return "; ".join(parts) or None


def _declared(change: dict[str, Any], speech: Speech) -> str:
    """A change that the configuration declares, with its reason."""
    kept = {key: value for key, value in change.items() if value not in (None, "", {}) and key != "step"}
    said = ", ".join(f"{key} {value}" for key, value in kept.items() if key != "reason")
    reason = f" ({kept['reason']})" if kept.get("reason") else ""
    return f"{speech.say('at_step', step=change.get('step'))}: {said}{reason}"
