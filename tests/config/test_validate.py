"""Errors that no single value shows: each names key, value and remedy, and all come at once."""

import json
from pathlib import Path

import pytest

from llmjp_train.config.compose import ConfigError, compose
from llmjp_train.config.files import tokenizer_size
from llmjp_train.config.ranges import ABOVE_ZERO, ADVICE, AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.validate import not_startable, problems, warnings


def composed(*overrides: str) -> TrainConfig:
    found: TrainConfig = compose("train", ["experiment=tiny-cpu", *overrides], partial=True)
    return found


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert problems(composed()) == []
    assert warnings(composed()) == []


SIZES = "batch.global_batch=12", "batch.micro_batch=2", "parallel.data=4"
CHANGE = "changes=[{{step:{},{}}}]"
RAMP = "batch.micro_batch=1", "batch.ramp_start=2", "batch.ramp_increment=1", "batch.ramp_steps=20"
WRONG = {
    "divisibility of the batch": (
        SIZES, ["batch.global_batch=12", "batch.micro_batch=2 x parallel.data=4", "take 16"]),
    "divisibility of the batch in a ramp": (
        ["batch.ramp_start=2", "batch.ramp_increment=1", "batch.ramp_steps=20"],
        ["batch.global_batch=2 is not a multiple", "batch.global_batch=3 (from step 10)"]),
    "divisibility of the batch after a change": (
        [CHANGE.format(50, "global_batch:6")], ["batch.global_batch=6 (from step 50)", "take 8"]),
    "heads": (["model.num_kv_heads=3"], ["model.num_heads=4", "model.num_kv_heads=3", "change one"]),
    "pairs": (["model.rope_fraction=0.11"], ["rotates 5 of model.head_size=48", "needs pairs"]),
    "no rotation at all": (["model.rope_fraction=0.01"], ["rotates 0"]),
    "rope fraction": (["model.rope_fraction=1.5"], ["model.rope_fraction=1.5", "at most 1"]),
    "sequence": (["batch.sequence_length=2048"], ["batch.sequence_length=2048", "model.max_positions=1024"]),
    "sequence after a change": (
        [CHANGE.format(50, "sequence_length:4096")], ["batch.sequence_length=4096 (from step 50)", "raise"]),
    "sequence that is no part of the longest": (
        [CHANGE.format(50, "sequence_length:96")], ["sequence length 96 (from step 50)", "longest, 256"]),
    "half a ramp": (["batch.ramp_start=2"], ["batch.ramp_increment=None", "all three"]),
    "ramp downwards": (["batch.ramp_start=8", *RAMP[2:]], ["batch.ramp_start=8", "batch.global_batch=4"]),
    "ramp beyond the run": ([*RAMP[:3], "batch.ramp_steps=120"], ["batch.ramp_steps=120", "120 steps"]),
    "ramp of too few steps": ([*RAMP[:3], "batch.ramp_steps=1"], ["batch.ramp_steps=1", "2 stages"]),
    "change within a ramp": (
        [*RAMP, CHANGE.format(10, "global_batch:8")], ["changes.0 at step 10", "batch.ramp_steps=20"]),
    "warm-up": (["schedule.warmup=200"], ["schedule.warmup=200", "schedule.length=120", "shorten"]),
    "cosine decay within the warm-up": (["schedule.decay=5"], ["schedule.decay=5", "schedule.warmup=10"]),
    "schedule longer than the run": (["schedule.decay=500"], ["schedule.decay=500", "schedule.length=120", "shorten"]),
    "wsd longer than the run": (
        ["schedule=wsd", "schedule.decay=115"], ["schedule.decay=115", "schedule.warmup=10", "schedule.length=120"]),
    "wsd without a decay": (["schedule=wsd", "schedule.decay=null"], ["schedule.decay=null", "0: none yet"]),
    "floor above the peak": (["schedule.min_lr=1"], ["schedule.min_lr=1", "optimizer.lr=0.003"]),
    "change beyond the run": ([CHANGE.format(120, "lr:1e-3")], ["changes.0 at step 120", "120 steps"]),
    "change of nothing": ([CHANGE.format(5, "reason:why")], ["changes.0 at step 5", "changes nothing", "lr"]),
    "change below the floor": ([CHANGE.format(5, "lr:1e-4")], ["lr=0.0001", "schedule.min_lr=0.0003"]),
    "change of an unknown source": ([CHANGE.format(5, "weights:{wiki:1}")], ["wiki", "it has small"]),
    "change to no source": ([CHANGE.format(5, "weights:{small:0}")], ["weight 0"]),
    "two changes at once": (["changes=[{step:5,lr:1e-3},{step:5,lr:2e-3}]"], ["2 of them are at step 5", "as one"]),
    "stage": (["parallel.zero=4"], ["parallel.zero=4", "0, 1, 2 or 3"]),
    "stage 0 in bf16": (["parallel.zero=0", "precision=bf16"], ["parallel.zero=0", "take parallel.zero=1"]),
    "stage 2 with pipelines": (["parallel.zero=2", "parallel.pipeline=2"], ["parallel.pipeline=2", "parallel.zero=1"]),
    "stages": (["parallel.pipeline=7"], ["parallel.pipeline=7", "model.num_layers=4"]),
    "tensor": (["parallel.tensor=3"], ["parallel.tensor=3", "model.num_kv_heads=4", "model.ffn_size=512"]),
    "fp16 on a CPU": (["precision=fp16"], ["precision=fp16", "bf16 or fp32"]),
    "world size": (
        ["cluster=sakura-h100", "cluster.nodes=2"], ["1 ranks", "cluster.nodes=2 x", "gives 16"]),
    "half-filled nodes": (
        ["cluster=sakura-h100", "parallel.data=12", "batch.global_batch=48"],
        ["12 ranks", "cluster.devices_per_node=8"]),
    "vocabulary": (["tokenizer=llm-jp-v3"], ["99574 ids", "model.vocab_size=4096", "set model.vocab_size=99574"]),
    "no sources": (["~data.sources.small"], ["data.sources={}", "data=NAME"]),
    "weights and epochs": (
        ["data.sources.small.weight=1", "data.sources.b={path:x,epochs:1}"], ["mixes weights and epochs"]),
    "a source without a weight": (
        ["data.sources.small.weight=1", "data.sources.b.path=x"], ["b has no weight", "give it one"]),
    "no weight at all": (["data.sources.small.weight=0"], ["every weight is 0"]),
    "fork of itself": (["fork.run=runs/tiny-cpu"], ["fork.run=runs/tiny-cpu", "another run_dir"]),
    "fork beyond the branch": (
        ["fork.run=x", "fork.step=120"], ["fork.step=120", "120 steps", "counts from the start"]),
    "fork step alone": (["fork.step=5"], ["fork.step=5", "fork.run=RUN"]),
    "resume": (["resume=newest"], ["resume=newest", "latest-valid"]),
    "empty words": (["name=", "run_dir=' '"], ["name='' is empty", "run_dir=' ' is empty", "give one"]),
    "allow_changed": (["allow_changed=[schedule]"], ["schedule", "model, tokenizer, data"]),
    "a tracker that is no class": (
        ["metrics.trackers=[wandb,my.module:Class]"], ["metrics.trackers=['wandb']", "module:Class"]),
    "rope with learned positions": (
        ["model.position=learned", "model.rope_theta=5e5"], ["model.rope_theta=500000.0", "no effect"]),
    "constant with a floor": (
        ["schedule=constant"], ["schedule.min_lr=0.0003", "schedule.kind=constant", "remove"]),
    "form of a decay that is none": (["schedule.decay_form=linear"], ["schedule.decay_form=linear", "schedule=wsd"]),
    "floor of a decay that is none": (["schedule=wsd"], ["schedule.min_lr=0.0003", "schedule.decay=0"]),
    "stop at best": (
        ["evaluation.stop_at_best=3", "evaluation.validation_every=null"], ["evaluation.stop_at_best=3", "give that"]),
    "tasks that are not run": (["evaluation.tasks=[own_choice]"], ["own_choice", "evaluation.every=STEPS"]),
    "nodes of no cluster": (["cluster.nodes=2"], ["cluster.nodes=2", "choose a cluster"]),
    "keep between saves": (["checkpoint.keep_every=50"], ["checkpoint.keep_every=50", "checkpoint.every_steps=40"]),
    "compile with stage 3": (["parallel.compile=true", "parallel.zero=3"], ["parallel.zero=3", "parallel.zero=2"]),
}  # fmt: skip
"""Name: overrides of tiny-cpu, and words that the messages hold."""


