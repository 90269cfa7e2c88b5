"""Files from the network: resumed, checked, and never half there."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from llmjp_train.data.progress import Progress
from llmjp_train.errors import UserError

TRIES = 3
PAUSE = 1.0
"""Seconds between tries."""
_BLOCK = 1 << 20

Told = Callable[[str], None]


def silent(line: str) -> None:
    """Tells nobody."""


def sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str, part: Path, told: Told = silent, *, size: int | None = None, pause: float | None = None
) -> None:
    """Fetch into ``part``, going on after what an earlier try left there; three tries.

    Args:
        pause: seconds between tries, PAUSE by default.
        size: bytes of the whole, where known: a part that has them all is not asked for again.

    Raises:
        UserError: it cannot be had; says what to do.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(TRIES)):
        have = part.stat().st_size if part.exists() else 0
        if size is not None and have >= size:
            return
        try:
            _fetch_once(url, part, have, told)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after what is there: it may be whole, or not the same file
                part.unlink()
            elif error.code < 500 and error.code != 429:
                raise UserError(f"{url} could not be downloaded: the server answers {error}") from error
            reason: Exception = error
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            reason = error
        if left:
            time.sleep(PAUSE if pause is None else pause)
    raise UserError(
        f"{url} could not be downloaded ({reason}). With a network, run the command again: it goes on where "
        "this try ended"
    )


def _fetch_once(url: str, part: Path, have: int, told: Told) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else 0
        told(
            f"{'going on with' if resumed else 'downloading'} {url}"
            + (f" ({total:,} bytes)" if total else "")
        )
        got = have if resumed else 0
        with (
            part.open("ab" if resumed else "wb") as file,
            Progress("downloading", total, "MB", 1e6) as progress,
        ):
            progress.add(got, worked=False)
            while block := answer.read(_BLOCK):
                file.write(block)
                got += len(block)
                progress.add(len(block))
        if total and got < total:
            raise http.client.IncompleteRead(b"", total - got)
