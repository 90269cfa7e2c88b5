"""What benchmarks share: interleaved rounds, medians, and what this machine is."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Competitors = Mapping[str, Callable[[], Any]]


def interleaved(competitors: Competitors, rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each competitor in each round; all take turns, so that a noisy neighbour meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for turn in range(warm + rounds):
        for name, call in competitors.items():
            began = time.perf_counter()
            call()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median over the rounds of ours / theirs, and its quartiles."""
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(pairs, n=4)
    return middle, low, high


def machine() -> str:
    """Processor, cores and vector features in one line."""
    from llmjp_train.runlog.environment import cpu

    found = cpu()
    return f"{found['model']}, {found['cores']} cores, {' '.join(found['features']) or 'no AVX2'}"


def report(name: str, rows: list[tuple[str, str, str]]) -> None:
    """Print (what, figure, goal) lines; also as JSON for docs/benchmarks.md."""
    print(f"\n{name}  ({machine()})")
    for what, figure, goal in rows:
        print(f"  {what:<58} {figure:<34} {goal}")
    print(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, ensure_ascii=False))


def random_tokens(folder: Path, vocab_size: int, documents: int, length: int) -> Path:
    """A prepared-looking pair of token files with random ids."""
    from llmjp_train.data.token_files import TokenFileWriter

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with TokenFileWriter(folder / "train", vocab_size) as writer:
        for _ in range(documents):
            writer.add(draw.integers(3, vocab_size, length))
    return folder