@pytest.mark.parametrize("name", WRONG)
def test_each_is_told_with_key_value_and_remedy(name: str) -> None:
    overrides, words = WRONG[name]
    text = "\n".join(problems(composed(*overrides)))
    for word in words:
        assert word in text


def test_all_come_at_once() -> None:
    found = problems(
        composed(*SIZES, "schedule.warmup=200", "parallel.zero=4", "precision=fp16", "resume=newest")
    )
    for key in (
        "batch.global_batch=12",
        "schedule.warmup=200",
        "parallel.zero=4",
        "precision=fp16",
        "resume=newest",
    ):
        assert any(key in message for message in found), key
    assert len(found) == 5


BOUNDS = {
    **dict.fromkeys(AT_LEAST_ONE, 0),
    **dict.fromkeys(NOT_NEGATIVE, -1),
    **dict.fromkeys(ABOVE_ZERO, 0),
    **dict.fromkeys(BELOW_ONE, 1),
}


def given(key: str, value: int) -> list[str]:
    """Overrides that set one value of a pattern."""
    if key == "changes.*.step":
        return [f"changes=[{{step:{value},lr:1}}]"]
    if key == "changes.*.weights.*":
        return [f"changes=[{{step:1,weights:{{small:{value}}}}}]"]
    if key.startswith("changes."):
        return [f"changes=[{{step:1,{key.removeprefix('changes.*.')}:{value}}}]"]
    if key == "checkpoint.keep_steps.*":
        return [f"checkpoint.keep_steps=[{value}]"]
    return [f"{key.replace('*', 'small')}={value}"]


