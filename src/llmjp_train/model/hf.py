"""Between our decoder and transformers' families: configurations both ways, and tensors one at a time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.errors import UserError
from llmjp_train.model.shapes import parameter_shapes

_GELU = (Mlp.gelu, Mlp.gelu_tanh)
_LLAMA_MODULES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Family:
    """How transformers names and lays out one kind of decoder."""

    name: str
    """transformers' ``model_type``."""
    architecture: str
    accepts: dict[str, tuple[Any, ...]]
    """Choices of `ModelConfig` that it can hold."""
    embedding: str = "model.embed_tokens"
    positions: str = ""
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    """As in files; transformers 5 calls GPT-NeoX's ``lm_head`` in memory and ``embed_out`` in files."""
    modules: tuple[tuple[str, str], ...] = tuple(_LLAMA_MODULES.items())
    """Our and its names inside a layer."""
    fused: str = ""
    """Query, key and value in one matrix: as three ``blocks``, or by ``heads``, each with its three."""
    transposed: bool = False
    """Matrices of layers are (in, out), as GPT-2's Conv1D has them."""
    square: bool = False
    """Takes no grouped queries and no head size but hidden / heads."""
    divisible: bool = False
    """Wants a hidden size that its heads divide, even where the head size is its own."""

    def refusals(self, config: ModelConfig) -> list[str]:
        """Choices of ``config`` that this family cannot hold, in words."""
        hidden, heads = config.hidden_size, config.num_heads
        checks = [(key, " or ".join(map(_word, all_)), all_) for key, all_ in self.accepts.items()]
        if self.square:
            checks += [
                ("num_kv_heads", f"as many as num_heads, {heads}", (heads,)),
                ("head_size", f"hidden_size / num_heads, {hidden / heads:g}", (hidden / heads,)),
            ]
        if self.divisible and hidden % heads:
            checks.append(("num_heads", f"a number that divides hidden_size, {hidden}", ()))
        return [
            f"model.{key}={_word(getattr(config, key))} ({self.name} takes {takes})"
            for key, takes, allowed in checks
            if getattr(config, key) not in allowed
        ]


_LLAMA = {
    "position": (Position.rope,),
    "rope_fraction": (1.0,),
    "norm": (Norm.rmsnorm,),
    "mlp": (Mlp.swiglu,),
    "qk_norm": (False,),
}
_GPT = {"norm": (Norm.layernorm,), "mlp": _GELU, "bias": (Bias.all,), "qk_norm": (False,)}

FAMILIES = (
    Family("llama", "LlamaForCausalLM", _LLAMA | {"bias": (Bias.none, Bias.all)}, divisible=True),
    Family("qwen2", "Qwen2ForCausalLM", _LLAMA | {"bias": (Bias.qkv,)}),
    Family("qwen3", "Qwen3ForCausalLM", _LLAMA | {"bias": (Bias.none,), "qk_norm": (True,)}),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        _GPT | {"position": (Position.learned,)},
        embedding="transformer.wte",
        positions="transformer.wpe",
        layers="transformer.h",
        norm="transformer.ln_f",
        modules=(
            ("attention_norm", "ln_1"),
            ("attention.query", "attn.c_attn"),
            ("attention.output", "attn.c_proj"),
            ("mlp_norm", "ln_2"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ),
        fused="blocks",
        transposed=True,
        square=True,
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _GPT | {"position": (Position.rope,)},
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        modules=(
            ("attention_norm", "input_layernorm"),
            ("attention.query", "attention.query_key_value"),
            ("attention.output", "attention.dense"),
            ("mlp_norm", "post_attention_layernorm"),
            ("mlp.up", "mlp.dense_h_to_4h"),
            ("mlp.down", "mlp.dense_4h_to_h"),
        ),
        fused="heads",
        square=True,
    ),
)


def family_of(config: ModelConfig) -> Family:
    """The family that can hold a model.

    Raises:
        UserError: none can; names the choices that stand in the way of the nearest one.
    """
    refusals = [(len(found := family.refusals(config)), found, family) for family in FAMILIES]
    count, found, family = min(refusals, key=lambda each: each[0])
    if count:
        raise UserError(
            f"no family of transformers can hold this model; the nearest, {family.name}, does not take "
            + ", ".join(found)
            + ". It can be trained and evaluated here, not exported: change the choice before training"
        )
    return family


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


