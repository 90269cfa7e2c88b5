"""Where the time from `llmjp train` to the end of the first step of `tiny` goes, in seconds of a fresh process."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import random_tokens, report

CODE = """
import json, sys, time
began = time.perf_counter()
marks = {}
def mark(name):
    global began
    now = time.perf_counter(); marks[name] = now - began; began = now
import torch, numpy, transformers.models.llama, datasets, rich
mark("imports of torch, transformers, datasets")
from llmjp_train.engine import deepspeed_setup
deepspeed_setup.prepare()
import deepspeed.runtime.zero.stage_1_and_2, deepspeed.runtime.zero.muon.muon_optimizer
mark("import of DeepSpeed")
import deepspeed
initialize, spent = deepspeed.initialize, [0.0]
def timed(*args, **kwargs):
    start = time.perf_counter()
    try:
        return initialize(*args, **kwargs)
    finally:
        spent[0] += time.perf_counter() - start
deepspeed.initialize = timed
from pathlib import Path
import torch.distributed as dist
from benchmarks.step import our_loop
from llmjp_train.config.compose import load_config
config = load_config(Path(sys.argv[1]))
run, step = our_loop(config)
built = time.perf_counter() - began
began = time.perf_counter()
marks["DeepSpeed's initialize"] = spent[0]
marks["ours: configuration, data, model, hooks"] = built - spent[0]
step()
mark("first step")
print("MARKS" + json.dumps(marks))
"""


def main(words: list[str]) -> None:
    """Measure some fresh processes; medians."""
    import json

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(words)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from llmjp_train.config.compose import compose, dump_config

    with tempfile.TemporaryDirectory() as folder:
        data = random_tokens(Path(folder) / "data", 4096, 100, 700)
        config = compose(
            "train",
            ["experiment=tiny-cpu", "tokenizer.path=x", f"data.sources.small.path={data}", f"run_dir={folder}/run",
             "evaluation.validation_every=null"],
        )  # fmt: skip
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        found: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            done = subprocess.run(
                [sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=True
            )
            line = next(line for line in done.stdout.splitlines() if line.startswith("MARKS"))
            for name, value in json.loads(line.removeprefix("MARKS")).items():
                found.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ours = medians["ours: configuration, data, model, hooks"] + medians["first step"]
    rows = [(name, f"{value:.2f} s", "") for name, value in medians.items()]
    rows.append(("beyond imports and DeepSpeed's own", f"{ours:.2f} s", "goal <= 2 s"))
    report("start-up to the first step, tiny", rows)
