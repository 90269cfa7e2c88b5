"""What went wrong in the scripts that LLM-jp published, each shown impossible here.

The scripts are those of llm-jp/scripts and llm-jp/Megatron-DeepSpeed; what each line did is in the test's words.
"""

import json
import os
import re
import resource
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from helpers.job_scripts import CLUSTERS, HELLO, rendered
from helpers.runs import train

from llmjp_train import exit_codes
from llmjp_train.config.compose import compose
from llmjp_train.engine.ds_config import ds_config
from llmjp_train.launch.meeting import meet
from llmjp_train.runlog.record import RunRecord


@cache
def scripts() -> dict[str, str]:
    return {name: rendered(name) for name in CLUSTERS}


def launch(name: str, folder: Path, **variables: str) -> str:
    """What a script's launch() hands to mpirun: its words, and the hosts of its file."""
    found = re.search(r"^launch\(\) \{.*?^\}", scripts()[name], re.M | re.S)
    assert found
    mpirun = folder / "mpirun"
    mpirun.write_text('#!/bin/bash\necho "$@"\ncat "$job"/hosts-*\n')
    mpirun.chmod(0o755)
    body = f"set -euo pipefail\njob={folder}\npython=(python)\n{found[0]}\nlaunch\n"
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LLMJP_ATTEMPT": "001",
        "job": str(folder),
        **variables,
    }
    done = subprocess.run(["bash", "-c", body], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ranks_meet_where_the_first_node_says_and_at_a_port_that_was_free(tmp_path: Path) -> None:
    """`MASTER_ADDR=$(head -n 1 $PBS_NODEFILE | hostname -f)` ignores its pipe: each host names itself. The port was
    fixed, or a random number below 1000 and an offset: two jobs on a host met."""
    heard: dict[tuple[str, int], Any] = {}

    def node(job: str, number: int) -> None:
        heard[job, number] = meet(tmp_path / job, number, 3, {**HELLO, "host": f"n{number}"}, "lo", 30)

    threads = [
        threading.Thread(target=node, args=(job, number)) for job in ("a", "b") for number in (2, 1, 0)
    ]
    for job in ("a", "b"):
        (tmp_path / job).mkdir()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in ("a", "b"):
        assert {(heard[job, n].address, heard[job, n].port) for n in range(3)} == {
            ("127.0.0.1", heard[job, 0].port)
        }
    assert heard["a", 0].port != heard["b", 0].port
    for name, script in scripts().items():
        assert "MASTER" not in script, name
        assert "hostname" not in script, name
        assert "RANDOM" not in script, name


def test_open_files_are_raised_as_far_as_the_hard_limit_allows() -> None:
    """`ulimit -n 65536 1048576` ignores its second word; under `set -e` it ends a script if the hard limit is low."""
    code = (
        "import resource\n"
        "from llmjp_train.launch.meeting import raise_open_files\n"
        "print(raise_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    for hard, wanted in ((2048, "2048 2048 2048"), (100_000, "65536 65536 100000")):
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] not in (resource.RLIM_INFINITY,) and (
            resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard
        ):
            continue
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True,
            preexec_fn=lambda hard=hard: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
        )  # fmt: skip
        assert done.stdout.strip() == wanted, done.stderr
    assert not any("ulimit" in script for script in scripts().values())


def test_a_host_that_stands_eight_times_in_the_file_is_one_node(tmp_path: Path) -> None:
    """`wc -l < $PBS_NODEFILE` counts a node once for each of its mpiprocs."""
    hosts = tmp_path / "nodes"
    hosts.write_text("".join(f"{host}\n" for host in ("g01", "g02") for _ in range(8)))
    said = launch("abci-3", tmp_path, PBS_NODEFILE=str(hosts)).splitlines()
    assert said[1:] == ["g01", "g02"]
    assert re.search(r"-np 2\b", said[0])


def test_two_runs_share_no_file_that_says_how_to_train(overrides: Any, tmp_path: Path) -> None:
    """`sed` made ds_config_gbs1536_mbs1_zero1.json in a shared folder: a second job of these sizes wrote over it, in
    another precision too."""
    assert train(1, overrides(tmp_path / "a" / "run", "schedule.length=2")) == [exit_codes.OK]
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".txt"):
            assert "train_micro_batch_size_per_gpu" not in path.read_text(encoding="utf-8"), path
    same = overrides(tmp_path / "b", "precision=bf16")
    first, second = (ds_config(compose("train", words), 1000) for words in (overrides(tmp_path / "a"), same))
    assert "bf16" not in first
    assert second["bf16"] == {"enabled": True}
    assert json.dumps(first) != json.dumps(second)


def test_a_variable_that_nobody_set_ends_a_script_before_anything_starts(tmp_path: Path) -> None:
    """The first-run branch of the 13B v2 script used ${CHECKPOINT_DIR}, which nothing had set: paths began at /."""
    for name, script in scripts().items():
        before = script[: script.index("launch() {")]
        assert "\nset -euo pipefail\n" in before, name
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\njob={tmp_path}\nLLMJP_ATTEMPT=1\n"
         + re.search(r"^launch\(\) \{.*?^\}", scripts()["abci-3"], re.M | re.S)[0] + "\nlaunch"],  # type: ignore[index]
        capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode != 0
    assert "PBS_NODEFILE: unbound variable" in done.stderr


def test_going_on_needs_no_loop_over_folds_and_no_links(overrides: Any, tmp_path: Path) -> None:
    """The 13B v1.0 was stopped and started ten times by hand to change its data: editing `for i in 4 5 6`, linking
    global_step folders and copying `latest`. A declared change does it, in the record."""
    words = overrides(
        tmp_path / "run",
        "schedule.length=8",
        "+changes=[{step:4,lr:1e-4,reason:fold 2}]",
        "checkpoint.every_steps=3",
    )
    assert train(1, words, stop_after=5) == [exit_codes.STOPPED]
    assert train(1, words) == [exit_codes.OK]
    (change,) = [event for event in RunRecord(tmp_path / "run").read_events() if event["kind"] == "change"]
    assert (change["step"], change["reason"]) == (4, "fold 2")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_symlink() or path.name == "latest"]
