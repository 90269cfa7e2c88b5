"""Parity certificate: an exported folder, read back by transformers' classes, against our decoder."""

import gc
import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmjp_train.config.model import ModelConfig, Position
from llmjp_train.model.attention import make_context
from llmjp_train.model.decoder import Block
from llmjp_train.model.hf import Entry, Family, entries, family_of, from_hf_config
from llmjp_train.model.norm import make_norm
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.publish.weights import FolderTensors, Masters, available_memory, load_decoder

CERTIFICATE = "parity.json"

LAYER_BOUND = 3e-5
"""Largest difference of a layer's outputs, over the largest change that the layer makes to its input."""
LOGITS_BOUND = 3e-4
"""Largest difference of logits over the largest logit; roundings of all layers add up."""

LENGTH = 48
SCALE = 0.1
"""Standard deviation of the random hidden states: small, so that a wrong epsilon of a norm shows."""
METHOD = (
    "Every tensor of the folder is compared bit by bit with the checkpoint's fp32 master rounded to the "
    "folder's dtype. Then, in float32 with the rounded weights on both sides: each decoder layer of "
    f"transformers, its tensors read from the folder, against ours on the same {LENGTH} random hidden states "
    "at positions spread over the whole context (largest difference over the largest change that the layer "
    "makes); "
    "the embedding; the final norm with the head (over the largest logit); and, at level 'whole', the logits "
    "of the whole model as transformers loads it against ours on random tokens."
)

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it and out of how much."""


@dataclass
class Comparison:
    """An exported folder beside the checkpoint that it was made from."""

    folder: Path
    reader: Masters
    config: ModelConfig
    dtype: torch.dtype
    problems: list[str] = field(default_factory=list)
    """What differs, in words; none: the folder says what the checkpoint says."""
    seen: set[str] = field(default_factory=set)
    """Logical names of the tensors that were compared bit by bit."""

    @cached_property
    def stored(self) -> FolderTensors:
        """The folder's tensors."""
        return FolderTensors(self.folder)

    @cached_property
    def skeleton(self) -> Any:
        """transformers' model by the folder's config.json, without memory for weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        # Eager attention under an explicit mask shares no code with ours, which calls torch's fused one.
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=torch.float32
            ).eval()

    @property
    def family(self) -> Family:
        """Family of the model."""
        return family_of(self.config)

    def ours(self, name: str) -> Tensor:
        """A master of the checkpoint, rounded as in the folder."""
        return self.reader.read(f"master.{name}").to(self.dtype)

    def pair(self, found: list[Entry], strip: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Our and transformers' float32 tensors by name, compared bit by bit on the way."""
        ours: dict[str, Tensor] = {}
        theirs: dict[str, Tensor] = {}
        for entry in found:
            whole = self.stored.read(entry.name)
            wide = whole.float()
            split, wide_split = entry.split(whole), entry.split(wide)
            for name, part, wide_part in zip(entry.sources, split, wide_split, strict=True):
                master = self.ours(name)
                self.seen.add(name)
                equal = part.dtype == self.dtype and torch.equal(part, master)
                if not equal:
                    self.problems.append(f"{entry.name} differs from {name} of the checkpoint")
                if not bool(torch.isfinite(master).all()):
                    self.problems.append(f"{name} of the checkpoint holds values that are not finite")
                # What is bit-equal need not be held twice.
                ours[name] = wide_part if equal else master.float()
            theirs[entry.name.removeprefix(strip)] = wide
        return ours, theirs

    def check_form(self) -> None:
        """Settings, names and shapes: of the folder, by our mapping, and as transformers wants them."""
        said = replace(
            from_hf_config(self.skeleton.config),
            name=self.config.name,
            init_scale_residual=self.config.init_scale_residual,
        )
        for each in fields(said):
            idle = self.config.position is Position.learned and each.name.startswith("rope_")
            if not idle and getattr(said, each.name) != getattr(self.config, each.name):
                self.problems.append(f"config.json says {each.name}={getattr(said, each.name)}")
        shapes = parameter_shapes(self.config)
        wanted = {entry.name: entry.shape(shapes) for entry in entries(self.config)}
        self.problems += [f"{name} is missing" for name in sorted(wanted.keys() - self.stored.files.keys())]
        self.problems += [f"{name} is of no use" for name in sorted(self.stored.files.keys() - wanted.keys())]
        for name in wanted.keys() & self.stored.files.keys():
            if self.stored.shape(name) != wanted[name]:
                self.problems.append(f"{name} has shape {self.stored.shape(name)}, not {wanted[name]}")
        model = {name: tuple(value.shape) for name, value in self.skeleton.named_parameters()}
        head = f"{self.family.head}.weight"
        if "lm_head.weight" in model:  # the name in memory, not in files
            model[head] = model.pop("lm_head.weight")
        if model != wanted:
            strange = sorted({*model.items()} ^ {*wanted.items()})
            self.problems.append(f"transformers' model has other tensors than the folder: {strange[:4]}")


