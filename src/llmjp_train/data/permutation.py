"""A keyed permutation of 0 <= i < n without any table."""

import hashlib
import math

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

ROUNDS = 8


def round_keys(*key: object) -> Words:
    """(ROUNDS,) keys that a key of integers and texts gives, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def width(n: int) -> int:
    """Side of the rectangle in which ``permute`` places 0 .. n - 1."""
    return math.isqrt(max(0, n - 1)) + 1


def permute(index: Words, n: Words, widths: Words, keys: Words) -> Words:
    """Elements at ``index`` (B,) of the permutations of ``0 <= i < n`` (B,) that ``keys`` (B, ROUNDS) choose.

    A Feistel network on a rectangle of about sqrt(n) on each side, walked until it lands below n (the
    generalised Feistel cipher and cycle walking of Black and Rogaway, 2002): O(1) memory, any element at
    once. The rectangle is hardly larger than n, so a walk almost never takes a second turn.
    """
    heights = (n + widths - np.uint64(1)) // widths
    values = _network(index, widths, heights, keys)
    while (outside := np.flatnonzero(values >= n)).size:
        values[outside] = _network(values[outside], widths[outside], heights[outside], keys[outside])
    return values


def _network(values: Words, widths: Words, heights: Words, keys: Words) -> Words:
    left, right = values // heights, values % heights
    for number in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ keys[:, number]) % widths) % widths
        right = (right + _mix(left ^ keys[:, number + 1]) % heights) % heights
    return left * heights + right


def _mix(x: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); array arithmetic wraps, as it should."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """One such permutation, by its key."""

    def __init__(self, n: int, *key: object) -> None:
        self.n, self.width, self.keys = n, width(n), round_keys(*key)

    def many(self, index: Words) -> Words:
        """Elements at ``index`` (B,)."""
        shape = index.shape
        return permute(
            index,
            np.full(shape, self.n, dtype=np.uint64),
            np.full(shape, self.width, dtype=np.uint64),
            np.broadcast_to(self.keys, (*shape, ROUNDS)),
        )