@dataclass(frozen=True)
class Entry:
    """One tensor of an exported file and what it is made of."""

    name: str
    sources: tuple[str, ...]
    """Logical names: one, or query, key and value."""
    heads: int = 0
    """Fused head by head; 0: block by block."""
    transposed: bool = False

    def join(self, parts: list[Tensor]) -> Tensor:
        """The exported tensor from the logical ones, in the order of ``sources``."""
        whole = parts[0]
        if len(parts) > 1 and self.heads:
            # GPT-NeoX: (heads, 3, head, ...) flattened: each head's query, key and value lie together.
            split = [part.view(self.heads, -1, *part.shape[1:]) for part in parts]
            whole = torch.stack(split, dim=1).flatten(0, 2)
        elif len(parts) > 1:
            whole = torch.cat(parts)
        return (whole.t() if self.transposed else whole).contiguous()

    def split(self, whole: Tensor) -> list[Tensor]:
        """Inverse of `join`."""
        if self.transposed:
            whole = whole.t()
        count = len(self.sources)
        if count > 1 and self.heads:
            parts = whole.view(self.heads, count, -1, *whole.shape[1:]).unbind(1)
            return [part.flatten(0, 1).contiguous() for part in parts]
        return [part.contiguous() for part in whole.chunk(count)]

    def shape(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the exported tensor, from those of `parameter_shapes`; nothing is allocated."""
        return tuple(self.join([torch.empty(shapes[name], device="meta") for name in self.sources]).shape)


def entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of the export, in the order of the network. A tied head is not among them.

    Raises:
        UserError: no family holds the model.
    """
    family = family_of(config)
    modules = dict(family.modules)
    found = []
    for name in parameter_shapes(config):
        module, kind = name.rsplit(".", 1)
        if not name.startswith("layers."):
            found.append(Entry(f"{getattr(family, module)}.{kind}", (name,)))
            continue
        _, index, inner = module.split(".", 2)
        if inner not in modules:
            continue  # key and value of a fused matrix, written with the query
        sources: tuple[str, ...] = (name,)
        if family.fused and inner == "attention.query":
            sources = tuple(f"layers.{index}.attention.{part}.{kind}" for part in ("query", "key", "value"))
        heads = config.num_heads if family.fused == "heads" else 0
        transposed = family.transposed and kind == "weight" and not inner.endswith("norm")
        found.append(Entry(f"{family.layers}.{index}.{modules[inner]}.{kind}", sources, heads, transposed))
    return found


def hf_tensors(config: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each exported tensor, one at a time; ``read`` gives a tensor by logical name."""
    for entry in entries(config):
        yield entry.name, entry.join([read(name) for name in entry.sources])


def from_hf_tensors(config: ModelConfig, read_hf: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Logical name and value of each parameter; ``read_hf`` gives a tensor by its name in the files."""
    for entry in entries(config):
        yield from zip(entry.sources, entry.split(read_hf(entry.name)), strict=True)


def to_hf_config(
    config: ModelConfig,
    *,
    dtype: str = "bfloat16",
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> Any:
    """transformers' configuration of the same model. The vocabulary is the true one, as ours always is.

    Raises:
        UserError: no family holds the model.
    """
    from transformers import AutoConfig

    family = family_of(config)
    common = {
        "architectures": [family.architecture],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": dtype,
        "use_cache": True,
    }
    return AutoConfig.for_model(family.name, **common, **_form(family, config))


def _form(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Sizes and choices by the family's own keys."""
    if family.name == "gpt2":
        return {
            "n_positions": config.max_positions,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.ffn_size,
            "activation_function": _activation(config.mlp),
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    shared = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": _activation(config.mlp),
        "max_position_embeddings": config.max_positions,
        "rope_parameters": rope,
    }
    if family.name == "gpt_neox":
        rope["partial_rotary_factor"] = config.rope_fraction
        return shared | {
            "layer_norm_eps": config.norm_eps,
            "use_parallel_residual": False,
            "attention_bias": True,
        }
    shared |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
    }
    if family.name == "llama":
        biased = config.bias is Bias.all
        shared |= {"attention_bias": biased, "mlp_bias": biased}
    return shared


def _activation(mlp: Mlp) -> str:
    return {Mlp.swiglu: "silu", Mlp.gelu: "gelu", Mlp.gelu_tanh: "gelu_new"}[mlp]


def config_json(hf_config: Any) -> str:
    """Text of config.json, with the keys that transformers 4 reads beside those of 5.

    transformers 5 keeps the rotary settings in ``rope_parameters`` alone, of which 4 knows nothing: it takes
    theta = 10000 (and a quarter of each head for GPT-NeoX) without a word.
    """
    content: dict[str, Any] = json.loads(hf_config.to_json_string())
    rope = content.get("rope_parameters")
    if rope is not None and content["model_type"] == "gpt_neox":
        content["rotary_emb_base"] = rope["rope_theta"]
        content["rotary_pct"] = rope["partial_rotary_factor"]
    elif rope is not None:
        content["rope_theta"] = rope["rope_theta"]
    content["torch_dtype"] = content["dtype"]
    return json.dumps(dict(sorted(content.items())), indent=2, ensure_ascii=False) + "\n"


def from_hf_config(hf_config: Any) -> ModelConfig:
    """Our configuration of a transformers model.

    Raises:
        UserError: its family or one of its settings has no counterpart here.
    """
    names = [*(family.name for family in FAMILIES), "mistral"]
    kind = hf_config.model_type
    if kind not in names:
        raise UserError(f"model_type={kind} has no counterpart here: {', '.join(names)} have")
    _check_settings(kind, hf_config)
    activation = hf_config.activation_function if kind == "gpt2" else hf_config.hidden_act
    mlps = {
        "silu": Mlp.swiglu,
        "gelu": Mlp.gelu,
        "gelu_new": Mlp.gelu_tanh,
        "gelu_pytorch_tanh": Mlp.gelu_tanh,
    }
    rope = getattr(hf_config, "rope_parameters", None) or {}
    hidden, heads = hf_config.hidden_size, hf_config.num_attention_heads
    eps = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}
    gpt = kind in eps
    if activation not in mlps or (mlps[activation] is Mlp.swiglu) == gpt:
        raise UserError(f"activation {activation} of this {kind} model has no counterpart here")
    if gpt:
        bias = Bias.all
    elif kind == "qwen2":
        bias = Bias.qkv
    else:
        bias = Bias.all if getattr(hf_config, "attention_bias", False) else Bias.none
    config = ModelConfig(
        name=kind,
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hidden,
        ffn_size=(hf_config.n_inner or 4 * hidden) if kind == "gpt2" else hf_config.intermediate_size,
        num_heads=heads,
        num_kv_heads=heads if gpt else hf_config.num_key_value_heads,
        head_size=(None if gpt else getattr(hf_config, "head_dim", None)) or hidden // heads,
        vocab_size=hf_config.vocab_size,
        max_positions=hf_config.max_position_embeddings,
        position=Position.learned if kind == "gpt2" else Position.rope,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_fraction=float(rope.get("partial_rotary_factor", 1.0)),
        norm=Norm.layernorm if gpt else Norm.rmsnorm,
        norm_eps=float(getattr(hf_config, eps.get(kind, "rms_norm_eps"))),
        mlp=mlps[activation],
        bias=bias,
        tied_embeddings=bool(hf_config.tie_word_embeddings),
        qk_norm=kind == "qwen3",
        init_std=hf_config.initializer_range,
    )
    family_of(config)
    return config


def _check_settings(kind: str, hf_config: Any) -> None:
    """Refuse what transformers' model would do and ours would not."""
    every: dict[str, dict[str, Any]] = {
        "gpt2": {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        "gpt_neox": {"use_parallel_residual": False, "attention_bias": True},
        "llama": {"mlp_bias": getattr(hf_config, "attention_bias", False)},
        "mistral": {"sliding_window": None},
        "qwen2": {"use_sliding_window": False},
        "qwen3": {"use_sliding_window": False, "attention_bias": False},
    }
    for key, value in every[kind].items():
        if getattr(hf_config, key) != value:
            raise UserError(f"{key}={getattr(hf_config, key)} of this {kind} model has no counterpart here")
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"rope_type={rope['rope_type']} of this {kind} model has no counterpart here: only default has"
        )
