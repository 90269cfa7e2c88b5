"""Configurations from Hydra's groups and overrides, typed, with every error reported at once."""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmjp_train.config.evaluation import EvaluateConfig, FollowConfig
from llmjp_train.config.overrides import Override, put, read, suggestion
from llmjp_train.config.prepare import PrepareConfig, TokenizerTrainConfig
from llmjp_train.config.ranges import out_of_range
from llmjp_train.config.rehearsal import rehearsal
from llmjp_train.config.root import Scale, TrainConfig
from llmjp_train.config.typed import first_line, open_keys, typed_tree
from llmjp_train.errors import UserError
from llmjp_train.resources import resource

ROOTS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "prepare": PrepareConfig,
    "tokenizer_train": TokenizerTrainConfig,
    "evaluate": EvaluateConfig,
    "follow": FollowConfig,
}


class OwnFolder(SearchPathPlugin):
    """Puts the user's folder before the shipped one; Hydra's own hydra.searchpath only puts it behind."""

    path: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra for each composition."""
        if self.path is not None:
            search_path.prepend("llmjp-config-dir", str(self.path), anchor="main")


Plugins.instance().register(OwnFolder)


class ConfigError(UserError):
    """All that is wrong with a configuration."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = list(messages)
        count = len(self.messages)
        head = "the configuration has an error:" if count == 1 else f"the configuration has {count} errors:"
        super().__init__("\n".join([head, *(f"  - {message}" for message in self.messages)]))


