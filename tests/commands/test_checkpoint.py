"""`llmjp checkpoint` on checkpoints of different layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.engines import FORMS, SAMPLES, build, sizes
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import choose, committed
from llmjp_train.cli import main


def make(rank: int, world: int, run_dir: str, overrides: tuple[str, ...], steps: int) -> None:
    from llmjp_train.checkpoint.store import save

    config = small_config(*overrides, *FORMS["llama"])
    layout, engine = build(config)
    state = {"layout": {"tensor": layout.tensor, "data": layout.data}}
    for step in range(1, steps + 1):
        batches = ragged_batches(config, SAMPLES, seed=step)
        engine.step(batches[layout.data_rank :: layout.data], lr=1e-3)
        save(Path(run_dir), step, engine.fragments(owned=True), {**state, "step": step}, epoch=0)
    engine.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of three steps, one on two tensor ranks."""
    one, two = (tmp_path_factory.mktemp("runs") / name for name in ("one", "two"))
    run_ranks(make, 1, str(one), sizes(), 3)
    run_ranks(make, 2, str(two), sizes(2), 3)
    return one, two


def test_a_list_shows_step_size_and_layout(runs: Any, capsys: Any) -> None:
    assert main(["checkpoint", "list", str(runs[1])]) == exit_codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["step", "1"]
    assert lines[0].endswith("tensor=2 data=1")
    assert main(["checkpoint", "list", str(runs[1]), "--json"]) == exit_codes.OK
    assert [row["step"] for row in json.loads(capsys.readouterr().out)] == [1, 2, 3]


def test_a_diff_names_what_is_apart_and_nothing_where_nothing_is(runs: Any, capsys: Any) -> None:
    one, two = map(str, runs)
    assert main(["checkpoint", "diff", one, f"{one}@3"]) == exit_codes.OK
    assert "0 of 114 tensors differ" in capsys.readouterr().out
    assert main(["checkpoint", "diff", f"{one}@1", f"{one}@2"]) == exit_codes.FAILED
    told = capsys.readouterr().out
    assert "steps 1 and 2" in told
    assert "exp_avg" in told.splitlines()[0]
    # Another layout: rounding alone, far less than a step.
    assert main(["checkpoint", "diff", one, two, "--json"]) == exit_codes.FAILED
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["master.layers.0.mlp.up.weight"]["largest"] < 1e-5


def test_a_flipped_byte_is_found(runs: Any, capsys: Any) -> None:
    assert main(["checkpoint", "verify", f"{runs[1]}@2"]) == exit_codes.OK
    assert "step 2:" in capsys.readouterr().out
    path = choose(runs[1], 2).path / "rank-00001.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert main(["checkpoint", "verify", str(runs[1])]) == exit_codes.FAILED
    told = capsys.readouterr().out
    assert "step 1: " in told
    assert "step 2: checkpoint step-00000002.epoch-0000 is damaged: rank-00001.bin holds other bytes" in told
    content[1000] ^= 1
    path.write_bytes(content)


def test_a_prune_shows_first_and_keeps_the_newest(runs: Any, capsys: Any) -> None:
    run_dir = str(runs[1])
    assert main(["checkpoint", "prune", run_dir, "--keep-last", "1", "--keep", "1"]) == exit_codes.OK
    assert "would remove 1 of 3: 2" in capsys.readouterr().out
    assert [info.step for info in committed(runs[1])] == [1, 2, 3]
    assert main(["checkpoint", "prune", run_dir, "--keep-last", "1", "--keep", "1", "--yes"]) == exit_codes.OK
    assert [info.step for info in committed(runs[1])] == [1, 3]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["diff", "RUN"], "takes 2 runs, not 1"),
        (["verify", "RUN@ten"], "after @ comes a step"),
        (["list", "nowhere"], "nowhere holds no checkpoints"),
        (["verify", "RUN@77"], "no complete checkpoint of step 77"),
        (["prune", "RUN", "--keep-last", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_said(words: list[str], told: str, runs: Any, capsys: Any) -> None:
    words = [word.replace("RUN", str(runs[0])) for word in words]
    assert main(["checkpoint", *words]) == exit_codes.BAD_INPUT
    assert told in capsys.readouterr().err
