"""Standard errors and intervals against known values and simulation."""

import math

import numpy as np
import pytest

from llmjp_train.evaluate import scores
from llmjp_train.evaluate.tasks import majority


def test_wilson_reproduces_a_published_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    low, high = scores.wilson(81 / 263, 263)
    assert low == pytest.approx(0.2553, abs=5e-5)
    assert high == pytest.approx(0.3662, abs=5e-5)


def test_wilson_at_the_ends_has_width_and_stays_inside() -> None:
    assert scores.wilson(0.0, 48) == (pytest.approx(0, abs=1e-12), pytest.approx(0.0741, abs=1e-4))
    assert scores.wilson(1.0, 48)[1] == pytest.approx(1.0)
    assert scores.wilson(1.0, 48)[0] < 0.93


def test_ratio_stderr_agrees_with_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(300, 1500, 60).astype(float)
    amounts = sizes * random.normal(1.4, 0.2, 60)
    draws = random.integers(0, 60, (4000, 60))
    bootstrap = (amounts[draws].sum(1) / sizes[draws].sum(1)).std()
    assert scores.ratio_stderr(amounts.tolist(), sizes.tolist()) == pytest.approx(bootstrap, rel=0.06)


def test_ratio_stderr_of_equal_sizes_is_that_of_a_mean() -> None:
    amounts = [1.0, 2.0, 4.0, 7.0]
    wanted = np.std(amounts, ddof=1) / math.sqrt(4) / 10
    assert scores.ratio_stderr(amounts, [10.0] * 4) == pytest.approx(wanted)
    assert scores.ratio_stderr([1.0], [10.0]) is None


def test_majority_counts_the_most_frequent_answer() -> None:
    assert majority([0, 1, 1, 3]) == 0.5
    assert majority([2]) == 1.0
