"""Exit codes of `llmjp`, for job scripts and supervisors (table in docs/stopping.md)."""

from collections.abc import Iterable

OK = 0
FAILED = 1
"""Something broke; the log says what."""
BAD_INPUT = 2
"""A wrong option, configuration or file: nothing was started, trying again will not help."""
STOPPED = 75
"""Stopped on request with everything saved: run the same command again to go on (EX_TEMPFAIL)."""
UNHEALTHY = 76
"""Stopped by a safety check (a non-finite loss, a skipped step): look before going on."""
INTERRUPTED = 130
"""Ctrl-C before there was anything to save, or twice: nothing more was saved (128 + SIGINT)."""


def worst(codes: Iterable[int]) -> int:
    """The code of several processes that says most: bad input, a failed check, an interrupt, any failure, a stop."""
    found = set(codes)
    for code in (BAD_INPUT, UNHEALTHY, INTERRUPTED):
        if code in found:
            return code
    if found - {OK, STOPPED}:
        return FAILED
    return STOPPED if STOPPED in found else OK
