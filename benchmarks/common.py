"""What benchmarks share: interleaved rounds, medians, and what this machine is."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Seconds = tuple[float, float]
"""By the clock, and of the processor: what other programs take is not in the second."""


def timed(call: Callable[[], object]) -> Callable[[], Seconds]:
    """The call, which then returns its seconds in this process."""

    def turn() -> Seconds:
        clock, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - clock, time.process_time() - cpu

    return turn


def interleaved(
    turns: Mapping[str, Callable[[], Seconds]], rounds: int, warm: int = 2
) -> dict[str, list[Seconds]]:
    """Seconds of each in each round; all take turns, so that a noisy neighbour meets all alike."""
    found: dict[str, list[Seconds]] = {name: [] for name in turns}
    for number in range(warm + rounds):
        for name, turn in turns.items():
            took = turn()
            if number >= warm:
                found[name].append(took)
    return found


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median over the rounds of ours / theirs, and its quartiles."""
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(pairs, n=4)
    return middle, low, high


def ratios(
    what: str, above: list[Seconds], below: list[Seconds], goal: str = ""
) -> list[tuple[str, str, str]]:
    """Lines for `report`: above / below, by the clock and of the processor."""
    rows = []
    for kind, unit in enumerate(("clock", "CPU seconds")):
        middle, low, high = ratio([one[kind] for one in above], [one[kind] for one in below])
        rows.append((f"{what}, {unit}", f"{middle:.3f} ({low:.3f} to {high:.3f})", goal))
    return rows


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
