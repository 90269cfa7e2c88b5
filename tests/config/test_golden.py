"""Parameter counts that LLM-jp published, reproduced exactly, each with the vocabulary of its own table."""

from functools import cache

import pytest

from llmjp_train.config.compose import compose
from llmjp_train.config.derive import padded_vocab, parameter_count
from llmjp_train.config.model import ModelConfig

V3_CARDS = 99_487
"""Rows that the cards of v3 count with; the tokenizer has 99,574."""

NOT_EMBEDDED = [
    ("150m", V3_CARDS, 50_344_448, 101_874_688),
    ("440m", V3_CARDS, 243_303_424, 203_749_376),
    ("980m", V3_CARDS, 684_258_816, 305_624_064),
    ("1.8b", V3_CARDS, 1_459_718_144, 407_498_752),
    ("3.7b", V3_CARDS, 3_171_068_928, 611_248_128),
    ("13b", V3_CARDS, 12_688_184_320, 1_018_746_880),
    ("172b", V3_CARDS, 169_947_181_056, 2_444_992_512),
]
"""Model, vocabulary, parameters without embeddings and of them: the cards of llm-jp-3-980m and
llm-jp-3-172b-instruct3."""


@cache
def model(name: str) -> ModelConfig:
    found: ModelConfig = compose("train", [f"model={name}"], partial=True).model
    return found


@pytest.mark.parametrize(("name", "vocab", "without", "embeddings"), NOT_EMBEDDED)
def test_v3_cards(name: str, vocab: int, without: int, embeddings: int) -> None:
    counts = parameter_count(model(name), vocab)
    assert (counts.non_embedding, counts.embeddings) == (without, embeddings)
    assert counts.total == without + embeddings


def test_the_card_of_v4_8b_states_the_total() -> None:
    """Its "embedding" is one matrix, unlike v3's."""
    config = model("8b-v4")
    counts = parameter_count(config, 196_608)
    assert counts.total == 8_590_200_832
    assert counts.embeddings == 2 * 805_306_368


def test_the_trial_of_175b_with_its_padded_vocabulary() -> None:
    config = model("175b")
    assert parameter_count(config, 97_280).total == 175_156_912_128
    assert padded_vocab(config, tensor=4) == 97_280, "as its config.json has it"


@pytest.mark.parametrize(
    ("name", "tensor", "padded"),
    [("13b-v1", 1, 50_688), ("13b-v2", 2, 97_024), ("150m", 1, 99_584), ("172b", 4, 99_840)],
)
def test_padded_vocabularies(name: str, tensor: int, padded: int) -> None:
    assert padded_vocab(model(name), tensor) == padded


SHAPES = {
    "13b-v1": (40, 5120, 20480, 40, 40, 128, 50_570),
    "175b": (96, 12288, 49152, 96, 96, 128, 96_867),
    "13b-v2": (40, 5120, 13824, 40, 40, 128, 96_867),
    "150m": (12, 512, 2048, 8, 8, 64, 99_574),
    "440m": (16, 1024, 3584, 8, 8, 128, 99_574),
    "980m": (20, 1536, 5376, 8, 8, 192, 99_574),
    "1.8b": (24, 2048, 7168, 16, 16, 128, 99_574),
    "3.7b": (28, 3072, 8192, 24, 24, 128, 99_574),
    "7.2b": (32, 4096, 11008, 32, 32, 128, 99_574),
    "13b": (40, 5120, 13824, 40, 40, 128, 99_574),
    "70b": (80, 8192, 28672, 64, 8, 128, 99_574),
    "172b": (96, 12288, 38464, 96, 16, 128, 99_574),
    "8b-v4": (32, 4096, 14336, 32, 8, 128, 196_608),
    "33b-v4": (64, 5120, 27648, 40, 8, 128, 196_608),
}
"""Layers, hidden, feed-forward, heads, key-value heads, head size, vocabulary: the published architectures."""


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_the_published_ones(name: str) -> None:
    config = model(name)
    assert config.name == name
    found = (
        config.num_layers,
        config.hidden_size,
        config.ffn_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_size,
        config.vocab_size,
    )
    assert found == SHAPES[name]


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("13b-v1", ("learned", "layernorm", 1e-5, "gelu_tanh", "all", True)),
        ("175b", ("rope", "layernorm", 1e-5, "gelu", "all", True)),
        ("13b-v2", ("rope", "rmsnorm", 1e-5, "swiglu", "none", False)),
        ("13b", ("rope", "rmsnorm", 1e-5, "swiglu", "none", False)),
        ("172b", ("rope", "rmsnorm", 1e-5, "swiglu", "none", False)),
        ("8b-v4", ("rope", "rmsnorm", 1e-6, "swiglu", "none", False)),
        ("33b-v4", ("rope", "rmsnorm", 1e-6, "swiglu", "none", False)),
    ],
)
def test_choices_are_the_published_ones(name: str, choices: tuple[object, ...]) -> None:
    config = model(name)
    found = (config.position.name, config.norm.name, config.norm_eps, config.mlp.name, config.bias.name)
    assert (*found, config.tied_embeddings) == choices
    assert config.rope_theta == (500_000 if name.endswith("v4") else 10_000)
    assert config.rope_fraction == (0.25 if name == "175b" else 1)
    assert config.init_std == (0.005 if name == "175b" else 0.02)


def test_counting_agrees_with_the_network_itself() -> None:
    """Every parameter of the built decoder, for each form."""
    import torch

    from llmjp_train.config.rehearsal import small_model
    from llmjp_train.model.decoder import Decoder

    for name in ("13b-v1", "175b", "13b-v2", "172b", "8b-v4", "tiny"):
        config = small_model(model(name))
        with torch.device("meta"):
            built = Decoder(config)
        assert sum(p.numel() for p in built.parameters()) == parameter_count(config).total, name
