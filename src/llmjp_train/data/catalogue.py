"""The data catalogue: corpora, tokenizers, prompts and benchmarks by name, each checked before it is used."""

import difflib
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmjp_train.data.converters import convert
from llmjp_train.data.download import Told, fetch, sha256, silent
from llmjp_train.errors import UserError

OWN_CORPUS = "llmjp-small-ja"
RAW = "https://raw.githubusercontent.com/{repository}/{revision}/{path}"
"""Address of a file of a repository."""


@dataclass(frozen=True)
class FileEntry:
    """A file as it lies under the data root."""

    size: int | None = None
    """Bytes. None: the file was never here, so that nothing is known of its bytes."""
    sha256: str | None = None
    """None: nobody has recorded it yet; then only the size is compared."""


@dataclass(frozen=True)
class Origin:
    """Where a file comes from in its source."""

    path: str
    convert: str | None = None
    """Name of the converter (converters.py) that gives the file its form here; none: the same bytes."""
    first: int | None = None
    """Only so many records from the beginning."""


@dataclass(frozen=True)
class Entry:
    """Something that can be had by name."""

    name: str
    kind: str
    """corpus, tokenizer, prompts or benchmark."""
    about: str
    licence: str
    source: str
    revision: str
    upstream: str
    """Path in the source."""
    folder: str
    """Folder under the data root."""
    files: dict[str, FileEntry]
    download: dict[str, Origin] = field(default_factory=dict)
    """Files that can be fetched."""
    changes: str = ""
    """What was changed against the source."""
    otherwise: str = ""
    """How to come by it without a copy of the data root, where it cannot be fetched."""
    eod: str = ""
    """A tokenizer's end-of-document token, where its file does not tell."""

    @property
    def size(self) -> int:
        """Bytes of all files, as far as they are known."""
        return sum(file.size or 0 for file in self.files.values())

    @property
    def missing(self) -> list[str]:
        """Files that cannot be fetched, only copied."""
        return sorted(set(self.files) - set(self.download))


@cache
def entries() -> dict[str, Entry]:
    """Everything in the catalogue."""
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    found = {}
    for name, value in yaml.safe_load(text).items():
        files = {file: FileEntry(**facts) for file, facts in value.pop("files").items()}
        download = {file: Origin(**origin) for file, origin in value.pop("download", {}).items()}
        if name == OWN_CORPUS:
            value["folder"] = str(Path(__file__).with_name(value["folder"]))
        found[name] = Entry(name=name, files=files, download=download, **value)
    return found


def entry(name: str) -> Entry:
    """One entry.

    Raises:
        UserError: no such name; near misses are shown.
    """
    known = entries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "'llmjp data list' shows all."
        raise UserError(f"the catalogue has no '{name}'; {hint}")
    return known[name]


def cache_root() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("LLMJP_CACHE") or Path.home() / ".cache" / "llmjp-train")


def roots(root: Path | None = None) -> list[Path]:
    """Folders that are looked through: ``root`` or LLMJP_DATA, then the downloads."""
    given = os.environ.get("LLMJP_DATA")
    first = [root] if root is not None else [Path(given)] if given else []
    return [*first, cache_root()]


def located(name: str, root: Path | None = None) -> Path | None:
    """Where all files of an entry lie: its file, its folder where there are several, or none: not here."""
    wanted = entry(name)
    if not wanted.files:
        return None
    for place in [Path("/")] if name == OWN_CORPUS else roots(root):
        folder = place / wanted.folder
        if all((folder / file).is_file() for file in wanted.files):
            single = len(wanted.files) == 1 and name != OWN_CORPUS
            return folder / next(iter(wanted.files)) if single else folder
    return None


def corpora() -> list[str]:
    """Names of the texts to train on."""
    return [name for name, wanted in entries().items() if wanted.kind == "corpus"]


def statement(name: str, licence: str = "", origin: str = "") -> dict[str, Any]:
    """Licence and origin of an input of `prepare`: the catalogue's of its own texts, else what the user says."""
    wanted = entries().get(name)
    if wanted is None:
        return {"input": Path(name).name, "licence": licence or None, "origin": origin or None}
    where = f"{wanted.source} at {wanted.revision}" if wanted.revision else wanted.source
    return {"input": name, "licence": wanted.licence, "origin": where}


