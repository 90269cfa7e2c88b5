"""What ranks measure of the links between them."""

from typing import Any

from helpers.ranks import run_ranks

from llmjp_train.config.machine import ParallelConfig
from llmjp_train.parallel import layout as layouts
from llmjp_train.parallel.links import measure_links
from llmjp_train.parallel.world import world


def measured(rank: int, ranks: int, per_node: int) -> Any:
    return measure_links(layouts.start(ParallelConfig(data=ranks), world(), cuda=False), per_node)


def test_each_rank_hears_every_links_rate() -> None:
    """Four ranks as two nodes of two, then as one node."""
    found = run_ranks(measured, 4, 2)
    assert all(one == found[0] for one in found)
    assert {name: len(rates) for name, rates in found[0].items()} == {"node": 4, "network": 4}
    assert all(rate > 0 for rates in found[0].values() for rate in rates)
    assert list(run_ranks(measured, 2, 2)[0]) == ["node"]
    assert list(run_ranks(measured, 2, 1)[0]) == ["network"]


def test_a_rank_alone_has_no_links() -> None:
    assert run_ranks(measured, 1, 1) == [{}]
