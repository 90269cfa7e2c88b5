"""Everything that a running training consists of, and how it moves from step to step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from llmjp_train.config.phases import Phase, phase_at
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.stream import MicroBatch, Prefetcher, TrainingStream, ValidationStream
from llmjp_train.engine.base import Engine
from llmjp_train.parallel.layout import Layout
from llmjp_train.runlog.lease import Lease
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train.schedule import Schedule
from llmjp_train.train.stops import Stops
from llmjp_train.train.trackers import Tracker, flat_numbers

ANSWERED = "spikes_answered"
"""Key in ``Run.memory``: steps of spikes at which something was done."""
LEFT_OUT = "left_out"
NOT_APPLIED = "not_applied"
"""Keys in ``Run.memory`` that every line of a run inherits: what a rewind left out of the data, as [samples consumed
before, samples left out]; how many steps left the weights as they were."""


class Outcome(Enum):
    """How the loop ended."""

    finished = "finished"
    stopped = "stopped"
    unhealthy = "unhealthy"
    rewind = "rewind"
    """The run goes back to a checkpoint and on from there."""


@dataclass
class Run:
    """One rank's view of a training run. ``step`` is the number of steps taken so far."""

    config: TrainConfig
    layout: Layout
    engine: Engine
    stream: TrainingStream
    validation: ValidationStream | None
    bytes_per_token: float
    """UTF-8 bytes of validation text per target token; 0 when unknown."""
    schedule: Schedule
    phases: list[Phase]
    record: RunRecord
    stops: Stops
    lease: Lease | None
    """The right to write into the run directory; held by the leader."""
    fingerprints: dict[str, Any]
    """What a resume must find unchanged: model, tokenizer, data."""
    peak_flops: float | None
    """Peak of all ranks together in FLOP/s; none: unknown."""
    epoch: int = 0
    """Number of this start of the run; names the checkpoints that it commits."""
    step: int = 0
    ended: str = ""
    """Why a hook wants the run to end before its length, e.g. an early stop."""
    fault: str = ""
    """What a safety check of this rank found; the run stops without saving."""
    unsaved: str = ""
    """Why the newest save failed, until one succeeds."""
    memory: dict[str, Any] = field(default_factory=dict)
    """JSON state of hooks, saved with each checkpoint and given back at resume."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The checkpoint that this start went on from."""
    trackers: list[Tracker] = field(default_factory=list)
    """Where figures go besides metrics.jsonl; the leader's alone."""

    @property
    def phase(self) -> Phase:
        """Sizes of the next step."""
        return phase_at(self.phases, self.step)

    @property
    def samples(self) -> int:
        """Sequences consumed so far."""
        return self.samples_at(self.step)

    def samples_at(self, step: int) -> int:
        """Sequences consumed before step ``step``, counted from 0."""
        return phase_at(self.phases, step).samples_at(step)

    @property
    def updates(self) -> int:
        """Steps that changed the weights: what Adam counts."""
        return self.step - int(self.memory.get(NOT_APPLIED, 0))

    @property
    def tokens(self) -> int:
        """Tokens consumed so far, targets or not."""
        return self.phase.tokens_at(self.step)

    def micro_batches(self) -> int:
        """Micro batches per rank in the next step (gradient accumulation)."""
        return self.phase.global_batch // (self.config.batch.micro_batch * self.layout.data)

    def loader(self) -> Prefetcher[MicroBatch]:
        """This rank's micro batches from the present step to the end, made ahead in a thread."""
        left_out = [tuple(pair) for pair in self.memory.get(LEFT_OUT, [])]
        return Prefetcher(self._batches(self.step, left_out), self.config.data.prefetch)

    def _batches(self, step: int, left_out: list[tuple[int, ...]]) -> Iterator[MicroBatch]:
        """Micro batch k of rank r takes samples (k * ranks + r) * size onwards: the order of a step's
        samples is the same for every number of ranks."""
        size, ranks, rank = self.config.batch.micro_batch, self.layout.data, self.layout.data_rank
        while step < self.schedule.total_steps:
            phase = phase_at(self.phases, step)
            first = in_stream(left_out, phase.samples_at(step))
            for k in range(phase.global_batch // (size * ranks)):
                yield self.stream.batch(first + (k * ranks + rank) * size, size, phase.sequence_length)
            step += 1

    def interrupted(self) -> bool:
        """Whether some rank was asked to stop; collective."""
        return self.layout.any([self.stops.stop])[0]

    def log(self, **figures: Any) -> None:
        """Write a row of figures into metrics.jsonl and to the trackers. For the leader."""
        row = {"step": self.step, "tokens": self.tokens, **figures}
        self.record.metrics(**row)
        if self.trackers:
            numbers = flat_numbers(row)
            for tracker in tuple(self.trackers):
                try:
                    tracker.log(self.step, numbers)
                except (
                    Exception
                ) as error:  # a view of the record, whoever wrote it, must not cost the training
                    self.drop_tracker(tracker, error)

    def drop_tracker(self, tracker: Tracker, error: Exception) -> None:
        """Go on without a tracker that failed, and say so."""
        self.trackers.remove(tracker)
        message = (
            f"{type(tracker).__name__} failed ({type(error).__name__}: {error}); metrics.jsonl has it all"
        )
        self.record.event("tracker_failed", step=self.step, message=message)
        print(f"  {message}", flush=True)

    def record_fault(self, message: str) -> None:
        """A check failed: the loop ends, and the run record and the terminal say why."""
        self.fault = message
        if self.layout.leader:
            self.record.event("fault", step=self.step, message=message)
            print(f"fault: {message}", flush=True)


def in_stream(left_out: Sequence[Sequence[int]], sample: int) -> int:
    """Number in the data's order of the sample that is read as number ``sample``."""
    return sample + sum(count for first, count in left_out if first <= sample)
