"""What lies in a release, and what of it follows from the rest."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmjp_train import __version__
from llmjp_train.errors import UserError
from llmjp_train.publish.card import LANGUAGES, card
from llmjp_train.publish.chronicle import FORMS, chronicle, file_name
from llmjp_train.publish.facts import Facts
from llmjp_train.publish.figures import figures
from llmjp_train.publish.story import story

SCHEMA = 1
"""Version of release.json; a reader refuses newer ones."""
MANIFEST, SUMS, RECORD, REPORT = "release.json", "SHA256SUMS", "record", "report.html"
MADE_BY = f"llmjp-train {__version__}"
CITATION, LOCK, LICENCE, EVALUATION = "CITATION.cff", "requirements.lock", "LICENSE", "evaluation"
CARDS = {"en": "README.md", "ja": "README.ja.md"}
BEGIN, END = "<!-- addition -->", "<!-- end of addition -->"
"""Lines around what people add to a card by hand; the rest of it follows from the record."""
_ADDITIONS = re.compile(rf"(?:\n*^{BEGIN}\n(?:.*\n)*?{END}\n)+", re.MULTILINE)


def read_manifest(folder: Path) -> dict[str, Any]:
    """release.json.

    Raises:
        UserError: there is none, it is damaged, or a newer version made it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no release (no {MANIFEST} in it): llmjp release RUN makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = int(content["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): get the release again") from error
    if schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: update llmjp-train")
    return dict(content)


def cards(found: Facts, licence: str | None, languages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and content of the cards, which follow from the record and these arguments alone."""
    drawn = figures(found)
    for language in LANGUAGES:
        yield CARDS[language], card(found, language, licence=licence, languages=languages, drawn=drawn)


def without_additions(text: str) -> str:
    """A card as the record gives it."""
    return _ADDITIONS.sub("\n", text)


def additions(text: str) -> dict[str, str]:
    """What people added to a card: by the heading that it stands under, with its marks."""
    found: dict[str, str] = {}
    for match in _ADDITIONS.finditer(text):
        before = without_additions(text[: match.start()] + "\n")
        heading = next((line for line in reversed(before.splitlines()) if line.startswith("#")), "")
        text_here = match[0].strip("\n")
        found[heading] = f"{found[heading]}\n\n{text_here}" if heading in found else text_here
    return found


def with_additions(text: str, added: dict[str, str]) -> str:
    """A card with additions at the ends of their sections; those of a section that it lacks, at its own end."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if line.startswith("#"):
            sections.append((line, []))
        sections[-1][1].append(line)
    known = {heading for heading, _ in sections}
    for heading, lines in sections:
        if heading in added:
            while lines and not lines[-1].strip():
                lines.pop()
            lines += ["", *added[heading].splitlines(), ""]
    written = "\n".join(line for _, lines in sections for line in lines).strip("\n") + "\n"
    return written + "".join(f"\n{text}\n" for heading, text in added.items() if heading not in known)


def chronicles(found: Facts) -> Iterator[tuple[str, str]]:
    """Name and content of the run's story, which follows from the record alone."""
    told = story(found)
    for language in LANGUAGES:
        for form in FORMS:
            yield file_name(language, form), chronicle(told, language, form)


def write_sums(folder: Path) -> None:
    """SHA256SUMS, as ``sha256sum --check`` reads it."""
    lines = [f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_of(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def files_of(folder: Path) -> list[Path]:
    """Every file of a release but SHA256SUMS itself."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
