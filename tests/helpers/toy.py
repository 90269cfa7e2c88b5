"""Small things that tests of several rooms need: a text, a configuration, batches."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = [*"春夏秋冬山川海空猫犬鳥魚朝昼夜雨雪", "歩く", "走る", "見る", "話す", "静かな", "新しい"]
PARTICLES = [*"がをにのはもとで", "から", "まで"]


def sentences(seed: int, count: int) -> str:
    """Text that is Japanese in form, the same for the same seed."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = (draw.choice(WORDS) + draw.choice(PARTICLES) for _ in range(draw.randint(2, 7)))
        lines.append(
            "".join(words) + draw.choice(["。", "！", "。\n", "。Yes, it is.", f"{draw.randint(0, 99)}。"])
        )
    return "".join(lines)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """JSON lines with a text each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts))
    path.write_text("".join(lines), encoding="utf-8")
    return path


SMALL_MODEL = (
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.ffn_size=48",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_size=8",
    "model.vocab_size=400",
    "model.max_positions=64",
)
"""A model that steps in milliseconds."""


def small_run(run_dir: Path, prepared: Path, tokenizer_folder: Path, *overrides: str) -> list[str]:
    """Overrides of a run of 20 steps of a few milliseconds each, validation included."""
    return [
        "experiment=tiny-cpu",
        f"run_dir={run_dir}",
        f"tokenizer.path={tokenizer_folder}",
        f"data.sources.small.path={prepared}",
        *SMALL_MODEL,
        "batch.global_batch=6",
        "batch.micro_batch=1",
        "batch.sequence_length=32",
        "schedule.length=20",
        "schedule.warmup=4",
        "schedule.min_lr=1e-4",
        "checkpoint.every_steps=null",
        "checkpoint.keep_last=5",
        "evaluation.validation_every=10",
        "evaluation.validation_batches=1",
        "metrics.tensorboard=false",
        "metrics.grad_norm_every=5",
        "metrics.health_every=5",
        "metrics.agreement_every=5",
        *overrides,
    ]


def small_config(*overrides: str) -> Any:
    """A composed configuration of a small model; no files are needed to build its engine."""
    from llmjp_train.config.compose import compose

    paths = ("experiment=tiny-cpu", "tokenizer.path=none", "data.sources.small.path=none")
    return compose("train", [*paths, *SMALL_MODEL, "batch.micro_batch=1", *overrides])


def ragged_batches(config: Any, samples: int, seed: int = 0) -> list[Any]:
    """Micro batches of one sample: several documents, and a number of targets that differs from sample to sample."""
    import torch

    from llmjp_train.data.stream import MicroBatch

    length, found = 24, []
    generator = torch.Generator().manual_seed(seed)
    for sample in range(samples):
        tokens = torch.randint(0, config.model.vocab_size, (1, length), generator=generator)
        targets = torch.roll(tokens, -1, 1)
        cut = 5 + 3 * sample % 11
        targets[0, [cut, length - 1]] = -100
        targets[0, : sample * 3] = -100
        documents = (torch.arange(length) > cut).long()[None]
        positions = torch.where(documents == 0, torch.arange(length), torch.arange(length) - cut - 1)
        found.append(MicroBatch(tokens, targets, documents, positions, torch.tensor([sample % 2])))
    return found
