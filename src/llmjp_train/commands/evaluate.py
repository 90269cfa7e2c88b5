"""`llmjp evaluate`: score a run's checkpoint or a Hugging Face folder on tasks."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes
from llmjp_train.commands.flags import refuse
from llmjp_train.errors import UserError

if TYPE_CHECKING:
    from llmjp_train.config.evaluation import EvaluateConfig
    from llmjp_train.config.machine import ParallelConfig
    from llmjp_train.evaluate.suites import Choice
    from llmjp_train.evaluate.together import Party

SUMMARY = "score a run or a Hugging Face folder on tasks, with intervals and baselines"
USES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is not a configuration key: the model, the checkpoint, and where the result goes."""
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="RUN|HF_FOLDER", help="run directory or exported folder"
    )
    parser.add_argument(
        "training_text",
        nargs="?",
        metavar="RUN|DATA",
        help="after the word contamination: look for the suite's items in a run's training text or in text files",
    )
    parser.add_argument(
        "--step", default="latest", help="checkpoint of a run: a step, latest (default) or latest-valid"
    )
    parser.add_argument(
        "--list", action="store_true", dest="list_tasks", help="show the tasks there are, and end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument(
        "--share",
        type=float,
        help="contamination: least share of an item's 13-grams in a document (default: 0.7)",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="EVALUATION",
        help="contamination: an evaluation to state without touched items",
    )
    parser.add_argument(
        "--text-key", help="contamination: field of JSON lines that holds the text (default: text)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the result here (a run's go into RUN/evaluations otherwise)",
    )


def configuration(args: argparse.Namespace) -> "EvaluateConfig":
    """The composed configuration."""
    from llmjp_train.config.compose import compose

    config: EvaluateConfig = compose("evaluate", args.overrides, args.config_dir)
    return config


def run(args: argparse.Namespace) -> int:
    """Evaluate; see `add_arguments`."""
    model = args.model
    looks = str(model) == "contamination" and not model.exists()
    if not looks:
        searching = {"--share": args.share, "--scores": args.scores, "--text-key": args.text_key}
        remedy = "it is for 'llmjp evaluate contamination RUN|DATA'"
        refuse("in an evaluation", searching, dict.fromkeys(searching, remedy))
    config = configuration(args)
    if args.list_tasks:
        return _list(config, as_json=args.json)
    if model is None:
        raise UserError(
            "name a run directory or a Hugging Face folder, or see the tasks with `llmjp evaluate --list`"
        )
    if looks:
        from llmjp_train.commands.contamination import look

        return look(args.training_text, config, args)
    if args.training_text is not None:
        raise UserError(
            f"{args.training_text}: one model at a time; `llmjp compare` sets results side by side"
        )
    return _evaluate(model, config, args)


def _list(config: "EvaluateConfig", *, as_json: bool) -> int:
    from llmjp_train.evaluate.suites import harness_task, load_suite, suite_names
    from llmjp_train.evaluate.table import describe, show_tasks
    from llmjp_train.evaluate.tasks import find_groups, find_tasks

    suites = {name: load_suite(name, config.include) for name in sorted(suite_names(config.include))}
    known = dict(sorted(find_tasks(config.include).items()))
    for suite in suites.values():
        known |= {name: harness_task(name, facts) for name, facts in suite.harness.items()}
    rows = [describe(task) for task in known.values()]
    names = {name: suite.names for name, suite in suites.items()}
    groups = {name: group.tasks for name, group in find_groups(config.include).items()}
    groups |= {name: tasks for suite in suites.values() for name, tasks in suite.groups.items()}
    if as_json:
        print(json.dumps({"tasks": rows, "groups": groups, "suites": names}, ensure_ascii=False, indent=2))
    else:
        show_tasks(rows, names, groups)
    return exit_codes.OK


def _is_run(model: Path) -> bool:
    """Whether it is a run; else it is a Hugging Face folder.

    Raises:
        UserError: it is neither.
    """
    if (model / "config.yaml").is_file():
        return True
    if not model.exists():
        raise UserError(f"{model} does not exist: give a run directory or a Hugging Face folder")
    if not (model / "config.json").is_file():
        raise UserError(
            f"{model} is neither a run directory (no config.yaml) nor a Hugging Face folder (no config.json)"
        )
    return False


