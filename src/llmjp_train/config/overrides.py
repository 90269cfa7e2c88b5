"""What a user types after a command: overrides, read one by one so that each error is told."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_KEY_VALUE = re.compile(r"^\+{0,2}([^\W\d][\w./@-]*)=(.*)$", re.DOTALL)
_ALIASES = {"fork.from": "fork.run"}
"""Keys that read well but cannot be fields: ``from`` is a word of Python."""
_FOREIGN = re.compile(r"[^\[\]{},:]*[^\x00-\x7f][^\[\]{},:]*")


@dataclass(frozen=True)
class Override:
    """One override, read."""

    text: str
    """As typed."""
    key: str
    """Dotted key, or a group."""
    value: Any = None
    remove: bool = False
    """``~key``: back to the default, or out of a mapping."""


def suggestion(word: str, known: Sequence[str]) -> str:
    """Near misses, or the list where it is short; begins with a space unless empty."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known: {', '.join(known)}." if known and len(known) <= 20 else ""


def read(text: str, messages: list[str]) -> Override | None:
    """An override in Hydra's grammar; what is wrong with it goes to messages.

    Beyond that grammar, letters that are not ASCII stand for themselves, in keys too, and so do ``=``, ``(``
    and ``)`` in a value without brackets: names of files hold them.
    """
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        found = _literally(text)
        if found is None:
            messages.append(
                f"'{text}' is no override: {str(error).strip().splitlines()[0]}; write KEY=VALUE, with quotes around "
                "texts in brackets: 'KEY=[\"a (b)\",c]'"
            )
        return found
    if parsed.is_sweep_override():
        messages.append(
            f"'{text}' gives several values, which is a sweep: 'llmjp train -m' starts a run for each; else give one "
            f"value, or a list in brackets, {parsed.key_or_group}=[…]"
        )
        return None
    if parsed.is_delete():
        return Override(text, parsed.key_or_group, remove=True)
    return Override(text, _ALIASES.get(parsed.key_or_group, parsed.key_or_group), parsed.value())


def _literally(text: str) -> Override | None:
    """The override with its value in quotes, where it can be read like that."""
    parts = _KEY_VALUE.match(text)
    if parts is None:
        return None
    key, value = parts.groups()
    for said in (value, _quoted(value)):  # the key alone may be what Hydra cannot read
        try:
            parsed = OverridesParser.create().parse_override(f"key={said}")
        except HydraException:
            continue
        return None if parsed.is_sweep_override() else Override(text, _ALIASES.get(key, key), parsed.value())
    return None


def _quoted(value: str) -> str:
    """The value with quotes around what Hydra's grammar has no letters for."""
    if "'" in value or '"' in value:
        return value
    if not value.startswith(("[", "{")):
        return f"'{value}'"
    return _FOREIGN.sub(lambda found: f"'{found[0].strip()}'", value)


def put(config: DictConfig, overrides: Sequence[Override], messages: list[str]) -> None:
    """Set or remove values in place, in the order given.

    Values are set here and not by Hydra, which refuses keys that no file mentions: the dataclasses know
    them, and name near misses of those that they do not.
    """
    for override in overrides:
        if override.remove:
            _remove(config, override, messages)
        else:
            try:
                OmegaConf.update(config, override.key, override.value, force_add=True)
            except (OmegaConfBaseException, ValueError, TypeError):
                messages.append(f"{override.text}: {_no_place(config, override.key)}")


def _no_place(config: DictConfig, key: str) -> str:
    """Why nothing can be put under a key, and what to write."""
    names = key.split(".")
    for end in range(1, len(names)):
        whole = ".".join(names[:end])
        if isinstance(OmegaConf.select(config, whole), ListConfig):
            return f"{whole} is a list, and is given whole: {whole}=[…]"
    return f"it has keys of its own: write {key}.KEY=…"


def _remove(config: DictConfig, override: Override, messages: list[str]) -> None:
    *parents, last = override.key.split(".")
    node: Any = config
    for name in parents:
        node = node.get(name) if isinstance(node, DictConfig) else None
    if isinstance(node, ListConfig) or not isinstance(node, DictConfig) or last not in node:
        known = sorted(map(str, node)) if isinstance(node, DictConfig) else []
        messages.append(f"~{override.key}: there is nothing to remove.{suggestion(last, known)}")
        return
    del node[last]
