"""Impossible layouts are refused with the nearest possible ones; ranks sit where the map says."""

import pytest
from helpers.toy import small_config

from llmjp_train.config.compose import compose
from llmjp_train.config.layouts import coordinates, nearest, node_lines, rank_table
from llmjp_train.config.validate import problems, warnings

REFUSED = {
    "more tensor ranks than key heads": (
        ["parallel.tensor=4"],
        ["model.num_kv_heads=2", "more ranks than key heads", "take 1 or 2", "tensor=2 pipeline=1 data=2"],
    ),
    "more stages than layers": (
        ["parallel.pipeline=3"],
        ["model.num_layers=2", "take 2 or fewer"],
    ),
    "sequence without tensor": (["parallel.sequence=true"], ["parallel.tensor=1", "remove it"]),
    "sequence that does not divide": (
        ["parallel.tensor=2", "parallel.sequence=true", "batch.sequence_length=33"],
        ["sequence length 33", "take 32"],
    ),
    "compile": (["parallel.tensor=2", "parallel.compile=true"], ["take compile=false"]),
    "ranks": (
        ["parallel.data=3", "cluster.nodes=1", "cluster.devices_per_node=4", "batch.global_batch=12"],
        ["needs 3 ranks", "gives 4", "tensor=1 pipeline=1 data=4"],
    ),
    "nodes that are not full": (
        ["parallel.data=6", "cluster.devices_per_node=4", "batch.global_batch=12"],
        ["6 ranks do not fill nodes", "possible on 8 ranks", "tensor=1 pipeline=2 data=4"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_layout_is_refused_with_the_remedy(case: str):
    overrides, said = REFUSED[case]
    told = "\n".join(problems(small_config("batch.global_batch=4", *overrides)))
    for part in said:
        assert part in told


def test_what_is_offered_is_possible():
    config = small_config("parallel.tensor=4", "batch.global_batch=4")
    for tensor, pipeline, data in nearest(config, 4, count=9):
        sizes = (f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.data={data}")
        assert problems(small_config("batch.global_batch=4", "batch.sequence_length=64", *sizes)) == []


def test_ranks_that_share_matrices_are_neighbours_as_in_deepspeed():
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    topology = PipeModelDataParallelTopology(num_pp=3, num_mp=4, num_dp=2)
    for rank in range(24):
        place, theirs = coordinates(rank, tensor=4, data=2), topology.get_coord(rank)
        assert (place.pipeline, place.data, place.tensor) == (theirs.pipe, theirs.data, theirs.model)


def test_the_map_of_the_175b():
    config = compose("train", ["experiment=llm-jp-175b-abci"], partial=True)
    table = rank_table(config)
    assert len(table) == 1 + 392
    assert table[1 + 391].split() == ["391", "48", "7", "3", "48", "1"]
    lines = node_lines(config)
    assert lines[1].startswith("node 1: ranks 8-15: device 0-3: stage 1, data 0, tensor 0-3")
    assert "45 nodes more" in lines[3]
    assert lines[-1].startswith("node 48")


def test_layouts_that_waste_are_warned_of():
    config = small_config("parallel.pipeline=2", "batch.global_batch=1", "cluster.devices_per_node=2")
    assert any("50% of the time" in line for line in warnings(config))
    wide = compose("train", ["experiment=llm-jp-3-172b-geniac", "parallel.tensor=16"], partial=True)
    assert any("two nodes" in line for line in warnings(wide))
