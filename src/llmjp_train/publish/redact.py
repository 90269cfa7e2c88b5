"""What a release must not tell: secrets, users, hosts and folders of the machines that made it."""

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmjp_train.runlog.lease import read_epochs
from llmjp_train.runlog.record import RunRecord

_FOLDER = re.compile(r"(?<![\w:/.<>~])~?/(?:[\w.@+=,~-]+/)+(?P<last>[\w.@+=,~-]*)")
"""An absolute path of two parts or more; addresses with a scheme are none."""
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b")
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|AKIA|xox[abp]-)[A-Za-z0-9_-]{10,}")
_SECRET_KEY = re.compile(r"secret|passw|api_?key|access_?key|auth_?token|credential", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL")
_HOST_KEYS = {"host", "hosts", "hostname", "node", "nodes"}
_COMMON = {"root", "user", "local", "localhost"}
_LEAST = 3


class Redaction:
    """Replaces what names a person, a machine or a folder, and what opens a door.

    Rules: the values of secret-looking environment variables and keys, and tokens of known forms, become
    ``<secret>``; absolute paths keep their last part, ``<folder>/NAME``; host names become ``<host-1>``,
    ``<host-2>``, the same for the same host; user names ``<user>``; addresses of e-mail ``<email>``.
    """

    def __init__(self, hosts: Iterable[str] = (), users: Iterable[str] = ()) -> None:
        self._secrets = [
            value
            for name, value in os.environ.items()
            if _SECRET_VARIABLE.search(name) and len(value) >= 8 and not value.isdigit()
        ]
        self._names: dict[str, str] = {}
        for number, host in enumerate(sorted(_worth(hosts)), 1):
            self._names[host] = f"<host-{number}>"
        self._names |= dict.fromkeys(_worth(users), "<user>")
        longest_first = sorted(self._names, key=len, reverse=True)
        self._name = (
            re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")
            if longest_first
            else None
        )

    def text(self, text: str) -> str:
        """A text without what must not be told."""
        for secret in self._secrets:
            text = text.replace(secret, "<secret>")
        text = _TOKEN.sub("<secret>", text)
        text = _FOLDER.sub(lambda match: f"<folder>/{match['last']}", text)
        text = _EMAIL.sub("<email>", text)
        if self._name is not None:
            text = self._name.sub(lambda match: self._names[match[0]], text)
        return text

    def value(self, value: Any) -> Any:
        """The same of a JSON value; keys too, since a mapping may be by host or path."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {
                self.text(str(key)): "<secret>"
                if isinstance(item, str) and item and _SECRET_KEY.search(str(key))
                else self.value(item)
                for key, item in value.items()
            }
        return value


def redaction(record: RunRecord) -> Redaction:
    """The rules for a run: its hosts as the record names them, this host, this user."""
    hosts = {socket.gethostname(), *(epoch.host for epoch in read_epochs(record.path))}
    for event in record.read_events():
        hosts |= _hosts(event)
    users = {Path.home().name}
    with contextlib.suppress(KeyError, OSError):  # no name for this number
        users.add(getpass.getuser())
    return Redaction(hosts, users)


def _hosts(value: Any) -> set[str]:
    found: set[str] = set()
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in _HOST_KEYS:
            found |= {
                one for one in (item if isinstance(item, list | dict) else [item]) if isinstance(one, str)
            }
        found |= _hosts(item)
    return found


def _worth(names: Iterable[str]) -> set[str]:
    """Names that name someone: not those of every machine, and no single letters, which stand in any text."""
    names = {part for name in names for part in (name, name.partition(".")[0])}
    return {name for name in names if len(name) >= _LEAST and name not in _COMMON and not name.isdigit()}
