"""Sample i of a mixture: proportions, each window once an epoch, and any place at once."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmjp_train.data.mixture import BLOCK, Mixture, Segment, Ticks

weights_strategy = st.lists(
    st.one_of(st.just(Fraction(0)), st.fractions(Fraction(1, 1000), 1000, max_denominator=10**6)),
    min_size=1,
    max_size=6,
).filter(any)


@pytest.mark.slow
@settings(max_examples=200)
@given(weights_strategy, st.integers(0, 2**40), st.integers(0, 400), st.integers(1, 60))
def test_random_access_is_the_sequence(weights: list[Fraction], seed: int, first: int, count: int) -> None:
    ticks = Ticks(weights, seed)
    whole = list(ticks.samples(0, first + count))
    assert list(ticks.samples(first, count)) == whole[first:]
    given_so_far = Counter(source for source, _ in whole[:first])
    assert ticks.counts(first) == [given_so_far[s] for s in range(len(weights))]
    for source in range(len(weights)):
        assert [k for s, k in whole if s == source] == list(range(sum(s == source for s, _ in whole)))


@settings(max_examples=200)
@given(weights_strategy, st.integers(0, 2**40), st.integers(0, 10**15))
def test_every_source_has_its_share_at_every_point(weights: list[Fraction], seed: int, i: int) -> None:
    counts = Ticks(weights, seed).counts(i)
    assert sum(counts) == i
    total = sum(weights)
    for weight, count in zip(weights, counts, strict=True):
        # Each source is within one of its own clock, and the clocks together within the number of sources.
        assert abs(count - i * weight / total) <= 1 + len(weights) * weight / total
        assert weight > 0 or count == 0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_weights_by_size_give_each_window_exactly_once(windows: list[int], seed: int) -> None:
    mixture = Mixture(windows, 8, [Segment(0, 8, tuple(map(Fraction, windows)))], seed)
    places = mixture.places(0, sum(windows), 8)
    found = Counter(zip(places.sources.tolist(), (places.starts // 8).tolist(), strict=True))
    assert found == Counter((s, w) for s, count in enumerate(windows) for w in range(count))
    assert not places.epochs.any()
    assert mixture.epochs(sum(windows)) == [1.0] * len(windows)


def test_each_epoch_has_every_window_once_in_an_order_of_its_own() -> None:
    mixture = Mixture([50], 4, [Segment(0, 4, (Fraction(1),))], seed=3)
    orders = [mixture.places(50 * epoch, 50, 4) for epoch in range(3)]
    for epoch, places in enumerate(orders):
        assert sorted((places.starts // 4).tolist()) == list(range(50))
        assert set(places.epochs.tolist()) == {epoch}
    assert orders[0].starts.tolist() != orders[1].starts.tolist() != orders[2].starts.tolist()


@settings(max_examples=30)
@given(st.integers(0, 5000), st.integers(1, 200), st.integers(0, 9))
def test_a_batch_is_the_samples_one_by_one(first: int, count: int, seed: int) -> None:
    segments = [Segment(0, 16, (Fraction("0.7"), Fraction("0.3")))]
    mixture = Mixture([31, 700], 16, segments, seed)
    together = mixture.places(first, count, 16)
    single = [Mixture([31, 700], 16, segments, seed).places(first + k, 1, 16) for k in range(count)]
    assert together.starts.tolist() == [int(place.starts[0]) for place in single]
    assert together.sources.tolist() == [int(place.sources[0]) for place in single]


def test_a_phase_of_shorter_sequences_spreads_and_covers_the_windows() -> None:
    """Parts of a window are a block apart, and the next phase starts with windows that were not touched."""
    windows, window = 4 * BLOCK, 64
    short = Segment(0, 16, (Fraction(1),))
    samples = 2 * 4 * BLOCK + 10  # two whole blocks of windows and ten parts of the third
    long = Segment(samples, 64, (Fraction(1),))
    mixture = Mixture([windows], window, [short, long], seed=1)
    first = mixture.places(0, samples, 16)
    touched = set((first.starts // window).tolist())
    assert len(touched) == 2 * BLOCK + 10
    assert len(set(first.starts.tolist())) == samples
    assert len(set((first.starts[:BLOCK] // window).tolist())) == BLOCK
    then = mixture.places(samples, windows - len(touched), 64)
    assert touched.isdisjoint((then.starts // window).tolist())
    assert touched | set((then.starts // window).tolist()) == set(range(windows))


def test_a_change_of_weights_goes_on_where_each_source_was() -> None:
    segments = [Segment(0, 4, (Fraction(3), Fraction(1))), Segment(80, 4, (Fraction(1), Fraction(3)))]
    mixture = Mixture([100, 100], 4, segments, seed=2)
    places = [mixture.places(0, 80, 4), mixture.places(80, 80, 4)]
    for source in (0, 1):
        starts = [s for p in places for s in p.starts[p.sources == source].tolist()]
        assert len(starts) == len(set(starts)), "a window came twice within the first epoch"
    assert Counter(places[0].sources.tolist()) == {0: 60, 1: 20}
    assert Counter(places[1].sources.tolist()) == {0: 20, 1: 60}


def test_later_phases_do_not_change_earlier_samples() -> None:
    first = Segment(0, 8, (Fraction(1), Fraction(2)))
    alone = Mixture([10, 20], 8, [first], seed=5)
    followed = Mixture([10, 20], 8, [first, Segment(40, 4, (Fraction(1), Fraction(0)))], seed=5)
    assert alone.places(0, 40, 8).starts.tolist() == followed.places(0, 40, 8).starts.tolist()


def test_samples_of_two_phases_are_no_batch() -> None:
    mixture = Mixture([10], 8, [Segment(0, 8, (Fraction(1),)), Segment(5, 4, (Fraction(1),))], seed=5)
    with pytest.raises(ValueError, match="not all of length 8"):
        mixture.places(3, 4, 8)
    with pytest.raises(ValueError, match="not all of length 4"):
        mixture.places(0, 2, 4)
    assert len(mixture.places(3, 2, 8).starts) == 2


def test_ten_trillion_tokens_cost_no_more_than_ten() -> None:
    """O(1) memory and any sample at once: no array of the size of the data is ever made."""
    windows = [10**13 // 4096 // 4] * 4
    mixture = Mixture(
        windows, 4096, [Segment(0, 4096, tuple(Fraction(w) for w in ("0.4", "0.3", "0.2", "0.1")))], 1
    )
    far = mixture.places(10**9, 64, 4096)
    assert (far.starts < 10**13).all()
    assert len(np.unique(far.starts)) == 64


def test_the_order_is_pinned() -> None:
    """A change of these numbers changes the data order of every run."""
    mixture = Mixture([20, 30], 8, [Segment(0, 8, (Fraction("0.25"), Fraction("0.75")))], seed=1234)
    places = mixture.places(0, 8, 8)
    assert list(zip(places.sources.tolist(), (places.starts // 8).tolist(), strict=True)) == PINNED


PINNED = [(1, 11), (1, 0), (0, 19), (1, 29), (1, 3), (1, 19), (0, 4), (1, 27)]
