"""A step of ours against a bare DeepSpeed loop in the same layout: tp2, pp2 and dp2 on two ranks.

Both have the same parts of the same decoder, the same ZeRO-1 settings, AdamW, clipping and four sequences a step,
and take turns step by step in one pair of processes, each on a core of its own. Ours is the whole loop: data from
token files, document mask, agreement on stops, hooks, metrics.jsonl and TensorBoard. The bare loop has its batches
in memory, and leaves the mean over tokens, the losses of sources and the look at what is not finite to nobody.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, ratios, report, timed
from benchmarks.step import LENGTH, accumulating, composed, our_loop

LAYOUTS = {"tp2": "parallel.tensor=2", "pp2": "parallel.pipeline=2", "dp2": "parallel.data=2"}
SEQUENCES = 4
VOCABULARY = "model.vocab_size=8192"
"""Small, so that more steps are compared in the time."""


def main(words: list[str]) -> None:
    """Measure each layout in a pair of fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="150m")
    parser.add_argument("--layers", type=int, default=2, help="layers of it")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--layout", choices=[*LAYOUTS], help="one of them alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if args.folder is not None:
        return measure(args.folder, args.layout, args.model, args.layers, args.rounds)
    for name in [args.layout] if args.layout else LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--layout", name, "--folder", folder, "--model", args.model]
            start([*flags, "--layers", str(args.layers), "--rounds", str(args.rounds)])
    return None


def start(flags: list[str]) -> None:
    """Two ranks of this benchmark."""
    from llmjp_train.launch.local import free_port
    from llmjp_train.parallel.world import rank_environment

    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "layouts", *flags],
            env={
                **os.environ,
                **rank_environment(rank, 2, rank, "127.0.0.1", port),
                "LLMJP_CORES": str(core),
            },
        )
        for rank, core in enumerate(sorted(os.sched_getaffinity(0))[:2])
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"a rank of {flags} failed")


def measure(folder: Path, name: str, model: str, layers: int, rounds: int) -> None:
    """Let both take turns."""
    from llmjp_train.engine import deepspeed_setup
    from llmjp_train.launch.local import keep_memory, take_place

    take_place()
    keep_memory()
    deepspeed_setup.prepare()
    rank = int(os.environ["RANK"])
    sizes = [LAYOUTS[name], f"model.num_layers={layers}", f"batch.global_batch={SEQUENCES}", VOCABULARY]
    config = composed(folder / f"{rank}", model, "fp32", *sizes, f"run_dir={folder / 'run'}")
    run, ours = our_loop(config)
    bare = bare_pipeline(config, run) if run.layout.pipeline > 1 else bare_flat(config, run)
    found = interleaved({"ours": timed(ours), "bare": timed(bare)}, rounds)
    if rank == 0:
        rows = ratios(f"our step / bare DeepSpeed, {name}", found["ours"], found["bare"], "<= 1.03")
        typical = statistics.median(clock for clock, _ in found["ours"])
        report(f"layout {name}", [*rows, (f"our step, {layers} layers of {model}", f"{typical:.2f} s", "")])


def batches(run: Any) -> Iterator[Any]:
    """Micro batches of this rank, made before they are asked for."""
    made = [run.stream.batch(i, 1, LENGTH) for i in range(run.layout.data_rank, 16, run.layout.data)]
    while True:
        yield from made


def settings(config: Any, module: Any) -> dict[str, Any]:
    """Our settings for DeepSpeed, but with its own accumulation."""
    from llmjp_train.engine.ds_config import ds_config

    count = SEQUENCES // config.parallel.data
    return {
        **ds_config(config, sum(p.numel() for p in module.parameters())),
        "gradient_accumulation_steps": count,
        "train_batch_size": SEQUENCES,
    }


def bare_flat(config: Any, run: Any) -> Callable[[], None]:
    """The shortest loop on DeepSpeed's engine, over this rank's part of the decoder."""
    import deepspeed
    import torch

    from llmjp_train.engine.flat import build_decoder
    from llmjp_train.parallel.mpu import Mpu
    from llmjp_train.parallel.tensor import mark

    module = build_decoder(config, run.layout)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        mark(name, parameter, run.layout)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config=settings(config, module),
        mpu=Mpu(run.layout) if run.layout.tensor > 1 else None,
    )
    return accumulating(engine, batches(run), SEQUENCES // config.parallel.data)


def bare_pipeline(config: Any, run: Any) -> Callable[[], None]:
    """DeepSpeed's train_batch over this rank's stage."""
    import deepspeed
    import torch

    from llmjp_train.engine.pieces import StageLoss
    from llmjp_train.engine.pipeline import _head, _module

    loss = StageLoss(0.0, 1, run.layout.device)
    module = _module(config, run.layout, loss)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if run.layout.last_stage:
        loss.head = _head(config, run.layout, module)
    loss.begin(1 / LENGTH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings(config, module))
    source = (
        ((batch.tokens, batch.documents, batch.positions, batch.targets, batch.sources), ())
        for batch in batches(run)
    )

    def step() -> None:
        engine.train_batch(source)

    return step
