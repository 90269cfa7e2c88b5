"""Layouts to verify, how they are written, and a set of them that covers every pair of choices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import combinations, product

from llmjp_train.config.layouts import layout_problems
from llmjp_train.config.model import Bias, Mlp, ModelConfig, Norm, Position
from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype
from llmjp_train.errors import UserError

_SHAPE = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_size": 96,
    "num_heads": 8,
    "num_kv_heads": 8,
    "head_size": 8,
    "vocab_size": 200,
    "max_positions": 64,
}
_GPT = {"norm": Norm.layernorm, "bias": Bias.all}
FORMS = {
    "llama": ModelConfig(name="llama", **{**_SHAPE, "num_kv_heads": 4}),  # type: ignore[arg-type]
    "gpt": ModelConfig(name="gpt", position=Position.learned, mlp=Mlp.gelu_tanh, **_GPT, **_SHAPE),  # type: ignore[arg-type]
    "neox": ModelConfig(
        name="neox",
        mlp=Mlp.gelu,
        rope_fraction=0.25,
        tied_embeddings=True,
        **_GPT,  # type: ignore[arg-type]
        **_SHAPE,  # type: ignore[arg-type]
    ),
}
"""Small models with every way in which a parameter is split, replicated or shared: grouped queries; learned positions
and biases; part of each head rotated and tied embeddings. Their vocabulary needs padding."""


@dataclass(frozen=True)
class Spec:
    """One layout to verify."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: int = 1
    sequence: bool = False
    dtype: Dtype = Dtype.fp32
    form: str = ""
    """Name of a small model of `FORMS`; empty: the experiment's own."""

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        words = [f"tp{self.tensor}", f"pp{self.pipeline}", f"dp{self.data}", f"z{self.zero}"]
        words += (
            ["sp"] * self.sequence + ["bf16"] * (self.dtype is Dtype.bf16) + [self.form] * bool(self.form)
        )
        return "-".join(words)

    def applied(self, config: TrainConfig) -> TrainConfig:
        """``config`` in this layout."""
        parallel = replace(
            config.parallel,
            tensor=self.tensor,
            pipeline=self.pipeline,
            data=self.data,
            zero=self.zero,
            sequence=self.sequence,
            compile=False,
        )
        return replace(
            config,
            parallel=parallel,
            precision=replace(config.precision, dtype=self.dtype),
            model=FORMS[self.form] if self.form else config.model,
        )


def parse(text: str) -> Spec:
    """A layout as it is written: ``tp2-pp2-dp1-z1-sp-bf16-llama``; what is left out is 1, off or fp32.

    Raises:
        UserError: a word of it means nothing.
    """
    axes = {"tp": "tensor", "pp": "pipeline", "dp": "data", "z": "zero"}
    found: dict[str, object] = {}
    for word in text.split("-"):
        match = re.fullmatch(r"(tp|pp|dp|z)(\d+)", word)
        if match:
            found[axes[match[1]]] = int(match[2])
        elif word == "sp":
            found["sequence"] = True
        elif word in ("bf16", "fp32"):
            found["dtype"] = Dtype[word]
        elif word in FORMS:
            found["form"] = word
        else:
            raise UserError(
                f"layouts: '{word}' of '{text}' means nothing; write tp2-pp2-dp2-z1, and sp, bf16 or one of "
                f"{', '.join(FORMS)} where wanted"
            )
    return Spec(**found)  # type: ignore[arg-type]


def possible(config: TrainConfig, most: int, forms: tuple[str, ...] = ("",)) -> Iterator[Spec]:
    """Every layout of up to ``most`` ranks with 1, 2 or 4 on each axis that ``config`` can have."""
    sizes, flags = (1, 2, 4), (False, True)
    for form, dtype, tensor, pipeline, data, zero, sequence in product(
        forms, (Dtype.fp32, Dtype.bf16), sizes, sizes, sizes, (0, 1, 2, 3), flags
    ):
        spec = Spec(tensor, pipeline, data, zero, sequence, dtype, form)
        if spec.ranks <= most and not layout_problems(spec.applied(config)):
            yield spec


def matrix(config: TrainConfig, most: int = 8, forms: tuple[str, ...] = ("",), least: int = 0) -> list[Spec]:
    """Few layouts in which every two choices that can meet do meet (pairwise covering, greedy).

    Of layouts that add as much, one with fewer ranks comes first, since it costs less. Up to ``least``, more are
    taken in which three choices meet that did not yet.
    """
    every = list(possible(config, most, forms))
    chosen: list[Spec] = []
    for together in (2, 3):
        left = {spec: _meetings(spec, together) for spec in every if spec not in chosen}
        wanted = set().union(*left.values()).difference(*(_meetings(spec, together) for spec in chosen))
        while wanted and (together == 2 or len(chosen) < least):
            best = max(left, key=lambda spec: (len(left[spec] & wanted), -spec.ranks, str(spec)))
            chosen.append(best)
            wanted -= left.pop(best)
    return sorted(chosen, key=lambda spec: (spec.form, spec.dtype.value, spec.ranks, str(spec)))


def _meetings(spec: Spec, together: int) -> set[tuple[tuple[str, object], ...]]:
    return set(combinations([(field.name, getattr(spec, field.name)) for field in fields(spec)], together))