def certify(
    folder: Path,
    reader: Masters,
    config: ModelConfig,
    *,
    dtype: str,
    whole: bool | None = None,
    source: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a folder with its checkpoint; the content of parity.json.

    Args:
        whole: also compare the whole model's logits. None: where the memory allows.
        source: what the folder was made from, for the record.
    """
    comparison = Comparison(folder, reader, config, getattr(torch, dtype))
    report = progress or (lambda what, done, total: None)
    figures: dict[str, Any] = {"embedding": None, "layers": [], "head": None, "whole": None}
    level, left_out = "none", ""
    comparison.check_form()
    if not comparison.problems:
        with torch.inference_mode():
            figures |= _by_layers(comparison, report)
            level = "layers"
            # One model at a time in float32, half as much again for reading it.
            needed, free = 6 * _parameters(config), available_memory()
            if whole or (whole is None and needed < free):
                report("logits of the whole model", 0, 1)
                figures["whole"] = _whole(comparison)
                report("logits of the whole model", 1, 1)
                level = "whole"
            else:
                left_out = f"needs {needed:,} bytes, {free:,} were free" if whole is None else "not asked for"
    passed = level != "none" and not comparison.problems and _within(figures)
    return {
        "schema": 1,
        "passed": passed,
        "level": level,
        "whole_left_out": left_out,
        "family": comparison.family.name,
        "dtype": dtype,
        "bounds": {"layers": LAYER_BOUND, "logits": LOGITS_BOUND},
        "method": METHOD,
        **figures,
        "tensors_compared": len(comparison.seen),
        "problems": [*dict.fromkeys(comparison.problems), *_beyond(figures)],
        "source": source or {},
        "versions": {name: version(name) for name in ("llmjp-train", "transformers", "torch", "safetensors")}
        | {"python": platform.python_version()},
        "files": dict(_digests(folder, report)),
    }


def _figure(theirs: Tensor, ours: Tensor, scale: Tensor) -> dict[str, float | None]:
    """Largest difference, in itself and over the largest of ``scale``; none where not finite."""
    difference = float((theirs.float() - ours.float()).abs().max())
    relative = difference / max(float(scale.abs().max()), torch.finfo(torch.float32).tiny)
    return {key: value if math.isfinite(value) else None for key, value in
            (("max_difference", difference), ("relative", relative))}  # fmt: skip


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], float]]:
    """What was compared, its figures and its bound."""
    for number, row in enumerate(figures["layers"]):
        yield f"layer {number}", row, LAYER_BOUND
    for name, bound in (("embedding", 0.0), ("head", LAYER_BOUND), ("whole", LOGITS_BOUND)):
        if figures[name] is not None:
            yield name, figures[name], bound


def _within(figures: dict[str, Any]) -> bool:
    return not _beyond(figures)


def _beyond(figures: dict[str, Any]) -> list[str]:
    return [
        f"{name}: relative difference {row['relative']}, the bound is {bound:g}"
        for name, row, bound in _rows(figures)
        if row["relative"] is None or not row["relative"] <= bound
    ]


def _by_layers(comparison: Comparison, report: Progress) -> dict[str, Any]:
    """Embedding, each layer, final norm with head; one of them in memory at a time."""
    config = comparison.config
    groups: dict[str, list[Entry]] = {}
    for entry in entries(config):
        words = entry.sources[0].split(".")
        groups.setdefault(words[1] if words[0] == "layers" else words[0], []).append(entry)
    found: dict[str, Any] = {"layers": []}
    found["embedding"] = _embedding(comparison, groups["embedding"] + groups.get("positions", []))
    # A tied head is the embedding, read once more.
    head = groups["embedding" if config.tied_embeddings else "head"]
    found["head"] = _head(comparison, groups["norm"] + head)
    for index in range(config.num_layers):
        report("layers compared with transformers'", index, config.num_layers)
        found["layers"].append(_layer(comparison, index, groups[str(index)]))
    report("layers compared with transformers'", config.num_layers, config.num_layers)
    return found


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _positions(config: ModelConfig) -> Tensor:
    """(1, LENGTH) ascending over the whole context, so that a wrong rotary base shows."""
    last = max(config.max_positions - 1, 0)
    return torch.linspace(0, last, min(LENGTH, last + 1)).long()[None]


def _layer(comparison: Comparison, index: int, found: list[Entry]) -> dict[str, float | None]:
    config = comparison.config
    prefix = f"{comparison.family.layers}.{index}."
    weights, exported = comparison.pair(found, strip=prefix)
    with torch.device("meta"):
        ours = Block(config).eval()
    ours.load_state_dict(
        {name.removeprefix(f"layers.{index}."): value for name, value in weights.items()}, assign=True
    )
    theirs = comparison.skeleton.get_submodule(comparison.family.layers)[index]
    theirs.load_state_dict(exported, assign=True)
    positions = _positions(config)
    hidden = SCALE * _random(index, 2, positions.shape[1], config.hidden_size)
    output = ours(hidden, make_context(config, None, positions))
    wanted = _their_layer(comparison, theirs, hidden, positions)
    theirs.to("meta")  # its memory goes, its place stays
    return _figure(wanted, output, output - hidden)


def _their_layer(comparison: Comparison, layer: nn.Module, hidden: Tensor, positions: Tensor) -> Tensor:
    """Output of transformers' own layer, called as its own model calls it."""
    length = positions.shape[1]
    future = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    arguments: dict[str, Any] = {"attention_mask": future[None, None]}
    if comparison.config.position is Position.rope:
        parent = comparison.family.layers.rpartition(".")[0]
        rotary = comparison.skeleton.get_submodule(f"{parent}.rotary_emb")
        # Its frequencies are made by its constructor, which on the meta device makes none.
        arguments["position_embeddings"] = type(rotary)(comparison.skeleton.config)(hidden, positions)
        arguments["position_ids"] = positions
    output = layer(hidden, **arguments)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _embedding(comparison: Comparison, found: list[Entry]) -> dict[str, float | None]:
    """The embedding of random tokens, with that of their positions where these are learned."""
    config, family = comparison.config, comparison.family
    ours, theirs = comparison.pair(found)
    positions = _positions(config)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (2, positions.shape[1]), generator=generator)
    embed = nn.functional.embedding
    output = embed(tokens, ours["embedding.weight"])
    wanted = embed(tokens, theirs[f"{family.embedding}.weight"])
    if family.positions:
        output = output + embed(positions, ours["positions.weight"])
        wanted = wanted + embed(positions, theirs[f"{family.positions}.weight"])
    return _figure(wanted, output, output)


