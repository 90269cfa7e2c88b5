"""Verify layouts one after another, and the table of what was found."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype
from llmjp_train.launch.forked import run_forked
from llmjp_train.verify.bounds import Verdict, compare
from llmjp_train.verify.measure import ORDERS, Measurement, measure, measure_in_order
from llmjp_train.verify.spec import Spec

STEPS = 4


@dataclass(frozen=True)
class Row:
    """What was found of one layout."""

    spec: Spec
    verdict: Verdict
    seconds: float


class Verifier:
    """Keeps the references that it made, one a form and precision."""

    def __init__(self, config: TrainConfig, steps: int = STEPS) -> None:
        """
        Args:
            config: the experiment's form, at a size that trains here; its layout does not matter.
        """
        self._config, self._steps = config, steps
        self._references: dict[Spec, tuple[Measurement, list[Measurement]]] = {}

    def verify(self, spec: Spec, measured: Callable[..., Measurement | None] = measure) -> Row:
        """Train in one layout and compare with one process.

        Args:
            measured: what ranks do; tests put faults in here.
        """
        began = time.perf_counter()
        found = self._measure(measured, spec)
        reference, others = self._reference(spec)
        verdict = compare(found, reference, self._config.optimizer, others)
        return Row(spec, verdict, time.perf_counter() - began)

    def _reference(self, spec: Spec) -> tuple[Measurement, list[Measurement]]:
        alone = Spec(dtype=spec.dtype, form=spec.form)
        if alone not in self._references:
            orders = ORDERS if spec.dtype is Dtype.bf16 else ()
            others = [self._measure(partial(measure_in_order, cut=cut), alone) for cut in orders]
            self._references[alone] = self._measure(measure, alone), others
        return self._references[alone]

    def _measure(self, measured: Callable[..., Measurement | None], spec: Spec) -> Measurement:
        config = spec.applied(self._config)
        found: Measurement = run_forked(measured, spec.ranks, config, self._steps)[0]
        return found

    def all(self, specs: Sequence[Spec]) -> Iterator[Row]:
        """Verify each."""
        for spec in specs:
            yield self.verify(spec)


def prepared(config: TrainConfig) -> TrainConfig:
    """The configuration with sizes that every layout of up to 8 ranks can take: 16 short sequences, a fixed rate."""
    batch = replace(
        config.batch,
        global_batch=16,
        micro_batch=1,
        sequence_length=32,
        ramp_start=None,
        ramp_increment=None,
        ramp_steps=None,
    )
    return replace(config, batch=batch, changes=[], optimizer=replace(config.optimizer, lr=1e-3))


HEAD = (
    "| layout | ranks | form | precision | loss | gradient norm | gradients | weights | equal |",
    "|---|---|---|---|---|---|---|---|---|",
)


def table_line(row: Row) -> str:
    """A layout's line of the table."""
    spec, verdict = row.spec, row.verdict
    layout = str(replace(spec, form="", dtype=Dtype.fp32))
    shares = (verdict.loss, verdict.norm, verdict.gradient, verdict.weight)
    figures = " | ".join(f"{share:.2g}" for share in shares)
    equal = "yes" if verdict.equal else "**no**"
    return f"| {layout} | {spec.ranks} | {spec.form or 'own'} | {spec.dtype.value} | {figures} | {equal} |"
