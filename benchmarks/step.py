"""A step of ours against the same model in a bare DeepSpeed loop, in plain torch, and in HF Trainer with DeepSpeed.

All hold the same architecture, take the same micro batches of one sequence, use AdamW and clip at 1. They
take turns step by step in one process. Ours is the whole loop: data from token files, document mask, hooks,
metrics.jsonl and TensorBoard. The bare loop, plain torch and ours share our decoder and its chunked loss; HF
Trainer has transformers' Llama with its own loss. "DeepSpeed as it comes" has its default bucket sizes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import random_tokens, ratio, report

LENGTH = 512


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="150m")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--micro-batches", type=int, default=1, help="sequences that make a step")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sequence")
    args = parser.parse_args(words)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.model, args.precision, args.rounds, args.micro_batches, args.length)


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
    from llmjp_train.config.derive import derived
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
        flops_per_token=derived(config).flops_per_token,
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


def measure(folder: Path, name: str, precision: str, rounds: int, micro_batches: int, length: int) -> None:
    """Take turns inside HF Trainer's loop: after each of its steps the others take theirs."""
    from llmjp_train.engine import deepspeed_setup

    deepspeed_setup.prepare()
    config = composed(
        folder, name, precision, f"batch.global_batch={micro_batches}", f"batch.sequence_length={length}"
    )
    run, ours = our_loop(config)
    others = {
        "ours": ours,
        "bare DeepSpeed": bare_deepspeed(config, run),
        "DeepSpeed as it comes": bare_deepspeed(config, run, defaults=True),
        "plain torch": plain_torch(config, run),
    }
    seconds, own = against_trainer(folder, config, run, others, rounds)
    rows = []
    goals = {"bare DeepSpeed": "goal <= 1.03", "HF Trainer + DeepSpeed": "goal <= 0.9"}
    for other in ("bare DeepSpeed", "DeepSpeed as it comes", "plain torch", "HF Trainer + DeepSpeed"):
        for what, found in (("clock", seconds), ("CPU seconds", own)):
            middle, low, high = ratio(found["ours"], found[other])
            told = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            rows.append((f"our step / {other}, {what}", told, goals.get(other, "")))
    best = sorted(seconds["ours"])[len(seconds["ours"]) // 2]
    rate = micro_batches * length * run.flops_per_token / best
    rows.append((f"our step, {name}, {micro_batches} x {length} tokens, {precision}", f"{best:.2f} s", ""))
    rows.append(("share of the measured matmul peak", f"{rate / run.peak_flops:.3f}", "goal >= 0.65 at 150m"))
    report(f"step {name} {precision}", rows)


def against_trainer(
    folder: Path, config: Any, run: Any, others: dict[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each per round, by the clock and of the processor, with transformers' Trainer as the driver."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from llmjp_train.engine.flat import DTYPES
    from llmjp_train.model.hf import to_hf_config

    trainer_name, warm = "HF Trainer + DeepSpeed", 2
    seconds: dict[str, list[float]] = {who: [] for who in [*others, trainer_name]}
    own: dict[str, list[float]] = {who: [] for who in seconds}
    wanted = False

    def note(who: str, began: tuple[float, float]) -> None:
        if wanted:
            seconds[who].append(time.perf_counter() - began[0])
            own[who].append(time.process_time() - began[1])

    class Turns(TrainerCallback):
        began = 0.0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal wanted
            wanted = state.global_step > warm
            note(trainer_name, self.began)
            for who, call in others.items():
                began = time.perf_counter(), time.process_time()
                call()
                note(who, began)

    model = AutoModelForCausalLM.from_config(to_hf_config(config.model)).to(DTYPES[config.precision.dtype])
    count = config.batch.global_batch
    made = [run.stream.batch(i, 1, config.batch.sequence_length) for i in range((warm + rounds) * count)]
    items = [{"input_ids": b.tokens[0], "labels": b.tokens[0]} for b in made]
    deepspeed_config = {
        "zero_optimization": {"stage": 1},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": count,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision.dtype.value == "bf16"},
    }
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=warm + rounds, per_device_train_batch_size=1, learning_rate=1e-4,
        gradient_accumulation_steps=count,
        optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), bf16=config.precision.dtype.value == "bf16", deepspeed=deepspeed_config,
        dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[Turns()]).train()
    return seconds, own
