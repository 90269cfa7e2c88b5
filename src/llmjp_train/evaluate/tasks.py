"""Task files: what there is, where its items lie, how large and how balanced it is.

Reads YAML and JSONL alone, so that listing imports neither torch nor the harness.
"""

import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from llmjp_train.errors import UserError
from llmjp_train.resources import resource

UNKNOWN_LICENCE = "not stated"
_SUBJECTS = "llmjp_train.evaluate.subjects."


class MissingDataError(UserError):
    """A task's items are not on this machine."""


@dataclass(frozen=True)
class TaskFile:
    """One task in lm-evaluation-harness's format."""

    name: str
    path: Path
    settings: dict[str, Any] = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's ``metadata`` block: version, licence, source, data_version, catalogue."""
        return dict(self.settings.get("metadata") or {})

    @property
    def licence(self) -> str:
        """SPDX name of the items' licence."""
        return str(self.metadata.get("licence", UNKNOWN_LICENCE))

    @property
    def output_type(self) -> str:
        """Kind of request: multiple_choice, loglikelihood_rolling, loglikelihood or generate_until."""
        return str(self.settings.get("output_type", "generate_until"))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the first one is the main one."""
        return [str(entry["metric"]) for entry in self.settings.get("metric_list") or []]

    @property
    def num_fewshot(self) -> int:
        """Examples shown before an item unless the user says otherwise."""
        return int(self.settings.get("num_fewshot") or 0)

    @property
    def split(self) -> str:
        """Split that is scored: the test split, else the validation split, as the harness has it."""
        return str(self.settings.get("test_split") or self.settings.get("validation_split") or "")

    @property
    def local(self) -> bool:
        """Whether the items come from files, which we find and read ourselves."""
        return self.settings.get("dataset_path") == "json" and bool(self._named_files())

    def _named_files(self) -> dict[str, list[str]]:
        named = (self.settings.get("dataset_kwargs") or {}).get("data_files") or {}
        if not isinstance(named, dict):
            return {}
        return {
            split: [str(n) for n in (names if isinstance(names, list) else [names])]
            for split, names in named.items()
        }

    def files(self) -> dict[str, list[Path]]:
        """Files of each split; none for a task whose data are not local files.

        Raises:
            MissingDataError: one is not here; says where it comes from.
            UserError: the catalogue does not know it, or finds it damaged.
        """
        if not self.local:
            return {}
        if self.metadata.get("prompts"):
            self._catalogued(str(self.metadata["prompts"]))
        return {split: [self._find(name) for name in names] for split, names in self._named_files().items()}

    def _find(self, name: str) -> Path:
        if self.metadata.get("catalogue"):
            return self._in_catalogue(str(self.metadata["catalogue"]), Path(name).name)
        # A task's own files lie beside it, or under the folder that holds tasks/ and items/ as eval/.
        for base in (self.path.parent, *self.path.parents[1:4]):
            if (base / name).is_file():
                return base / name
        raise MissingDataError(
            f"{self.path}: data file {name} is not beside the task file, nor in a folder above it"
        )

    def _in_catalogue(self, entry_name: str, file: str) -> Path:
        """A file of the catalogue that is on this machine."""
        base = self._catalogued(entry_name)
        found = (base if base.is_dir() else base.parent) / file
        if not found.is_file():
            raise UserError(f"{self.path}: {entry_name} of the catalogue has no file {file}")
        return found

    def _catalogued(self, entry_name: str) -> Path:
        """File or folder of an entry that is on this machine: evaluating downloads nothing."""
        from llmjp_train.data import catalogue

        entry = catalogue.entry(entry_name)
        given = os.environ.get("LLMJP_DATA")
        places = [*([Path(given)] if given else []), catalogue.cache_root()]
        if not any(all((place / entry.folder / f).is_file() for f in entry.files) for place in places):
            raise MissingDataError(
                f"task {self.name}: the data of {entry_name} ({entry.licence}) are not here: `llmjp data get "
                f"{entry_name}`, or set LLMJP_DATA to a folder that holds {entry.folder}/"
            )
        return catalogue.get(entry_name)

    @cached_property
    def items(self) -> dict[str, list[dict[str, Any]]]:
        """Items of each split.

        Raises:
            UserError: a file is missing, empty or malformed (file and line are named).
        """
        found = {
            split: [row for path in paths for row in read_items(path)]
            for split, paths in self.files().items()
        }
        # A subject's function only leaves items out: done here, each of many subjects stays small.
        if str(self.settings.get("process_docs", "")).startswith(_SUBJECTS):
            keep = _function(self.settings["process_docs"])
            assert keep is not None
            found = {split: list(keep(rows)) for split, rows in found.items()}
        return found

    def scored(self) -> list[dict[str, Any]]:
        """Items of the scored split in the form that the task file gives them.

        Raises:
            MissingDataError, UserError: as `items`.
        """
        rows = self.items[self.split]
        change = _function(self.settings.get("process_docs"))
        return rows if change is None else list(change(rows))

    def examples(self) -> list[dict[str, Any]]:
        """Items that examples are taken from, in the form that the task file gives them."""
        rows = self.items.get(str(self.settings.get("fewshot_split")), [])
        own = (self.settings.get("fewshot_config") or {}).get("process_docs")
        change = _function(own or self.settings.get("process_docs"))
        return rows if change is None else list(change(rows))

    def golds(self, limit: int | None = None) -> list[int | str] | None:
        """Right choice or class of each scored item; none where the task is not plain multiple choice.

        The class is in the field that ``metadata.label`` or ``doc_to_target`` names.
        """
        key = str(self.metadata.get("label") or self.settings.get("doc_to_target"))
        if self.output_type != "multiple_choice" or not self.local:
            return None
        rows = self.scored()[:limit]
        if (
            not rows
            or not all(isinstance(row.get(key), int | str) for row in rows)
            or self.metadata.get("graded")
        ):
            return None
        return [row[key] for row in rows]

    def check_fewshot(self, wanted: int | None) -> int:
        """Examples that will be shown when the user asks for ``wanted``.

        Raises:
            UserError: there are not so many.
        """
        if wanted is None or self.num_fewshot == 0:
            return self.num_fewshot
        pool = self.examples() if self.local else None
        if pool is not None and wanted > len(pool):
            raise UserError(
                f"num_fewshot={wanted}: task {self.name} has {len(pool)} examples; ask for at most that many"
            )
        return wanted


def read_items(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file.

    Raises:
        UserError: it is empty, or a line is not a JSON object.
    """
    return _read_items(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_items(path: Path, changed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not a line of JSON ({error.msg}); fetch or write the file anew"
                ) from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a JSON object is wanted, not {type(row).__name__}")
            rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no items")
    return rows


def _function(named: Any) -> Callable[[list[dict[str, Any]]], Any] | None:
    """The function of ours that a task file names; none where it names none, or one in a file of its own."""
    module, _, name = str(named or "").rpartition(".")
    if not module.startswith("llmjp_train."):
        return None
    found: Callable[[list[dict[str, Any]]], Any] = getattr(importlib.import_module(module), name)
    return found


def majority(golds: Sequence[int | str]) -> float:
    """Accuracy of always giving the most frequent answer (the same label, or place among the choices)."""
    return max(Counter(golds).values()) / len(golds)


def task_folders(include: Sequence[str] = ()) -> list[Path]:
    """Folders that are searched for task files: the project's, then the user's.

    Raises:
        UserError: one of the user's does not exist.
    """
    for name in include:
        if not Path(name).is_dir():
            raise UserError(f"include={name}: no such folder; give one with task files (*.yaml)")
    return [resource("eval", "tasks"), *(Path(name).resolve() for name in include)]


def find_tasks(include: Sequence[str] = ()) -> dict[str, TaskFile]:
    """Every task by name. A later folder's task replaces an earlier one's.

    Raises:
        UserError: a folder does not exist.
    """
    found: dict[str, TaskFile] = {}
    for folder in task_folders(include):
        for path in sorted(folder.rglob("*.yaml")):
            settings = load_yaml(path)
            if isinstance(settings.get("task"), str):
                found[settings["task"]] = TaskFile(settings["task"], path, settings)
    return found


@dataclass(frozen=True)
class Group:
    """Tasks that make one figure together: the plain mean of their main metrics, or weighted by items."""

    name: str
    tasks: list[str]
    weighted: bool


def find_groups(include: Sequence[str] = ()) -> dict[str, Group]:
    """Every group file of the harness's format by name.

    Raises:
        UserError: a folder does not exist.
    """
    found: dict[str, Group] = {}
    for folder in task_folders(include):
        for path in sorted(folder.rglob("*.yaml")):
            settings = load_yaml(path)
            if isinstance(settings.get("group"), str) and isinstance(settings.get("task"), list):
                rules = settings.get("aggregate_metric_list") or [{}]
                weighted = bool(rules[0].get("weight_by_size", True))
                found[settings["group"]] = Group(
                    settings["group"], [str(task) for task in settings["task"]], weighted
                )
    return found


class _Loader(yaml.SafeLoader):
    """YAML with the harness's ``!function`` tag kept as text: nothing is imported to list a task."""


class Function(str):
    """Name of a function that a task file wants the harness to import and call."""


def _named(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
    return Function(node.value)


_Loader.add_constructor("!function", _named)


def functions(settings: Any) -> Iterator[Function]:
    """Every function that a task's settings name."""
    if isinstance(settings, Function):
        yield settings
    elif isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from functions(value)


@cache
def _read(path: Path, changed: int) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


def load_yaml(path: Path) -> dict[str, Any]:
    """A task, group or suite file, with what it includes.

    Raises:
        UserError: it is not YAML, or no mapping.
    """
    try:
        settings = _read(path, path.stat().st_mtime_ns)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a task or suite file is a mapping of keys")
    settings = dict(settings)
    included = settings.pop("include", None)
    base: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included] if included else []:
        base |= load_yaml(path.parent / name)
    return base | settings
