"""A Hugging Face folder as a run directory to fork from, a tensor at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp_train.checkpoint.listing import CheckpointInfo
from llmjp_train.checkpoint.streaming import StreamWriter
from llmjp_train.config.compose import compose, dump_config
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.model.hf import Entry, entries, from_hf_config
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.publish.weights import INDEX, SINGLE, FolderTensors
from llmjp_train.train.fingerprints import model_fingerprint

_IGNORED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Ends of names of buffers that older files hold beside the weights."""


def read_model(folder: Path) -> ModelConfig:
    """Our configuration of the model in a folder.

    Raises:
        UserError: the folder holds no model, or one without a counterpart here.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: give the folder of a Hugging Face model")
    if not (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        raise UserError(f"{folder} holds neither {INDEX} nor {SINGLE}: only safetensors files are read")
    try:
        hf_config: Any = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    model = from_hf_config(hf_config)
    model.name = folder.resolve().name
    return model


def import_folder(folder: Path, out: Path, extend: Path | None = None) -> tuple[CheckpointInfo, ModelConfig]:
    """Make a run directory at step 0 with a folder's weights, its tokenizer and its configuration.

    Memory stays under two of the largest tensors. Optimizer moments are zero.

    Args:
        extend: a tokenizer folder for continued pretraining. The row of a piece that the old tokenizer has too is
            kept; a new piece starts as the mean of the rows of the pieces that the old one cuts its text into, or
            of all rows where there is no such text.

    Raises:
        UserError: see `read_model`; tensors that are missing, too many, or of other shapes than the configuration
            says; ``out`` exists.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give a new folder with --out")
    model = read_model(folder)
    tensors = FolderTensors(folder)
    check_tensors(model, tensors)
    sources: list[list[int]] | None = None
    tokenizer = extend or folder
    if extend is not None:
        old, new = (load_tokenizer(TokenizerConfig(path.name, str(path))) for path in (folder, extend))
        sources = row_sources(old, new, model.vocab_size)
    large = ModelConfig(**{**vars(model), "vocab_size": len(sources) if sources else model.vocab_size})
    with StreamWriter(out, step=0) as writer:
        _write(writer, model, large, tensors, sources)
        state = {
            "schema": 1,
            "step": 0,
            "samples": 0,
            "tokens": 0,
            "layout": {},
            "fingerprints": {"model": model_fingerprint(large)},
            "memory": {},
            "origin": {"imported": folder.resolve().name},
        }
        info = writer.commit(state)
    _describe(out, large, tokenizer)
    return info, large


def _write(
    writer: StreamWriter,
    model: ModelConfig,
    large: ModelConfig,
    tensors: FolderTensors,
    sources: list[list[int]] | None,
) -> None:
    shapes = parameter_shapes(large)
    for entry in entries(model):
        parts = entry.split(tensors.read(_stored(entry, tensors)))
        for name, value in zip(entry.sources, parts, strict=True):
            vocabulary = sources is not None and name in ("embedding.weight", "head.weight")
            rows = _extended(value, sources or []) if vocabulary else _plain(value)
            writer.add(name, shapes[name], rows)


def _plain(value: Tensor) -> Callable[[int, int], Tensor]:
    return lambda first, last: value[first:last]


def _extended(value: Tensor, sources: list[list[int]]) -> Callable[[int, int], Tensor]:
    mean = value.float().mean(0)

    def rows(first: int, last: int) -> Tensor:
        found = torch.empty(last - first, value.shape[1])
        for row, ids in zip(found, sources[first:last], strict=True):
            row.copy_(value[ids].float().mean(0) if ids else mean)
        return found

    return rows


def row_sources(old: Tokenizer, new: Tokenizer, rows: int) -> list[list[int]]:
    """For each id of the new tokenizer, the old ids whose rows it starts from; empty: all of them."""
    known = old.pieces()
    found = []
    for index, piece in enumerate(new.pieces_by_id()):
        if piece in known and known[piece] < rows:
            found.append([known[piece]])
            continue
        text = new.decode([index])
        ids = old.encode(text) if text and "\ufffd" not in text else []
        found.append([i for i in ids if i < rows])
    return found


def check_tensors(model: ModelConfig, tensors: FolderTensors) -> None:
    """The files hold what the configuration says: every tensor, of its shape, and no other.

    Raises:
        UserError: they do not; the first five differences.
    """
    shapes, wrong, used = parameter_shapes(model), [], set()
    for entry in entries(model):
        name, wanted = _stored(entry, tensors), entry.shape(shapes)
        used.add(name)
        if name not in tensors.files:
            wrong.append(f"{name} is missing")
        elif tensors.shape(name) != wanted:
            wrong.append(f"{name} has shape {list(tensors.shape(name))}, config.json means {list(wanted)}")
    tied = ("lm_head.weight", "embed_out.weight") if model.tied_embeddings else ()
    wrong += [
        f"{name} is not part of such a model"
        for name in sorted(set(tensors.files) - used)
        if not name.endswith(_IGNORED) and name not in tied
    ]
    if wrong:
        more = [f"and {len(wrong) - 5} more"] * (len(wrong) > 5)
        raise UserError(
            f"{tensors.folder}: config.json says what the tensors are not:\n  "
            + "\n  ".join(wrong[:5] + more)
        )


def _stored(entry: Entry, tensors: FolderTensors) -> str:
    """The name in the files: those of the first GPT-2s have no prefix."""
    short = entry.name.removeprefix("transformer.")
    return short if entry.name not in tensors.files and short in tensors.files else entry.name


def _describe(out: Path, model: ModelConfig, tokenizer: Path) -> None:
    """config.yaml, the tokenizer, and the model as a file for ``--config-dir``."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
    (out / "tokenizer").mkdir()
    for name in names:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
    config: TrainConfig = compose("train", [], partial=True)
    config.name, config.run_dir, config.model = out.name, str(out), model
    config.tokenizer = TokenizerConfig(out.name, str(out / "tokenizer"))
    config.data.sources = {}
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    group = out / "configs" / "model"
    group.mkdir(parents=True)
    # JSON is YAML.
    (group / "imported.yaml").write_text(
        json.dumps(model_fingerprint(model), indent=1) + "\n", encoding="utf-8"
    )
