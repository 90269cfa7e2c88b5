"""The door to lm-evaluation-harness: offline, quiet, without a cache, and only tasks that a model can do."""

import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError

from llmjp_train.errors import UserError
from llmjp_train.evaluate.suites import LIKELIHOOD, Chosen
from llmjp_train.evaluate.tasks import MissingDataError, TaskFile, functions
from llmjp_train.resources import resource

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def offline() -> None:
    """Keep the Hugging Face libraries from the network; to be called before they are imported."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


def version() -> str:
    """lm-evaluation-harness's version."""
    from importlib.metadata import version as installed

    return f"lm-eval {installed('lm-eval')}"


def load_task(chosen: Chosen, include: list[str]) -> Any:
    """The harness's task, with its items.

    Items from files are handed over in memory: `datasets.load_dataset` would copy them into a cache on disk
    and count the load on a server.

    Raises:
        UserError: the harness cannot build the task from its file.
    """
    offline()
    quiet()
    from lm_eval.tasks import TaskManager

    task = chosen.task
    _refuse_code(task)
    _sandbox_templates()
    # Without the built-in index of 16,000 files this takes milliseconds instead of 14 s.
    manager = TaskManager(include_path=[str(task.path.parent), *include], include_defaults=False)
    overrides: dict[str, Any] = {"task": task.name}
    if task.local:
        overrides["custom_dataset"] = _in_memory(task)
    # A group of one is the harness's way to load a task by name with overrides.
    try:
        with _undisturbed():
            loaded = manager.load([{"group": "llmjp", "task": [overrides]}])["tasks"][task.name]
    except UserError:
        raise
    except SecurityError as error:
        raise UserError(f"{task.path}: a template of it tries to reach into Python: {error}") from error
    except (ConnectionError, FileNotFoundError) as error:
        if task.local:
            raise
        # datasets says so offline, and where a data set is not in its cache.
        raise MissingDataError(
            f"task {task.name}: its data ({task.settings.get('dataset_path')}) are not in Hugging Face's cache on this "
            "machine: load them once with `datasets` on a machine with a network"
        ) from error
    except (ValueError, KeyError, TypeError, OSError, AttributeError, RuntimeError) as error:
        raise UserError(f"{task.path}: lm-evaluation-harness cannot load it: {error}") from error
    # A task file's 0 stands for tasks that take no examples at all (a whole text to score).
    loaded.set_config(key="num_fewshot", value=chosen.num_fewshot)
    loaded.set_fewshot_seed(seed=1234)
    if chosen.num_fewshot:
        _refuse_overlap(chosen, loaded)
    return loaded


def _refuse_code(task: TaskFile) -> None:
    """See that a task file from elsewhere names no code but this project's: a file to read must not run programs.

    Raises:
        UserError: it does.
    """
    import lm_eval

    known = (Path(lm_eval.__file__).parent, resource("eval"))
    if any(task.path.resolve().is_relative_to(folder.resolve()) for folder in known):
        return
    # The harness would look beside the file before it looks for the module of that name.
    beside = (task.path.parent / "llmjp_train").exists()
    for name in functions(task.settings):
        if beside or not name.startswith("llmjp_train.evaluate."):
            raise UserError(
                f"{task.path}: it wants the function {name} to be run, and task files may run no code from outside "
                "the project: say it with the harness's own metrics, filters and templates, or add the function to "
                "llmjp_train.evaluate"
            )


