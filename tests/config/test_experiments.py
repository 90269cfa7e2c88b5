"""The shipped experiments: composed whole and rehearsed, and compared with what history records."""

import os
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmjp_train import cli, exit_codes
from llmjp_train.config.compose import compose, dump_config, load_config
from llmjp_train.config.derive import derived
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Unit
from llmjp_train.config.validate import problems

EXPERIMENTS = (
    "llm-jp-13b-v1-mdx",
    "llm-jp-13b-v2-mdx",
    "llm-jp-175b-abci",
    "llm-jp-3-13b",
    "llm-jp-3-172b-geniac",
    "llm-jp-4-8b",
    "tiny-cpu",
)
HISTORY: dict[str, dict[str, Any]] = {
    "llm-jp-13b-v1-mdx": {
        "model.name": "13b-v1", "tokenizer.vocab_size": 50_570, "optimizer.lr": 1e-4, "schedule.min_lr": 1e-6,
        "schedule.kind": "cosine", "schedule.length": 87_870 + 8_654, "batch.global_batch": 1536,
        "batch.sequence_length": 2048, "batch.micro_batch": 1, "parallel.tensor": 1, "parallel.pipeline": 8,
        "parallel.data": 12, "parallel.zero": 1, "nodes": 12, "cluster.device_memory_gib": 40,
        "optimizer.z_loss": 0,
    },
    "llm-jp-13b-v2-mdx": {
        "model.name": "13b-v2", "tokenizer.vocab_size": 96_867, "optimizer.lr": 3e-4, "schedule.min_lr": 3e-5,
        "schedule.kind": "cosine", "schedule.length": 61_000, "batch.global_batch": 1024,
        "batch.sequence_length": 4096, "batch.micro_batch": 1, "parallel.tensor": 2, "parallel.pipeline": 4,
        "parallel.data": 16, "parallel.recompute": "selective", "nodes": 16, "optimizer.z_loss": 0,
    },
    "llm-jp-175b-abci": {
        "model.name": "175b", "tokenizer.vocab_size": 96_867, "optimizer.lr": 0.6e-4, "schedule.kind": "constant",
        "schedule.unit": "tokens", "schedule.length": 108_000_000_000, "schedule.warmup": 10_800_000_000,
        "batch.global_batch": 1536, "batch.sequence_length": 2048, "batch.micro_batch": 2, "parallel.tensor": 4,
        "parallel.pipeline": 49, "parallel.data": 2, "parallel.zero": 1, "parallel.recompute": "full",
        "nodes": 49, "model.init_std": 0.005, "optimizer.z_loss": 0,
    },
    "llm-jp-3-13b": {
        "model.name": "13b", "optimizer.lr": 2e-4, "schedule.min_lr": 2e-5, "schedule.kind": "cosine",
        "schedule.decay": 492_120, "schedule.length": 494_120, "schedule.warmup": 2000, "batch.global_batch": 1024,
        "batch.sequence_length": 4096, "batch.micro_batch": 2, "parallel.tensor": 2, "parallel.pipeline": 2,
        "nodes": 32, "optimizer.z_loss": 1e-4,
    },
    "llm-jp-3-172b-geniac": {
        "model.name": "172b", "optimizer.lr": 8e-5, "schedule.min_lr": 8e-6, "schedule.kind": "cosine",
        "schedule.decay": 290_812, "schedule.length": 292_812, "schedule.warmup": 2000, "batch.global_batch": 1728,
        "batch.sequence_length": 4096, "batch.micro_batch": 1, "parallel.tensor": 4, "parallel.pipeline": 16,
        "parallel.data": 8, "parallel.recompute": "selective", "nodes": 64, "optimizer.z_loss": 1e-4,
    },
    "llm-jp-4-8b": {
        "model.name": "8b-v4", "optimizer.lr": 3e-4, "schedule.kind": "wsd", "schedule.decay_form": "minus_sqrt",
        "schedule.min_lr": 0, "schedule.warmup": 2000, "batch.global_batch": 512, "batch.sequence_length": 4096,
        "batch.micro_batch": 1, "parallel.tensor": 1, "parallel.pipeline": 1, "optimizer.z_loss": 0,
        "checkpoint.keep_steps": [900_000, 1_900_000, 2_900_000],
    },
}  # fmt: skip
"""What model cards and training scripts say, by key."""


