"""Takes up each new complete checkpoint of a run once, beside the training and without touching its directory.

What is done with a checkpoint is a list of actions. Each is done once, tried again when it fails, and comes after
those before it; one that ``needs`` another waits for its success.
"""

import fcntl
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmjp_train.checkpoint.listing import CheckpointInfo, committed
from llmjp_train.errors import UserError

STATE = "follow.json"
SCHEMA = 2
"""Version of follow.json; one of an earlier version is not gone on with."""


@dataclass(frozen=True)
class Action:
    """One thing to do with a checkpoint."""

    name: str
    act: Callable[[CheckpointInfo], str]
    """Does the work; an empty text, or what went wrong."""
    wanted: Callable[[CheckpointInfo], bool] = lambda info: True
    """Whether it is to be done with a checkpoint."""
    needs: str | None = None
    """Name of the action that must have succeeded before."""


class Follower:
    """What was done with which checkpoint; kept on disk, so that another process goes on where one was killed."""

    def __init__(
        self,
        run: Path,
        out: Path,
        actions: Sequence[Action],
        attempts: int,
        say: Callable[[str], None],
        *,
        oldest_first: bool = False,
    ) -> None:
        """
        Args:
            out: folder of results and of this record; not inside the run.
            attempts: how often each action is tried on a checkpoint.
            oldest_first: in the order of training; else the newest first: its figures are wanted most.

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
        self._actions, self._say, self._oldest_first = actions, say, oldest_first
        self.state = self._read()

    def _read(self) -> dict[str, Any]:
        path = self.out / STATE
        if not path.is_file():
            return {"schema": SCHEMA, "run": str(self.run.resolve()), "checkpoints": {}}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.get("run") != str(self.run.resolve()):
            raise UserError(f"{path} tells of another run ({found.get('run')}): name another --output")
        if found.get("schema") != SCHEMA:
            raise UserError(
                f"{path} was written by another version (schema {found.get('schema')}): name another --output"
            )
        return found

    def _write(self) -> None:
        part = self.out / f"{STATE}.part"
        part.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        part.replace(self.out / STATE)

    def waiting(self) -> tuple[CheckpointInfo, Action] | None:
        """The next action; none where every checkpoint's are done or given up."""
        infos = committed(self.run)
        for info in infos if self._oldest_first else reversed(infos):
            entry = self.state["checkpoints"].get(info.path.name, {})
            for action in self._actions:
                held = entry.get(action.name, {})
                if held.get("state") == "done" or held.get("attempts", 0) >= self.attempts:
                    continue
                if action.needs is not None and entry.get(action.needs, {}).get("state") != "done":
                    continue
                if action.wanted(info):
                    return info, action
        return None

    def turn(self) -> bool:
        """Do one thing with one checkpoint; whether there was one."""
        found = self.waiting()
        if found is None:
            return False
        info, action = found
        checkpoint = self.state["checkpoints"].setdefault(info.path.name, {"step": info.step})
        entry = checkpoint.setdefault(action.name, {"attempts": 0})
        entry["attempts"] += 1
        entry["state"] = "begun"
        self._write()
        self._say(f"step {info.step}: {action.name}, attempt {entry['attempts']} of {self.attempts}")
        wrong = action.act(info)
        entry["state"] = "failed" if wrong else "done"
        entry["error"] = wrong
        entry["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._write()
        self._say(f"step {info.step}: {action.name}: {wrong or 'done'}")
        return True

    @property
    def given_up(self) -> list[str]:
        """Steps and actions whose every attempt failed."""
        return [
            f"step {checkpoint['step']} ({action.name})"
            for checkpoint in self.state["checkpoints"].values()
            for action in self._actions
            if (entry := checkpoint.get(action.name, {})).get("state") not in ("done", None)
            and entry["attempts"] >= self.attempts
        ]
