"""What is typed after a command and would be read by nobody: refused, with what to write instead."""

from collections.abc import Mapping
from typing import Any

from llmjp_train.errors import UserError


def refuse(where: str, given: Mapping[str, Any], remedies: Mapping[str, str] | None = None) -> None:
    """See that none of these was typed.

    Args:
        where: when they have no effect, e.g. "without --dry-run".
        given: values by flag, or by any name without a dash for words and overrides; none, False or an empty list
            was not typed.
        remedies: what to do instead, by the same names; others: leave it out.

    Raises:
        UserError: some were; all are told.
    """
    typed = {name: value for name, value in given.items() if value not in (None, []) and value is not False}
    if typed:
        raise UserError(
            "; ".join(
                f"{_as_typed(name, value)} has no effect {where}: {(remedies or {}).get(name, 'leave it out')}"
                for name, value in typed.items()
            )
        )


def _as_typed(name: str, value: Any) -> str:
    said = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if not name.startswith("-"):
        return said
    return name if value is True else f"{name} {said}"
