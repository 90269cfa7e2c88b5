"""One rank of a training run: puts the rooms together and runs the loop.

Also `python -m llmjp_train.commands.train_rank CONFIG`, which is how ranks on one machine are started.
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError
from llmjp_train.train.stops import Stops


def main() -> int:
    """Entry point of a rank with a resolved configuration."""
    stops = Stops().install()
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--takeover", action="store_true")
    args = parser.parse_args()
    from llmjp_train.config.compose import load_config

    try:
        return train_rank(load_config(args.config), stops, takeover=args.takeover)
    except UserError as error:
        print(f"llmjp train: {error}", file=sys.stderr)
        return exit_codes.BAD_INPUT
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def train_rank(
    config: TrainConfig, stops: Stops, *, takeover: bool = False, preflight: dict[str, Any] | None = None
) -> int:
    """Train as the rank that the launcher says this is; the exit code.

    Args:
        preflight: ``ranks_per_node``, ``nodes`` (what they measured of themselves) and ``warnings``, to be
            recorded with what the ranks measure of their links; none: nothing is measured.
    """
    from llmjp_train.launch.local import keep_memory, take_place
    from llmjp_train.parallel.world import world

    take_place()
    import torch

    from llmjp_train.config.machine import Device
    from llmjp_train.parallel import layout as layouts

    cuda = config.cluster.device is Device.cuda
    if cuda and not torch.cuda.is_available():
        raise UserError(
            f"cluster {config.cluster.name} has CUDA devices, but this machine shows none; use cluster=local"
        )
    if not cuda:
        keep_memory()
    layout = layouts.start(config.parallel, world(), cuda=cuda)
    try:
        measured = None if preflight is None else _preflight(config, layout, preflight)
        return _with_lease(config, stops, layout, takeover, measured)
    finally:
        layouts.stop()


def _preflight(config: TrainConfig, layout: Any, told: dict[str, Any]) -> dict[str, Any]:
    """The event of a preflight: figures of the nodes and of the links between ranks; warns of slow ones."""
    from llmjp_train.config.machine import known
    from llmjp_train.launch.judging import slow_links
    from llmjp_train.parallel.links import measure_links

    began, cluster = time.monotonic(), config.cluster
    links = measure_links(layout, told["ranks_per_node"])
    link, network = known(cluster.node_link_gbs), known(cluster.network_gbs)
    slow = slow_links(links, told["ranks_per_node"], node_link_gbs=link, network_gbs=network)
    if layout.leader:
        for warning in slow:
            print(f"warning: {warning}", flush=True)
    slowest = max(one.get("seconds", 0.0) for one in told["nodes"].values())
    return {
        "seconds": round(slowest + time.monotonic() - began, 2),
        "nodes": told["nodes"],
        "links_gbs": links,
        "warnings": [*told["warnings"], *slow],
    }


def _with_lease(
    config: TrainConfig, stops: Stops, layout: Any, takeover: bool, preflight: dict[str, Any] | None
) -> int:
    """The leader takes the run directory, once no rank refuses its tasks and trackers. Nothing is written before.

    A refusal is every rank's: none waits for one that has left.
    """
    from llmjp_train.runlog.lease import Lease, LeaseLostError
    from llmjp_train.runlog.record import RunRecord
    from llmjp_train.train.trackers import tracker_classes

    record = RunRecord(Path(config.run_dir))
    lease, evaluation, refusal = None, None, ""
    try:
        evaluation = _in_loop_evaluation(config, layout) if config.evaluation.every else None
        if layout.leader:
            tracker_classes(config.metrics.trackers)
    except UserError as error:
        refusal = str(error)
    refusal = next(filter(None, layout.gather(refusal)), "")
    if layout.leader and not refusal:
        try:
            lease = Lease.acquire(record.path, takeover=takeover)
        except UserError as error:
            refusal = str(error)
    try:
        refusal, epoch = layout.from_leader((refusal, lease.epoch if lease else 0))
        if refusal:
            if layout.leader:
                raise UserError(refusal)
            return exit_codes.BAD_INPUT
        stops.watch(record.path if layout.leader else None, config.time_limit)
        return _run(config, stops, layout, record, lease, epoch, preflight, evaluation)
    except LeaseLostError as error:
        print(f"llmjp train: {error}", file=sys.stderr, flush=True)
        return exit_codes.FAILED
    finally:
        if lease is not None:
            lease.release()


def _run(
    config: TrainConfig,
    stops: Stops,
    layout: Any,
    record: Any,
    lease: Any,
    epoch: int,
    preflight: dict[str, Any] | None,
    evaluation: Any,
) -> int:
    from llmjp_train.runlog.lease import LeaseLostError
    from llmjp_train.train.loop import train
    from llmjp_train.train.run import Outcome
    from llmjp_train.train.setup import hooks, prepare_run

    run = None
    try:
        run = prepare_run(config, layout, record, stops, lease, epoch)
        if preflight is not None and layout.leader:
            record.event("preflight", step=run.step, **preflight)
        outcome = train(run, hooks(run, evaluation))
    except LeaseLostError:
        raise  # the record has another writer now
    except (Exception, KeyboardInterrupt) as error:
        if layout.leader:
            with suppress(OSError, UserError):  # what ended it is told in any case
                _record_end(record, epoch, run, error)
        raise
    asked = next((reason for reason in layout.gather(stops.reason) if reason), "")
    if layout.leader:
        kind = {Outcome.finished: "end", Outcome.stopped: "stop", Outcome.unhealthy: "stop"}[outcome]
        reason = run.ended or (asked if outcome is Outcome.stopped else outcome.value)
        record.event(kind, step=run.step, reason=reason, outcome=outcome.value)
        print(f"{outcome.value} at step {run.step}/{run.schedule.total_steps}: {reason}", flush=True)
        if outcome is Outcome.stopped:
            print(f"go on with: llmjp train {record.path}", flush=True)
    layout.barrier()
    run.engine.close()
    if run.unsaved:
        if layout.leader:
            print(
                f"llmjp train: the last checkpoint could not be saved: {run.unsaved}",
                file=sys.stderr,
                flush=True,
            )
        return exit_codes.FAILED
    codes = {
        Outcome.finished: exit_codes.OK,
        Outcome.stopped: exit_codes.STOPPED,
        Outcome.unhealthy: exit_codes.UNHEALTHY,
    }
    return codes[outcome]


def _record_end(record: Any, epoch: int, run: Any, error: BaseException) -> None:
    """Say in the record what ended this start; nothing of one that was refused before it was recorded."""
    from llmjp_train.runlog.reading import STARTS

    starts = [event for event in record.read_events() if event["kind"] in STARTS and event["epoch"] == epoch]
    if not starts:
        return
    step = starts[-1]["step"] if run is None else run.step
    if isinstance(error, KeyboardInterrupt):
        record.event("stop", step=step, reason="SIGINT twice: ended without a save", outcome="stopped")
    else:
        record.event("stop", step=step, reason=f"{type(error).__name__}: {error}", outcome="failed")


def _in_loop_evaluation(config: TrainConfig, layout: Any) -> Any:
    """Likelihood tasks on the training ranks, of the run that it is called with.

    Raises:
        UserError: an unknown task, missing data, or a task that generates text.
    """
    from llmjp_train.data.tokenizers import load_tokenizer
    from llmjp_train.evaluate.in_loop import in_loop
    from llmjp_train.train.hooks import InterruptedEvaluationError

    def score(run: Any, batch: Any) -> Any:
        if run.interrupted():
            raise InterruptedEvaluationError
        return -run.engine.token_nll(batch)

    settings = config.evaluation
    return in_loop(
        load_tokenizer(config.tokenizer),
        score,
        max_length=config.model.max_positions,
        suite=settings.suite,
        tasks=settings.tasks,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        batch_size=settings.batch_size,
        rank=layout.data_rank,
        ranks=layout.data,
        group=layout.data_group,
        model=config.name,
    )


if __name__ == "__main__":
    sys.exit(main())
