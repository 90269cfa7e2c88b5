"""Tokens a second that the training stream gives, and its start with an index of ten trillion tokens."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import random_tokens, report

TRILLIONS = 10


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*rates(Path(folder), args.rounds), *start(Path(folder), args.rounds)]
    report("loader", rows)


def rates(folder: Path, rounds: int) -> list[tuple[str, str, str]]:
    """One thread reading sequences of 4,096 tokens from documents of 700, masks and positions included."""
    from llmjp_train.config.compose import compose
    from llmjp_train.config.phases import phases
    from llmjp_train.data.stream import TrainingStream

    data = random_tokens(folder / "data", 99_574, 30_000, 700)
    config = compose(
        "train",
        ["experiment=tiny-cpu", "tokenizer.path=x", f"data.sources.small.path={data}", "batch.sequence_length=4096",
         "model.max_positions=4096", "model.vocab_size=99574", "schedule.length=600"],
    )  # fmt: skip
    stream = TrainingStream(config.data, phases(config), 99_574)
    clock, cpu = [], []
    for turn in range(rounds):
        began = time.perf_counter(), time.thread_time()
        for batch in range(40):
            stream.batch((turn * 40 + batch) * 8, 8, 4096)
        clock.append(40 * 8 * 4096 / (time.perf_counter() - began[0]) / 1e6)
        cpu.append(40 * 8 * 4096 / (time.thread_time() - began[1]) / 1e6)
    return [
        ("tokens a second, one thread", f"{statistics.median(clock):.1f} M", "goal >= 10 M/s"),
        ("tokens per CPU second", f"{statistics.median(cpu):.1f} M", ""),
    ]


def start(folder: Path, rounds: int) -> list[tuple[str, str, str]]:
    """Opening a mixture of four sources of ten trillion tokens in all, to the first batch and to one far on."""
    from llmjp_train.config.data import DataConfig, SourceConfig
    from llmjp_train.config.phases import Phase
    from llmjp_train.data.stream import TrainingStream

    for number, tenths in enumerate((4, 3, 2, 1)):
        simulated(folder / f"s{number}", TRILLIONS * 10**11 * tenths)
    sources = {f"s{n}": SourceConfig(path=str(folder / f"s{n}"), weight=4.0 - n) for n in range(4)}
    data, table = DataConfig(name="large", sources=sources), [Phase(0, None, 0, 0, 8, 4096, 1e-4, {})]
    found = []
    for turn in range(rounds):
        began = time.perf_counter()
        stream = TrainingStream(data, table, 99_574)
        stream.batch(0, 8, 4096)
        stream.batch(10**8 * (turn + 1), 8, 4096)
        found.append(time.perf_counter() - began)
        assert sum(stream.source_tokens.values()) == TRILLIONS * 10**12
    what = f"start to the first batches, {TRILLIONS} trillion tokens"
    return [(what, f"{statistics.median(found):.3f} s ({max(found):.3f} at most)", "goal < 2 s")]


def simulated(prefix: Path, tokens: int, length: int = 1000) -> None:
    """Token files of any size: holes in the disk, but for what the reader checks when it opens them."""
    from llmjp_train.data.token_files import CODES, HEADER, MAGIC, VERSION, pair, token_dtype

    dtype, documents = token_dtype(99_574), tokens // length
    bin_path, idx_path = pair(prefix)
    ends = [(4 * (documents - 1), 4, length), (12 * documents - 8, 8, dtype.itemsize * (tokens - length))]
    with idx_path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], documents, documents + 1))
        for at, width, value in (*ends, (20 * documents, 8, documents)):
            file.seek(HEADER.size + at)
            file.write(value.to_bytes(width, "little"))
    with bin_path.open("wb") as file:
        file.truncate(dtype.itemsize * tokens)
