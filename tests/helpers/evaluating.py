"""`llmjp evaluate` in this process and in those of a launcher, and the requests of a task."""

import argparse
import os
import subprocess
import sys
from typing import Any

from llmjp_train import cli
from llmjp_train.commands import evaluate as command
from llmjp_train.launch.local import free_port
from llmjp_train.parallel.world import rank_environment


def llmjp(*words: str) -> int:
    """The command as cli.py calls it."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    rest = [word for word in words if cli._is_override(word)]
    args = parser.parse_args([word for word in words if word not in rest])
    args.overrides, args.config_dir, args.cfg = rest, None, False
    return command.run(args)


def under_a_launcher(ranks: int, *words: str) -> list[str]:
    """What each of ``ranks`` processes says that a launcher such as torchrun starts; all end well."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "llmjp_train.cli", "evaluate", *words],
            env={**os.environ, **rank_environment(rank, ranks, rank, "127.0.0.1", port)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, said
    return said


def requests_of(name: str, limit: int) -> list[Any]:
    """What a task asks about its first items."""
    from llmjp_train.evaluate import harness
    from llmjp_train.evaluate.suites import choose

    chosen, _ = choose("quick", [name])
    task = harness.load_task(chosen[0], [])
    task.build_all_requests(limit=limit)
    return list(task.instances)
