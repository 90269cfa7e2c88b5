"""Exports: what is in the folder, that it is transformers' model, and that a wrong one is not called done."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exporting import (
    GPT2,
    LLAMA,
    NEOX,
    QWEN2,
    MadeUpCheckpoint,
    save_byte_tokenizer,
    save_tokenizer,
    train_config,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmjp_train.config.model import Mlp, ModelConfig
from llmjp_train.errors import UserError
from llmjp_train.model.decoder import Decoder
from llmjp_train.publish import export as export_module
from llmjp_train.publish import parity, place
from llmjp_train.publish.export import ParityError, export, plan
from llmjp_train.publish.weights import available_memory

FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "qwen2": QWEN2,
    "qwen3": replace(LLAMA, qk_norm=True),
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("byte_tokenizer"))


def make(
    model: ModelConfig, tokenizer: Path, out: Path, checkpoint: MadeUpCheckpoint | None = None, **options: Any
) -> Any:
    checkpoint = checkpoint or MadeUpCheckpoint(model)
    return export(checkpoint, train_config(model, tokenizer), tokenizer, out, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_the_folder_is_transformers_model_and_says_so(
    name: str, dtype: str, tokenizer: Path, byte_tokenizer: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name == "qwen2":
        tokenizer = byte_tokenizer
    model, checkpoint = FAMILIES[name], MadeUpCheckpoint(FAMILIES[name])
    out = tmp_path / "model"
    done = make(model, tokenizer, out, checkpoint, dtype=dtype, source={"step": 30})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    certificate = json.loads((out / "parity.json").read_text())
    assert certificate == done.certificate
    assert (certificate["passed"], certificate["level"], certificate["family"]) == (True, "whole", name)
    assert len(certificate["layers"]) == model.num_layers
    assert all(row["relative"] < 1e-5 for row in certificate["layers"])
    assert certificate["whole"]["relative"] < 1e-5
    assert certificate["source"] == {"step": 30}
    assert certificate["tensors_compared"] == len(checkpoint.tensors)
    files = {path.name for path in out.iterdir()} - {"parity.json"}
    assert files == set(certificate["files"]) >= {"config.json", "generation_config.json", "tokenizer.json"}
    for file, digest in certificate["files"].items():
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest

    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded.generation_config.eos_token_id == 2
    ids = AutoTokenizer.from_pretrained(out)("あいう", return_tensors="pt")["input_ids"]
    weights = {key.removeprefix("master."): value for key, value in checkpoint.tensors.items()}
    decoder = Decoder(model)
    decoder.load_state_dict(weights, strict=not model.tied_embeddings)
    wanted = decoder(ids)
    difference = (loaded.float()(ids).logits - wanted).abs().max() / wanted.abs().max()
    assert difference < (1e-5 if dtype == "float32" else 0.05)


def test_shards_are_cut_by_size_and_hold_everything(tokenizer: Path, tmp_path: Path) -> None:
    limit = 12_000
    done = make(LLAMA, tokenizer, tmp_path / "model", max_shard_bytes=limit)
    assert done.certificate["level"] == "whole"
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    found = {}
    for shard in done.shards:
        stored = load_file(tmp_path / "model" / shard.file)
        assert sum(tensor.nbytes for tensor in stored.values()) == shard.bytes
        # A tensor above the limit is alone in its file: embedding and head are 25,600 bytes each.
        assert shard.bytes <= limit or len(stored) == 1
        found |= dict.fromkeys(stored, shard.file)
    assert found == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(shard.bytes for shard in done.shards)
    assert done.shards[-1].file == f"model-{len(done.shards):05d}-of-{len(done.shards):05d}.safetensors"
    assert len(done.shards) > 4


def test_a_full_size_plan_needs_no_weights() -> None:
    model = replace(LLAMA, num_layers=96, hidden_size=12288, ffn_size=38464, num_heads=96, num_kv_heads=16,
                    head_size=128, vocab_size=99574)  # fmt: skip
    shards = plan(model, "bfloat16", 5 * 10**9)
    total = sum(shard.bytes for shard in shards)
    assert total == 2 * sum(torch.Size(s).numel() for s in _shapes(model))
    assert max(shard.bytes for shard in shards) <= 5 * 10**9
    assert len(shards) < total / 4e9


def _shapes(model: ModelConfig) -> list[tuple[int, ...]]:
    from llmjp_train.model.shapes import parameter_shapes

    return list(parameter_shapes(model).values())


def test_weights_are_streamed_shard_by_shard(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a shard is written, no tensor of a later one was read."""
    checkpoint = MadeUpCheckpoint(GPT2)
    counts: list[int] = []

    def watch(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        counts.append(len(checkpoint.asked))
        save_file(tensors, path, **options)

    monkeypatch.setattr(export_module, "save_file", watch)
    done = make(GPT2, tokenizer, tmp_path / "model", checkpoint, max_shard_bytes=20_000)
    sources = [sum(len(entry.sources) for entry in shard.entries) for shard in done.shards]
    assert counts == [sum(sources[: i + 1]) for i in range(len(sources))]


def corrupting(change: Any) -> Any:
    """`certify` as it finds a folder that was changed after it was written."""
    real = parity.certify

    def certify(folder: Path, *args: Any, **options: Any) -> dict[str, Any]:
        change(folder)
        return real(folder, *args, **options)

    return certify


def change_tensor(folder: Path, name: str, change: Any) -> None:
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored[name] = change(stored[name].clone())
    save_file(stored, path, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 5] += 0.25
    return tensor


DAMAGES: dict[str, tuple[Any, str]] = {
    "one-value": (lambda f: change_tensor(f, "model.layers.1.mlp.up_proj.weight", flip), "layer 1"),
    "head": (lambda f: change_tensor(f, "lm_head.weight", flip), "head"),
    "final-norm": (lambda f: change_tensor(f, "model.norm.weight", lambda t: t * 1.01), "head"),
    "embedding": (lambda f: change_tensor(f, "model.embed_tokens.weight", lambda t: t * 1.01), "embedding"),
    "dtype": (
        lambda f: change_tensor(f, "model.norm.weight", torch.Tensor.float),
        "model.norm.weight differs",
    ),
    "nan": (
        lambda f: change_tensor(f, "model.layers.0.self_attn.o_proj.weight", lambda t: t * float("nan")),
        "layer 0",
    ),
    "shape": (
        lambda f: change_tensor(f, "lm_head.weight", lambda t: torch.cat([t, t[:8]])),
        "lm_head.weight has shape",
    ),
    "theta": (
        lambda f: change_config(
            f, rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        ),
        "rope_theta=10000.0",
    ),
    "epsilon": (lambda f: change_config(f, rms_norm_eps=1e-6), "norm_eps=1e-06"),
    "layers": (lambda f: change_config(f, num_hidden_layers=2), "num_layers=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_folder_is_not_called_done(
    damage: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, word = DAMAGES[damage]
    monkeypatch.setattr(parity, "certify", corrupting(change))
    with pytest.raises(ParityError):
        make(LLAMA, tokenizer, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.failed"]
    certificate = json.loads((tmp_path / "model.failed" / "parity.json").read_text())
    assert certificate["passed"] is False
    assert any(word in problem for problem in certificate["problems"]), certificate["problems"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rms_norm_eps": 1e-6},
        {"hidden_act": "gelu"},
    ],
)
def test_layers_alone_find_a_wrong_setting(
    settings: dict[str, Any], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The computation sees it, not only the comparison of the configurations."""
    monkeypatch.setattr(parity.Comparison, "check_form", lambda self: None)
    monkeypatch.setattr(parity, "certify", corrupting(lambda folder: change_config(folder, **settings)))
    with pytest.raises(ParityError, match="layer 0: relative difference"):
        make(LLAMA, tokenizer, tmp_path / "model", whole=False)


def test_a_mixed_up_mapping_is_found_by_the_computation(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused block by block instead of head by head: bits return equal, the computation does not."""
    from llmjp_train.model import hf

    real = hf.entries
    for module in (export_module, parity):
        monkeypatch.setattr(module, "entries", lambda c: [replace(entry, heads=0) for entry in real(c)])
    with pytest.raises(ParityError, match="layer 0: relative difference"):
        make(NEOX, tokenizer, tmp_path / "model")


def test_a_checkpoint_with_nan_does_not_pass(tokenizer: Path, tmp_path: Path) -> None:
    checkpoint = MadeUpCheckpoint(LLAMA)
    checkpoint.tensors["master.layers.2.mlp.down.weight"][1, 1] = float("nan")
    with pytest.raises(ParityError, match=r"layers\.2\.mlp\.down\.weight of the checkpoint holds values"):
        make(LLAMA, tokenizer, tmp_path / "model", checkpoint)


def test_the_level_says_what_memory_allowed(
    byte_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_memory() > 0
    monkeypatch.setattr(parity, "available_memory", lambda: 1000)
    certificate = make(QWEN2, byte_tokenizer, tmp_path / "model").certificate
    assert (certificate["passed"], certificate["level"], certificate["whole"]) == (True, "layers", None)
    assert "1,000 were free" in certificate["whole_left_out"]
    forced = make(QWEN2, byte_tokenizer, tmp_path / "forced", whole=True).certificate
    assert forced["level"] == "whole"


def test_an_earlier_export_is_replaced_by_force_alone(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    make(LLAMA, tokenizer, out)
    before = (out / "model.safetensors").read_bytes()
    other = MadeUpCheckpoint(LLAMA, seed=1)
    with pytest.raises(UserError, match="--force"):
        make(LLAMA, tokenizer, out, other)
    assert (out / "model.safetensors").read_bytes() == before
    make(LLAMA, tokenizer, out, other, force=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_no_export_made_is_never_replaced(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(UserError, match="was not made by an export"):
        make(LLAMA, tokenizer, tmp_path / "letters", force=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "x"


def test_an_interrupted_export_leaves_nothing(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "certify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(LLAMA, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_another_model_s_checkpoint_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another model") as refused:
        make(replace(LLAMA, ffn_size=64), tokenizer, tmp_path / "model", MadeUpCheckpoint(LLAMA))
    assert "(56, 40)" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_padding_of_the_vocabulary_does_not_pass_as_vocabulary(tokenizer: Path, tmp_path: Path) -> None:
    """A checkpoint with rows that config.yaml does not know, as a padded layout would leave."""
    padded = MadeUpCheckpoint(replace(LLAMA, vocab_size=384))
    with pytest.raises(UserError, match=r"embedding\.weight has shape \(384, 40\)"):
        make(LLAMA, tokenizer, tmp_path / "model", padded)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    large = save_tokenizer(tmp_path / "tokenizer", size=330)
    with pytest.raises(UserError, match="330 ids"):
        make(LLAMA, large, tmp_path / "model")


def test_a_tokenizer_that_transformers_would_misread_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    """transformers 5 takes every tokenizer beside a qwen2 model for Qwen2's, and reads nothing with it."""
    with pytest.raises(UserError, match="Qwen2Tokenizer, which gives other ids"):
        make(QWEN2, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_family_holds_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.mlp=gelu"):
        make(replace(LLAMA, mlp=Mlp.gelu), tokenizer, tmp_path / "model")


def test_no_space_is_said_beforehand(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(place.shutil, "disk_usage", lambda path: SimpleNamespace(free=1234))
    with pytest.raises(UserError, match="1,234"):
        make(LLAMA, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_transformers_4_finds_names_that_it_knows(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer", appends=True)
    done = make(NEOX, tokenizer, tmp_path / "model")
    said = json.loads((done.folder / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(said.get("extra_special_tokens"), list)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["rotary_pct"] == 0.5
    with safe_open(done.folder / "model.safetensors", framework="pt") as file:
        assert "embed_out.weight" in set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert done.certificate["tokenizer"]["habit"] == "appends </s>"
