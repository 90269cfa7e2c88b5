"""Suites: tasks that are run together, under which licences, and what is left out and why."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError
from llmjp_train.evaluate.tasks import (
    UNKNOWN_LICENCE,
    Group,
    MissingDataError,
    TaskFile,
    find_groups,
    find_tasks,
    load_yaml,
    task_folders,
)
from llmjp_train.resources import resource

COMMERCIAL = frozenset(
    ("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "Apache-2.0", "MIT", "BSD-3-Clause")
)  # fmt: skip
"""SPDX names of licences that allow commercial use (of the items; a few want attribution or share-alike)."""
LICENCES = ("all", "commercial")
LIKELIHOOD = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Kinds of tasks that ask for log-probabilities alone; the others generate text."""


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together."""

    name: str
    description: str
    tasks: list[str]
    tasks_if_data: list[str]
    """Tasks that are left out, and said to be, where their data are not here."""
    limits: dict[str, int]
    """First items only, by task; ``all`` for every task."""
    harness: dict[str, dict[str, Any]] = field(default_factory=dict)
    """lm-evaluation-harness's own tasks: file below its tasks folder, licence and version of the items."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Groups among the harness's own tasks: those of one pattern of files."""
    categories: dict[str, list[str]] = field(default_factory=dict)
    """Tasks whose mean is a category's figure; a task that is not known here makes it not comparable."""
    average_of: list[str] = field(default_factory=list)
    """Categories whose mean is the suite's average; none: the suite has none of its own."""
    faults: list[str] = field(default_factory=list)
    """What is known to be wrong with the suite's definitions, kept for comparison's sake."""
    differs: list[str] = field(default_factory=list)
    """Where figures of this suite differ from the published ones that it follows."""

    @property
    def names(self) -> list[str]:
        """Everything that it runs."""
        grouped = {task for tasks in self.groups.values() for task in tasks}
        single = [task for task in self.harness if task not in grouped]
        return [*self.tasks, *self.tasks_if_data, *single, *self.groups]

    def limit(self, task: str) -> int | None:
        """First items of ``task`` that count; none: all."""
        return self.limits.get(task, self.limits.get("all"))


def suite_names(include: Sequence[str] = ()) -> dict[str, Path]:
    """Suite files by name."""
    folders = [resource("eval", "suites"), *task_folders(include)[1:]]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            settings = load_yaml(path)
            if any(isinstance(settings.get(key), list) for key in ("tasks", "tasks_if_data", "suites")):
                found[path.stem] = path
    return found


def load_suite(name: str, include: Sequence[str] = ()) -> Suite:
    """The suite called ``name``; one that names ``suites`` holds all of theirs.

    Raises:
        UserError: there is none of that name; near misses are suggested.
    """
    paths = suite_names(include)
    if name not in paths:
        raise UserError(f"suite={name}: no such suite; {near(name, paths)}")
    settings = load_yaml(paths[name])
    parts = [load_suite(str(part), include) for part in settings.get("suites") or []]

    def joined(key: str) -> list[str]:
        own = [str(each) for each in settings.get(key) or []]
        return list(dict.fromkeys([*own, *(each for part in parts for each in getattr(part, key))]))

    # A part's limit for all its tasks stays with its tasks.
    limits = {task: size for part in parts for task in part.names if (size := part.limit(task)) is not None}
    limits |= {str(task): int(size) for task, size in (settings.get("limits") or {}).items()}
    harness = {task: facts for part in parts for task, facts in part.harness.items()}
    groups = {group: tasks for part in parts for group, tasks in part.groups.items()}
    for task, facts in (settings.get("harness") or {}).items():
        if "files" not in facts:
            harness[str(task)] = dict(facts)
            continue
        found = _of_pattern(str(task), dict(facts))
        harness |= found
        groups[str(task)] = list(found)
    return Suite(
        name,
        str(settings.get("description", "")),
        joined("tasks"),
        joined("tasks_if_data"),
        limits,
        harness,
        groups,
        {str(key): [str(t) for t in tasks] for key, tasks in (settings.get("categories") or {}).items()},
        [str(each) for each in settings.get("average_of") or []],
        joined("faults"),
        joined("differs"),
    )


