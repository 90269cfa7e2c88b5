"""A run from its configuration: data, engine, checkpoint to go on from, and the hooks."""

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from llmjp_train.checkpoint.listing import CheckpointInfo, set_aside
from llmjp_train.config.compose import dump_config
from llmjp_train.config.phases import phases
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.manifest import preparation, statements
from llmjp_train.data.stream import TrainingStream, ValidationStream
from llmjp_train.data.tokenizers import Tokenizer, check_special_tokens, load_tokenizer
from llmjp_train.engine.make import make_engine
from llmjp_train.errors import UserError
from llmjp_train.parallel.layout import Layout
from llmjp_train.runlog.compare import changed_settings
from llmjp_train.runlog.lease import Lease
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train.early_stop import ended_before
from llmjp_train.train.fingerprints import fingerprints
from llmjp_train.train.hooks import (
    Changes,
    Evaluation,
    Health,
    Hook,
    Metrics,
    ShortWaits,
    Validation,
)
from llmjp_train.train.leak_test import allowed, leaks
from llmjp_train.train.metrics import peak_flops
from llmjp_train.train.optimizer import parameter_groups
from llmjp_train.train.resuming import resume
from llmjp_train.train.run import Run
from llmjp_train.train.saving import Saving, layout_sizes
from llmjp_train.train.schedule import schedule
from llmjp_train.train.start import agreed_start
from llmjp_train.train.stops import Stops
from llmjp_train.train.stragglers import Stragglers
from llmjp_train.train.trackers import load_trackers


def prepare_run(
    config: TrainConfig, layout: Layout, record: RunRecord, stops: Stops, lease: Lease | None, epoch: int
) -> Run:
    """Build everything, resume or fork when there is a checkpoint to go on from, and check the mask. Collective.

    Raises:
        UserError: files that are missing, damaged or of another model, tokenizer or data.
    """
    table = phases(config)
    tokenizer = load_tokenizer(config.tokenizer)
    check_special_tokens(tokenizer, config.model.vocab_size)
    stream = TrainingStream(config.data, table, config.model.vocab_size)
    stream.check_tokenizer(tokenizer.fingerprint, config.tokenizer.name, tokenizer.eod_id)
    validation, bytes_per_token = _validation(config, tokenizer)
    order = stream.fingerprint | ({"validation": validation.fingerprint} if validation else {})
    kind = {"fingerprint": tokenizer.fingerprint, "eod_id": tokenizer.eod_id}
    checkpoint, fork = agreed_start(config, layout, record.path)
    engine = make_engine(config, layout, len(stream.source_names), parameter_groups(config))
    peak = peak_flops(config.cluster, config.precision.dtype, layout.device)
    run = Run(
        config=config,
        layout=layout,
        engine=engine,
        stream=stream,
        validation=validation,
        bytes_per_token=bytes_per_token,
        schedule=schedule(config),
        phases=table,
        record=record,
        stops=stops,
        lease=lease,
        fingerprints=fingerprints(config, kind, order),
        peak_flops=peak * layout.size if peak else None,
        epoch=epoch,
    )
    if checkpoint is not None:
        resume(run, checkpoint, fork=fork)
        run.ended = "" if fork else ended_before(run)
    if layout.leader:
        left = set_aside(record.path, run.step) if checkpoint is not None and not fork else []
        _record_start(run, tokenizer, checkpoint, fork=fork, left=left)
    if config.data.document_mask:
        _check_mask(run)
    return run


def _validation(config: TrainConfig, tokenizer: Tokenizer) -> tuple[ValidationStream | None, float]:
    if not config.evaluation.validation_every:
        return None, 0.0
    stream = ValidationStream(config.data, config.batch.sequence_length, config.model.vocab_size)
    stream.check_tokenizer(tokenizer.fingerprint, config.tokenizer.name, tokenizer.eod_id)
    if stream.num_samples == 0:
        if config.evaluation.stop_at_best is not None:
            raise UserError(
                f"evaluation.stop_at_best={config.evaluation.stop_at_best} has nothing to go by, for no source has "
                "validation documents: prepare with a larger validation_share, name files with "
                "data.sources.NAME.validation, or set evaluation.stop_at_best=null"
            )
        return None, 0.0
    return stream, stream.bytes_per_token(tokenizer)


