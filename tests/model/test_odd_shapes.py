"""Parity with transformers both ways over drawn shapes: every family, sizes that nobody would choose."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.hf import (
    config_json,
    family_of,
    from_hf_config,
    from_hf_tensors,
    hf_tensors,
    to_hf_config,
)
from llmjp_train.model.shapes import parameter_shapes

ROUNDING = 5e-6
"""Largest difference over the largest logit; float32 carries about 6e-8, summed over some hundred terms."""


@st.composite
def models(draw: st.DrawFn, family: str) -> ModelConfig:
    """A small model of ``family`` in any form that it allows."""
    gpt = family in ("gpt2", "gpt_neox")
    groups = draw(st.integers(1, 3))
    kv = draw(st.integers(1, 3))
    heads = kv if gpt else kv * groups
    size = 2 * draw(st.integers(2, 9))
    hidden = heads * size if gpt else heads * draw(st.integers(5, 23))
    fraction = 1.0
    if family == "gpt_neox":
        size = 8 * draw(st.integers(1, 3))
        hidden, fraction = heads * size, draw(st.sampled_from([0.25, 0.5, 1.0]))
    biases = {"llama": [Bias.none, Bias.all], "qwen2": [Bias.qkv], "qwen3": [Bias.none]}
    return ModelConfig(
        name=family,
        num_layers=draw(st.integers(1, 3)),
        hidden_size=hidden,
        ffn_size=draw(st.integers(7, 90)),
        num_heads=heads,
        num_kv_heads=kv,
        head_size=size,
        vocab_size=draw(st.integers(11, 157)),
        max_positions=draw(st.integers(20, 70)),
        position=Position.learned if family == "gpt2" else Position.rope,
        rope_theta=10000.0 if family == "gpt2" else draw(st.sampled_from([500.0, 10000.0, 1e6])),
        rope_fraction=fraction,
        norm=Norm.layernorm if gpt else Norm.rmsnorm,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        mlp=draw(st.sampled_from([Mlp.gelu, Mlp.gelu_tanh])) if gpt else Mlp.swiglu,
        bias=Bias.all if gpt else draw(st.sampled_from(biases[family])),
        tied_embeddings=draw(st.booleans()),
        qk_norm=family == "qwen3",
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3"])
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])
def test_logits_agree_both_ways(family: str, data: st.DataObject, seed: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = data.draw(models(family))
    assert family_of(config).name == family
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.2 + ("norm.weight" in name)
        for name, shape in parameter_shapes(config).items()
    }
    tokens = torch.randint(config.vocab_size, (2, config.max_positions), generator=generator)
    decoder = Decoder(config).eval()
    decoder.load_state_dict(weights, strict=not config.tied_embeddings)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        ours_there, theirs_there = Path(name) / "ours", Path(name) / "theirs"
        ours_there.mkdir()
        (ours_there / "config.json").write_text(config_json(to_hf_config(config, dtype="float32")))
        exported = dict(hf_tensors(config, weights.__getitem__))
        save_file(exported, ours_there / "model.safetensors", metadata={"format": "pt"})
        theirs = AutoModelForCausalLM.from_pretrained(ours_there, dtype=torch.float32).eval()
        wanted = theirs(tokens).logits
        assert float((decoder(tokens) - wanted).abs().max() / wanted.abs().max()) < ROUNDING

        for parameter in theirs.parameters():  # and back, from other weights of its own
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        theirs.save_pretrained(theirs_there)
        read = from_hf_config(AutoConfig.from_pretrained(theirs_there))
        back = Decoder(read).eval()
        stored = load_file(theirs_there / "model.safetensors")
        taken = dict(from_hf_tensors(read, stored.__getitem__))
        back.load_state_dict(taken, strict=not read.tied_embeddings)
        wanted = theirs(tokens).logits
        assert float((back(tokens) - wanted).abs().max() / wanted.abs().max()) < ROUNDING
