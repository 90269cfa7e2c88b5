"""A tokenizer trained on the spot and a random tiny model, as a Hugging Face folder and as our decoder."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmjp_train.config.compose import dump_config
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.root import TrainConfig
from llmjp_train.model.decoder import Decoder
from llmjp_train.runlog.record import RunRecord

MODEL = ModelConfig(
    name="toy",
    num_layers=2,
    hidden_size=32,
    ffn_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    vocab_size=600,
    max_positions=256,
)

LLAMA = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    """Shape of the toy model."""
    return MODEL


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A Unigram tokenizer of 600 pieces that, like LLM-jp's ver2, appends EOD by itself (facts T1)."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    texts = [
        json.loads(line)["text"] for line in (root / "eval/items/own_texts.jsonl").read_text().splitlines()
    ]
    counts = Counter(
        text[i : i + size] for text in texts for size in (1, 2) for i in range(len(text) - size + 1)
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    learned = [piece for piece, _ in counts.most_common(600 - 3 - 256)]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece, -12.0) for piece in bytes_)]
    vocabulary += [(piece, math.log(counts[piece] / len(texts) / 300)) for piece in learned]
    raw = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    """The toy tokenizer as the data room loads it."""
    from llmjp_train.data.tokenizers import load_tokenizer

    return load_tokenizer(TokenizerConfig(name="toy", path=str(tokenizer_folder)))


@pytest.fixture(scope="session")
def tensors(model_config: ModelConfig) -> dict[str, torch.Tensor]:
    """Random weights by logical name, large enough that the choices' scores differ clearly."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, parameter in Decoder(model_config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        found[name] = 1 + 0.1 * noise if name.endswith("norm.weight") else 0.2 * noise
    return found


@pytest.fixture(scope="session")
def decoder(model_config: ModelConfig, tensors: dict[str, torch.Tensor]) -> Decoder:
    """Our decoder with the random weights."""
    module = Decoder(model_config)
    module.load_state_dict(tensors)
    return module.eval()


@pytest.fixture(scope="session")
def hf_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    model_config: ModelConfig,
    tensors: dict[str, torch.Tensor],
) -> Path:
    """transformers' own Llama with the same weights, mapped here by hand."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model_config.vocab_size,
        hidden_size=model_config.hidden_size,
        intermediate_size=model_config.ffn_size,
        num_hidden_layers=model_config.num_layers,
        num_attention_heads=model_config.num_heads,
        num_key_value_heads=model_config.num_kv_heads,
        head_dim=model_config.head_size,
        max_position_embeddings=model_config.max_positions,
        rms_norm_eps=model_config.norm_eps,
        rope_theta=model_config.rope_theta,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    state = {
        "model.embed_tokens.weight": tensors["embedding.weight"],
        "model.norm.weight": tensors["norm.weight"],
        "lm_head.weight": tensors["head.weight"],
    }
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            module = rest.removesuffix(".weight")
            state[f"model.layers.{index}.{LLAMA[module]}.weight"] = tensor
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    folder = tmp_path_factory.mktemp("hf") / "model"
    shutil.copytree(tokenizer_folder, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run_dir(
    tmp_path: Path, tokenizer_folder: Path, model_config: ModelConfig, tensors: dict[str, torch.Tensor]
) -> Path:
    """A run with two checkpoints; the second has the toy model's weights."""
    from llmjp_train.checkpoint.store import save
    from llmjp_train.parallel.fragment import Fragment
    from llmjp_train.runlog.lease import Lease

    path = tmp_path / "run"
    config = TrainConfig(name="toy", model=model_config)
    config = replace(config, tokenizer=replace(config.tokenizer, name="toy"), run_dir=str(path))
    for part in (config.data, config.schedule, config.parallel, config.evaluation):
        part.name = "toy"
    RunRecord(path).create(dump_config(config))
    shutil.copytree(tokenizer_folder, path / "tokenizer")
    with Lease.acquire(path) as lease:
        for step, factor in ((10, 0.5), (20, 1.0)):
            fragments = [
                Fragment(
                    f"master.{name}", tuple(t.shape), tuple(t.shape), (0,) * t.ndim, 0, (t * factor).flatten()
                )
                for name, t in tensors.items()
            ]
            save(path, step, fragments, {"step": step}, epoch=lease.epoch)
    return path