def _evaluate(model: Path, config: "EvaluateConfig", args: argparse.Namespace) -> int:
    from llmjp_train.evaluate.suites import choice

    is_run = _is_run(model)
    asked = choice(
        config.suite,
        config.tasks,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        include=config.include,
        licences=config.licences,
    )
    from llmjp_train.evaluate import harness, together
    from llmjp_train.evaluate.models import device_of
    from llmjp_train.launch.local import take_place, take_signals
    from llmjp_train.parallel.world import world

    harness.offline()
    place = world()
    parallel = together.sizes(config.parallel, place)
    if together.in_parts(config.parallel):
        asked = _for_parts(model, parallel, asked, is_run=is_run)
    size = parallel.tensor * parallel.pipeline * parallel.data
    if size > 1 and not place.launcher:
        return _start_ranks(args, size)
    take_signals()
    take_place()
    party = together.join(parallel, place, device_of(config.device))
    say = _teller(args.json) if party.first else lambda text: None
    lm, step = (
        _load_run(model, args.step, config, say, party)
        if is_run
        else (_load_folder(model, config, say, party), None)
    )

    from llmjp_train.evaluate.runner import evaluate
    from llmjp_train.evaluate.table import show_results

    suite = "" if config.tasks else config.suite
    folder = args.output or (model / "evaluations" if is_run else None)
    name = _name(step, config)
    if folder is not None and config.resume:
        about = {
            "model": str(model.resolve()),
            "step": step,
            "dtype": config.dtype,
            "weights": _weights(model),
        }
        rank = party.layout.world.rank if party.layout is not None else party.share.rank
        _journal(lm, folder / f"{name}.progress.jsonl", about, say, rank)
    payload = evaluate(
        lm,
        asked,
        model=str(model),
        step=step,
        suite=suite,
        include=config.include,
        items_path=folder / f"{name}.items.jsonl" if folder else None,
        settings=_settings(lm, model, config, party),
        chat=config.chat,
        first=party.first,
        say=say,
    )
    together.leave(party)
    if not party.first:
        return exit_codes.OK
    written = _store(model, name, payload, args.output, is_run=is_run)
    if getattr(lm, "journal", None) is not None:
        lm.journal.finish()
    if args.json:
        print(json.dumps(payload, ensure_ascii=False, indent=2))
    else:
        show_results(payload)
    if written is not None:
        _write_page(written, payload, config, say)
    return exit_codes.OK


def _write_page(written: Path, payload: dict[str, Any], config: "EvaluateConfig", say: Any) -> None:
    """The page of a result that was written."""
    from llmjp_train.evaluate.definitions import others_of
    from llmjp_train.publish.evaluation_page import write_evaluation

    say(f"written to {written}")
    lines = (written.parent / payload["items_file"]).read_text(encoding="utf-8").splitlines()
    folder = written.with_suffix(".report")
    pages = write_evaluation(
        payload, list(map(json.loads, lines)), folder, config.include, others_of(written, payload)
    )
    say(f"to look at: {pages[0]}")


def _for_parts(model: Path, parallel: "ParallelConfig", asked: "Choice", *, is_run: bool) -> "Choice":
    """What a model in parts can be asked; refused before anything starts where it cannot be parted so.

    Raises:
        UserError: a folder, a layout that the model does not divide into, or tasks that generate text.
    """
    from llmjp_train.config.compose import ConfigError, load_config
    from llmjp_train.config.layouts import axis_problems
    from llmjp_train.evaluate.suites import likelihood_only

    if not is_run:
        raise UserError(
            f"parallel.tensor={parallel.tensor}, parallel.pipeline={parallel.pipeline}: a run's checkpoint alone is "
            "evaluated in parts; a Hugging Face folder is whole on each process (parallel.data), or `llmjp import` it"
        )
    trained = load_config(model / "config.yaml")
    if found := axis_problems(trained.model, parallel.tensor, parallel.pipeline):
        raise ConfigError(found)
    return likelihood_only(asked)


def _start_ranks(args: argparse.Namespace, size: int) -> int:
    """This machine's own processes, each with the same words."""
    from llmjp_train.launch.local import start_processes

    words = [str(args.model), "--step", args.step, *args.overrides]
    words += ["--json"] if args.json else []
    words += ["--output", str(args.output)] if args.output is not None else []
    words += ["--config-dir", str(args.config_dir)] if args.config_dir is not None else []
    sys.stdout.flush()
    return start_processes([sys.executable, "-m", "llmjp_train.cli", "evaluate", *words], size)


