"""Views of the record in other tools, which may fail."""

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmjp_train.train.trackers import TensorBoard


def test_a_full_disk_is_told_by_the_next_figure_and_not_by_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    board = TensorBoard(tmp_path)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)

    def log() -> None:
        for step in range(1, 500):
            board.log(step, {"loss": 1.0})
            time.sleep(0.01)

    with pytest.raises(OSError, match="No space left"):
        log()
    board.close()
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    said = capfd.readouterr().err
    assert "No space left" not in said
    assert "ZeroDivisionError" in said, "other threads' errors are told as ever"
