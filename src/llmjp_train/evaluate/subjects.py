"""JMMLU by subject: any attribute is the function that keeps its namesake's items, for task files to name.

``!function llmjp_train.evaluate.subjects.nutrition`` in a task file keeps the items of nutrition.
"""

from collections.abc import Callable
from typing import Any

from llmjp_train.evaluate.japanese import in_form

REPEATED = frozenset(
    ("college_physics-14", "college_physics-49", "college_physics-57", "public_relations-11")
)
"""Items of JMMLU 762cbf192c9e whose question is also one of their subject's five examples: not scored."""


def __getattr__(subject: str) -> Callable[[Any], Any]:
    """The function that keeps the items whose ``subject`` is this name."""
    if subject.startswith("_"):
        raise AttributeError(subject)

    def mine(doc: dict[str, Any]) -> dict[str, Any] | None:
        return doc if doc["subject"] == subject and doc["id"] not in REPEATED else None

    return lambda docs: in_form(docs, mine)
