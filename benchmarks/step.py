"""A step of ours against the same model in a bare DeepSpeed loop, in plain torch, and in HF Trainer with DeepSpeed.

All hold the same architecture, take the same micro batches of one sequence, use AdamW and clip at 1, and take
turns step by step. Ours is the whole loop: data from token files, document mask, hooks, metrics.jsonl and
TensorBoard. The bare loop, plain torch and ours share our decoder, its chunked loss and one process; HF Trainer
has transformers' Llama with its own loss, and a process of its own as its users start it, where glibc gives freed
memory back to the kernel (`--alike`: it keeps it as ours does). "DeepSpeed as it comes" has its default bucket sizes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Seconds, interleaved, random_tokens, ratios, report, timed

LENGTH = 512
WARM = 2
"""Steps before those that count."""


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="150m")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--micro-batches", type=int, default=1, help="sequences that make a step")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sequence")
    parser.add_argument("--alike", action="store_true", help="HF Trainer's process keeps freed memory too")
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    from llmjp_train.launch.local import free_port, keep_memory
    from llmjp_train.parallel.world import rank_environment

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    sizes = f"batch.global_batch={args.micro_batches}", f"batch.sequence_length={args.length}"
    if args.trainer:
        if args.alike:
            keep_memory()
        return hf_trainer(
            args.trainer, composed(args.trainer, args.model, args.precision, *sizes), args.rounds
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", "step", *words, "--trainer", f"{folder}/trainer"]
        environment = {**os.environ, **rank_environment(0, 1, 0, "127.0.0.1", free_port())}
        trainer = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with trainer:
            return measure(composed(Path(folder), args.model, args.precision, *sizes), args, trainer)


def composed(folder: Path, model: str, precision: str, *more: str) -> Any:
    """The run's configuration, on random tokens; ``more`` settings come last."""
    from llmjp_train.config.compose import compose

    first = compose(
        "train",
        ["experiment=tiny-cpu", f"model={model}", "tokenizer.path=x", "data.sources.small.path=x", *more],
    )
    data = random_tokens(folder / "data", first.model.vocab_size, 400, 700)
    return compose(
        "train",
        [
            "experiment=tiny-cpu", f"model={model}", f"precision={precision}", "tokenizer.path=x",
            f"data.sources.small.path={data}", f"run_dir={folder / 'run'}", f"batch.sequence_length={LENGTH}",
            "batch.global_batch=1", "batch.micro_batch=1", "schedule.length=10000", "checkpoint.every_steps=null",
            "evaluation.validation_every=null", "schedule.warmup=100", *more,
        ],
    )  # fmt: skip


def our_loop(config: Any) -> tuple[Any, Callable[[], None]]:
    """A run without tokenizer files, and a function that takes one step of the real loop."""
    from llmjp_train.config.phases import phases
    from llmjp_train.data.stream import TrainingStream
    from llmjp_train.engine.make import make_engine
    from llmjp_train.parallel import layout as layouts
    from llmjp_train.parallel.world import world
    from llmjp_train.runlog.record import RunRecord
    from llmjp_train.train.loop import take_step
    from llmjp_train.train.metrics import peak_flops
    from llmjp_train.train.optimizer import parameter_groups
    from llmjp_train.train.run import Run
    from llmjp_train.train.schedule import schedule
    from llmjp_train.train.setup import hooks
    from llmjp_train.train.stops import Stops

    layout = layouts.start(config.parallel, world(), cuda=False)
    table = phases(config)
    record = RunRecord(Path(config.run_dir))
    if layout.leader:
        record.create("")
    stream = TrainingStream(config.data, table, config.model.vocab_size)
    run = Run(
        config=config,
        layout=layout,
        engine=make_engine(config, layout, 1, parameter_groups(config)),
        stream=stream,
        validation=None,
        bytes_per_token=0.0,
        schedule=schedule(config),
        phases=table,
        record=record,
        stops=Stops(),
        lease=None,
        fingerprints={},
        peak_flops=peak_flops(config.cluster, config.precision.dtype, layout.device),
    )
    found, loader = hooks(run, None), run.loader()
    for hook in found:
        hook.start(run)

    def step() -> None:
        assert take_step(run, loader, found) is None

    return run, step


def decoder(config: Any) -> Any:
    """Our model with its initial values, in the run's precision."""
    from llmjp_train.engine.flat import DTYPES
    from llmjp_train.model.decoder import Decoder
    from llmjp_train.model.initial import fill

    model = Decoder(config.model)
    fill(model, config.model, 1)
    return model.to(DTYPES[config.precision.dtype])


def micro_batches(run: Any) -> Iterator[Any]:
    """The same sequences, made before they are asked for."""
    made = [run.stream.batch(i, 1, run.config.batch.sequence_length) for i in range(16)]
    while True:
        yield from made


