"""The files that an input of `llmjp prepare` names: files, folders of files, folders of `datasets`, corpora by name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmjp_train.data import catalogue
from llmjp_train.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst")
SUFFIXES = (
    *(f"{lines}{how}" for lines in (".jsonl", ".ndjson") for how in ("", *COMPRESSED)),
    *(f".json{how}" for how in COMPRESSED),
    ".txt",
    ".parquet",
)
"""Ends of the names that are read, in any case. A plain .json is one value, seldom text, and only named."""


def _named(text: str) -> Path:
    """A path, or where the corpus of that name lies."""
    path = Path(text)
    if path.exists():
        return path
    names = catalogue.corpora()
    if text in names:
        return catalogue.get(text)
    raise UserError(
        f"input {text} does not exist and is no corpus by name ({', '.join(names)}): correct input=[…]"
    )


@dataclass
class Found:
    """What there is in the input."""

    files: list[Path] = field(default_factory=list)
    """Files and `datasets` folders to read, sorted within each folder, each once by whatever path."""
    passed_over: list[str] = field(default_factory=list)
    """Files of the input's folders that are of no known kind, by their path in that folder."""
    loose_texts: list[str] = field(default_factory=list)
    """Text files that lie in a folder with files of other kinds: perhaps a licence, perhaps a document."""

    def remarks(self) -> list[str]:
        """Lines for the user about what may not be as it was meant."""
        said = []
        if self.passed_over:
            said.append(f"passed over, of no kind that is read: {_few(self.passed_over)}")
        if self.loose_texts:
            said.append(f"taken as documents, though they lie beside other kinds: {_few(self.loose_texts)}")
        return said


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"{len(names):,} ({', '.join(names[:5])}{more})"


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Files and `datasets` folders of the input, sorted within each folder, each once.

    Raises:
        UserError: an input is missing or has nothing that can be read.
    """
    return survey(inputs).files


def survey(inputs: Sequence[str]) -> Found:
    """What there is to read in the input, and what is passed over.

    Raises:
        UserError: an input is missing or has nothing that can be read.
    """
    found = Found()
    for text in inputs:
        path = _named(text)
        if path.is_file() and not _is_known(path):
            raise UserError(
                f"input {path} is of no known kind; known are {', '.join(SUFFIXES)} and folders of datasets"
            )
        if path.is_file():
            found.files.append(path)
        else:
            _survey_folder(path, found)
    if not found.files:
        raise UserError("no input: give files or folders with input=[FILE,FOLDER]")
    once: dict[Path, Path] = {}
    for path in found.files:
        once.setdefault(path.resolve(), path)
    found.files = list(once.values())
    return found


def _survey_folder(folder: Path, found: Found) -> None:
    inside = sorted([folder, *folder.rglob("*")])
    datasets = {p for p in inside if _is_dataset(p)}
    # What lies in a folder of `datasets` is part of it.
    files = [p for p in inside if p.is_file() and not datasets.intersection(p.parents)]
    wanted = sorted([*datasets, *(p for p in files if _is_known(p))])
    if not wanted:
        raise UserError(f"input folder {folder} holds no {', '.join(SUFFIXES)}")
    texts = [p for p in wanted if p not in datasets and p.name.lower().endswith(".txt")]
    found.files += wanted
    found.passed_over += [str(p.relative_to(folder)) for p in files if not _is_known(p)]
    if len(texts) < len(wanted):
        found.loose_texts += [str(p.relative_to(folder)) for p in texts]


def _is_known(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _is_dataset(path: Path) -> bool:
    """Whether `datasets` saved this folder.

    Raises:
        UserError: it did, with several splits, of which some may be for tests.
    """
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise UserError(f"input {path} holds several splits: name them, e.g. input=[{path / splits[0]}]")
    return (path / "dataset_info.json").is_file()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in inside)
