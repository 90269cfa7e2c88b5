"""Published scores of other models, to be set beside ours: each with its source and what differs."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from llmjp_train.evaluate.tasks import load_yaml
from llmjp_train.resources import resource


@dataclass(frozen=True)
class Reference:
    """A published score."""

    of: str
    """``TASK.METRIC``, or a category or average of a suite by its name."""
    model: str
    value: float
    source: str
    differs: str
    """What was done otherwise than here."""


@cache
def references() -> tuple[Reference, ...]:
    """All of eval/references.yaml."""
    stored = load_yaml(resource("eval", "references.yaml"))
    sources = stored["sources"]
    return tuple(
        Reference(
            of, row["model"], float(value), sources[row["source"]]["where"], sources[row["source"]]["differs"]
        )
        for row in stored["scores"]
        for of, value in row["values"].items()
    )


def published(names: Iterable[str]) -> list[Reference]:
    """Those of the figures called ``names``, in the order of the names."""
    return [reference for name in names for reference in references() if reference.of == name]
