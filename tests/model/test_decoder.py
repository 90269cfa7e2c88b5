"""The decoder's own promises: what recomputation saves, and initial values that follow names alone."""

import pytest
import torch
from helpers.toy import ragged_batches, small_config

from llmjp_train.config.machine import Recompute
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.initial import fill, initial_value
from llmjp_train.model.shapes import decayed, parameter_shapes


def kept_bytes(recompute: Recompute) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters not counted."""
    config = small_config()
    model = Decoder(config.model, recompute=recompute)
    fill(model, config.model, 1)
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = ragged_batches(config, 1)[0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = model(batch.tokens, batch.documents, batch.positions, batch.targets)
    sums.nll.backward()
    return sum(kept.values())


def test_recomputation_keeps_less() -> None:
    none, selective, full = (
        kept_bytes(kind) for kind in (Recompute.none, Recompute.selective, Recompute.full)
    )
    assert full < selective < none
    assert full < 0.5 * none


def test_initial_values_follow_seed_and_name_alone() -> None:
    config = small_config().model
    value = initial_value(config, "layers.0.mlp.up.weight", (48, 32), 1)
    assert torch.equal(value, initial_value(config, "layers.0.mlp.up.weight", (48, 32), 1))
    assert not torch.equal(value, initial_value(config, "layers.1.mlp.up.weight", (48, 32), 1))
    assert not torch.equal(value, initial_value(config, "layers.0.mlp.up.weight", (48, 32), 2))
    assert float(value.std()) == pytest.approx(config.init_std, rel=0.1)
    down = initial_value(config, "layers.0.mlp.down.weight", (32, 48), 1)
    assert float(down.std()) == pytest.approx(config.init_std / (2 * config.num_layers) ** 0.5, rel=0.1)
    assert bool((initial_value(config, "layers.0.mlp_norm.weight", (32,), 1) == 1).all())
    assert bool((initial_value(config, "layers.0.mlp.up.bias", (48,), 1) == 0).all())


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_shapes_without_building_are_those_of_the_network(form: str) -> None:
    more = () if form == "llama" else ("model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh",
                                       "model.bias=all", "model.qk_norm=false")  # fmt: skip
    config = small_config(*more).model
    built = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    assert parameter_shapes(config) == built


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    config = small_config("model.bias=all", "model.norm=layernorm", "model.qk_norm=true").model
    for name, shape in parameter_shapes(config).items():
        vector = name.endswith(".bias") or "norm" in name
        assert decayed(name, shape, True) is not vector, name
        expected = not vector and not name.startswith("embedding.")
        assert decayed(name, shape, False) is expected, name
