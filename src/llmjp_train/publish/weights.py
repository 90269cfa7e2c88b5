"""Weights of a checkpoint and of an exported folder, a tensor at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmjp_train.config.model import ModelConfig
from llmjp_train.errors import UserError
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.shapes import parameter_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Masters(Protocol):
    """Parameters by logical name behind ``master.``: a checkpoint's, or an exported folder's."""

    def names(self) -> list[str]:
        """Names of what is held."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def read(self, name: str) -> Tensor:
        """A tensor."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    Raises:
        UserError: it is none, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


class FolderTensors:
    """Tensors of a folder's safetensors files by name, read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        if index.is_file():
            files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            with opened(folder / SINGLE) as file:
                files = dict.fromkeys(file.keys(), SINGLE)
        self.folder, self.files = folder, files

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        with opened(self.folder / self.files[name]) as file:
            found: Tensor = file.get_tensor(name)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        with opened(self.folder / self.files[name]) as file:
            return tuple(file.get_slice(name).get_shape())


def load_decoder(reader: Masters, config: ModelConfig, rounded: torch.dtype) -> Decoder:
    """Our decoder in float32 with a checkpoint's masters rounded to a dtype, read one at a time.

    Raises:
        UserError: the checkpoint is of another model.
    """
    check_shapes(reader, config)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to_empty(device="cpu").eval()
    decoder.tie()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(reader.read(f"master.{name}").to(rounded))
    return decoder


def check_shapes(reader: Masters, config: ModelConfig) -> None:
    """Compare a checkpoint's masters with a model, by name and shape.

    Raises:
        UserError: the checkpoint is of another model.
    """
    held = {name.removeprefix("master.") for name in reader.names() if name.startswith("master.")}
    wanted = parameter_shapes(config)
    wrong = [f"{name} is not in it" for name in wanted if name not in held]
    wrong += [f"{name} of it is not in the model" for name in sorted(held - wanted.keys())]
    wrong += [
        f"{name} has shape {tuple(reader.shape(f'master.{name}'))} in it, {shape} by config.yaml"
        for name, shape in wanted.items()
        if name in held and tuple(reader.shape(f"master.{name}")) != shape
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            "the checkpoint is of another model than config.yaml says:\n  " + "\n  ".join(wrong[:5]) + more
        )


def available_memory() -> int:
    """Bytes this process may still take: of the machine, and of the control groups that limit it."""
    found = int(psutil.virtual_memory().available)
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    root = Path("/sys/fs/cgroup")
    for name in (line[3:].lstrip("/") for line in lines if line.startswith("0::")):
        for group in (root / name, *(root / name).parents):
            limit, used = group / "memory.max", group / "memory.current"
            if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()) != "max":
                found = min(found, int(allowed) - int(used.read_text()))
    return max(found, 0)


def parse_step(text: str) -> int | str:
    """A checkpoint as the command line names it: a step, ``latest`` or ``latest-valid``.

    Raises:
        UserError: it is none of them.
    """
    if text.isdigit():
        return int(text)
    if text not in ("latest", "latest-valid"):
        raise UserError(f"--step {text}: give a step's number, latest or latest-valid")
    return text
