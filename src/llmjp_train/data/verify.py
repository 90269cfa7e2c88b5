"""A full reading of token files: the index throughout, every id, and the manifest's checksums."""

from pathlib import Path

from llmjp_train.data.download import sha256
from llmjp_train.data.manifest import manifest_of
from llmjp_train.data.token_files import TokenFile, pair


def problems(prefix: Path) -> list[str]:
    """What is wrong with a pair of files; empty when they are sound.

    Raises:
        UserError: they cannot be opened at all.
    """
    file = TokenFile(prefix)
    found = file.problems()
    smallest = largest = 0
    for ids in file.chunks():
        smallest, largest = min(smallest, int(ids.min())), max(largest, int(ids.max()))
    if smallest < 0:
        found.append(f"an id is {smallest}")
    made = manifest_of(prefix)
    if made is None or prefix.name not in made:
        return found
    part, size = made[prefix.name], made["tokenizer"]["vocab_size"]
    if largest >= size:
        found.append(f"an id is {largest}, but the tokenizer has {size}")
    for key, value in (("documents", file.num_documents), ("tokens", file.num_tokens)):
        if part[key] != value:
            found.append(f"{value} {key}, but the manifest says {part[key]}")
    for path in pair(prefix):
        if sha256(path) != part["sha256"][path.suffix]:
            found.append(f"the sha256 of {path.name} is not the manifest's")
    return found
