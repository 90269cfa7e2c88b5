"""Publishing a release: sent aside, checked, shown under its own name, and the pointer moves last."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmjp_train.errors import UserError
from llmjp_train.publish.release_folder import SUMS, files_of, read_manifest

_REVISION = re.compile(r"step-(\d+)(?:-tokens-\d+)?")


@dataclass(frozen=True)
class Standing:
    """What a target holds before anything is sent."""

    sums: str | None
    """SHA256SUMS of the revision where it is there and whole; none: it is not."""
    begun: bool
    """Whether an earlier try left a part of it."""
    pointer: str | None
    """The revision that the pointer shows; none: there is none yet."""
    free: int | None
    """Bytes that are free; none: the target does not say."""


class Target(Protocol):
    """Where releases are published. A revision is there whole or not at all."""

    @property
    def where(self) -> str:
        """As the user reads it."""
        ...

    @property
    def pointer(self) -> str:
        """What the pointer is called there: a link, a branch."""
        ...

    def look(self, revision: str) -> Standing:
        """What is there; changes nothing.

        Raises:
            UserError: it cannot be reached or may not be written.
        """
        ...

    def send(self, release: Path, revision: str) -> None:
        """Send all files and show them under the revision's name; goes on where an earlier try was cut.

        Raises:
            UserError: says what the target answered; what was sent stays there for the next try.
        """
        ...

    def point(self, release: Path, revision: str) -> None:
        """Move the pointer to a revision that is there."""
        ...


@dataclass(frozen=True)
class Plan:
    """What publishing will do."""

    revision: str
    files: int
    size: int
    """Bytes of the release."""
    standing: Standing
    there: bool
    """Whether the revision is there already, the same."""
    points: bool
    """Whether the pointer moves: not back to an earlier step."""

    def lines(self, target: Target) -> list[str]:
        """In words, a line each."""
        held = self.standing
        sent = (
            "is there already"
            if self.there
            else "goes on where an earlier try ended"
            if held.begun
            else "new"
        )
        free = "" if held.free is None else f", {held.free:,} are free there"
        return [
            f"target    {target.where}",
            f"revision  {self.revision} ({sent})",
            f"size      {self.files} files, {self.size:,} bytes{free}",
            f"pointer   {target.pointer} of {target.where} {self._moves()}",
        ]

    def _moves(self) -> str:
        shown = self.standing.pointer
        if not self.points:
            return f"stays at {shown}, which is later"
        if shown is None:
            return "begins with it"
        return "shows it already" if shown == self.revision else f"moves from {shown}"


def revision_name(manifest: dict[str, Any]) -> str:
    """A revision's name by step and tokens; such names sort in the order of training."""
    tokens = manifest.get("tokens")
    return f"step-{manifest['step']:08d}" + (f"-tokens-{tokens}" if tokens else "")


def plan(release: Path, target: Target) -> Plan:
    """Look at both sides.

    Raises:
        UserError: the release is none, the target cannot take it, or holds another one under the same name.
    """
    revision = revision_name(read_manifest(release))
    files = files_of(release)
    size = sum(file.stat().st_size for file in files)
    held = target.look(revision)
    mine = (release / SUMS).read_text(encoding="utf-8")
    there = held.sums is not None
    if there and held.sums != mine:
        raise UserError(
            f"{target.where} holds another {revision}: {_differences(mine, held.sums or '')}. What is published "
            "stays as it is: take it away there yourself, or publish to another place"
        )
    if not there and not held.begun and held.free is not None and held.free < size:
        raise UserError(
            f"{target.where} has {held.free:,} bytes free, the release has {size:,}: make room there. Nothing was sent"
        )
    points = held.pointer is None or _step(held.pointer) <= _step(revision)
    return Plan(revision, len(files) + 1, size, held, there, points)


def _step(revision: str) -> int:
    match = _REVISION.fullmatch(revision)
    return int(match[1]) if match else -1


def _differences(mine: str, theirs: str) -> str:
    def files(sums: str) -> dict[str, str]:
        return {name: value for value, _, name in (line.partition("  ") for line in sums.splitlines())}

    here, there = files(mine), files(theirs)
    names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    return f"{len(names)} files differ ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def publish(release: Path, target: Target, planned: Plan, say: Callable[[str], None]) -> None:
    """Do what was planned; whatever is cut, the pointer shows a whole revision."""
    if not planned.there:
        say(f"sending {planned.size:,} bytes to {target.where}")
        target.send(release, planned.revision)
    if planned.points and planned.standing.pointer != planned.revision:
        target.point(release, planned.revision)