@cache
def composed(name: str, *overrides: str) -> TrainConfig:
    found: TrainConfig = compose("train", [f"experiment={name}", *overrides], partial=True)
    return found


def value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return getattr(config, "name", config)


def test_the_list_is_whole(root: Path) -> None:
    assert sorted(path.stem for path in (root / "configs" / "experiment").glob("*.yaml")) == sorted(
        EXPERIMENTS
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["full", "rehearsal"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_and_a_dry_run_shows_every_number(
    name: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(composed(name, f"scale={scale}")) == []
    assert cli.main(["train", "--dry-run", f"experiment={name}", f"scale={scale}"]) == exit_codes.OK
    text = capsys.readouterr().out
    for row in (
        "parameters",
        "padded for the layout",
        "ranks",
        "steps",
        "micro batches",
        "tokens",
        "warm-up",
        "FLOPs",
    ):
        assert row in text
    assert "kept" in text
    assert list(tmp_path.iterdir()) == [], "a dry run makes nothing"


@pytest.mark.parametrize("name", HISTORY)
def test_settings_are_the_recorded_ones(name: str) -> None:
    config = composed(name)
    found = {key: derived(config).nodes if key == "nodes" else value(config, key) for key in HISTORY[name]}
    assert found == HISTORY[name]
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip) == (0.9, 0.95, 0.1, 1.0)
    assert optimizer.eps == 1e-8, "1e-5 ruined the first 172B"
    assert config.precision.dtype.name == "bf16"
    assert derived(config).world_size == derived(config).nodes * (config.cluster.devices_per_node or 0)
    assert config.notes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "llm-jp-13b-v1-mdx",
            ["fp16", "ten folds", "warm-up: not published", "tied embeddings", "not known"],
        ),
        ("llm-jp-13b-v2-mdx", ["which of the two", "warm-up: not recorded"]),
        ("llm-jp-175b-abci", ["init_std", "1e-6", "1.05 times", "21,000 steps"]),
        ("llm-jp-3-13b", ["494,120", "z-loss", "Google Cloud"]),
        ("llm-jp-3-172b-geniac", ["1e-5", "fp8", "z-loss", "292,812"]),
        ("llm-jp-4-8b", ["12 million", "not published", "branches"]),
    ],
)
def test_notes_say_where_history_is_corrected_or_unknown(name: str, words: list[str]) -> None:
    notes = "\n".join(composed(name).notes)
    for word in words:
        assert word in notes