def compose(
    root: str, overrides: Sequence[str], config_dir: Path | None = None, *, partial: bool = False
) -> Any:
    """The typed configuration of a command.

    Args:
        config_dir: the user's own groups and files; they come before the shipped ones.
        partial: leave what must still be given as ``???`` instead of refusing it (see `holes`).

    Raises:
        ConfigError: unknown keys, values of a wrong type, unknown options of a group: all of them.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is no folder: name the one that holds your groups")
    messages: list[str] = []
    read_ones = [found for text in overrides if (found := read(text, messages)) is not None]
    choices, values = _sorted(read_ones, _groups(config_dir), messages)
    composed = _compose(root, choices, config_dir, messages)
    if composed is None:
        raise ConfigError(messages)
    put(composed, values, messages)
    typed = typed_tree(ROOTS[root], composed, messages)
    if isinstance(typed, TrainConfig) and typed.scale is not Scale.full and not messages:
        files = cast(DictConfig, _compose(root, choices, config_dir, messages))
        typed = _rehearsed(files, values, messages)
    if typed is not None and not partial:
        messages.extend(f"{key} must be given: {key}=…" for key in holes(typed))
    if messages or typed is None:
        raise ConfigError(messages)
    return typed


def holes(config: Any) -> list[str]:
    """Keys that a file leaves for the user to give."""
    return open_keys(plain(config), "")


def _sorted(
    overrides: list[Override], groups: dict[str, list[str]], messages: list[str]
) -> tuple[list[str], list[Override]]:
    """Choices of groups, as Hydra takes them, and values."""
    choices, values = [], []
    for override in overrides:
        key, value = override.key, override.value
        if override.remove and key in groups:
            messages.append(
                f"~{key}: a group cannot be removed, choose another file: {', '.join(groups[key])}"
            )
        elif key in groups and not isinstance(value, dict | None):
            if str(value) in groups[key]:
                choices.append(f"{key}='{value}'")
                continue
            messages.append(
                f"{key}={value}: group {key} has no such file.{suggestion(str(value), groups[key])}"
            )
        elif key == "experiment" and value is None:
            continue  # none is the default
        else:
            values.append(override)
    return choices, values


def _compose(
    root: str, choices: list[str], config_dir: Path | None, messages: list[str]
) -> DictConfig | None:
    """Hydra's groups, the user's own folder before the shipped one; none when it failed."""
    try:
        if config_dir is None:
            return deepcopy(_shipped(root, tuple(choices)))
        return _read(root, choices, config_dir.resolve())
    except (HydraException, OmegaConfBaseException) as error:
        messages.append(first_line(error))
    except yaml.YAMLError as error:
        messages.append(f"a file of the configuration is no YAML: {' '.join(str(error).split())}")
    return None


@lru_cache(maxsize=64)
def _shipped(root: str, choices: tuple[str, ...]) -> DictConfig:
    """Composed of shipped files alone, which do not change; runs of a sweep choose the same ones."""
    return _read(root, choices, None)


def _read(root: str, choices: Sequence[str], own: Path | None) -> DictConfig:
    GlobalHydra.instance().clear()
    OwnFolder.path = own
    try:
        with initialize_config_dir(config_dir=str(resource("configs").resolve()), version_base="1.3"):
            composed = hydra_compose(root, overrides=list(choices))
    finally:
        GlobalHydra.instance().clear()
    OmegaConf.set_struct(composed, False)
    return composed


def _rehearsed(files: DictConfig, values: list[Override], messages: list[str]) -> TrainConfig | None:
    """The rehearsal of what the files say, with the user's own values on top, as they are.

    The tokenizer and the data that the user names are known to the rehearsal, so that it keeps them.
    """
    first = [one for one in values if one.key.split(".")[0] in ("tokenizer", "data", "scale")]
    base = deepcopy(files)
    put(base, first, messages)
    full = typed_tree(TrainConfig, base, messages)
    if full is None or messages:
        return None
    messages.extend(out_of_range(full))  # no arithmetic on these
    if messages:
        return None
    small = cast(DictConfig, OmegaConf.create(plain(rehearsal(full))))
    # What was taken away of the files is not in the rehearsal of them.
    put(small, [one for one in values if not (one.remove and one in first)], messages)
    return cast("TrainConfig | None", typed_tree(TrainConfig, small, messages))


def group_files(group: str, config_dir: Path | None = None) -> list[str]:
    """Names of a group's files, the user's own among them."""
    return sorted(set(_groups(config_dir)[group]))


def chooses_files(overrides: Sequence[str]) -> bool:
    """Whether a file of a group, or a scale, is among what a user typed."""
    typed = [found for text in overrides if (found := read(text, [])) is not None]
    names = {*_groups(None), "scale"}
    return any(one.key in names and not isinstance(one.value, dict | None) for one in typed)


def _groups(config_dir: Path | None) -> dict[str, list[str]]:
    """Options of each group, the user's own among them."""
    found: dict[str, list[str]] = {}
    for folder in (resource("configs"), config_dir):
        if folder is not None:
            for group in sorted(path for path in folder.iterdir() if path.is_dir()):
                found.setdefault(group.name, []).extend(sorted(path.stem for path in group.glob("*.yaml")))
    return found


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The resolved configuration of a run, with overrides of values (not of groups) on top.

    Raises:
        UserError: the file is no YAML mapping.
        ConfigError: as `compose`.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        if not isinstance(raw, dict):
            raise UserError(
                f"{path} is damaged: it holds no mapping; it is the resolved configuration of a run"
            )
        holder = OmegaConf.create(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    messages: list[str] = []
    read_ones = [found for text in overrides if (found := read(text, messages)) is not None]
    put(holder, [one for one in read_ones if _fits_a_run(one, messages)], messages)
    typed = typed_tree(TrainConfig, holder, messages)
    if typed is not None:
        messages.extend(f"{key} must be given: {key}=…" for key in holes(typed))
    if messages or typed is None:
        raise ConfigError(messages)
    return cast(TrainConfig, typed)


def _fits_a_run(override: Override, messages: list[str]) -> bool:
    """Whether a resolved configuration can take it; why not goes to messages."""
    if override.key == "scale":
        messages.append(
            f"{override.text}: a run's sizes are set, scale has no effect; start a new run with it, in another run_dir"
        )
        return False
    groups = _groups(None)
    if override.key in groups and not isinstance(override.value, dict):
        messages.append(
            f"{override.text}: a run's groups are chosen; give values instead, such as {override.key}.KEY=VALUE "
            f"(configs/{override.key}/ shows those of each file), or start a new run in another run_dir"
        )
        return False
    return True


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for a string; everybody who types it means a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?\.?inf$|^\.nan$"),
    list("-+0123456789."),
)


def dump_config(config: Any) -> str:
    """YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Dataclasses and enums as containers and names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
