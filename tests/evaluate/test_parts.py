"""A checkpoint in parts, over tensor-parallel processes and stages, gives the scores of one process."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.evaluating import llmjp, requests_of, under_a_launcher
from helpers.ranks import run_ranks

from llmjp_train.checkpoint.listing import choose as choose_checkpoint
from llmjp_train.checkpoint.store import CheckpointReader, save
from llmjp_train.config.evaluation import SharingConfig
from llmjp_train.config.machine import ParallelConfig
from llmjp_train.config.model import Mlp, ModelConfig, Norm, Position
from llmjp_train.errors import UserError
from llmjp_train.evaluate import together
from llmjp_train.evaluate.journal import Journal
from llmjp_train.evaluate.models import DecoderLM, decoder_from
from llmjp_train.evaluate.parts import PartLM
from llmjp_train.evaluate.suites import choice, likelihood_only
from llmjp_train.model.decoder import Decoder
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.parallel.world import World
from llmjp_train.runlog.record import RunRecord

CPU = torch.device("cpu")


def scores_of(lm: Any) -> tuple[list[float], list[float]]:
    return (
        [score for score, _ in lm.loglikelihood(requests_of("own_choice", 5))],
        lm.loglikelihood_rolling(requests_of("own_texts", 3)),
    )


def in_parts(
    rank: int,
    ranks: int,
    sizes: tuple[int, int, int],
    path: Path,
    model: ModelConfig,
    tokenizer: Any,
    dtype: str,
    journal: Path | None = None,
) -> Any:
    party = together.join(ParallelConfig("", *sizes), World(rank, ranks, rank), CPU)
    assert party.layout is not None
    reader = CheckpointReader(path)
    asked = 0

    def read(name: str, part: Any = None) -> torch.Tensor:
        nonlocal asked
        found = reader.read(name, part=part)
        asked += found.numel()
        return found

    counting: Any = SimpleNamespace(names=reader.names, shape=reader.shape, read=read)
    lm = PartLM(
        counting,
        model,
        party.layout,
        tokenizer,
        256,
        dtype=getattr(torch, dtype),
        batch_size=3,
        progress=False,
    )
    batches = 0
    score_batch = lm._score_batch

    def counted(windows: Any) -> Any:
        nonlocal batches
        batches += 1
        return score_batch(windows)

    lm._score_batch = counted
    if journal is not None:
        lm.journal = Journal(journal, {}, rank)
    return scores_of(lm), asked, batches


@pytest.fixture
def checkpoint(run_dir: Path) -> Path:
    return choose_checkpoint(run_dir, 20).path


def whole(path: Path, model: ModelConfig, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    return scores_of(
        DecoderLM(decoder_from(CheckpointReader(path), model, CPU, dtype), tokenizer, 256, progress=False)
    )


def check(found: Any, wanted: Any, tolerance: float = 2e-4) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=tolerance)


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (2, 1, 2), (1, 2, 2)], ids=str)
def test_each_item_scores_as_on_one_process(
    sizes: tuple[int, int, int], checkpoint: Path, model_config: ModelConfig, tokenizer: Any
) -> None:
    tensor, pipeline, data = sizes
    ranks = tensor * pipeline * data
    results = run_ranks(in_parts, ranks, sizes, checkpoint, model_config, tokenizer, "float32")
    wanted = whole(checkpoint, model_config, tokenizer)
    assert len({round(score, 2) for score in wanted[0]}) > 10  # the model tells choices apart
    for found, *_ in results:  # every process is told all scores
        check(found, wanted)
    parameters = sum(p.numel() for p in Decoder(model_config).parameters())
    assert max(asked for _, asked, _ in results) < 0.75 * parameters  # each holds and reads its part


def test_tied_weights_learned_positions_and_both_axes(
    tmp_path: Path, tokenizer: Any, model_config: ModelConfig
) -> None:
    model = replace(
        model_config, position=Position.learned, norm=Norm.layernorm, mlp=Mlp.gelu_tanh, num_kv_heads=4,
        tied_embeddings=True, num_layers=3,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    fragments = []
    for name, parameter in Decoder(model).named_parameters():
        shape = tuple(parameter.shape)
        value = 0.2 * torch.randn(shape, generator=generator)
        # In two fragments, so that a part lies across what was stored together.
        for start, view in zip(
            (0, value.numel() // 2), value.flatten().split(-(-value.numel() // 2)), strict=True
        ):
            fragments.append(Fragment(f"master.{name}", shape, shape, (0,) * len(shape), start, view))
    save(tmp_path, 1, fragments, {"step": 1}, epoch=1)
    path = next((tmp_path / "checkpoints").glob("step-*"))
    wanted = whole(path, model, tokenizer)
    for found, *_ in run_ranks(in_parts, 4, (2, 2, 1), path, model, tokenizer, "float32"):
        check(found, wanted)


def test_bfloat16_passes_between_stages(checkpoint: Path, model_config: ModelConfig, tokenizer: Any) -> None:
    (found, *_), _ = run_ranks(in_parts, 2, (1, 2, 1), checkpoint, model_config, tokenizer, "bfloat16")
    check(found, whole(checkpoint, model_config, tokenizer, torch.bfloat16), 0.05)


def test_what_a_killed_evaluation_left_is_taken_up_by_other_parts(
    checkpoint: Path, model_config: ModelConfig, tokenizer: Any, tmp_path: Path
) -> None:
    where = (checkpoint, model_config, tokenizer, "float32", tmp_path / "x.progress.jsonl")
    (wanted, _, all_of_them), *_ = run_ranks(in_parts, 4, (1, 2, 2), *where)
    written = sorted(tmp_path.glob("x.*"), key=lambda path: path.stat().st_size)
    lines = [path.read_text("utf-8").splitlines(True) for path in written]
    assert list(map(len, lines[:2])) == [1, 1]  # a first stage knows no scores
    for path, kept in zip(written[2:], lines[2:], strict=True):  # killed half way, within a line
        path.write_text("".join(kept[: len(kept) // 2]) + kept[-1][:20], "utf-8")
    half = run_ranks(in_parts, 2, (2, 1, 1), *where)
    for found, _, batches in half:
        check(found, wanted)
        assert 0 < batches < 2 * all_of_them
    for found, _, batches in run_ranks(in_parts, 2, (1, 2, 1), *where):
        check(found, wanted)
        assert batches == 0


def test_a_box_of_a_stored_tensor_is_read(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    reader = CheckpointReader(checkpoint)
    box = (slice(3, 9), slice(10, 31))
    assert torch.equal(reader.read("master.embedding.weight", part=box), tensors["embedding.weight"][box])
    assert torch.equal(reader.read("master.embedding.weight"), tensors["embedding.weight"])


@pytest.mark.slow
def test_the_command_starts_the_processes_and_one_result_is_written(
    run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (str(run_dir), "tasks=[own_choice,own_texts]", "limit=4", "device=cpu")
    assert llmjp(*words) == 0
    record = RunRecord(run_dir)
    name = "step-00000020-own_choice-own_texts-limit-4"
    alone = record.read_evaluations()[name]
    items = record.path / "evaluations" / alone["items_file"]
    lines = [json.loads(line) for line in items.read_text("utf-8").splitlines()]
    capfd.readouterr()
    assert llmjp(*words, "parallel.tensor=2") == 0
    assert capfd.readouterr().out.count("checkpoint of step 20") == 1
    parts = record.read_evaluations()[name]
    assert parts["settings"]["parallel"] == {"tensor": 2, "pipeline": 1, "data": 1}
    for one, other in zip(lines, map(json.loads, items.read_text("utf-8").splitlines()), strict=True):
        assert one["prompt_sha256"] == other["prompt_sha256"]
        assert other["loglikelihoods"] == pytest.approx(one["loglikelihoods"], abs=1e-3)
    for task, figures in alone["tasks"].items():
        for metric, value in figures["metric"].items():
            assert parts["tasks"][task]["metric"][metric]["value"] == pytest.approx(value["value"], rel=1e-4)


@pytest.mark.slow
def test_processes_of_a_launcher_become_stages(run_dir: Path, tmp_path: Path) -> None:
    words = (str(run_dir), "tasks=[own_choice]", "limit=3", "device=cpu", "parallel.pipeline=2")
    said = under_a_launcher(2, *words, "--output", str(tmp_path / "out"))
    payload = json.loads(next((tmp_path / "out").glob("*own_choice-limit-3.json")).read_text("utf-8"))
    assert payload["settings"]["parallel"] == {"tensor": 1, "pipeline": 2, "data": 1}
    assert said[1] == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["parallel.tensor=3"], r"parallel.tensor=3 does not divide model.num_kv_heads=2"),
        (["parallel.pipeline=3"], r"parallel.pipeline=3 is more than model.num_layers=2"),
        (["parallel.tensor=0"], r"parallel.tensor=0: give 1 or more"),
        (
            ["parallel.tensor=2", "tasks=[own_choice,own_answers]"],
            r"task own_answers: generates text.*parallel.data",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    words: list[str], told: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmjp_train.launch import local

    monkeypatch.setattr(local, "start_processes", lambda *args: pytest.fail("started"))
    with pytest.raises(UserError, match=told):
        llmjp(str(run_dir), "device=cpu", *words)


def test_a_folder_in_parts_is_refused(hf_folder: Path) -> None:
    with pytest.raises(UserError, match="a run's checkpoint alone is evaluated in parts"):
        llmjp(str(hf_folder), "device=cpu", "parallel.pipeline=2")


def test_a_launcher_with_another_number_of_processes_is_refused() -> None:
    place = World(0, 6, 0, launcher="srun")
    with pytest.raises(UserError, match="needs 4 processes, but srun started 6"):
        together.sizes(SharingConfig(tensor=4), place)
    assert together.sizes(SharingConfig(tensor=2), place).data == 3
    assert together.sizes(SharingConfig(), World()).data == 1


def test_a_suite_leaves_out_what_generates_text_and_says_so() -> None:
    asked = likelihood_only(choice("full", limit=1))
    names = {entry.task.name for entry in asked.chosen}
    assert "own_choice" in names
    assert "own_answers" not in names
    assert any(line.startswith("task own_answers: it generates text") for line in asked.skipped)
