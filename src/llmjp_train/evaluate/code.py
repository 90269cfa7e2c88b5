"""Scores of programs: whether what a model wrote passes the item's tests in the sandbox."""

from collections.abc import Sequence
from typing import Any

from llmjp_train.evaluate import sandbox


def jhumaneval_scores(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """pass@1 of one greedy answer.

    Raises:
        MissingDataError: there is no sandbox on this machine.
    """
    program = f"{doc['prompt']}{results[0]}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(sandbox.run(program).passed)}
