"""Which window of which source is sample i: a pure function of (sizes, weights, seed, i).

Source s ticks at the times (k + u_s) / w_s for k = 0, 1, 2, ..., where w_s is its weight and u_s, between
0 and 1, is drawn from the seed. Sample i is the i-th tick of all sources in the order of time, so every
stretch of samples holds each source in its proportion up to one sample, and any i is found at once.
Tick k of a source takes its window k in the keyed order of the epoch that k lies in.
"""

import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from llmjp_train.data.permutation import ROUNDS, Words, permute, round_keys, width

BLOCK = 256
"""Windows over which a phase of shorter sequences spreads the parts of a window, so that neighbours
in the text are not neighbours in a batch."""

_PHASE_BITS = 32
_MAX_KEYS = 4096

Integers = npt.NDArray[np.int64]


class Ticks:
    """The merged order of sources of given weights. Exact: integers throughout."""

    def __init__(self, weights: Sequence[Fraction], *key: object) -> None:
        scale = math.lcm(*(weight.denominator for weight in weights))
        self.weights = [int(weight * scale) for weight in weights]
        assert min(self.weights) >= 0, "a weight is negative"
        assert sum(self.weights) > 0, "every weight is 0"
        self._live = [s for s, weight in enumerate(self.weights) if weight > 0]
        self._common = math.lcm(*(self.weights[s] for s in self._live))
        self._units = [self._common // weight if weight else 0 for weight in self.weights]
        self._phases = [_phase(*key, s) for s in range(len(self.weights))]

    def _time(self, source: int, tick: int) -> int:
        """Time of a tick in units of 1 / (2^32 lcm of the weights)."""
        return ((tick << _PHASE_BITS) + self._phases[source]) * self._units[source]

    def counts(self, i: int) -> list[int]:
        """How many of the first ``i`` samples each source gives."""
        return self._before(i)[0]

    def _before(self, i: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Counts before sample i, and the heap of each source's next tick."""
        # By this time each source has ticked w_s time / common times, give or take one: at most i ticks in
        # all are over, and at most twice as many as there are sources are missing.
        time = (max(0, i - len(self._live)) << _PHASE_BITS) * self._common // sum(self.weights)
        counts = [0] * len(self.weights)
        for s in self._live:
            counts[s] = max(0, ((time // self._units[s] - self._phases[s]) >> _PHASE_BITS) + 1)
        heap = [(self._time(s, counts[s]), s) for s in self._live]
        heapq.heapify(heap)
        missing = i - sum(counts)
        assert 0 <= missing <= 2 * len(self._live), "the estimate of the counts is off"
        for _ in range(missing):
            self._advance(counts, heap)
        return counts, heap

    def _advance(self, counts: list[int], heap: list[tuple[int, int]]) -> tuple[int, int]:
        source = heap[0][1]
        tick = counts[source]
        counts[source] += 1
        heapq.heapreplace(heap, (self._time(source, tick + 1), source))
        return source, tick

    def samples(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(source, how many samples of it came before) of ``count`` samples from ``first`` on."""
        counts, heap = self._before(first)
        for _ in range(count):
            yield self._advance(counts, heap)


def _phase(*key: object) -> int:
    """u_s in units of 2^-32, never 0."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=_PHASE_BITS // 8).digest()
    return int.from_bytes(digest, "little") | 1


@dataclass(frozen=True)
class Segment:
    """A stretch of samples with one sequence length and one set of weights."""

    first_sample: int
    length: int
    """Sequence length in tokens; divides the window."""
    weights: tuple[Fraction, ...]


@dataclass(frozen=True)
class Places:
    """Where samples lie: each is ``length`` tokens of a source from ``starts`` on."""

    sources: Integers
    """(B,) indices."""
    starts: Integers
    """(B,) first tokens."""
    epochs: Integers
    """(B,) how often the source had been passed over before."""


class Mixture:
    """Sample i of sources cut into windows of one size, over all segments of a run. O(1) memory."""

    def __init__(self, windows: Sequence[int], window: int, segments: Sequence[Segment], seed: int) -> None:
        """``windows``: number of windows of ``window`` tokens in each source; 0: a source without weight."""
        self._windows, self._window, self._seed = list(windows), window, seed
        self._segments = list(segments)
        self._widths = [width(count) for count in windows]
        self._ticks: list[Ticks] = []
        self._bases: list[list[int]] = []
        base = [0] * len(windows)
        for number, segment in enumerate(self._segments):
            assert window % segment.length == 0, "the window is no multiple of a sequence length"
            ticks = Ticks(segment.weights, seed, number)
            self._ticks.append(ticks)
            self._bases.append(base)
            if number + 1 < len(self._segments):
                used = ticks.counts(self._segments[number + 1].first_sample - segment.first_sample)
                base = [b + self._begun(k, segment) for b, k in zip(base, used, strict=True)]
        self._keys: dict[tuple[int, int], Words] = {}

    def _begun(self, ticks: int, segment: Segment) -> int:
        """Windows that the first ``ticks`` samples of a source touch; the next segment starts after them."""
        parts = self._window // segment.length
        blocks, rest = divmod(ticks, BLOCK * parts)
        return blocks * BLOCK + min(BLOCK, rest) if parts > 1 else ticks

    def _segment(self, sample: int) -> int:
        return max(i for i, segment in enumerate(self._segments) if segment.first_sample <= sample)

    def places(self, first: int, count: int, length: int) -> Places:
        """Places of ``count`` samples of ``length`` tokens from ``first`` on, all in one segment.

        Raises:
            ValueError: these samples have another length, or lie in several segments.
        """
        number = self._segment(first)
        segment, base = self._segments[number], self._bases[number]
        if segment.length != length or self._segment(first + max(1, count) - 1) != number:
            raise ValueError(f"samples {first} to {first + count} are not all of length {length}")
        parts = self._window // length
        rows = np.empty((count, 4), dtype=np.int64)
        for row, (source, tick) in enumerate(
            self._ticks[number].samples(first - segment.first_sample, count)
        ):
            if parts == 1:
                turn, part = tick, 0
            else:
                block, rest = divmod(tick, BLOCK * parts)
                part, turn = divmod(rest, BLOCK)
                turn += block * BLOCK
            epoch, place = divmod(base[source] + turn, self._windows[source])
            rows[row] = source, epoch, place, part
        sources, epochs, places, part_numbers = rows.T
        starts = self._permuted(sources, epochs, places) * self._window + part_numbers * length
        return Places(sources.copy(), starts, epochs.copy())

    def _permuted(self, sources: Integers, epochs: Integers, places: Integers) -> Integers:
        """Windows at ``places`` of the keyed orders of the sources' epochs."""
        sizes = np.array([self._windows[s] for s in sources], dtype=np.uint64)
        widths = np.array([self._widths[s] for s in sources], dtype=np.uint64)
        keys = np.empty((len(sources), ROUNDS), dtype=np.uint64)
        for row, key in enumerate(zip(sources.tolist(), epochs.tolist(), strict=True)):
            keys[row] = self._key(key)
        return permute(places.astype(np.uint64), sizes, widths, keys).astype(np.int64)

    def _key(self, key: tuple[int, int]) -> Words:
        found = self._keys.get(key)
        if found is None:
            if len(self._keys) >= _MAX_KEYS:  # a run of many epochs must not collect them all
                self._keys.clear()
            found = self._keys[key] = round_keys(self._seed, *key)
        return found

    def epochs(self, sample: int) -> list[float]:
        """How often each source has been passed over before ``sample``."""
        number = self._segment(sample)
        segment = self._segments[number]
        counts = self._ticks[number].counts(sample - segment.first_sample)
        parts = self._window // segment.length
        return [
            (base + count / parts) / size if size else 0.0
            for base, count, size in zip(self._bases[number], counts, self._windows, strict=True)
        ]
