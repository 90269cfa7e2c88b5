"""Standard errors, intervals and baselines."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
"""97.5 % point of the normal distribution."""


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of ``count`` items (Wilson, 1927): stays within [0, 1], never of no width."""
    centre = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def normal(value: float, stderr: float) -> tuple[float, float]:
    """95 % interval of a value with a normal error."""
    return value - Z95 * stderr, value + Z95 * stderr


def ratio_stderr(amounts: Sequence[float], sizes: Sequence[float]) -> float | None:
    """Standard error of sum(amounts) / sum(sizes) over independent items; none for fewer than two.

    The ratio estimator's (Cochran, Sampling Techniques, 1977, section 6.4): the residuals of the items about
    the ratio, since longer texts weigh more.
    """
    count = len(amounts)
    if count < 2:
        return None
    ratio = sum(amounts) / sum(sizes)
    squares = sum((amount - ratio * size) ** 2 for amount, size in zip(amounts, sizes, strict=True))
    return math.sqrt(count / (count - 1) * squares) / sum(sizes)
