"""How long training waits for a save: in the foreground, and in the background from a copy of the state."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import report


def main(words: list[str]) -> None:
    """Save a made-up state of some GB several times each way, in turn; medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=1.0, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder otherwise)")
    args = parser.parse_args(words)
    from llmjp_train.checkpoint.store import save
    from llmjp_train.parallel.fragment import Fragment
    from llmjp_train.train.background import Background

    rows, columns = int(args.gb * 1e9 / 4 / 16 / 4096), 4096
    fragments = []
    for index in range(16):
        value = torch.randn(rows * columns)
        fragments.append(Fragment(f"master.{index}", (rows, columns), (rows, columns), (0, 0), 0, value))
    copies = [torch.empty_like(fragment.view) for fragment in fragments]
    background = Background()
    found: dict[str, list[float]] = {"copy": [], "foreground": [], "background": []}
    first = 0.0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for turn in range(args.rounds + 1):
            began = time.perf_counter()
            for copy, fragment in zip(copies, fragments, strict=True):
                copy.copy_(fragment.view)
            memory = time.perf_counter() - began
            began = time.perf_counter()
            save(Path(name) / f"plain-{turn}", 1, fragments, {}, epoch=0)
            plain = time.perf_counter() - began
            began = time.perf_counter()
            staged = background.staged(fragments)

            def write(turn: int = turn, staged: list[Fragment] = staged) -> object:
                return save(Path(name) / f"staged-{turn}", 1, staged, {}, epoch=0)

            background.start(write)  # type: ignore[arg-type]
            stall = time.perf_counter() - began
            background.end()
            if turn == 0:
                first = stall  # makes the buffer; the copies above were fresh too
                continue
            for key, value in (("copy", memory), ("foreground", plain), ("background", stall)):
                found[key].append(value)
            _remove(Path(name))
    medians = {key: statistics.median(values) for key, values in found.items()}
    ratio = statistics.median(
        stall / copy for stall, copy in zip(found["background"], found["copy"], strict=True)
    )
    gain = statistics.median(
        plain / stall for plain, stall in zip(found["foreground"], found["background"], strict=True)
    )
    size = sum(fragment.view.numel() for fragment in fragments) * 4 / 1e9
    report(
        f"saving {size:.2f} GB on one rank",
        [
            ("one copy in memory", f"{medians['copy']:.3f} s", ""),
            ("training waits for a save in the foreground", f"{medians['foreground']:.3f} s", ""),
            ("training waits for one in the background", f"{medians['background']:.3f} s", ""),
            ("the same, the first time (fresh buffer)", f"{first:.3f} s", ""),
            ("background against one copy", f"{ratio:.2f} x", "goal <= 1.5 x"),
            ("foreground against background", f"{gain:.0f} x", ""),
        ],
    )


def _remove(folder: Path) -> None:
    import shutil

    for path in folder.iterdir():
        shutil.rmtree(path)
