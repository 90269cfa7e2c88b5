"""Items made ahead in a thread."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs an iterable ahead in a thread; an error there is raised where the next item is asked for."""

    _END = object()

    def __init__(self, items: Iterable[T], depth: int) -> None:
        """``depth``: items made ahead, at least one."""
        self.wait_seconds = 0.0
        """Time that the consumer has waited so far."""
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        self._put(self._END)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        began = time.perf_counter()
        while True:
            try:
                item = self._queue.get(timeout=0.1)
                break
            except queue.Empty:
                if self._closed.is_set():
                    raise StopIteration from None
        self.wait_seconds += time.perf_counter() - began
        if item is self._END:
            self._queue.put(item)  # a second call ends in the same way
            if self._error is not None:
                raise self._error
            raise StopIteration
        return cast(T, item)

    def close(self) -> None:
        """End the thread; items made ahead are dropped."""
        self._closed.set()
        self._thread.join()
