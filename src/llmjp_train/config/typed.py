"""Mappings as dataclass trees: keys and values that do not fit are told in a user's words."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmjp_train.config.overrides import suggestion
from llmjp_train.config.root import TrainConfig


def first_line(error: Exception) -> str:
    """What a library says, without its details."""
    return str(error).strip().split("\n")[0]


def open_keys(value: Any, prefix: str) -> list[str]:
    """Keys of a mapping that hold ``???``, below ``prefix``."""
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in open_keys(item, f"{prefix}{name}.")]
    return [prefix.removesuffix(".")] if value == "???" else []


def typed_tree(kind: type[Any], config: DictConfig, messages: list[str]) -> Any:
    """The dataclass tree with the values of a configuration; keys and types that do not fit go to messages.

    What is missing stays ``???``.
    """
    try:
        clean = _known(kind, OmegaConf.to_container(config, resolve=True), "", messages)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        messages.append(first_line(error))
        return None
    schema = _schema(kind)  # type: ignore[arg-type]  # classes are hashable, which mypy does not know
    try:
        merged = cast(DictConfig, OmegaConf.merge(schema, clean))
    except OmegaConfBaseException:
        for key, value in clean.items():
            _check_leaves(kind, (key,), value, messages)
        return None
    if messages:
        return None
    missing = sorted(OmegaConf.missing_keys(merged) | set(open_keys(clean, "")))
    try:
        for key in missing:
            OmegaConf.update(merged, key, "")
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        messages.append(_said(error))
        return None
    for key in missing:
        _leave_open(typed, key.split("."))
    return typed


@lru_cache
def _schema(kind: type[Any]) -> Any:
    return OmegaConf.structured(kind)  # merging copies it


def _leave_open(config: Any, path: list[str]) -> None:
    for name in path[:-1]:
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    setattr(config, path[-1], "???")


def _known(kind: type[Any], value: Any, prefix: str, messages: list[str]) -> dict[str, Any]:
    """The mapping without keys that the dataclass does not have, at every depth."""
    hints = get_type_hints(kind)
    found = {}
    for key, item in value.items():
        if key not in hints:
            where = f"{prefix}{key}"
            near = suggestion(str(key), sorted(hints)) if prefix else _meant(kind, str(key))
            messages.append(f"{where}: there is no such key.{near}")
            continue
        found[key] = _known_inside(hints[key], item, f"{prefix}{key}.", messages)
    return found


def _meant(kind: type[Any], word: str) -> str:
    """Near misses of a first word, as `suggestion` tells them: also of keys further in, which are told whole."""
    hints = get_type_hints(kind)
    places: dict[str, list[str]] = {}
    for path in _paths(kind):
        places.setdefault(path.split(".")[-1], []).append(path)
    places |= {name: [name] for name in (*hints, *(("experiment",) if kind is TrainConfig else ()))}
    near = [word] if word in places else difflib.get_close_matches(word, places, n=3, cutoff=0.6)
    found = [place for name in near for place in places[name]][:3]
    return f" Did you mean {' or '.join(found)}?" if found else suggestion(word, sorted(hints))


def _paths(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key of a dataclass and of those within it, but for what users name themselves."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _paths(cast("type[Any]", hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _known_inside(hint: Any, item: Any, prefix: str, messages: list[str]) -> Any:
    inner = next((a for a in get_args(hint) if is_dataclass(a)), None)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(item, dict):
        return _known(hint, item, prefix, messages)
    if isinstance(inner, type) and isinstance(item, dict):
        return {
            name: _known(inner, entry, f"{prefix}{name}.", messages) if isinstance(entry, dict) else entry
            for name, entry in item.items()
        }
    if isinstance(inner, type) and isinstance(item, list):
        return [
            _known(inner, entry, f"{prefix}{index}.", messages) if isinstance(entry, dict) else entry
            for index, entry in enumerate(item)
        ]
    return _whole(hint, item)


def _whole(hint: Any, item: Any) -> Any:
    """The value as whole numbers where these are wanted: 1e9 is one."""
    wanted = (hint, *get_args(hint))
    if int not in wanted or float in wanted:
        return item
    if isinstance(item, list):
        return [_whole(hint, entry) for entry in item]
    return int(item) if isinstance(item, float) and item.is_integer() else item


def _check_leaves(kind: type[Any], path: tuple[str, ...], value: Any, messages: list[str]) -> None:
    """Try each leaf alone, so that one wrong value does not hide the next."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _check_leaves(kind, (*path, str(key)), item, messages)
        return
    trial: Any = value
    for key in reversed(path):
        trial = {key: trial}
    try:
        OmegaConf.merge(_schema(kind), trial)  # type: ignore[arg-type]  # as above
    except OmegaConfBaseException as error:
        messages.append(f"{'.'.join(path)}={value}: {_form(kind, path, value) or _said(error)}")


def _form(kind: type[Any], path: tuple[str, ...], value: Any) -> str:
    """How to write a value where a list, or a mapping, is wanted; else empty."""
    hint: Any = kind
    if value is None:
        return ""
    for end, name in enumerate(path):
        if get_origin(hint) is list:
            whole = ".".join(path[:end])
            return f"{whole} is a list, and is given whole: {whole}=[…]"
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif is_dataclass(hint):
            hint = get_type_hints(hint)[name]
        else:
            return ""
    key, given = ".".join(path), value if isinstance(value, str) else "…"
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        if is_dataclass(inner) and not (isinstance(value, list) and all(isinstance(e, dict) for e in value)):
            return f"it is a list, of what has keys of its own: write {key}=[{{{_first(inner)}:…}}]"
        return "" if isinstance(value, list) else f"it is a list: write {key}=[{value}]"
    if get_origin(hint) is dict:
        return f"it holds what has a name: write {key}.NAME.KEY=…"
    return f"it has keys of its own: write {key}.{_first(hint)}={given}" if is_dataclass(hint) else ""


def _first(kind: Any) -> str:
    """The first key of a mapping that is no name, as an example."""
    return next(field.name for field in fields(kind) if field.name != "name")


_WANTED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def _said(error: Exception) -> str:
    """OmegaConf's first line in a user's words, with a near miss for enums."""
    line = first_line(error)
    match = re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", line)
    if match:
        known = [name.strip() for name in match.group(2).split(",")]
        return f"not one of {', '.join(known)}.{suggestion(match.group(1), known)}"
    match = re.match(r"Value .* could not be converted to (\w+)", line)
    if match:
        return f"it must be {_WANTED.get(match.group(1), match.group(1))}"
    if line.startswith("Cannot convert "):
        return "it must be text"
    if "is not a valid input for <enum" in line:
        return "it must be one word"
    if "is not a valid bool" in line:
        return "it must be true or false"
    if "is not Optional" in line or "Incompatible value 'None'" in line:
        return "it cannot be null: give a value, or leave it out for the default"
    return line