def _sandbox_templates() -> None:
    """Render prompts in Jinja's sandbox: the harness's plain environment lets a template reach all of Python."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        safe = SandboxedEnvironment(
            loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
        )
        safe.filters.update(utils.env.filters)
        utils.env = safe


def _refuse_overlap(chosen: Chosen, loaded: Any) -> None:
    """See that no example is scored: the model would have read its answer.

    Raises:
        UserError: one is.
    """
    if not hasattr(loaded, "sampler") or loaded.config.fewshot_split == chosen.task.split:
        return  # the harness leaves the item itself out, where both come from one split
    asked = _asked(loaded)
    texts = {asked(doc) for doc in loaded.sampler.sample(n=chosen.num_fewshot)}
    for doc in loaded.task_docs:
        if asked(doc) in texts:
            raise UserError(
                f"task {chosen.task.name}: an example before each item is itself scored: "
                f"{str(loaded.doc_to_text(doc))[:80]!r}; take it out of the examples, or show fewer (num_fewshot)"
            )


def _asked(loaded: Any) -> Callable[[dict[str, Any]], Any]:
    """What tells one question from another: the fields that the prompt names, else the prompt itself."""
    template = loaded.config.doc_to_text
    if not isinstance(template, str):
        return lambda doc: str(loaded.doc_to_text(doc))
    words = set(re.findall(r"\w+", template))
    return lambda doc: tuple(str(value) for key, value in sorted(doc.items()) if key in words)


class Rows(list[dict[str, Any]]):
    """Items as the harness takes them, at a hundredth of the time that an Arrow table needs for each."""

    @property
    def features(self) -> dict[str, None]:
        """Names of the fields."""
        return dict.fromkeys(self[0])


def _in_memory(task: TaskFile) -> Any:
    rows = task.items
    settings = task.settings
    functions = [settings.get("process_docs"), (settings.get("fewshot_config") or {}).get("process_docs")]
    # A function of a user's own may want a dataset's methods.
    plain = all(name is None or str(name).startswith("llmjp_train.") for name in functions)

    def items(**settings: Any) -> Any:
        if plain:
            return {split: Rows(part) for split, part in rows.items()}
        import datasets

        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list(part, on_mixed_types="use_json")
                for split, part in rows.items()
            }
        )

    return items


class UnfitError(UserError):
    """A task that the model at hand cannot do."""


def check(task: TaskFile, loaded: Any, *, likelihood_only: bool, knows_greedy: bool) -> None:
    """Refuse a task that the model cannot do.

    Raises:
        UnfitError: it generates text, or asks what greedy decoding would write, and the model cannot say.
    """
    kind = str(loaded.OUTPUT_TYPE)
    if likelihood_only and kind not in LIKELIHOOD:
        raise UnfitError(
            f"task {task.name} generates text ({kind}); runs are scored on likelihood tasks: "
            "`llmjp export RUN`, then evaluate the exported folder"
        )
    asks_greedy = "exact_match" in task.metrics or (kind == "loglikelihood" and "acc" in task.metrics)
    if asks_greedy and not knows_greedy:
        raise UnfitError(
            f"task {task.name} asks what greedy decoding would write, which a model that processes share "
            "does not say: leave it out here, and evaluate the checkpoint whole with `llmjp evaluate RUN`"
        )


def run(lm: Any, loaded: Any, limit: int | None, *, chat: bool = False) -> dict[str, Any]:
    """The harness's results of one task, with a sample for each item.

    Calls `evaluate` and not `simple_evaluate`: the latter seeds the process's random generators, which
    training uses, and gives ranks other than the first nothing.

    Args:
        chat: write each item in the tokenizer's chat template, its examples as earlier turns.
    """
    from lm_eval.evaluator import evaluate

    quiet()
    name = loaded.config.task
    try:
        with _undisturbed(), _no_bar():
            results: dict[str, Any] = evaluate(
                lm,
                {"tasks": {name: loaded}, "groups": {}, "group_map": {}},
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
    except SecurityError as error:
        raise UserError(f"task {name}: a template of it tries to reach into Python: {error}") from error
    return results


def build(loaded: Any, limit: int | None, **chat: Any) -> None:
    """Make the requests of a task's first items, without the harness's bar."""
    with _undisturbed(), _no_bar():
        loaded.build_all_requests(limit=limit, **chat)


def ask(lm: Any, loaded: Any, limit: int | None, *, chat: bool = False) -> None:
    """Put a task's requests to the model as `run` does, and leave its scoring to the first process."""
    turns = {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "chat_template": lm.apply_chat_template,
        "tokenizer_name": lm.tokenizer_name,
    }
    build(loaded, limit, **(turns if chat else {}))
    kinds: dict[str, list[Any]] = {}
    for instance in loaded.instances:
        kinds.setdefault(instance.request_type, []).extend([instance] * (instance.repeats or 1))
    for kind, requests in kinds.items():
        getattr(lm, kind)(requests)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Give back the state of the random generators: the libraries draw names from them."""
    import numpy as np

    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without the bar that the harness draws while it builds requests, on every rank and with no switch."""
    import lm_eval.api.task as module

    kept = module.tqdm
    module.tqdm = lambda items, **settings: items
    try:
        yield
    finally:
        module.tqdm = kept


def quiet() -> None:
    """Errors only from the harness and the libraries under it."""
    for name in ("lm_eval", "datasets", "transformers", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
