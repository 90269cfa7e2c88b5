"""One save in the background: a copy of the state is written while training goes on."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from llmjp_train.checkpoint.listing import CheckpointInfo
from llmjp_train.parallel.fragment import Fragment


class Background:
    """Keeps one buffer for the copies and one thread for the writing.

    The buffer is made at the first save and used again: the first touch of a fresh page costs twenty times the copy
    (docs/lab-notes.md). It holds this rank's share of masters and moments, 12 bytes a parameter over all ranks.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._thread: threading.Thread | None = None
        self._info: CheckpointInfo | None = None
        self._error: BaseException | None = None

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self._buffer.numel() * 4

    @property
    def busy(self) -> bool:
        """Whether a save was started whose end nobody has asked for."""
        return self._thread is not None

    @property
    def done(self) -> bool:
        """Whether that save has ended."""
        return self._thread is not None and not self._thread.is_alive()

    def staged(self, fragments: Sequence[Fragment]) -> list[Fragment]:
        """Copies that later steps do not change; the ones of the save before are gone."""
        assert not self.busy, "one save at a time"
        total = sum(fragment.view.numel() for fragment in fragments)
        if self._buffer.numel() != total:
            pinned = any(fragment.view.is_cuda for fragment in fragments)
            self._buffer = torch.empty(total, dtype=torch.float32, pin_memory=pinned)
        found, start = [], 0
        for fragment in fragments:
            part = self._buffer[start : start + fragment.view.numel()]
            part.copy_(fragment.view)
            found.append(replace(fragment, view=part))
            start += part.numel()
        return found

    def start(self, save: Callable[[], CheckpointInfo]) -> None:
        """Run ``save`` in the thread."""
        assert not self.busy, "one save at a time"

        def work() -> None:
            try:
                self._info = save()
            except BaseException as error:  # told where the end is asked for; none is lost
                self._error = error

        self._info, self._error = None, None
        # Not a daemon: a process that ends must not leave half a checkpoint behind without need.
        self._thread = threading.Thread(target=work, name="save")
        self._thread.start()

    def end(self) -> CheckpointInfo:
        """Wait for the save.

        Raises:
            BaseException: what it raised.
        """
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        assert self._info is not None
        return self._info
