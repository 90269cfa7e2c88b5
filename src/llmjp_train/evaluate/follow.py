"""Takes up each new complete checkpoint of a run once, beside the training and without touching its directory."""

import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo, committed
from llmjp_train.errors import UserError

STATE = "follow.json"


class Follower:
    """What was done with which checkpoint; kept on disk, so that another process goes on where one was killed."""

    def __init__(
        self,
        run: Path,
        out: Path,
        act: Callable[[CheckpointInfo], str],
        attempts: int,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            out: folder of results and of this record; not inside the run.
            act: does the work; an empty text, or what went wrong.
            attempts: how often a checkpoint is tried.

        Raises:
            UserError: ``out`` lies inside the run, belongs to another run, or is in use by another process.
        """
        if out.resolve().is_relative_to(run.resolve()):
            raise UserError(
                f"--output {out} lies inside the run: following never writes there; name another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        self._lock = (out / "follow.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{out} is in use by another `llmjp follow`: end it, or name another --output"
            ) from error
        self.run, self.out, self.attempts = run, out, attempts
        self._act, self._say = act, say
        self.state = self._read()

    def _read(self) -> dict[str, Any]:
        path = self.out / STATE
        if not path.is_file():
            return {"schema": 1, "run": str(self.run.resolve()), "checkpoints": {}}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.get("run") != str(self.run.resolve()):
            raise UserError(f"{path} tells of another run ({found.get('run')}): name another --output")
        return found

    def _write(self) -> None:
        part = self.out / f"{STATE}.part"
        part.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        part.replace(self.out / STATE)

    def waiting(self) -> list[CheckpointInfo]:
        """Complete checkpoints that are neither done nor given up, the newest first: its figures are wanted most."""
        known = self.state["checkpoints"]
        return [
            info
            for info in reversed(committed(self.run))
            if (entry := known.get(info.path.name, {})).get("state") != "done"
            and entry.get("attempts", 0) < self.attempts
        ]

    def turn(self) -> bool:
        """Work on one checkpoint; whether there was one."""
        waiting = self.waiting()
        if not waiting:
            return False
        info = waiting[0]
        entry = self.state["checkpoints"].setdefault(info.path.name, {"step": info.step, "attempts": 0})
        entry["attempts"] += 1
        entry["state"] = "begun"
        self._write()
        self._say(f"step {info.step}: attempt {entry['attempts']} of {self.attempts}")
        wrong = self._act(info)
        entry["state"] = "failed" if wrong else "done"
        entry["error"] = wrong
        entry["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._write()
        self._say(f"step {info.step}: {wrong or 'done'}")
        return True

    @property
    def given_up(self) -> list[int]:
        """Steps whose every attempt failed."""
        entries = self.state["checkpoints"].values()
        return [e["step"] for e in entries if e["state"] != "done" and e["attempts"] >= self.attempts]