def bare_deepspeed(config: Any, run: Any, *, defaults: bool = False) -> Callable[[], None]:
    """The shortest loop on DeepSpeed's engine."""
    import deepspeed
    import torch

    from llmjp_train.engine.ds_config import ds_config

    model = decoder(config)
    settings = ds_config(config, sum(p.numel() for p in model.parameters()))
    settings["gradient_accumulation_steps"] = settings["train_batch_size"] = config.batch.global_batch
    if defaults:
        settings["zero_optimization"] = {"stage": config.parallel.zero}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return accumulating(engine, micro_batches(run), config.batch.global_batch)


def accumulating(engine: Any, batches: Iterator[Any], count: int) -> Callable[[], None]:
    """A step of DeepSpeed's engine over ``count`` micro batches."""

    def step() -> None:
        for _ in range(count):
            batch = next(batches)
            sums = engine(batch.tokens, batch.documents, batch.positions, batch.targets)
            engine.backward(sums.nll / (batch.targets >= 0).sum())
            engine.step()

    return step


def plain_torch(config: Any, run: Any) -> Callable[[], None]:
    """No engine at all."""
    import torch

    model = decoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = micro_batches(run)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(config.batch.global_batch):
            batch = next(batches)
            sums = model(batch.tokens, batch.documents, batch.positions, batch.targets)
            (sums.nll / (batch.targets >= 0).sum() / config.batch.global_batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure(config: Any, args: argparse.Namespace, trainer: "subprocess.Popen[str]") -> None:
    """Take turns."""
    from llmjp_train.config.derive import derived
    from llmjp_train.engine import deepspeed_setup
    from llmjp_train.launch.local import keep_memory

    heard(trainer)  # what it does to begin would disturb the peak that is measured next
    deepspeed_setup.prepare()
    keep_memory()
    run, ours = our_loop(config)
    here = {
        "ours": ours,
        "bare DeepSpeed": bare_deepspeed(config, run),
        "DeepSpeed as it comes": bare_deepspeed(config, run, defaults=True),
        "plain torch": plain_torch(config, run),
    }
    turns = {who: timed(call) for who, call in here.items()}
    turns["HF Trainer + DeepSpeed"] = lambda: asked(trainer)
    found = interleaved(turns, args.rounds, WARM)
    goals = {"bare DeepSpeed": "goal <= 1.03", "HF Trainer + DeepSpeed": "goal <= 0.9"}
    rows = []
    for other in list(turns)[1:]:
        rows += ratios(f"our step / {other}", found["ours"], found[other], goals.get(other, ""))
    middle = statistics.median(clock for clock, _ in found["ours"])
    rate = args.micro_batches * args.length * derived(config).flops_per_token / middle
    what = f"{args.model}, {args.micro_batches} x {args.length} tokens, {args.precision}"
    rows.append((f"our step, {what}", f"{middle:.2f} s", ""))
    rows.append(("share of the measured matmul peak", f"{rate / run.peak_flops:.3f}", "goal >= 0.65 at 150m"))
    report(f"step {args.model} {args.precision}", rows)


def asked(trainer: "subprocess.Popen[str]") -> Seconds:
    """Let the other process take a step; its seconds."""
    assert trainer.stdin is not None
    trainer.stdin.write("go\n")
    trainer.stdin.flush()
    return heard(trainer)


def heard(trainer: "subprocess.Popen[str]") -> Seconds:
    """The next seconds that it tells; none of them before its first step."""
    assert trainer.stdout is not None
    for line in trainer.stdout:
        if line.startswith("took "):
            _, clock, cpu = line.split()
            return float(clock), float(cpu)
    raise SystemExit("HF Trainer's process has ended")


def hf_trainer(folder: Path, config: Any, rounds: int) -> None:
    """transformers' Trainer with DeepSpeed; takes a step for each line that comes, and says what it took."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from llmjp_train.config.phases import phases
    from llmjp_train.data.stream import TrainingStream
    from llmjp_train.engine.flat import DTYPES
    from llmjp_train.model.hf import to_hf_config

    class Turns(TrainerCallback):
        began = 0.0, 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print("took 0 0", flush=True)  # from now on it waits

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                raise SystemExit(1)
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock, cpu = self.began
            print("took", time.perf_counter() - clock, time.process_time() - cpu, flush=True)

    model = AutoModelForCausalLM.from_config(to_hf_config(config.model)).to(DTYPES[config.precision.dtype])
    count, steps = config.batch.global_batch, WARM + rounds
    stream = TrainingStream(config.data, phases(config), config.model.vocab_size)
    made = [stream.batch(number, 1, config.batch.sequence_length) for number in range(steps * count)]
    items = [{"input_ids": batch.tokens[0], "labels": batch.tokens[0]} for batch in made]
    deepspeed_config = {
        "zero_optimization": {"stage": 1},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": count,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision.dtype.value == "bf16"},
    }
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=steps, per_device_train_batch_size=1, learning_rate=1e-4,
        gradient_accumulation_steps=count,
        optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), bf16=config.precision.dtype.value == "bf16", deepspeed=deepspeed_config,
        dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[Turns()]).train()
