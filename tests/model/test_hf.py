"""The same weights give transformers' model and ours the same logits, both ways, for each family."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.errors import UserError
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.hf import (
    config_json,
    entries,
    family_of,
    from_hf_config,
    from_hf_tensors,
    hf_tensors,
    to_hf_config,
)
from llmjp_train.model.shapes import parameter_shapes

LLAMA = ModelConfig(
    name="llama",
    num_layers=2,
    hidden_size=60,
    ffn_size=77,
    num_heads=6,
    num_kv_heads=2,
    head_size=14,
    vocab_size=101,
    max_positions=64,
    rope_theta=500000.0,
    norm_eps=3e-6,
)
GPT2 = replace(
    LLAMA,
    name="gpt2",
    num_kv_heads=6,
    head_size=10,
    position=Position.learned,
    norm=Norm.layernorm,
    mlp=Mlp.gelu_tanh,
    bias=Bias.all,
    tied_embeddings=True,
    rope_theta=10000.0,
)
NEOX = replace(
    GPT2, name="gpt_neox", hidden_size=72, head_size=12, position=Position.rope, rope_theta=777.0,
    rope_fraction=0.5, mlp=Mlp.gelu, tied_embeddings=False,
)  # fmt: skip
QWEN2 = replace(LLAMA, name="qwen2", bias=Bias.qkv)
QWEN3 = replace(LLAMA, name="qwen3", qk_norm=True, num_heads=4, num_kv_heads=4, head_size=22)

CASES = {
    "llama": LLAMA,
    "llama-tied-biased-plain-heads": replace(
        LLAMA, bias=Bias.all, tied_embeddings=True, num_kv_heads=6, head_size=10
    ),
    "llama-one-kv-head-biased": replace(LLAMA, num_kv_heads=1, head_size=30, bias=Bias.all),
    "gpt2": GPT2,
    "gpt2-untied-exact-gelu": replace(GPT2, tied_embeddings=False, mlp=Mlp.gelu),
    "gpt_neox": NEOX,
    "gpt_neox-tied-tanh-whole-rotary": replace(
        NEOX, tied_embeddings=True, mlp=Mlp.gelu_tanh, rope_fraction=1.0
    ),
    "gpt_neox-quarter-tied": replace(
        NEOX, hidden_size=48, head_size=8, rope_fraction=0.25, tied_embeddings=True
    ),
    "qwen2": QWEN2,
    "qwen2-tied-plain-heads": replace(QWEN2, tied_embeddings=True, num_kv_heads=3, head_size=10),
    "qwen3": QWEN3,
    "qwen3-hidden-not-of-heads": replace(QWEN3, hidden_size=50, num_kv_heads=2, tied_embeddings=True),
}
every_case = pytest.mark.parametrize("config", CASES.values(), ids=list(CASES))


def weights_of(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Large random weights, so that rotation, grouping and every bias matter to the logits."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.25 + ("norm.weight" in name)
        for name, shape in parameter_shapes(config).items()
    }


def decoder_of(config: ModelConfig, weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(config)
    if config.tied_embeddings:
        weights = weights | {"head.weight": weights["embedding.weight"]}
    decoder.load_state_dict(weights)
    return decoder.eval()


def tokens_of(config: ModelConfig) -> Tensor:
    return torch.randint(config.vocab_size, (3, 37), generator=torch.Generator().manual_seed(5))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 3e-6


def save_folder(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    hf_config = to_hf_config(config, dtype="float32", bos_id=1, eos_id=2)
    (folder / "config.json").write_text(config_json(hf_config))
    save_file(
        dict(hf_tensors(config, weights.__getitem__)), folder / "model.safetensors", metadata={"format": "pt"}
    )


@every_case
@torch.no_grad()
def test_transformers_computes_our_logits_from_our_weights(config: ModelConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = weights_of(config)
    save_folder(tmp_path, config, weights)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = tokens_of(config)
    wanted = theirs.eval()(tokens).logits
    assert_close(decoder_of(config, weights)(tokens), wanted)
    assert wanted.std() > 0.5  # so that the comparison is one


@every_case
@torch.no_grad()
def test_we_compute_transformers_logits_from_its_weights(config: ModelConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(
        to_hf_config(config, dtype="float32"), attn_implementation="eager"
    ).eval()
    for parameter in theirs.parameters():
        parameter.normal_(0.0, 0.3)
    theirs.save_pretrained(tmp_path)
    read = from_hf_config(AutoConfig.from_pretrained(tmp_path))
    assert read == replace(config, name=read.name)
    stored = load_file(tmp_path / "model.safetensors")
    ours = decoder_of(read, dict(from_hf_tensors(read, stored.__getitem__)))
    tokens = tokens_of(config)
    assert_close(ours(tokens), theirs(tokens).logits)


@every_case
def test_tensors_return_bit_equal_and_shapes_are_known_beforehand(config: ModelConfig) -> None:
    weights = weights_of(config)
    exported = dict(hf_tensors(config, weights.__getitem__))
    shapes = parameter_shapes(config)
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == {
        entry.name: entry.shape(shapes) for entry in entries(config)
    }
    back = dict(from_hf_tensors(config, exported.__getitem__))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_tensors_are_made_one_at_a_time() -> None:
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return torch.zeros(parameter_shapes(GPT2)[name])

    stream = hf_tensors(GPT2, read)
    assert next(stream)[0] == "transformer.wte.weight"
    assert asked == ["embedding.weight"]
    names = [next(stream)[0] for _ in range(4)]
    assert names[-1] == "transformer.h.0.attn.c_attn.weight"
    assert asked[-3:] == [f"layers.0.attention.{part}.weight" for part in ("query", "key", "value")]


def test_config_json_speaks_to_transformers_4_too() -> None:
    llama = json.loads(config_json(to_hf_config(LLAMA, dtype="bfloat16")))
    assert llama["rope_theta"] == 500000.0
    assert llama["rope_parameters"]["rope_theta"] == 500000.0
    assert llama["head_dim"] == 14
    assert llama["torch_dtype"] == llama["dtype"] == "bfloat16"
    neox = json.loads(config_json(to_hf_config(NEOX)))
    assert (neox["rotary_pct"], neox["rotary_emb_base"]) == (0.5, 777.0)
    assert neox["use_parallel_residual"] is False
    assert "rope_theta" not in json.loads(config_json(to_hf_config(GPT2)))


def test_special_ids_are_ours_and_never_a_family_s_defaults() -> None:
    config = to_hf_config(LLAMA, eos_id=7)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 7, None)


REFUSED: list[tuple[ModelConfig, list[str]]] = [
    (replace(LLAMA, mlp=Mlp.gelu), ["model.mlp=gelu", "llama takes swiglu"]),
    (replace(LLAMA, rope_fraction=0.5), ["model.rope_fraction=0.5"]),
    (replace(LLAMA, hidden_size=64), ["model.num_heads=6", "divides hidden_size, 64"]),
    (replace(GPT2, num_kv_heads=2), ["model.num_kv_heads=2", "gpt2 takes as many as num_heads, 6"]),
    (replace(GPT2, head_size=8), ["model.head_size=8"]),
    (replace(NEOX, bias=Bias.none), ["model.bias=none", "gpt_neox takes all"]),
    (replace(QWEN3, bias=Bias.qkv), ["model.qk_norm=True", "qwen2 takes False"]),
    (replace(NEOX, norm=Norm.rmsnorm), ["model.norm=rmsnorm", "gpt_neox takes layernorm"]),
]


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_no_family_says_is_refused_by_name(config: ModelConfig, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        family_of(config)
    assert "no family of transformers" in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    with pytest.raises(UserError):
        to_hf_config(config)


@pytest.mark.parametrize(
    ("kind", "settings", "word"),
    [
        ("mistral", {}, "sliding_window=4096"),
        ("gpt_neox", {"use_parallel_residual": True}, "use_parallel_residual=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ("gpt2", {"activation_function": "relu"}, "relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_settings_of_transformers_without_counterpart_are_refused(
    kind: str, settings: dict[str, Any], word: str
) -> None:
    from transformers import AutoConfig

    with pytest.raises(UserError, match=word):
        from_hf_config(AutoConfig.for_model(kind, **settings))
