"""The permutation is one, for every size, and looks shuffled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp_train.data.permutation import Permutation, permute, round_keys, width


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(-(2**70), 2**70), st.integers(0, 9))
def test_every_element_appears_once(n: int, seed: int, epoch: int) -> None:
    found = Permutation(n, seed, epoch).many(np.arange(n, dtype=np.uint64))
    assert sorted(found.tolist()) == list(range(n))


@settings(max_examples=50)
@given(st.integers(1, 2**62), st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(0, 5))
def test_large_sizes_stay_inside_and_do_not_collide(n: int, indices: list[int], seed: int) -> None:
    index = np.unique(np.array(indices, dtype=np.uint64) % np.uint64(n))
    found = Permutation(n, seed).many(index)
    assert (found < n).all()
    assert len(np.unique(found)) == len(index)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 65_536, 65_537, 2**40 + 1])
def test_the_rectangle_is_hardly_larger_than_the_range(n: int) -> None:
    side = width(n)
    heights = -(-n // side)
    assert n <= side * heights < n + side
    assert (side - 1) ** 2 < n <= side**2


def test_different_keys_give_different_orders_and_rows_do_not_mix() -> None:
    n = 1000
    index = np.arange(n, dtype=np.uint64)
    one, two = Permutation(n, 1, 0), Permutation(n, 1, 1)
    a, b = one.many(index), two.many(index)
    assert (a == b).mean() < 0.02
    keys = np.where((index % 2 == 0)[:, None], one.keys, two.keys)
    mixed = permute(index, np.full(n, n, np.uint64), np.full(n, width(n), np.uint64), keys)
    assert (mixed == np.where(index % 2 == 0, a, b)).all()


def test_neighbours_do_not_stay_neighbours() -> None:
    """Correlation of places with elements, and of elements with their successors, as of a random order."""
    n = 20_000
    found = Permutation(n, 7).many(np.arange(n, dtype=np.uint64)).astype(np.float64)
    bound = 4 / np.sqrt(n)
    assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < bound
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < bound
    # 100 places hold each fifth of the range about equally often: chi-squared with 4 degrees of freedom.
    counts = np.stack(
        [np.bincount((part // (n / 5)).astype(int), minlength=5) for part in found.reshape(-1, 100)]
    )
    chi = ((counts - 20) ** 2 / 20).sum(axis=1)
    assert 3.4 < chi.mean() < 4.6


def test_the_order_is_pinned() -> None:
    """A change of these numbers changes the data order of every run."""
    assert Permutation(10, 1234, 0, 0).many(np.arange(10, dtype=np.uint64)).tolist() == PINNED
    assert round_keys(1, "a")[0] == round_keys(1, "a")[0]
    assert round_keys(1)[0] != round_keys(2)[0]


PINNED = [6, 0, 9, 4, 3, 2, 8, 7, 5, 1]
