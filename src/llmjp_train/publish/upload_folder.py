"""A folder as target, on this machine or over ssh: rsync carries, sha256sum checks, renames show."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmjp_train.errors import UserError
from llmjp_train.publish.release_folder import SUMS
from llmjp_train.publish.upload import Standing

POINTER = "latest"
TRIES = 3
PAUSE = 5.0
"""Seconds between two tries when the line was cut."""
_CONSEQUENCES = ("rsync error:", "Broken pipe", "connection unexpectedly closed")
_CUT = (10, 12, 30, 35, 255)
"""rsync's exit codes of a line that was cut or a peer that ended; ssh's is 255."""


@dataclass
class FolderTarget:
    """A folder of revisions with a link ``latest``, reached by a shell.

    Everything is done by one kind of command there: a POSIX shell with GNU's mv, ln, df and sha256sum.
    """

    path: str
    host: str | None = None
    """``[user@]host`` as ssh takes it; none: this machine."""
    ssh: Sequence[str] = ("ssh", "-o", "BatchMode=yes")
    limit: int | None = None
    """KiB a second; none: as fast as it goes."""
    pointer: str = field(default=POINTER, init=False)

    @property
    def where(self) -> str:
        """As the user reads it."""
        return self.path if self.host is None else f"{self.host}:{self.path}"

    def look(self, revision: str) -> Standing:
        """See `Target.look`. The folder need not exist yet: its nearest parent must be writable."""
        _need("rsync")
        answer = self._shell(
            """
            [ ! -e "$1" ] || [ -d "$1" ] || { echo "$1 is no folder" >&2; exit 1; }
            at="$1"; while [ ! -e "$at" ]; do at=$(dirname "$at"); done
            [ -w "$at" ] || { echo "$at may not be written" >&2; exit 1; }
            command -v rsync >/dev/null || { echo "there is no rsync there" >&2; exit 1; }
            df -Pk "$at" | awk 'END { print $4 }'
            if [ -d "$1/.$2.partial" ]; then echo begun; else echo -; fi
            readlink "$1/$3" || echo -
            if [ -d "$1/$2" ]; then cat "$1/$2/$4"; else echo -; fi
            """,
            revision, POINTER, SUMS,
        )  # fmt: skip
        free, begun, pointer, sums = answer.split("\n", 3)
        return Standing(
            sums=None if sums == "-\n" else sums,
            begun=begun == "begun",
            pointer=None if pointer == "-" else pointer,
            free=int(free) * 1024,
        )

    def send(self, release: Path, revision: str) -> None:
        """See `Target.send`."""
        self._shell('mkdir -p "$1/.$2.partial"', revision)
        self._carry(release, f"{self.path}/.{revision}.partial/")
        # What a disk or a line did to the files is found before anybody sees them.
        self._shell(
            """
            cd "$1/.$2.partial" && sha256sum --check --strict --quiet "$3" >&2
            cd .. && mv -T ".$2.partial" "$2"
            """,
            revision, SUMS,
        )  # fmt: skip

    def point(self, release: Path, revision: str) -> None:
        """See `Target.point`."""
        self._shell('cd "$1" && ln -sfn "$2" ".$3.new" && mv -T ".$3.new" "$3"', revision, POINTER)

    def _carry(self, release: Path, to: str) -> None:
        words = ["rsync", "--recursive", "--times", "--inplace", "--partial", "--delete", "--protect-args"]
        words += ["--timeout=120"] if self.host else []
        words += [f"--bwlimit={self.limit}"] if self.limit else []
        words += ["--info=progress2", "--no-inc-recursive"] if sys.stdout.isatty() else []
        words += ["--rsh", shlex.join(self.ssh)] if self.host else []
        words += ["--", f"{release}/", f"{self.host}:{to}" if self.host else to]
        for left in reversed(range(TRIES)):
            done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                return
            if done.returncode not in _CUT or not left:
                raise UserError(
                    f"sending to {self.where} ended with rsync's code {done.returncode}: {_last(done.stderr)}. "
                    f"What was sent waits there under .*.partial; nothing is shown yet. {_remedy(done.stderr)}"
                )
            time.sleep(PAUSE)

    def _shell(self, script: str, *arguments: str) -> str:
        """Run a script there; its arguments are ``$1`` (the folder), ``$2``, ... and never part of its text."""
        words = ["sh", "-euc", script, "sh", self.path, *arguments]
        if self.host:
            words = [*self.ssh, "--", self.host, shlex.join(words)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{self.where}: {_last(done.stderr)}. {_remedy(done.stderr)}")
        return done.stdout


def folder_target(text: str, ssh: str | None, limit: int | None) -> FolderTarget:
    """The target of ``FOLDER``, ``[user@]host:FOLDER`` or ``ssh://[user@]host[:port]/FOLDER``."""
    words = shlex.split(ssh) if ssh else list(FolderTarget.ssh)
    if match := re.fullmatch(r"ssh://([^/:]+)(?::(\d+))?(/.+)", text):
        words += ["-p", match[2]] if match[2] else []
        return FolderTarget(_tidy(match[3]), match[1], words, limit)
    host, colon, path = text.partition(":")
    if colon and "/" not in host:
        if not path:
            raise UserError(f"--to {text}: name a folder after the colon")
        return FolderTarget(_tidy(path), host, words, limit)
    return FolderTarget(_tidy(str(Path(text).expanduser().absolute())), None, words, limit)


def _tidy(path: str) -> str:
    return path.rstrip("/") or "/"


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program} is not installed here: install it (apt-get install {program})")


def _last(text: str) -> str:
    """The last line that tells a cause."""
    lines = text.strip().splitlines()
    # rsync repeats its code, and one end may tell that the other is gone after that one has told why.
    causes = [line for line in lines if not any(words in line for words in _CONSEQUENCES)] or lines
    return causes[-1].rstrip(".") if causes else "no message"


def _remedy(said: str) -> str:
    if "No space left" in said or "quota" in said.lower():
        return "Make room there and run the same command again: it goes on where this one ended"
    if "Permission denied (" in said or "Host key" in said:
        return "Make `ssh HOST` work without a question (ssh-agent, ssh-copy-id), or give --ssh"
    if "Permission denied" in said or "may not be written" in said or "Read-only" in said:
        return "Take a folder that you may write"
    return "Put that right and run the same command again: it goes on where this one ended"
