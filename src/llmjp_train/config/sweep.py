"""A sweep: the runs that overrides with several values stand for, read as Hydra's -m reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from llmjp_train.config.compose import ConfigError
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    differs: tuple[str, ...]
    """Overrides that tell it from the others."""
    overrides: tuple[str, ...]
    """All of them, in the order given."""

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return ",".join(self.differs).replace("/", "_")


def sweep_runs(overrides: Sequence[str]) -> list[SweepRun]:
    """A run for each combination of values, the last override's values changing fastest.

    Raises:
        UserError: no override has several values.
    """
    choices = [_values(text) for text in overrides]
    several = [index for index, values in enumerate(choices) if len(values) > 1]
    if not several:
        raise UserError(
            "-m has no effect without a key of several values: give them with commas, optimizer.lr=1e-4,3e-4"
        )
    return [SweepRun(tuple(chosen[index] for index in several), chosen) for chosen in product(*choices)]


def at_once(runs: Sequence[SweepRun], checked: Callable[[SweepRun], TrainConfig]) -> list[TrainConfig]:
    """The configuration of each run.

    Raises:
        ConfigError: what is wrong with any of them, all at once, with the runs that it is wrong in.
    """
    wrong: dict[str, list[str]] = {}
    found = []
    for one in runs:
        try:
            found.append(checked(one))
        except ConfigError as error:
            for message in error.messages:
                wrong.setdefault(message, []).append(" ".join(one.differs))
        except UserError as error:
            wrong.setdefault(str(error), []).append(" ".join(one.differs))
    if wrong:
        every = len(runs)
        raise ConfigError(
            [m if len(where) == every else f"{'; '.join(where)}: {m}" for m, where in wrong.items()]
        )
    return found


def _values(text: str) -> list[str]:
    """An override for each of its values."""
    try:
        parsed = OverridesParser.create().parse_override(text)
        if not parsed.is_sweep_override():
            return [text]
        return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException:
        return [text]  # what is wrong with it is told where it is composed
