"""What hooks and supervisor cost beside the steps: microseconds a step, and as a share of a step of half a second.

A supervised run of two ranks on this machine, as `llmjp submit` starts it, with every hook at its default cadence and
a model so small that the rest shows. Hooks: time from one row of metrics to another, less the steps themselves.
Supervisor: its processor time, which does not grow with the steps but with the seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.common import report
from llmjp_train.runlog.reading import step_rows
from llmjp_train.runlog.record import RunRecord

STEPS = 2000
STEP_SECONDS = 0.5
_SIZES = (
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_size=48", "model.num_heads=4", "model.num_kv_heads=2",
    "model.head_size=8", "model.vocab_size=1536", "model.max_positions=64", "batch.sequence_length=64",
    "batch.global_batch=2", "batch.micro_batch=1", "parallel.data=2", "schedule=constant", "schedule.min_lr=0",
    f"schedule.length={STEPS}", "schedule.warmup=10", "checkpoint.every_steps=null", "checkpoint.save_final=false",
    "evaluation.every=null", "evaluation.validation_every=null",
)  # fmt: skip


def main(words: list[str]) -> None:
    """Measure."""
    argparse.ArgumentParser(description=__doc__).parse_args(words)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        llmjp("tokenizer", "train", "input=[llmjp-small-ja]", f"output={folder}/tokenizer", "vocab_size=1536",
              "character_coverage=0.98")  # fmt: skip
        tokenizer = f"tokenizer.path={folder}/tokenizer"
        llmjp("prepare", "input=[llmjp-small-ja]", f"output={folder}/data", tokenizer)
        run = folder / "run"
        llmjp("submit", "experiment=tiny-cpu", f"run_dir={run}", tokenizer, f"data.sources.small.path={folder}/data",
              *_SIZES)  # fmt: skip
        supervisor, began, used = _first_look(run)
        while supervisor.is_running() and (now := _used(supervisor)) is not None:
            last, ended = now, time.monotonic()
            time.sleep(0.5)
        tell(run, (last - used) / (ended - began))


def llmjp(*words: str) -> None:
    """A command as a user gives it."""
    environment = {key: value for key, value in os.environ.items() if key != "LLMJP_DATA"}
    subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", *words], check=True, capture_output=True, env=environment
    )


def _first_look(run: Path) -> tuple[psutil.Process, float, float]:
    """The supervisor once steps are taken: the parent of the ranks."""
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 100:
        time.sleep(0.5)
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "train_node" in words and str(run) in words and len(process.children()) == 2:
            used = _used(process)
            assert used is not None
            return process, time.monotonic(), used
    raise SystemExit("the supervisor was not found: the run has ended already")


def _used(process: psutil.Process) -> float | None:
    """Processor seconds; none once it has ended."""
    try:
        times = process.cpu_times()
        return float(times.user + times.system) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def tell(run: Path, supervisor: float) -> None:
    """Print the figures."""
    rows = [row for row in step_rows(RunRecord(run).read_metrics()) if row["step"] > 100]
    seconds = (
        datetime.fromisoformat(rows[-1]["time"]) - datetime.fromisoformat(rows[0]["time"])
    ).total_seconds()
    hooks = (seconds - sum(row["step_s"] for row in rows[1:])) / (len(rows) - 1)
    typical = statistics.median(row["step_s"] for row in rows)
    share = hooks / STEP_SECONDS + supervisor
    report(
        "overhead of hooks and supervisor",
        [
            ("the step itself, median", f"{typical * 1e6:,.0f} µs", ""),
            ("hooks and loop, mean a step", f"{hooks * 1e6:,.0f} µs", ""),
            ("the supervisor's processor time", f"{supervisor * 1e6:,.0f} µs a second", ""),
            (f"both, of a step of {STEP_SECONDS} s", f"{share:.2%}", "1 % at most"),
        ],
    )
