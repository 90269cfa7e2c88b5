"""Comparing a layout's figures with one process's."""

from typing import Any

import pytest
import torch
from helpers.engines import LR, run_steps, sizes
from helpers.ranks import run_ranks
from helpers.toy import small_config

from llmjp_train.verify.bounds import gradient_bounds, weight_bound

_made: dict[tuple[str, ...], Any] = {}


@pytest.fixture(scope="session")
def alone() -> Any:
    """One process's figures, made once a form."""

    def figures(*overrides: str) -> Any:
        if overrides not in _made:
            _made[overrides] = run_ranks(run_steps, 1, (*sizes(), *overrides))[0]
        return _made[overrides]

    return figures


def compare(found: Any, expected: Any) -> None:
    results, weights, gradients, _ = found
    for step, (result, plain) in enumerate(zip(results, expected[0], strict=True)):
        assert result.applied, result.reason
        assert result.tokens == plain.tokens
        assert result.loss == pytest.approx(plain.loss, rel=2e-6), step
        assert result.z_loss == pytest.approx(plain.z_loss, rel=2e-6)
        assert result.grad_norm == pytest.approx(plain.grad_norm, rel=2e-5), step
        assert result.sources[1] == pytest.approx(plain.sources[1], rel=2e-6)
    assert gradients.keys() == expected[2].keys()
    for name, allowed in gradient_bounds(expected[2]).items():
        share = float((gradients[name] - expected[2][name]).abs().max()) / allowed
        assert share <= 1, f"gradient of {name}: {share:.3g} of what is allowed"
    within(weights, expected)


def within(weights: dict[str, torch.Tensor], expected: Any) -> None:
    """Weights lie within the bound of docs/decisions/0004 around those of one process (`helpers.engines.run_steps`)."""
    _, plain, gradients, squares = expected
    settings = small_config().optimizer
    assert weights.keys() == plain.keys()
    for name, gradient in gradient_bounds(gradients).items():
        allowed = weight_bound(plain[name], [each[name] for each in squares], gradient, LR, settings)
        share = float(((weights[name] - plain[name]).abs() / allowed).max())
        assert share <= 1, f"{name}: {share:.3g} of what is allowed"
