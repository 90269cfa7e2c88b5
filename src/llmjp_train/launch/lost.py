"""`python -m llmjp_train.launch.lost JOB NODE HOST CODE`: say for a host what it can no longer say itself.

Called by a job's script where ssh to a host has ended, so that the other hosts need not find out by waiting.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.launch.job import JobFolder
from llmjp_train.launch.supervisor import Result, end_others

SSH = 255
"""ssh's own exit code: it reached nobody, or the line broke."""


def lost(attempt: Path, node: int, host: str, code: int) -> str:
    """Tell the others, and the arbiter, that a host never came or is gone; what was told, empty where it told its end.

    Args:
        code: with which ssh ended.
    """
    attempt.mkdir(exist_ok=True)
    hello, answer = attempt / f"hello-{node:04d}.json", attempt / "meeting.json"
    came = hello.exists()
    if code in (exit_codes.OK, exit_codes.STOPPED) or (attempt / f"node-{node:04d}.json").exists():
        return ""
    if code == SSH:
        why = "ssh lost it" if came else "ssh could not start it"
    else:
        why = "it ended without a word" if came else "it ended before it came"
    why = f"{why} (code {code}): see the job's log"
    if came and (node or answer.exists()):
        Result(exit_codes.FAILED, why, "node_lost", host=host).write(attempt, node, by="-lost")
        end_others(attempt, node, "node_lost", f"{host}: {why}")
        return why
    if not came:
        _put(hello, {"host": host, "error": why})
    if node == 0:  # which would have answered
        _put(answer, {"bad": {host: why}})
        Result(exit_codes.FAILED, why, "bad_node", host=host, bad={host: why}).write(attempt, 0)
    return why


def _put(path: Path, value: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def main() -> int:
    """Entry point."""
    job, node, host, code = sys.argv[1:]
    told = lost(JobFolder(Path(job)).attempt(os.environ["LLMJP_ATTEMPT"]), int(node), host, int(code))
    if told:
        print(f"llmjp: host {host}: {told}", file=sys.stderr, flush=True)
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