CHANGES = [key for key in BOUNDS if key.startswith("changes.")]


@pytest.mark.parametrize("keys", [[key for key in BOUNDS if key not in CHANGES], *([key] for key in CHANGES)])
def test_every_bound_is_told_with_its_key_and_all_at_once(keys: list[str]) -> None:
    found = problems(composed(*(override for key in keys for override in given(key, BOUNDS[key]))))
    for key in keys:
        named = (
            key.replace("weights.*", "weights.small").replace("sources.*", "sources.small").replace("*", "0")
        )
        told = [message for message in found if message.startswith(f"{named}={BOUNDS[key]}")]
        assert len(told) == 1, key
        assert "must be" in told[0]


def test_bounds_and_advice_are_of_keys_that_exist() -> None:
    assert set(ADVICE) <= set(BOUNDS)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(value: str) -> None:
    assert problems(composed(f"optimizer.lr={value}")) == [f"optimizer.lr={value} must be a finite number"]


def test_what_cannot_start_is_shown_by_a_dry_run_alone() -> None:
    config = composed()
    assert problems(config) == []
    text = "\n".join(problems(config, starting=True))
    for word in (
        "tokenizer.path must be given",
        "data.sources.small.path must be given",
    ):
        assert word in text


def test_files_that_are_not_here_are_told_together(tmp_path: Path) -> None:
    config = composed(
        f"tokenizer.path={tmp_path}/t", f"data.sources.small.path={tmp_path}/d", f"fork.run={tmp_path}/r"
    )
    text = "\n".join(problems(config, starting=True))
    for word in ("/t does not exist", "/d: neither", "/r is no run directory"):
        assert f"{tmp_path}{word}" in text


def test_a_fork_of_a_run_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    wsd = ("schedule=wsd", "schedule.decay=20", f"fork.run={tmp_path}")
    config = composed(*wsd, "fork.step=100")
    assert problems(config) == []
    assert not any("fork" in message for message in problems(config, starting=True))
    assert warnings(config) == []
    (told,) = warnings(composed(*wsd, "fork.step=110"))
    assert "fork.step=110 lies within the decay, which begins at step 100" in told


def test_the_size_of_a_tokenizer_is_read_from_its_folder(
    tokenizer_folder: Path, tokenizer: object, tmp_path: Path
) -> None:
    assert tokenizer_size(tokenizer_folder) == tokenizer.vocab_size == 400  # type: ignore[attr-defined]
    found = problems(composed(f"tokenizer.path={tokenizer_folder}", "model.vocab_size=399"))
    assert found == [
        f"tokenizer.path={tokenizer_folder} has 400 ids, more than model.vocab_size=399: set model.vocab_size=400"
    ]
    (found_other,) = problems(composed(f"tokenizer.path={tokenizer_folder}", "tokenizer.vocab_size=300"))
    assert "tokenizer.vocab_size=300" in found_other
    assert "has 400 ids" in found_other
    assert tokenizer_size(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 9}]})
    )
    assert tokenizer_size(tmp_path) == 10
    (tmp_path / "tokenizer.json").write_text("{")
    assert tokenizer_size(tmp_path) is None


@pytest.mark.parametrize(
    ("folder", "name"), [("llmjp-ver2.2-50k", "llm-jp-v2.2-50k"), ("llmjp-ver3.0-100k", "llm-jp-v3")]
)
def test_the_sizes_of_the_real_tokenizers(llmjp_data: Path, folder: str, name: str) -> None:
    path = llmjp_data / "tokenizer" / folder
    assert tokenizer_size(path) == composed(f"tokenizer={name}").tokenizer.vocab_size
    (told,) = problems(composed(f"tokenizer.path={path}"))
    assert f"tokenizer.path={path} has" in told