def _settings(lm: Any, model: Path, config: "EvaluateConfig", party: "Party") -> dict[str, Any]:
    """What the record says of how the model was run, beside what the model says itself."""
    found: dict[str, Any] = {"dtype": config.dtype, "device": config.device}
    if party.size > 1:
        found["processes"] = party.size
    if party.layout is not None:
        found["parallel"] = {axis: getattr(party.layout, axis) for axis in ("tensor", "pipeline", "data")}
    if config.chat:
        from llmjp_train.evaluate.chat import template_sha256

        template = template_sha256(getattr(lm, "ours", lm.tokenizer), str(model))
        found |= {"chat": True, "chat_template_sha256": template}
    return found


def _teller(as_json: bool) -> Any:
    # With --json standard output is the result's alone.
    stream = sys.stderr if as_json else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


_ASKED = ("num_fewshot", "limit", "licences", "dtype", "max_length", "chat", "bos")
"""Settings that decide an evaluation's figures."""


def _name(step: int | None, config: "EvaluateConfig") -> str:
    """Name of a result: a trial with a limit, say, does not take the place of the suite's own."""
    plain = type(config)()
    asked = {key: getattr(config, key) for key in _ASKED}
    changed = [f"{key}-{str(value).lower()}" for key, value in asked.items() if value != getattr(plain, key)]
    what = "-".join([*(config.tasks or [config.suite]), *changed])
    return what if step is None else f"step-{step:08d}-{what}"


def _weights(model: Path) -> list[list[Any]]:
    """Sizes and times of a folder's weights: other weights under the same name begin anew."""
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(model.glob("*.safetensors"))]


def _load_run(path: Path, which: str, config: "EvaluateConfig", say: Any, party: "Party") -> tuple[Any, int]:
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.checkpoint.store import CheckpointReader
    from llmjp_train.config.compose import load_config
    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data.tokenizers import load_tokenizer
    from llmjp_train.evaluate.loading import run_lm

    if which not in ("latest", "latest-valid") and not which.isdigit():
        raise UserError(f"--step {which}: give a step's number, latest or latest-valid")
    trained = load_config(path / "config.yaml")
    folder = path / "tokenizer"
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the run was not started, or its tokenizer was removed")
    checkpoint = choose(path, int(which) if which.isdigit() else which)
    say(f"{path}: checkpoint of step {checkpoint.step}")
    tokenizer = load_tokenizer(TokenizerConfig(name=trained.tokenizer.name, path=str(folder)))
    reader = CheckpointReader(checkpoint.path)
    return run_lm(reader, trained.model, tokenizer, config, say, party), checkpoint.step


def _load_folder(path: Path, config: "EvaluateConfig", say: Any, party: "Party") -> Any:
    from llmjp_train.evaluate.loading import folder_lm

    lm = folder_lm(path, config, say, party)
    if lm.bos:
        say("inputs start with BOS, as the folder's tokenizer puts it (bos=false leaves it out)")
    return lm


def _journal(lm: Any, path: Path, about: dict[str, Any], say: Any, rank: int) -> None:
    """Keep scores as they come; lm-evaluation-harness's own class does not show them before the end."""
    from llmjp_train.evaluate.journal import Journal
    from llmjp_train.evaluate.likelihood import RowsLM

    if isinstance(lm, RowsLM):
        bos = lm.encoder.bos_id is not None
        about |= {
            "max_length": lm.max_length,
            "bos": bos,
            "tokenizer": lm.tokenizer.fingerprint,
            "greedy": lm.knows_greedy,
        }
        lm.journal = Journal(path, about, rank)
        if lm.journal.resumed:
            say(f"going on with an evaluation that was cut short: {lm.journal.resumed} scores are there")


def _store(
    model: Path, name: str, payload: dict[str, Any], output: Path | None, *, is_run: bool
) -> Path | None:
    if output is not None:
        path = output / f"{name}.json"
        path.write_text(json.dumps(payload, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return path
    if not is_run:
        return None
    from llmjp_train.runlog.record import RunRecord

    return RunRecord(model).write_evaluation(name, payload)
