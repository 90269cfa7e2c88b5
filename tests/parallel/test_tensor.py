"""Tensor and sequence parallelism compute what one process does, for every form and ZeRO stage."""

from typing import Any

import pytest
from helpers.engines import FORMS, run_steps, sizes
from helpers.layouts import alone, compare
from helpers.ranks import run_ranks

__all__ = ["alone"]

LAYOUTS = [
    ("llama", 2, 1, 0, False),
    ("llama", 2, 2, 2, False),
    ("llama", 4, 1, 3, True),
    ("gpt", 2, 1, 1, True),
    ("neox", 2, 1, 3, False),
    ("qwen3", 2, 1, 1, True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "tensor", "data", "zero", "sequence"), LAYOUTS)
def test_ranks_that_share_matrices_compute_what_one_does(
    form: str, tensor: int, data: int, zero: int, sequence: bool, alone: Any
) -> None:
    overrides = (*sizes(tensor, data=data, zero=zero), f"parallel.sequence={sequence}", *FORMS[form])
    for found in run_ranks(run_steps, tensor * data, overrides):
        compare(found, alone(*FORMS[form]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "sequence"),
    [
        ("optimizer.z_loss=1e-2", False),
        ("parallel.recompute=full", True),
        ("parallel.recompute=selective", True),
    ],
)
def test_options_go_with_shared_matrices(option: str, sequence: bool, alone: Any) -> None:
    overrides = (*sizes(2), f"parallel.sequence={sequence}", *FORMS["llama"], option)
    compare(run_ranks(run_steps, 2, overrides)[0], alone(*FORMS["llama"], option))
