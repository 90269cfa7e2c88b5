"""A Hugging Face folder becomes a run that computes the same and that training goes on from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.allocations import Allocations
from helpers.ranks import run_ranks
from helpers.runs import rank_main
from safetensors.torch import load_file, save_file

from llmjp_train import exit_codes
from llmjp_train.checkpoint.listing import latest
from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.cli import main
from llmjp_train.config.compose import compose, load_config
from llmjp_train.model.decoder import Decoder
from llmjp_train.publish.importing import import_folder

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {**SMALL, "use_parallel_residual": False, "rotary_pct": 0.25},
}


def hf_folder(folder: Path, kind: str, **changes: Any) -> Any:
    """A random model, saved by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def ours(run_dir: Path) -> Decoder:
    """The imported weights in our decoder."""
    config, reader = load_config(run_dir / "config.yaml"), CheckpointReader(latest(run_dir).path)
    decoder = Decoder(config.model)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(reader.read(f"master.{name}"))
    assert not any(reader.read(name).any() for name in reader.names() if name.startswith("exp_avg"))
    assert reader.verify() > 0
    return decoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_model_computes_what_transformers_does(kind: str, tmp_path: Path, capsys: Any) -> None:
    theirs = hf_folder(tmp_path / "hf", kind)
    assert main(["import", str(tmp_path / "hf"), "--out", str(tmp_path / "run")]) == exit_codes.OK
    assert "MB/s" in capsys.readouterr().out
    tokens = torch.randint(0, 300, (2, 24))
    with torch.no_grad():
        found, expected = ours(tmp_path / "run")(tokens), theirs(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_an_import_holds_less_than_two_of_its_largest_tensors(kind: str, tmp_path: Path) -> None:
    layers = {"n_layer": 24} if kind == "gpt2" else {"num_hidden_layers": 24}
    theirs = hf_folder(tmp_path / "hf", kind, **layers)
    sizes = [4 * parameter.numel() for parameter in theirs.parameters()]
    with Allocations() as live:
        import_folder(tmp_path / "hf", tmp_path / "run")
    assert max(sizes) <= live.peak < 2 * max(sizes)
    assert 2 * max(sizes) < 0.1 * sum(sizes)  # what all of them at once would take


@pytest.mark.slow
def test_training_goes_on_from_it_with_more_pieces(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: Any, texts: list[str], prepared: Path
) -> None:
    from helpers.toy import small_run

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data.sentencepieces import train_unigram
    from llmjp_train.data.tokenizers import load_tokenizer
    from llmjp_train.publish.importing import row_sources

    folder = tmp_path / "hf"
    hf_folder(folder, "llama", vocab_size=350)
    train_unigram(texts, 350, 0.999).save_pretrained(str(folder))
    run_dir = tmp_path / "imported"
    assert (
        main(["import", str(folder), "--out", str(run_dir), "--extend", str(tokenizer_folder)])
        == exit_codes.OK
    )
    reader = CheckpointReader(latest(run_dir).path)
    rows, before = reader.read("master.embedding.weight"), load_file(folder / "model.safetensors")
    old = load_tokenizer(TokenizerConfig("old", str(folder)))
    sources = row_sources(old, tokenizer, 350)
    assert rows.shape[0] == len(sources) == tokenizer.vocab_size == 400
    kept = [i for i, ids in enumerate(sources) if len(ids) == 1]
    mixed = [i for i, ids in enumerate(sources) if len(ids) > 1]
    assert len(kept) > 100
    assert mixed
    table = before["model.embed_tokens.weight"]
    assert torch.equal(rows[kept], table[[sources[i][0] for i in kept]])
    torch.testing.assert_close(rows[mixed[0]], table[sources[mixed[0]]].mean(0))
    words = small_run(tmp_path / "run", prepared, tokenizer_folder)
    words = [word for word in words if not word.startswith("model.")]
    more = ["model=imported", f"fork.run={run_dir}", "schedule.length=6"]
    config = compose("train", [*words, *more], run_dir / "configs")
    assert run_ranks(rank_main, 1, config) == [exit_codes.OK]
    assert latest(tmp_path / "run").step == 6


def broken(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if change == "shape":
        tensors["model.norm.weight"] = torch.ones(31)
    elif change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif change == "more":
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(3)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("shape", "model.norm.weight has shape [31], config.json means [32]"),
        ("missing", "model.layers.1.mlp.up_proj.weight is missing"),
        ("more", "model.layers.2.mlp.up_proj.weight is not part of such a model"),
    ],
)
def test_a_config_that_claims_what_the_tensors_are_not_is_refused(
    change: str, told: str, tmp_path: Path, capsys: Any
) -> None:
    hf_folder(tmp_path / "hf", "llama")
    broken(tmp_path / "hf", change)
    assert main(["import", str(tmp_path / "hf"), "--out", str(tmp_path / "run")]) == exit_codes.BAD_INPUT
    error = capsys.readouterr().err
    assert "config.json says what the tensors are not" in error
    assert told in error
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_models_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert main(["import", str(tmp_path)]) == exit_codes.BAD_INPUT
    assert "holds no config.json" in capsys.readouterr().err
    hf_folder(tmp_path / "sliding", "mistral", sliding_window=8)
    assert main(["import", str(tmp_path / "sliding"), "--out", str(tmp_path / "run")]) == exit_codes.BAD_INPUT
    assert "sliding_window=8" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    folder = str(tmp_path / "sliding")
    assert main(["import", folder, "--out", str(tmp_path / "full")]) == exit_codes.BAD_INPUT
    assert "is not empty" in capsys.readouterr().err
    config = json.loads((tmp_path / "sliding" / "config.json").read_text())
    config["model_type"] = "bert"
    (tmp_path / "sliding" / "config.json").write_text(json.dumps(config))
    assert main(["import", folder, "--out", str(tmp_path / "run")]) == exit_codes.BAD_INPUT
    assert "has no counterpart" in capsys.readouterr().err
