"""What went wrong in a run: the evidence, what was done, and what it cost."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from llmjp_train.runlog.reading import STARTS, describe, is_incident

SILENT = "killed"
"""An attempt that never said how it ended, and of which no supervisor said it either."""
ENDS = ("stop", "end", "incident")


def incidents(events: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Incidents in the order of time, with what followed.

    Args:
        events: all events, in the order in which they happened.
        rows: every row of the metrics, those that were taken again included; they date an attempt that was killed.

    Returns:
        For each: ``time``, ``step``, ``kind``, ``rank``, ``node``, ``evidence``, ``action``, ``lost_steps``,
        ``lost_seconds``, and ``down_seconds`` until the run went on; none wherever nothing says it.
    """
    found = []
    for place, event in enumerate(events):
        later = events[place + 1 :]
        following = next((one for one in later if one["kind"] in STARTS), None)
        attempt = later if following is None else later[: later.index(following)]
        if event["kind"] in STARTS and following is not None and not _has(attempt, ENDS):
            found.append(_silent(event, attempt, following, rows))
        elif is_incident(event) and not _told_otherwise(event, events[:place], attempt):
            found.append(_incident(event, attempt, following))
    return sorted(found, key=lambda one: str(one["time"]))


def _incident(
    event: dict[str, Any], attempt: Sequence[dict[str, Any]], following: dict[str, Any] | None
) -> dict[str, Any]:
    ended = event["kind"] == "incident" or event.get("outcome") in ("failed", "unhealthy")
    if event["kind"] == "fault":
        ended = any(one.get("outcome") == "unhealthy" for one in attempt)
    lost, down = event.get("lost_steps"), None
    if ended and following is not None:
        down = seconds_between(event["time"], following["time"])
        if lost is None and event.get("step") is not None:
            lost = max(0, event["step"] - following["step"])
    return {
        "time": event["time"],
        "step": event.get("step"),
        "kind": event.get("what") or event["kind"],
        "rank": event.get("rank"),
        "node": event.get("node"),
        "evidence": event.get("evidence") or describe(event),
        "action": event.get("action", ""),
        "lost_steps": lost,
        "lost_seconds": event.get("lost_seconds"),
        "down_seconds": down,
    }


def _silent(
    event: dict[str, Any],
    attempt: Sequence[dict[str, Any]],
    following: dict[str, Any],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A start that never said how it ended although another followed; dated by its last sign of life."""
    own = [row for row in rows if event["time"] <= row["time"] < following["time"]]
    signs = [event, *own, *(one for one in attempt if one["kind"] != "note")]
    last = max(signs, key=lambda one: str(one["time"]))
    return {
        "time": last["time"],
        "step": last.get("step"),
        "kind": SILENT,
        "rank": None,
        "node": None,
        "evidence": f"the {event['kind']} at step {event.get('step')} never said how it ended (killed, or an error)",
        "action": "",
        "lost_steps": max(0, last["step"] - following["step"]) if own else None,
        "lost_seconds": None,
        "down_seconds": seconds_between(last["time"], following["time"]),
    }


def _told_otherwise(
    event: dict[str, Any], before: Sequence[dict[str, Any]], attempt: Sequence[dict[str, Any]]
) -> bool:
    """Whether an end is told by another event with its cause: a supervisor's incident, or the fault before it."""
    if event["kind"] != "stop":
        return False
    start = next((place for place in range(len(before), 0, -1) if before[place - 1]["kind"] in STARTS), 0)
    fault = event.get("outcome") == "unhealthy" and _has(before[start:], ("fault",))
    return fault or _has(attempt, ("incident",))


def _has(events: Sequence[dict[str, Any]], kinds: Sequence[str]) -> bool:
    return any(event["kind"] in kinds for event in events)


def seconds_between(before: str, after: str) -> float:
    """Seconds from one time of the record to another."""
    return (datetime.fromisoformat(after) - datetime.fromisoformat(before)).total_seconds()
