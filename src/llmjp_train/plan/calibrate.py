"""Refit the time model's constants on a run of the user's own."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from llmjp_train.config.compose import load_config
from llmjp_train.config.machine import Device, known
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype
from llmjp_train.errors import UserError
from llmjp_train.plan.constants import Constants, scaled, shipped
from llmjp_train.plan.job import job_from
from llmjp_train.plan.timing import step_time
from llmjp_train.runlog.reading import open_run, step_rows
from llmjp_train.runlog.record import RunRecord

ROWS = 20
"""Steps that a calibration is taken from, the newest ones."""
_LOWEST, _HIGHEST = 1e-3, 1e3


@dataclass(frozen=True)
class Calibration:
    """What a run said."""

    constants: Constants
    config: TrainConfig
    """The planned configuration, with the peak that the run measured where the cluster has none."""
    measured_s: float
    """Median step time of the run, in its last phase's sizes."""
    planned_s: float
    """What the constants said of it before."""

    def line(self) -> str:
        """In words."""
        return (
            f"calibrated: a step of {self.constants.source} took {self.measured_s:.3g} s where {self.planned_s:.3g} s "
            f"were planned; compute takes {self.measured_s / self.planned_s:.2f} times as long here"
        )


def calibrate(run: Path, config: TrainConfig) -> Calibration:
    """Constants under which the plan of a run equals its step time, for a plan of the same model.

    One figure fits one constant: compute and passes over memory are scaled together, communication stays as the
    published runs have it and is subtracted first.

    Raises:
        UserError: the run is of another model, device or precision, or has too few steps.
    """
    record = open_run(run)
    own = load_config(run / "config.yaml")
    _comparable(run, own, config)
    own, config = (_with_peak(record, one) for one in (own, config))
    job = job_from(own)
    rows = [row for row in step_rows(record.read_metrics()) if row.get("tokens_per_s")][-ROWS:]
    if len(rows) < ROWS:
        raise UserError(
            f"{run} has {len(rows)} rows of steps, a calibration needs {ROWS}: train it a little longer"
        )
    measured = job.global_batch * job.sequence_length / statistics.median(row["tokens_per_s"] for row in rows)
    before = step_time(job, shipped())
    if before is None:
        raise UserError(
            f"{run}: the peak of {own.cluster.device_name} is unknown: give cluster.peak_tflops_*"
        )
    return Calibration(_solve(own, measured, str(run)), config, measured, before.seconds)


def _solve(config: TrainConfig, measured: float, source: str) -> Constants:
    """The factor of compute at which the planned step is the measured one, by bisection: it only grows."""
    job = job_from(config)
    low, high = _LOWEST, _HIGHEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        time = step_time(job, scaled(shipped(), middle, source))
        assert time is not None
        low, high = (middle, high) if time.seconds < measured else (low, middle)
    return scaled(shipped(), (low * high) ** 0.5, source)


def _comparable(run: Path, own: TrainConfig, planned: TrainConfig) -> None:
    if replace(own.model, name="") != replace(planned.model, name=""):
        raise UserError(
            f"{run} trained model {own.model.name}, the plan is for {planned.model.name}: speeds do not carry over; "
            f"calibrate with 20 steps of {planned.model.name}"
        )
    for key, one, other in (
        ("cluster.device_name", own.cluster.device_name, planned.cluster.device_name),
        ("precision.dtype", own.precision.dtype.name, planned.precision.dtype.name),
    ):
        if one != other:
            raise UserError(
                f"{run} ran with {key}={one}, the plan has {other}: calibrate on a run with the same"
            )


def _with_peak(record: RunRecord, config: TrainConfig) -> TrainConfig:
    """A CPU's peak is measured when a run starts and stands in its record."""
    key = "peak_tflops_fp32" if config.precision.dtype is Dtype.fp32 else "peak_tflops_bf16"
    if config.cluster.device is not Device.cpu or known(getattr(config.cluster, key)) is not None:
        return config
    starts = [event for event in record.read_events() if event.get("peak_tflops")]
    if not starts:
        return config
    ranks = starts[-1].get("layout", {}).get("ranks", 1)
    cluster = replace(config.cluster, **{key: starts[-1]["peak_tflops"] / ranks})
    return replace(config, cluster=cluster)
