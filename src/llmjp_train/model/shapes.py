"""Names and shapes of a model's parameters, without building it, and how they may be split."""

from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position

_COLUMN = ("query", "key", "value", "gate", "up")
_ROW = ("output", "down")


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Logical name and shape of every parameter, in the order of the network."""
    hidden, head = config.hidden_size, config.head_size
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, hidden)}
    if config.position is Position.learned:
        shapes["positions.weight"] = (config.max_positions, hidden)
    for index in range(config.num_layers):
        layer = f"layers.{index}"
        _norm(shapes, config, f"{layer}.attention_norm")
        sizes = {
            "query": (config.num_heads * head, hidden),
            "key": (config.num_kv_heads * head, hidden),
            "value": (config.num_kv_heads * head, hidden),
            "output": (hidden, config.num_heads * head),
        }
        for name, shape in sizes.items():
            shapes[f"{layer}.attention.{name}.weight"] = shape
            if config.bias is Bias.all or (config.bias is Bias.qkv and name != "output"):
                shapes[f"{layer}.attention.{name}.bias"] = shape[:1]
        if config.qk_norm:
            shapes[f"{layer}.attention.query_norm.weight"] = (head,)
            shapes[f"{layer}.attention.key_norm.weight"] = (head,)
        _norm(shapes, config, f"{layer}.mlp_norm")
        sizes = {"up": (config.ffn_size, hidden), "down": (hidden, config.ffn_size)}
        if config.mlp is Mlp.swiglu:
            sizes = {"gate": (config.ffn_size, hidden), **sizes}
        for name, shape in sizes.items():
            shapes[f"{layer}.mlp.{name}.weight"] = shape
            if config.bias is Bias.all:
                shapes[f"{layer}.mlp.{name}.bias"] = shape[:1]
    _norm(shapes, config, "norm")
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, hidden)
    return shapes


def _norm(shapes: dict[str, tuple[int, ...]], config: ModelConfig, name: str) -> None:
    shapes[f"{name}.weight"] = (config.hidden_size,)
    if config.norm is Norm.layernorm:
        shapes[f"{name}.bias"] = (config.hidden_size,)


def split_dimension(name: str) -> int | None:
    """Dimension on which tensor parallelism splits a parameter; none: every rank holds it whole.

    Columns first, rows second (Shoeybi et al., 2019): query, key, value, gate and up lose output
    features, output and down lose input features, embedding and head lose vocabulary rows.
    """
    *_, module, kind = name.split(".")
    if module in _COLUMN or (module in ("embedding", "head") and kind == "weight"):
        return 0
    if module in _ROW and kind == "weight":
        return 1
    return None


def decayed(name: str, shape: tuple[int, ...], decay_embeddings: bool) -> bool:
    """Whether weight decay applies: to matrices, and to embeddings where asked."""
    if name.startswith(("embedding.", "positions.")):
        return decay_embeddings
    return len(shape) > 1
