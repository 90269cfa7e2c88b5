"""Items made ahead: order, errors, waiting and the end."""

import time
from collections.abc import Iterator

import pytest

from llmjp_train.data.stream import Prefetcher


def test_all_items_come_in_order_and_then_it_ends() -> None:
    items = Prefetcher(range(50), 3)
    assert list(items) == list(range(50))
    assert list(items) == []
    items.close()


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = Prefetcher(broken(), 2)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)
    items.close()


def test_it_makes_no_more_than_depth_ahead_and_stops_when_closed() -> None:
    made = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            made.append(number)
            yield number
            number += 1

    items = Prefetcher(endless(), 2)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two waiting, one in the hand
    items.close()
    count = len(made)
    time.sleep(0.2)
    assert len(made) == count


def test_it_measures_how_long_the_consumer_waited() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.1)
            yield number

    items = Prefetcher(slow(), 1)
    assert list(items) == [0, 1, 2]
    assert items.wait_seconds > 0.2
    items.close()