def _of_pattern(group: str, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The harness's own tasks of a pattern of files, each named as its file.

    Raises:
        UserError: the installed harness has no such file.
    """
    pattern, title = str(facts.pop("files")), str(facts.get("title", group))
    folder = _harness_folder()
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"tasks {group}: the installed lm-eval has no {pattern}: its tasks have moved")
    return {
        path.stem: facts | {"file": str(path.relative_to(folder)), "title": f"{title}: {path.stem}"}
        for path in paths
    }


@dataclass(frozen=True)
class Chosen:
    """A task that will be run, and how."""

    task: TaskFile
    num_fewshot: int
    limit: int | None
    group: str = ""
    """Group that its figure goes into; empty: it stands for itself."""
    optional: bool = False
    """Left out, and said to be, where its data cannot be had."""


@dataclass(frozen=True)
class Choice:
    """What an evaluation will run."""

    chosen: list[Chosen]
    skipped: list[str]
    """A message for each task that is left out."""
    suite: Suite
    groups: dict[str, Group]
    """Groups of which every task is run."""


def choose(
    suite: str,
    tasks: Sequence[str] = (),
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include: Sequence[str] = (),
    licences: str = "all",
) -> tuple[list[Chosen], list[str]]:
    """The tasks to run, with their items read, and a message for each one that is left out.

    Raises:
        UserError: as `choice`.
    """
    found = choice(suite, tasks, num_fewshot=num_fewshot, limit=limit, include=include, licences=licences)
    return found.chosen, found.skipped


def choice(
    suite: str,
    tasks: Sequence[str] = (),
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include: Sequence[str] = (),
    licences: str = "all",
) -> Choice:
    """What to run: the named tasks and groups, or the suite's.

    Args:
        licences: ``all``, or ``commercial`` to leave out what does not allow commercial use.

    Raises:
        UserError: an unknown task or suite, missing data, no licence, or a bad number of examples or items.
    """
    _check(num_fewshot, limit, licences)
    picked, known, groups = _picked(suite, tasks, include)
    chosen: list[Chosen] = []
    skipped: list[str] = []
    for name, group, optional in _listed(picked, groups):
        task = _found(name, picked, known, groups)
        if refusal := _licence_refusal(task, licences):
            skipped.append(refusal)
            continue
        try:
            task.files()
            _check_sandbox(task)
        except MissingDataError as error:
            if not optional:
                raise
            skipped.append(str(error))
            continue
        sizes = [size for size in (limit, picked.limit(name)) if size is not None]
        shots = task.check_fewshot(num_fewshot)
        chosen.append(Chosen(task, shots, min(sizes) if sizes else None, group, optional))
    ran = {entry.task.name for entry in chosen}
    whole = {name: groups[name] for name in dict.fromkeys(e.group for e in chosen if e.group)}
    whole = {name: group for name, group in whole.items() if ran.issuperset(group.tasks)}
    return Choice(chosen, list(dict.fromkeys(skipped)), picked, whole)


def _picked(
    suite: str, tasks: Sequence[str], include: Sequence[str] = ()
) -> tuple[Suite, dict[str, TaskFile], dict[str, Group]]:
    """What is asked for by name, and every task and group that there is.

    Raises:
        UserError: there is no suite of that name.
    """
    picked = Suite("", "", list(tasks), [], {}) if tasks else load_suite(suite, include)
    own = {name: Group(name, members, weighted=True) for name, members in picked.groups.items()}
    return picked, find_tasks(include), find_groups(include) | own


def in_loop_problems(suite: str, tasks: Sequence[str]) -> list[str]:
    """Names in ``evaluation`` that training cannot be scored on: there are none such, or they generate text.

    Reads task files alone: neither items nor the harness.
    """
    try:
        picked, known, groups = _picked(suite, tasks)
    except UserError as error:
        return [f"evaluation.{error}"]
    found, written = [], []
    for name, _, optional in _listed(picked, groups):
        try:
            task = _found(name, picked, known, groups)
            if optional:
                task.files()
        except MissingDataError:
            continue  # left out, as by `choice`
        except UserError as error:
            found.append(f"evaluation.tasks: {error}")
            continue
        if task.output_type not in LIKELIHOOD:
            written.append(name)
    if written:
        named = f"evaluation.tasks: {', '.join(written)}" if tasks else f"evaluation.suite={suite}"
        several = "they generate" if tasks and len(written) > 1 else "it generates"
        found.append(
            f"{named}: {several} text, and training is scored on likelihood tasks alone: name such ones with "
            "evaluation.tasks=[…], and leave the others to 'llmjp evaluate' or 'llmjp follow'"
        )
    return found


def likelihood_only(asked: Choice) -> Choice:
    """The same without tasks that generate text: a suite's are said to be left out.

    Of the harness's own tasks the kind is known when they are loaded.

    Raises:
        UserError: such a task was named, or nothing is left.
    """
    written = [e.task.name for e in asked.chosen if e.task.local and e.task.output_type not in LIKELIHOOD]
    rest = [entry for entry in asked.chosen if entry.task.name not in written]
    why = (
        "generates text, and a model in parts (parallel.tensor, parallel.pipeline) is scored on likelihood tasks "
        "alone: evaluate it whole, with parallel.data for several processes"
    )
    if written and (not asked.suite.name or not rest):
        raise UserError(f"task {', '.join(written)}: {why}, or leave it out of tasks=[...]")
    ran = {entry.task.name for entry in rest}
    return Choice(
        rest,
        [*asked.skipped, *(f"task {name}: it {why}" for name in written)],
        asked.suite,
        {name: group for name, group in asked.groups.items() if ran.issuperset(group.tasks)},
    )


def _check(num_fewshot: int | None, limit: int | None, licences: str) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: give at least 1 item, or null for all")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot={num_fewshot}: give 0 or more, or null for each task's own")
    if licences not in LICENCES:
        raise UserError(f"licences={licences}: give {' or '.join(LICENCES)}")


def _listed(picked: Suite, groups: dict[str, Group]) -> Iterable[tuple[str, str, bool]]:
    """(task, group, optional) of everything that is asked for, once each."""
    seen: set[str] = set()
    for name in picked.names:
        members = groups[name].tasks if name in groups else [name]
        for member in members:
            if member not in seen:
                seen.add(member)
                yield member, name if name in groups else "", name not in picked.tasks


def _found(name: str, picked: Suite, known: dict[str, TaskFile], groups: dict[str, Group]) -> TaskFile:
    if name in picked.harness:
        return harness_task(name, picked.harness[name])
    if name not in known:
        raise UserError(f"task {name}: no such task; {near(name, [*known, *groups])}")
    task = known[name]
    if task.licence == UNKNOWN_LICENCE:
        raise UserError(
            f"{task.path}: task {name} does not state its items' licence: add licence (an SPDX name) to metadata"
        )
    return task


def harness_task(name: str, facts: dict[str, Any]) -> TaskFile:
    """One of lm-evaluation-harness's own tasks, without indexing its 16,000 files.

    Raises:
        UserError: the installed harness has no such file.
    """
    path = _harness_folder() / str(facts["file"])
    if not path.is_file():
        raise UserError(f"task {name}: the installed lm-eval has no {facts['file']}: its tasks have moved")
    settings = load_yaml(path)
    metadata = {**(settings.get("metadata") or {}), **facts}
    return TaskFile(name, path, {**settings, "task": name, "metadata": metadata})


def _harness_folder() -> Path:
    """The installed harness's folder of tasks; without importing it."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    assert spec is not None, "lm-eval is a requirement"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _check_sandbox(task: TaskFile) -> None:
    """See that a task that runs programs can do so safely.

    Raises:
        MissingDataError: it cannot; says why.
    """
    if not task.metadata.get("runs_code"):
        return
    from llmjp_train.evaluate import sandbox

    if reason := sandbox.why_not():
        raise MissingDataError(f"task {task.name}: {reason}")


def _licence_refusal(task: TaskFile, licences: str) -> str | None:
    if licences == "all" or task.licence in COMMERCIAL:
        return None
    return f"task {task.name}: its licence, {task.licence}, is not known to allow commercial use (licences=commercial)"


def near(name: str, known: Collection[str]) -> str:
    """What ``name`` may have meant, as the end of a message; all that there is, where that is a short list."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return (
        f"there are {', '.join(sorted(known))}" if len(known) <= 20 else "'llmjp evaluate --list' shows all"
    )