def get(name: str, root: Path | None = None, *, told: Told = silent, address: str | None = None) -> Path:
    """An entry's file, or its folder where there are several; compared with their sha256 once a process.

    Looked for under ``root`` (LLMJP_DATA by default), then among the downloads, then fetched.

    Args:
        told: hears of licences and downloads.
        address: pattern of addresses, with ``repository``, ``revision`` and ``path``; RAW by default.

    Raises:
        UserError: it is not here and cannot be had, or its bytes are not those of the catalogue.
    """
    wanted = entry(name)
    found = located(name, root)
    if found is not None:
        _check_all(name, found if found.is_dir() else found.parent)
        return found
    if name == OWN_CORPUS:
        raise UserError("this installation lacks the project's own text: install llmjp-train again")
    if wanted.missing:
        raise UserError(
            f"{name} is not here, and {', '.join(wanted.missing)} cannot be downloaded as it is "
            f"(made from {wanted.source} at {wanted.revision}, {wanted.upstream}): "
            "set LLMJP_DATA to a data root that holds "
            f"{wanted.folder}/" + (f"; {wanted.otherwise}" if wanted.otherwise else "")
        )
    told(f"{name}: licence {wanted.licence}; from {wanted.source} at {wanted.revision}")
    for file in wanted.files:
        _fetch(wanted, file, told, RAW if address is None else address)
    found = located(name, cache_root())
    assert found is not None, "a download ended without its files"
    return found


def _fetch(wanted: Entry, file: str, told: Told, address: str) -> None:
    """One file into the downloads; it gets its name once its bytes are right."""
    target = cache_root() / wanted.folder / file
    facts, origin = wanted.files[file], wanted.download[file]
    if target.is_file():
        return
    repository = wanted.source.removeprefix("https://github.com/")
    url = address.format(repository=repository, revision=wanted.revision, path=origin.path)
    part = target.with_name(target.name + ".part")
    fetched = target.with_name(target.name + ".source.part") if origin.convert else part
    try:
        fetch(url, fetched, told, size=None if origin.convert else facts.size)
    except UserError as error:
        raise UserError(
            f"{error}. Without a network: set LLMJP_DATA to a data root that holds {wanted.folder}/{file}, "
            f"or fetch it on another machine and put it at {target}"
        ) from error
    if origin.convert:
        part.write_bytes(convert(fetched.read_bytes(), origin.convert, origin.first))
        fetched.unlink()
    try:
        check(part, facts)
    except UserError:
        part.unlink()
        raise
    if facts.sha256 is None:
        told(f"{file}: the catalogue has no sha256 to compare with; it is {sha256(part)}")
    part.replace(target)


@cache
def _check_all(name: str, folder: Path) -> None:
    for file, facts in entry(name).files.items():
        check(folder / file, facts)


def check(path: Path, facts: FileEntry) -> None:
    """Compare a file with the catalogue.

    Raises:
        UserError: another size or sha256.
    """
    size = path.stat().st_size
    if facts.size is not None and size != facts.size:
        raise UserError(
            f"{path} has {size:,} bytes, the catalogue says {facts.size:,}: copy or download it again"
        )
    digest = sha256(path)
    if facts.sha256 is not None and digest != facts.sha256:
        raise UserError(
            f"{path} has sha256 {digest}, the catalogue says {facts.sha256}: copy or download it again"
        )


def facts(wanted: Entry) -> dict[str, Any]:
    """An entry for a table or JSON."""
    return {
        "name": wanted.name,
        "kind": wanted.kind,
        "size": wanted.size,
        "licence": wanted.licence,
        "about": wanted.about,
        "source": wanted.source,
        "revision": wanted.revision,
        "upstream": wanted.upstream,
        "files": {file: {"size": f.size, "sha256": f.sha256} for file, f in wanted.files.items()},
        "download": not wanted.missing,
        "changes": wanted.changes,
    }