def test_numbers_that_history_computed_by_hand() -> None:
    assert derived(composed("llm-jp-3-172b-geniac")).tokens_per_step == 7_077_888
    assert derived(composed("llm-jp-13b-v2-mdx")).tokens == 255_852_544_000
    trial = derived(composed("llm-jp-175b-abci"))
    assert trial.steps == 34_333, "the step that reaches 108 billion tokens is counted"
    assert trial.parameters_padded == 175_156_912_128
    for name in ("llm-jp-3-13b", "llm-jp-3-172b-geniac"):
        # One pass over 2,072,488,058,295 tokens, rounded up to a step.
        tokens, step = derived(composed(name)).tokens, derived(composed(name)).tokens_per_step
        assert 0 <= tokens - 2_072_488_058_295 < 2 * step


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_rehearsal_keeps_the_form(name: str) -> None:
    full, small = composed(name), composed(name, "scale=rehearsal")
    for key in (
        "position",
        "rope_theta",
        "rope_fraction",
        "norm",
        "norm_eps",
        "mlp",
        "bias",
        "tied_embeddings",
    ):
        assert getattr(small.model, key) == getattr(full.model, key), key
    grouped = full.model.num_heads > full.model.num_kv_heads
    assert (small.model.num_heads > small.model.num_kv_heads) == grouped
    assert small.precision == full.precision
    assert (small.schedule.kind, small.schedule.decay_form) == (full.schedule.kind, full.schedule.decay_form)
    assert small.data.sources.keys() == full.data.sources.keys()
    for source, before in full.data.sources.items():
        after = small.data.sources[source]
        assert (after.weight, after.epochs) == (before.weight, before.epochs)
    assert (small.checkpoint.every_steps is None) == (full.checkpoint.every_steps is None)
    assert (small.checkpoint.keep_every is None) == (full.checkpoint.keep_every is None)
    assert small.optimizer.z_loss == full.optimizer.z_loss
    assert derived(small).world_size == 1
    assert derived(small).parameters < 3_000_000
    assert small.schedule.unit is Unit.steps
    assert small.run_dir != full.run_dir, "a rehearsal never writes into the real run's directory"


def test_what_the_user_sets_holds_in_a_rehearsal() -> None:
    config = composed(
        "llm-jp-3-13b",
        "scale=rehearsal",
        "schedule.length=12",
        "schedule.decay=10",
        "parallel.data=2",
        "optimizer.lr=1e-3",
    )
    assert (config.schedule.length, config.parallel.data, config.optimizer.lr) == (12, 2, 1e-3)
    assert config.model.num_layers == 4
    assert problems(config) == []


def test_a_rehearsal_of_a_ramp_and_of_changes_is_one_of_a_ramp_and_of_changes() -> None:
    folder = deepcopy(composed("llm-jp-3-13b"))
    folder.batch.ramp_start, folder.batch.ramp_increment, folder.batch.ramp_steps = 256, 256, 40_000
    from llmjp_train.config.rehearsal import STEPS, rehearsal
    from llmjp_train.config.training import ChangeConfig

    folder.changes = [ChangeConfig(step=247_060, lr=1e-4, global_batch=2048, reason="half way")]
    small = rehearsal(folder)
    assert problems(small) == []
    assert small.batch.ramp_start == 2
    assert small.batch.ramp_steps == 3
    assert small.changes[0].step == STEPS // 2
    assert small.changes[0].global_batch == 16


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_resolved_configuration_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = composed(name, "scale=rehearsal")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


ELSEWHERE = ("llm-jp-13b-v1-mdx", "llm-jp-175b-abci", "llm-jp-3-172b-geniac", "tiny-cpu")
"""Trained by tests/end_to_end: in a layout of their own, or as the demo."""


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ELSEWHERE])
def test_a_rehearsal_trains(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """On the project's own text, from the commands that a failed start names; the loss falls."""
    from llmjp_train.config.rehearsal import make_commands
    from llmjp_train.runlog.record import RunRecord

    made = tmp_path_factory.getbasetemp() / "rehearsal"
    llmjp = f"{sys.executable} -m llmjp_train.cli"
    if not (made / "data" / "manifest.json").exists():
        command = (
            make_commands(str(made))
            .replace("llmjp tok", f"{llmjp} tok")
            .replace("llmjp prep", f"{llmjp} prep")
        )
        subprocess.run(command, shell=True, check=True, capture_output=True, timeout=200)
    words = [f"experiment={name}", "scale=rehearsal", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "llmjp_train.cli", "train", *words],
        capture_output=True, text=True, timeout=280, env={**os.environ, "LLMJP_REHEARSAL": str(made)},
    )  # fmt: skip
    assert done.returncode == exit_codes.OK, done.stderr
    losses = [row["loss"] for row in RunRecord(tmp_path / "run").read_metrics() if "loss" in row]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
