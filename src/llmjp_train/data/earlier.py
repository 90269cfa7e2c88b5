"""What an earlier `llmjp prepare` left in the output: all of it, or the shards of a run that was killed."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmjp_train.data.download import sha256
from llmjp_train.data.inputs import size_of
from llmjp_train.data.manifest import MANIFEST, manifest_of
from llmjp_train.data.token_files import TokenFile
from llmjp_train.errors import UserError


def finished_output(out: Path, settings: dict[str, Any], files: Sequence[Path]) -> dict[str, Any] | None:
    """The manifest of an output that is there already and the same; none where there is no output.

    Raises:
        UserError: what is there has other settings or input, is damaged, or is not of `llmjp prepare`.
    """
    path = out / MANIFEST
    if not path.is_file():
        foreign = [name for name in ("train.bin", "train.idx") if (out / name).exists()]
        if foreign and not (out / "parts").is_dir():
            raise UserError(
                f"{out} holds {foreign[0]} without a manifest: choose another output, or remove it"
            )
        return None
    manifest = manifest_of(out) or {}
    try:
        input_then = [(entry["bytes"], entry["sha256"]) for entry in manifest["input"]]
        tokens = {name: manifest[name]["tokens"] for name in ("train", "validation")}
        groups = {group: dict(manifest[group]) for group in settings}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no manifest of 'llmjp prepare': choose another output, or remove it"
        ) from error
    differing = _differing(groups, settings)
    sizes = [size_of(file) for file in files]
    if [size for size, _ in input_then] != sizes or [d for _, d in input_then] != list(map(digest_of, files)):
        differing.append("input")
    if differing:
        raise UserError(
            f"{out} was prepared with another {', '.join(differing)}: choose another output, or remove it"
        )
    for name, count in tokens.items():
        found = TokenFile(out / name).num_tokens
        if found != count:
            raise UserError(
                f"{out / name} has {found} tokens, not those of its manifest: remove {out}, prepare again"
            )
    return manifest


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that are not what they were, each with both values; a tokenizer's name decides nothing."""
    return [
        f"{key} ({before.get(group, {}).get(key)} -> {value})"
        for group, values in now.items()
        for key, value in values.items()
        if before.get(group, {}).get(key) != value and key != "name"
    ]


def resume(parts: Path, settings: dict[str, Any], files: Sequence[Path]) -> None:
    """Keep the shards of a killed run of the same settings and files; those without a document are no loss.

    Raises:
        UserError: there are shards of other settings or files.
    """
    seen = [[str(p), size_of(p), p.stat().st_mtime_ns] for p in files]
    here = {**settings, "files": seen}
    path = parts / "settings.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if before is not None:
        if "shard_mb" in before:  # as older versions wrote it
            before["work"] = {"shard_mb": before.pop("shard_mb")}
        differing = [*_differing(before, settings), *(["input"] if before.get("files") != seen else [])]
        if not differing:
            return
        if _documents(parts):
            raise UserError(
                f"{parts} holds the work of an unfinished run with another {', '.join(differing)}: "
                "give the same again to finish it, or remove that folder"
            )
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(here, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def _documents(parts: Path) -> bool:
    """Whether some shard holds a document."""
    shards = (path for path in parts.glob("*.json") if path.name != "settings.json")
    return any(json.loads(path.read_text(encoding="utf-8"))["documents"] for path in shards)


def state_again(out: Path, finished: dict[str, Any], said: list[dict[str, Any]]) -> dict[str, Any]:
    """Take a licence, origin or filters that are stated now; who says nothing takes nothing back."""
    before = finished.get("statements") or [{} for _ in said]
    if len(before) != len(said):  # the same files under other names: what is said of all holds for each
        common = {key: _agreed([each[key] for each in said]) for key in ("licence", "origin", "filters")}
        said = [{"input": None, **common} for _ in before]
    merged = [
        {key: value if value is not None else old.get(key) for key, value in new.items()}
        for old, new in zip(before, said, strict=True)
    ]
    if merged == before:
        return finished
    changed = finished | {"statements": merged}
    write_manifest(out, changed)
    return changed


def _agreed(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    part = out / (MANIFEST + ".part")
    part.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(out / MANIFEST)


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and sha256 of all files of a folder."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for inside in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{inside.relative_to(path)} {sha256(inside)}\n".encode())
    return digest.hexdigest()