def test_what_is_likely_not_meant_is_a_warning() -> None:
    text = "\n".join(
        warnings(
            composed(
                "optimizer.eps=1e-5",
                "data.document_mask=false",
                "model.mlp=gelu",
                "checkpoint.keep_steps=[500]",
            )
        )
    )
    for word in ("optimizer.eps=1e-05", "document_mask", "cannot be exported", "checkpoint.keep_steps=[500]"):
        assert word in text


IDLE = {
    "a limit of no evaluation": (["evaluation.limit=4"], ["evaluation.limit=4 has", "evaluation.every=STEPS"]),
    "a suite and sizes of no evaluation": (
        ["evaluation.suite=demo", "evaluation.batch_size=4"], ["evaluation.suite=demo", "evaluation.batch_size=4"]),
    "evaluations beyond the run": (["evaluation.every=121"], ["evaluation.every=121", "120 steps"]),
    "batches of no validation": (
        ["evaluation.validation_every=null"], ["evaluation.validation_batches=4 has no effect"]),
    "fewer validations than patience": (
        ["evaluation.stop_at_best=2", "evaluation.validation_every=60"], ["stop_at_best=2 never", "makes 2 "]),
    "a rewind that is none": (["spikes.rewind_steps=7"], ["spikes.rewind_steps=7", "spikes.policy=note"]),
    "answers that there are none of": (["spikes.most=7", "spikes.policy=stop"], ["spikes.most=7", "policy=stop"]),
    "nothing kept": (
        ["checkpoint.every_steps=null", "checkpoint.save_final=false"], ["save_final=false", "nothing is kept"]),
    "nothing kept of a short run": (["checkpoint.every_steps=200", "checkpoint.save_final=false"], ["nothing is kept"]),
    "no stable stage": (
        ["schedule=wsd", "schedule.decay=110"], ["schedule.decay=110 fill", "no stable stage", "counted back"]),
}  # fmt: skip
"""As `WRONG`, of warnings."""


@pytest.mark.parametrize("name", IDLE)
def test_what_a_run_does_not_come_to_is_a_warning(name: str) -> None:
    overrides, words = IDLE[name]
    config = composed(*overrides)
    assert problems(config) == []
    text = "\n".join(warnings(config))
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluation.every=120", "evaluation.limit=4", "evaluation.suite=demo", "evaluation.batch_size=4"],
        ["evaluation.stop_at_best=2", "evaluation.validation_every=50"],
        ["spikes.policy=skip", "spikes.most=7"],
        ["checkpoint.every_steps=null"],
        ["checkpoint.every_steps=null", "checkpoint.save_final=false", "checkpoint.log_spaced=true"],
        ["schedule=wsd", "schedule.decay=109"],
        ["schedule=wsd", "schedule.decay=110", "fork.run=x", "fork.step=10"],
        ["scale=rehearsal"],
    ],
)
def test_what_a_run_comes_to_is_no_warning(overrides: list[str]) -> None:
    assert warnings(composed(*overrides)) == []


def test_an_error_prints_as_one_list() -> None:
    assert str(ConfigError(["a", "b"])) == "the configuration has 2 errors:\n  - a\n  - b"


def test_phases_that_are_over_need_not_fit_the_layout() -> None:
    config = composed(*RAMP[:3], "batch.ramp_steps=6", "parallel.data=4")
    assert [line[:21] for line in problems(config)] == ["batch.global_batch=2 ", "batch.global_batch=3 "]
    assert [line[:21] for line in problems(config, step=3)] == ["batch.global_batch=3 "]
    assert problems(config, step=6) == []
    rewinding = ("spikes.policy=rewind", "checkpoint.every_steps=1", "checkpoint.keep_last=100")
    config = composed(*RAMP[:3], "batch.ramp_steps=6", "parallel.data=4", *rewinding)
    assert len(problems(config, step=6)) == 2, "it may go back into the ramp"


def test_compiled_layers_on_cpus_need_a_compiler_here(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("parallel.compile=true", "parallel.zero=2")
    assert not [line for line in not_startable(config) if "compile" in line]
    monkeypatch.setenv("CXX", "no-such-compiler")
    (told,) = [line for line in not_startable(config) if "compile" in line]
    assert "there is no no-such-compiler: install g++" in told
    assert not [line for line in not_startable(composed()) if "compile" in line]
