"""Configurations that begin as another run's: a run where it is now, and a branch with the settings of its stem."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmjp_train.config.compose import ConfigError, chooses_files, load_config
from llmjp_train.config.overrides import read
from llmjp_train.config.root import TrainConfig


def load_run(run_dir: Path, path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """`load_config` of a run where it is now: one that was moved or copied is itself, and not where it began.

    With ``fork.run`` among the overrides it is a branch instead: a new run in its own ``run_dir``, with the
    settings of this one.

    Raises:
        ConfigError: as `load_config`; another ``run_dir`` without ``fork.run``.
    """
    typed = _typed(overrides)
    config = load_config(path, overrides)
    if "fork.run" in typed:
        own = config.run_dir if "run_dir" in typed else str(run_dir)
        step = config.fork.step if "fork.step" in typed else None  # the stem may be a branch itself
        return replace(config, run_dir=own, fork=replace(config.fork, step=step))
    if "run_dir" in typed and not _same(config.run_dir, run_dir):
        raise ConfigError(
            [
                f"run_dir={config.run_dir} is not {run_dir}, the run that goes on in its own directory: leave it out, "
                f"or start a branch there with 'llmjp train fork.run={run_dir} fork.step=N run_dir={config.run_dir}'"
            ]
        )
    return config if _same(config.run_dir, run_dir) else replace(config, run_dir=str(run_dir))


def stem_of(overrides: Sequence[str]) -> Path | None:
    """The run whose settings a branch takes: that of ``fork.run`` where no file of a group is chosen.

    A branch that has begun in the ``run_dir`` that is named goes on with its own: the stem may have moved on. None
    where the new run is composed, or ``fork.run`` is no run.
    """
    typed = _typed(overrides)
    if not typed.get("fork.run") or chooses_files(overrides):
        return None
    asked = (str(typed[key]) for key in ("run_dir", "fork.run") if typed.get(key))
    return next((Path(name) for name in asked if (Path(name) / "config.yaml").is_file()), None)


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    """Keys and values, without those that cannot be read: `load_config` tells of them."""
    found = (read(text, []) for text in overrides)
    return {one.key: one.value for one in found if one is not None and not one.remove}


def _same(first: str | Path, second: str | Path) -> bool:
    return Path(first).resolve() == Path(second).resolve()
