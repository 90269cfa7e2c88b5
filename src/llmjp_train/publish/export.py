"""A checkpoint as a Hugging Face folder, streamed: at most a shard and one tensor in memory."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.config.root import TrainConfig
from llmjp_train.data.tokenizers import Tokenizer, check_special_tokens, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.model.hf import Entry, config_json, entries, family_of, to_hf_config
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.publish import parity
from llmjp_train.publish.parity import CERTIFICATE, Progress
from llmjp_train.publish.place import check_place, clear_leftovers, partial_folder, replace_folder
from llmjp_train.publish.weights import INDEX, SINGLE, check_shapes

DTYPES = {"bfloat16": 2, "float32": 4}
"""Formats of exported weights and their bytes an element."""
MAX_SHARD = 5 * 10**9
"""Bytes of a shard unless told otherwise, as transformers has it."""
_CONFIG, _GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"


class ParityError(UserError):
    """The exported folder does not compute what the checkpoint does; it was set aside."""


@dataclass(frozen=True)
class Shard:
    """One safetensors file."""

    file: str
    entries: tuple[Entry, ...]
    bytes: int
    """Of its tensors, without the header."""


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    shards: list[Shard]
    certificate: dict[str, Any]


def plan(config: ModelConfig, dtype: str = "bfloat16", max_shard_bytes: int = MAX_SHARD) -> list[Shard]:
    """The files of an export, from shapes alone. A tensor above the limit has a file of its own.

    Raises:
        UserError: no family of transformers holds the model, or an argument is of no use.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: give {' or '.join(DTYPES)}")
    if max_shard_bytes <= 0:
        raise UserError(f"--max-shard {max_shard_bytes}: give a positive size, e.g. 5GB")
    shapes = parameter_shapes(config)
    groups: list[list[Entry]] = [[]]
    sizes = [0]
    for entry in entries(config):
        size = math.prod(entry.shape(shapes)) * DTYPES[dtype]
        if groups[-1] and sizes[-1] + size > max_shard_bytes:
            groups.append([])
            sizes.append(0)
        groups[-1].append(entry)
        sizes[-1] += size
    count = len(groups)
    names = (
        [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    return [Shard(name, tuple(group), size) for name, group, size in zip(names, groups, sizes, strict=True)]


def export(
    reader: CheckpointReader,
    config: TrainConfig,
    tokenizer_folder: Path | None,
    out: Path,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = MAX_SHARD,
    whole: bool | None = None,
    force: bool = False,
    source: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a Hugging Face folder and its parity certificate.

    The folder is made beside ``out`` and takes that name only once the certificate says that it passed.

    Args:
        tokenizer_folder: none: the tokenizer that ``config`` names.
        whole: compare the whole model's logits too; none: where the memory allows.
        force: replace an earlier export in ``out``.
        source: what the certificate says the folder was made from, e.g. run and step.

    Raises:
        UserError: the model, the checkpoint, the tokenizer or the place does not serve; nothing is left.
        ParityError: the folder differs from the checkpoint; it is kept as ``out`` with ``.failed``.
    """
    out = out.absolute()
    shards = plan(config.model, dtype, max_shard_bytes)
    clear_leftovers(out)
    check_place(out, force)
    check_shapes(reader, config.model)
    tokenizer = _tokenizer(config, tokenizer_folder)
    report = progress or (lambda what, done, total: None)
    with partial_folder(out, sum(shard.bytes for shard in shards)) as partial:
        _write_configs(partial, config.model, tokenizer, dtype)
        _write_shards(partial, shards, reader, dtype, report)
        for shard in shards:  # safetensors lets the owner alone read them
            shutil.copymode(partial / "config.json", partial / shard.file)
        certificate = parity.certify(
            partial, reader, config.model, dtype=dtype, whole=whole, source=source, progress=report
        )
        certificate["tokenizer"] = {"fingerprint": tokenizer.fingerprint, "habit": tokenizer.habit()}
        text = json.dumps(certificate, indent=2, ensure_ascii=False, allow_nan=False)
        (partial / CERTIFICATE).write_text(text + "\n", encoding="utf-8")
        if not certificate["passed"]:
            failed = out.with_name(f"{out.name}.failed")
            if failed.exists():
                check_place(failed, force=True)
            replace_folder(partial, failed)
            raise ParityError(_failure(certificate, failed))
        replace_folder(partial, out)
    return Exported(out, shards, certificate)


def _failure(certificate: dict[str, Any], failed: Path) -> str:
    problems = certificate["problems"]
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    return (
        "the exported folder does not compute what the checkpoint does:\n  "
        + "\n  ".join([*problems[:5], *more])
        + f"\nIt is kept as {failed}, with the figures in {CERTIFICATE}; do not publish it. Export again; "
        "if it fails again, try another checkpoint with --step, and check this machine's disk and memory"
    )


def _tokenizer(config: TrainConfig, folder: Path | None) -> Tokenizer:
    wanted = config.tokenizer
    if folder is not None:
        wanted = TokenizerConfig(name=wanted.name, path=str(folder))
    tokenizer = load_tokenizer(wanted)
    check_special_tokens(tokenizer, config.model.vocab_size)
    return tokenizer


def _write_configs(folder: Path, model: ModelConfig, tokenizer: Tokenizer, dtype: str) -> None:
    from transformers import GenerationConfig

    hf_config = to_hf_config(
        model, dtype=dtype, bos_id=tokenizer.bos_id, eos_id=tokenizer.eod_id, pad_id=tokenizer.pad_id
    )
    (folder / _CONFIG).write_text(config_json(hf_config), encoding="utf-8")
    pad = tokenizer.eod_id if tokenizer.pad_id is None else tokenizer.pad_id
    GenerationConfig(
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eod_id, pad_token_id=pad
    ).save_pretrained(folder)
    tokenizer.save(folder)
    _for_transformers_4(folder / _TOKENIZER)
    _check_tokenizer(folder, tokenizer, hf_config.model_type)


def _for_transformers_4(path: Path) -> None:
    """Name the tokenizer's class and its special tokens as both versions of transformers know them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list):  # 4 wants a mapping under this name, and lists under the other
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_tokenizer(folder: Path, tokenizer: Tokenizer, family: str) -> None:
    """See that a user who loads the folder gets the run's tokenizer.

    transformers 5 puts a class of its own choice on the tokenizers of some families (of qwen2, whatever
    tokenizer_config.json says), which reads another kind of tokenizer.json without a word and wrongly.
    """
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    text = "日本語の文。カタカナ、ひらがな、Latin 123\n２行目 🌸"
    if list(found.encode(text, add_special_tokens=False)) != tokenizer.encode(text):
        raise UserError(
            f"transformers reads the tokenizer beside a {family} model as {type(found).__name__}, which gives "
            "other ids than the run's: the exported folder would take text wrongly. This run can be evaluated "
            f"and generated from as it is; for an export train with {family}'s own kind of tokenizer, or choose "
            "another model.bias (none or all is a llama)"
        )


def _write_shards(
    folder: Path, shards: list[Shard], reader: CheckpointReader, dtype: str, report: Progress
) -> None:
    total, done = sum(shard.bytes for shard in shards), 0
    kind: torch.dtype = getattr(torch, dtype)
    files: dict[str, str] = {}
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        for entry in shard.entries:
            report("tensors written", done, total)
            # Rounded as they are read, so that no tensor is ever held whole in fp32.
            tensors[entry.name] = entry.join([reader.read(f"master.{name}", kind) for name in entry.sources])
            done += tensors[entry.name].nbytes
        files |= dict.fromkeys(tensors, shard.file)
        save_file(tensors, folder / shard.file, metadata={"format": "pt"})
        del tensors
    report("tensors written", total, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def describe(config: TrainConfig, shards: list[Shard], dtype: str) -> list[tuple[str, str]]:
    """What an export would be, for a dry run: (what, value) rows."""
    family = family_of(config.model)
    total = sum(shard.bytes for shard in shards)
    rows = [
        ("family", f"{family.name} ({family.architecture})"),
        ("dtype", dtype),
        ("vocabulary", f"{config.model.vocab_size:,} rows, none of them padding"),
        ("weights", f"{total:,} bytes in {len(shards)} file{'s' * (len(shards) > 1)}"),
    ]
    return rows + [(shard.file, f"{shard.bytes:,} bytes, {len(shard.entries)} tensors") for shard in shards]