def _head(comparison: Comparison, found: list[Entry]) -> dict[str, float | None]:
    """Logits of random hidden states, through the final norm and the head."""
    config, family = comparison.config, comparison.family
    ours, theirs = comparison.pair(found)
    hidden = _random(2, 2, LENGTH, config.hidden_size)
    with torch.device("meta"):
        norm = make_norm(config)
    their_norm = comparison.skeleton.get_submodule(family.norm)
    for module, tensors, prefix in ((norm, ours, "norm."), (their_norm, theirs, f"{family.norm}.")):
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own, assign=True)
    tied = config.tied_embeddings
    head = ours["embedding.weight" if tied else "head.weight"]
    their_head = theirs[f"{family.embedding if tied else family.head}.weight"]
    logits = nn.functional.linear(norm(hidden), head)
    wanted = nn.functional.linear(their_norm(hidden), their_head)
    their_norm.to("meta")
    return _figure(wanted, logits, logits)


def _whole(comparison: Comparison) -> dict[str, float | None]:
    from transformers import AutoModelForCausalLM

    config = comparison.config
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        comparison.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    length = min(LENGTH, config.max_positions)
    tokens = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(3))
    wanted = theirs(tokens, use_cache=False).logits
    del theirs
    gc.collect()
    ours = load_decoder(comparison.reader, config, comparison.dtype)
    logits = ours(tokens)
    return _figure(wanted, logits, logits)


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _digests(folder: Path, report: Progress) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each file but the certificate."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CERTIFICATE)
    for number, path in enumerate(files):
        report("checksums of files", number, len(files))
        with path.open("rb") as file:
            yield path.name, hashlib.file_digest(file, "sha256").hexdigest()
    report("checksums of files", len(files), len(files))
