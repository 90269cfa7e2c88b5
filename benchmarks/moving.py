"""`llmjp import` and `llmjp export` against copying files of the size that they write, in turn, synced to the disk.

A Llama of 200 million parameters with random weights in bf16. Import writes masters and moments (12 bytes a
parameter); export writes bf16 and compares each layer with transformers for its certificate.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import report


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder otherwise)")
    args = parser.parse_args(words)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from llmjp_train.checkpoint.listing import latest
    from llmjp_train.checkpoint.store import CheckpointReader
    from llmjp_train.config.compose import load_config
    from llmjp_train.publish.export import export
    from llmjp_train.publish.importing import import_folder

    found: dict[str, list[tuple[float, float]]] = {"import": [], "export, its files alone": [], "export": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        place = Path(name)
        model = made(place)
        for turn in range(args.rounds + 1):
            run, out = place / f"run-{turn}", place / f"hf-{turn}"
            took = timed(lambda run=run: import_folder(model, run))  # type: ignore[misc]
            beside = copy(run / "checkpoints", place / "copy")
            config = load_config(run / "config.yaml")
            reader = CheckpointReader(latest(run).path)
            wrote: dict[str, float] = {}

            def progress(what: str, done: int, total: int, wrote: dict[str, float] = wrote) -> None:
                wrote.setdefault(what, time.perf_counter())
                if done == total:
                    os.sync()
                    wrote[f"{what}, to the end"] = time.perf_counter()

            back = timed(
                lambda: export(reader, config, run / "tokenizer", out, progress=progress)  # noqa: B023
            )
            files = wrote["tensors written, to the end"] - wrote["tensors written"]
            other = copy(out, place / "copy")
            if turn:
                found["import"].append((took, beside))
                found["export, its files alone"].append((files, other))
                found["export"].append((back, other))
            sizes = size(run / "checkpoints"), size(out), size(out)
            shutil.rmtree(run)
            shutil.rmtree(out)
    rows = []
    for (what, pairs), written in zip(found.items(), sizes, strict=True):
        ratio = statistics.median(copied / took for took, copied in pairs)
        rate = statistics.median(written / took for took, _ in pairs) / 1e6
        rows.append(
            (
                f"{what}: rate / rate of a copy",
                f"{ratio:.2f} ({rate:,.0f} MB/s, {written / 1e6:,.0f} MB)",
                "≥ 0.5",
            )
        )
    report("moving weights", rows)


def made(place: Path) -> Path:
    """A Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmjp_train.cli import main as llmjp

    assert not llmjp(["tokenizer", "train", "input=[llmjp-small-ja]", f"output={place}/tokenizer", "vocab_size=1536",
                      "character_coverage=0.98"])  # fmt: skip
    folder = place / "model"
    config = LlamaConfig(
        vocab_size=1536, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in (place / "tokenizer").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def timed(action: Callable[[], object]) -> float:
    """Seconds of an action and of what it left to the disk."""
    os.sync()
    began = time.perf_counter()
    action()
    os.sync()
    return time.perf_counter() - began


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy(folder: Path, to: Path) -> float:
    """Seconds to copy a folder's files, read and written, synced."""
    took = timed(lambda: shutil.copytree(folder, to))
    shutil.rmtree(to)
    return took
