"""Small run directories, written by the classes that a training writes them with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmjp_train.checkpoint.store import save
from llmjp_train.config.compose import dump_config
from llmjp_train.config.data import SourceConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.root import TrainConfig
from llmjp_train.evaluate.schema import Metric, Payload, TaskResult
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.runlog.lease import Lease
from llmjp_train.runlog.record import RunRecord


def config(path: Path, name: str = "toy", **changes: Any) -> TrainConfig:
    """A valid configuration of a run in ``path``."""
    found = TrainConfig(name=name, run_dir=str(path), model=ModelConfig(name="tiny"), **changes)
    for part in (found.data, found.schedule, found.parallel, found.evaluation, found.tokenizer):
        part.name = "toy"
    found.data.sources = {"wiki": SourceConfig(path="wiki"), "aozora": SourceConfig(path="aozora")}
    return found


def new_run(path: Path, **changes: Any) -> RunRecord:
    """A run that was configured and never started."""
    record = RunRecord(path)
    record.create(dump_config(config(path, **changes)))
    return record


def start(record: RunRecord, kind: str = "start", step: int = 0, **fields: Any) -> None:
    """The event of a start, as train/setup.py writes it."""
    record.event(
        kind,
        step=step,
        epoch=1,
        origin=fields.pop("origin", {}),
        layout={"data": 2, "zero": 1, "ranks": 2},
        dtype="fp32",
        device="cpu",
        peak_tflops=0.2,
        threads=1,
        allow_changed=[],
        **fields,
    )


def step_row(record: RunRecord, step: int, loss: float) -> None:
    """The row of a step, as train/hooks.py writes it."""
    record.metrics(
        step=step,
        samples=8 * step,
        tokens=2048 * step,
        loss=loss,
        lr=3e-4 * min(1, step / 10),
        grad_norm=1.0 + 1 / step,
        z_loss=0.0,
        tokens_per_s=10_000.0 + 100 * math.sin(step),
        tflops=0.05,
        mfu=0.4,
        memory_gib=0.6,
        data_wait_s=0.001,
        step_s=0.2,
        forward_backward_s=0.18,
        optimizer_s=0.01,
        spike_score=None,
        sources={"wiki": {"tokens": 1500, "loss": loss - 0.1}, "aozora": {"tokens": 500, "loss": loss + 0.3}},
    )


def validation_row(record: RunRecord, step: int, loss: float) -> None:
    """The row of a validation."""
    record.metrics(
        step=step,
        tokens=2048 * step,
        validation={
            "loss": loss,
            "bits_per_byte": loss / 3,
            "tokens": 4096,
            "sources": {"wiki": {"tokens": 4096, "loss": loss}},
            "seconds": 0.5,
        },
    )


def write_data(record: RunRecord) -> None:
    """data.json of two sources."""
    sources = {
        name: {
            "tokens": tokens,
            "fingerprint": letter * 64,
            "weight": None,
            "epochs": None,
            "tokenizer": None,
        }
        for name, tokens, letter in (("wiki", 1_234_567, "a"), ("aozora", 7_654_321, "b"))
    }
    record.write_data(
        {
            "model": {"name": "tiny"},
            "tokenizer": {"fingerprint": "c" * 64},
            "data": {"seed": 1234, "document_mask": True, "window": 256, "sources": sources},
        }
    )


def payload(path: Path, step: int, accuracy: float = 0.35) -> dict[str, Any]:
    """An evaluation of one task, in the schema of evaluate/schema.py."""
    stderr = 0.04
    task = TaskResult(
        metric={
            "acc_norm": Metric(accuracy - 0.02, stderr, 0.2, 0.5, True),
            "acc": Metric(accuracy, stderr, accuracy - 0.08, accuracy + 0.08, True),
        },
        main_metric="acc",
        items=100,
        items_in_all=1119,
        majority_baseline=0.21,
        chance=0.2,
        num_fewshot=3,
        licence="CC BY-SA 4.0",
        source="somewhere",
        data_version="1.1",
        data_sha256=None,
        task_version="1",
        prompts_sha256="d" * 64,
        seconds=2.0,
        truncated=0,
        joined_tokens=0,
    )
    perplexity = replace(
        task,
        metric={"bits_per_byte": Metric(2.1234, None, None, None, False)},
        main_metric="bits_per_byte",
        majority_baseline=None,
        chance=None,
        items_in_all=100,
    )
    tasks = {"jcommonsenseqa": task, "own_text": perplexity}
    return Payload(
        str(path),
        step,
        "quick",
        tasks,
        ["jnli: no data here"],
        "lm_eval 0.4",
        "2026-01-01T00:00:00+00:00",
        4.0,
        {},
        None,
    ).to_dict()


def full_run(path: Path, *, steps: int = 100, name: str = "toy") -> RunRecord:
    """A run with everything: a stop, a resume, a spike, a failed save, two checkpoints, evaluations."""
    found = config(path, name)
    found.schedule.length = steps
    record = RunRecord(path)
    record.create(dump_config(found))
    record.write_environment()
    write_data(record)
    with Lease.acquire(path) as lease:
        start(record)
        for step in range(1, steps + 1):
            if step == steps // 2:
                record.event("stop", step=step - 1, reason="SIGTERM", outcome="stopped")
                start(
                    record,
                    "resume",
                    step - 1,
                    origin={"checkpoint": "step-00000049.epoch-0001", "step": step - 1},
                )
            noise = 0.1 * math.sin(7 * step)
            step_row(record, step, 8.0 * step**-0.2 + noise)
            if step % 20 == 0:
                validation_row(record, step, 8.05 * step**-0.2)
                record.metrics(step=step, tokens=2048 * step, eps_dominated=0.5 / step)
                record.write_evaluation(f"step-{step:08d}-in-loop", payload(path, step, 0.2 + step / 1000))
        record.event("spike", step=70, loss=5.5, score=7.25)
        record.event("save_failed", step=80, message="No space left on device: free 22 MB")
        tensor = torch.arange(12.0)
        for step in (steps // 2, steps):
            fragment = Fragment("master.norm.weight", (12,), (12,), (0,), 0, tensor)
            layout = {"tensor": 1, "pipeline": 1, "data": 2, "zero": 1}
            info = save(path, step, [fragment], {"step": step, "layout": layout}, epoch=lease.epoch)
            record.event(
                "save", step=step, folder=info.path.name, bytes=info.bytes, seconds=0.1, reason="cadence"
            )
        record.event("end", step=steps, reason="finished", outcome="finished")
    record.write_evaluation(f"step-{steps:08d}-quick", payload(path, steps))
    return record