def _check_mask(run: Run) -> None:
    """A fault, so that no step is taken, when a document sees another one."""
    config = run.config
    leak = leaks(run.engine, config.model.vocab_size, config.batch.sequence_length)
    if not math.isfinite(leak) or leak > allowed(config.precision.dtype):
        run.record_fault(f"attention crosses documents: changing one moved another's loss by {leak:.3g} nats")


def _record_start(
    run: Run, tokenizer: Tokenizer, checkpoint: CheckpointInfo | None, *, fork: bool, left: list[str]
) -> None:
    """Write what this start is, now that nothing can refuse it any more."""
    # What holds for one start alone is not kept: the next would go back to that step, or let data differ again.
    text = dump_config(replace(run.config, resume="latest", allow_changed=[]))
    changed = changed_settings(run.record, text)
    run.record.create(text)
    run.record.write_environment()
    before = run.record.read_json("data.json").get("tokenizer")
    sources = run.config.data.sources
    # Beside the fingerprints, not in them: who corrects a licence trains on the same data.
    said = {name: statements(source.path) for name, source in sources.items()}
    made = {name: preparation(source.path) for name, source in sources.items()}
    run.record.write_data({**run.fingerprints, "statements": said, "prepared": made})
    folder = run.record.path / "tokenizer"
    same = before is not None and before.items() <= run.fingerprints["tokenizer"].items()
    if not same and folder.exists():
        shutil.rmtree(folder)  # another tokenizer was allowed: exports must carry the one in use
    if not folder.exists():
        tokenizer.save(folder)
    kind = "start" if checkpoint is None else "fork" if fork else "resume"
    run.record.event(
        kind,
        step=run.step,
        epoch=run.epoch,
        origin=run.origin,
        layout={**layout_sizes(run.layout), "ranks": run.layout.size},
        dtype=run.config.precision.dtype.value,
        device=str(run.layout.device.type),
        peak_tflops=run.peak_flops / 1e12 if run.peak_flops else None,
        threads=torch.get_num_threads(),
        allow_changed=list(run.config.allow_changed),
        left=left,
        changed=changed,
    )
    if left:
        print(f"later checkpoints no longer count and may be removed: {', '.join(left)}", flush=True)
    told = f"goes on from {checkpoint.path.name}" if checkpoint else "starts"
    print(
        f"{run.config.name} {told} at step {run.step} on {run.layout.size} process(es): {run.layout}",
        flush=True,
    )
    _tell_data(run)


def _tell_data(run: Run) -> None:
    """What the data mean for this run: epochs of each source, and whether there is a validation."""
    told, warned = run.stream.epochs(run.config.data, run.samples_at(run.schedule.total_steps))
    for line in told:
        print(f"  {line}")
    for line in warned:
        print(f"  warning: {line}")
    if run.config.evaluation.validation_every and run.validation is None:
        print("  no source has validation documents: there will be no validation")
    sys.stdout.flush()


def hooks(run: Run, evaluate: Callable[[Run], dict[str, Any]] | None) -> list[Hook]:
    """The hooks in the order in which they run after a step."""
    if run.layout.leader:
        settings = run.config.metrics
        run.trackers = load_trackers(
            run.record.path, tensorboard=settings.tensorboard, names=settings.trackers
        )
    found: list[Hook] = [ShortWaits(), Metrics(), Validation()]
    if evaluate is not None:
        found.append(Evaluation(evaluate))
    return [*found, Health(), Stragglers(), Changes(), Saving()]
