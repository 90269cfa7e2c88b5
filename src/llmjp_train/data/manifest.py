"""A prepared folder: the names of its files, and the manifest that tells how they were made."""

import json
from pathlib import Path
from typing import Any

from llmjp_train.errors import UserError

MANIFEST = "manifest.json"


def train_prefix(path: Path) -> Path:
    """Prefix of the training pair: a prepared folder's own, or the path itself."""
    return path / "train" if path.is_dir() else path


def validation_prefix(path: str, validation: str) -> Path | None:
    """Prefix of the validation pair: the one named, a prepared folder's own, or none."""
    if validation:
        named = Path(validation)
        return named / "validation" if named.is_dir() else named
    inside = Path(path) / "validation"
    return inside if inside.with_name("validation.idx").is_file() else None


def statements(path: str) -> list[dict[str, Any]]:
    """Licence, origin and filters of each input of a prepared folder; none for foreign files and old manifests."""
    found: list[dict[str, Any]] = (manifest_of(Path(path)) or {}).get("statements", [])
    return found


def preparation(path: str) -> dict[str, Any]:
    """What `llmjp prepare` took and left out: counts of records and documents; empty for foreign files."""
    made = manifest_of(Path(path))
    if made is None:
        return {}
    return {
        "records": sum(each["records"] for each in made["input"]),
        "malformed": made["malformed"]["count"],
        "empty": made["empty"],
        "documents": made["train"]["documents"],
        "validation_documents": made["validation"]["documents"],
        "unicode": made["settings"]["unicode"],
    }


def other_tokenizer(made: dict[str, Any], fingerprint: str, eod_id: int) -> str:
    """What a manifest says against a tokenizer: other pieces, or another end of the documents; else empty."""
    was = made["tokenizer"]
    if was["fingerprint"] != fingerprint:
        return f"prepared with tokenizer {was['name']} ({was['fingerprint'][:12]})"
    appended = made.get("settings", {}).get("append_eod")
    if appended and was.get("eod_id", eod_id) != eod_id:
        return (
            f"prepared with id {was['eod_id']} at the end of each document, where the tokenizer has {eod_id}"
        )
    return ""


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, given that folder or a prefix in it; none for foreign files."""
    folder = path if path.is_dir() else path.parent if path.name in ("train", "validation") else None
    if folder is None or not (folder / MANIFEST).is_file():
        return None
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(
            f"{folder / MANIFEST} is damaged ({error}): remove {folder} and run 'llmjp prepare' again"
        ) from error
    return found if isinstance(found, dict) and "tokenizer" in found else None
