from dataclasses import replace
from itertools import pairwise

import pytest

from llmjp_train.config.compose import compose
from llmjp_train.config.model import ModelConfig
from llmjp_train.parallel.stages import layer_bounds


def counts(bounds: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(bounds)]


def test_the_175b_has_its_own_49_stages():
    config = compose("train", ["experiment=llm-jp-175b-abci"])
    found = counts(layer_bounds(config.model, config.parallel.pipeline, config.batch.sequence_length))
    assert found == [1, *[2] * 47, 1]  # embedding + 1, 2 each, 1 + head: 98 = 49 x 2


@pytest.mark.parametrize("name", ["llm-jp-13b-v1-mdx", "llm-jp-13b-v2-mdx", "llm-jp-3-172b-geniac"])
def test_no_stage_of_a_historical_layout_is_much_costlier_than_the_mean(name: str):
    config = compose("train", [f"experiment={name}"])
    found = counts(layer_bounds(config.model, config.parallel.pipeline, 2048))
    assert sum(found) == config.model.num_layers
    assert max(found) - min(found) <= 2  # the ends also hold the embedding and the head


def test_a_large_vocabulary_takes_layers_from_both_ends():
    model = ModelConfig(num_layers=12, hidden_size=64, ffn_size=128, vocab_size=4096)
    found = counts(layer_bounds(model, 4, 128))
    assert sum(found) == 12
    assert found[0] == found[-1] == 1
    small = counts(layer_bounds(replace(model, vocab_size=16), 4, 128))
    assert small == [3, 3, 3, 3]


def test_each_stage_holds_a_layer():
    model = ModelConfig(num_layers=4, hidden_size=64, ffn_size=128, vocab_size=4096)
    assert layer_bounds(model, 4, 128) == [0, 1, 2, 3, 4]
