"""A made-up checkpoint and a small tokenizer, for tests of what leaves a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.config.root import TrainConfig
from llmjp_train.model.shapes import parameter_shapes

VOCABULARY = 320
LLAMA = ModelConfig(
    name="toy",
    num_layers=3,
    hidden_size=40,
    ffn_size=56,
    num_heads=4,
    num_kv_heads=2,
    head_size=14,
    vocab_size=VOCABULARY,
    max_positions=96,
    rope_theta=50000.0,
)
GPT2 = replace(
    LLAMA, num_kv_heads=4, head_size=10, position=Position.learned, norm=Norm.layernorm, mlp=Mlp.gelu_tanh,
    bias=Bias.all, tied_embeddings=True, rope_theta=10000.0,
)  # fmt: skip
NEOX = replace(
    GPT2, head_size=12, hidden_size=48, position=Position.rope, rope_fraction=0.5, mlp=Mlp.gelu,
    tied_embeddings=False,
)  # fmt: skip
QWEN2 = replace(LLAMA, bias=Bias.qkv, tied_embeddings=True)


class MadeUpCheckpoint:
    """The interface of `CheckpointReader`, over tensors in memory; counts what it reads."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {
            f"master.{name}": torch.randn(shape, generator=generator) * 0.15 + ("norm.weight" in name)
            for name, shape in parameter_shapes(config).items()
        }
        self.state: dict[str, Any] = {"step": 30}
        self.asked: list[str] = []

    def names(self) -> list[str]:
        """As the real one, with the moments."""
        moments = [name.replace("master.", "exp_avg.") for name in self.tensors]
        return sorted([*self.tensors, *moments])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a master."""
        return tuple(self.tensors[name].shape)

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A master."""
        self.asked.append(name)
        return self.tensors[name].to(dtype, copy=True)


def save_tokenizer(folder: Path, *, size: int = VOCABULARY, appends: bool = False) -> Path:
    """A byte-fallback Unigram tokenizer of ``size`` ids; ``appends``: it adds </s> by itself."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    kana = [chr(code) for code in range(ord("あ"), ord("あ") + size - 3 - 256)]
    pieces: Sequence[str] = [f"<0x{byte:02X}>" for byte in range(256)]
    scored = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        *((p, -12.0) for p in pieces),
        *((k, -3.0) for k in kana),
    ]
    raw = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if appends:
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<unk>"],
    )
    fast.save_pretrained(folder)
    return folder


def save_byte_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer of Qwen2's kind with at most ``VOCABULARY`` ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(["むかしむかし、あるところに、おじいさんとおばあさんがいました。"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


def train_config(model: ModelConfig, tokenizer: Path) -> TrainConfig:
    """The configuration of a run of this model."""
    from llmjp_train.config.compose import compose

    given = [f"tokenizer.path={tokenizer}", "data.sources.small.path=unused"]
    config: TrainConfig = compose("train", ["experiment=tiny-cpu", *given])
    return replace(
        config, name="toy", model=model, tokenizer=TokenizerConfig(name="toy", path=str(tokenizer))
    )


def make_run(path: Path, model: ModelConfig, tokenizer: Path, steps: Sequence[int] = (10, 30)) -> Path:
    """A run directory with real checkpoints of a made-up model; each step has weights of its own."""
    import shutil

    from llmjp_train.checkpoint.store import save
    from llmjp_train.config.compose import dump_config
    from llmjp_train.parallel.fragment import Fragment

    path.mkdir(parents=True)
    shutil.copytree(tokenizer, path / "tokenizer")
    (path / "config.yaml").write_text(dump_config(train_config(model, tokenizer)), encoding="utf-8")
    for step in steps:
        fragments = [
            Fragment(name, tuple(value.shape), tuple(value.shape), (0,) * value.ndim, 0, value.flatten())
            for name, value in MadeUpCheckpoint(model, seed=step).tensors.items()
        ]
        save(path, step, fragments, {"step": step}, epoch=1)
    return path
