"""Comparing a layout's figures with one process's."""

from typing import Any

import pytest
import torch
from helpers.engines import run_steps, sizes
from helpers.ranks import run_ranks

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
    results, weights, first = found
    for step, (result, plain) in enumerate(zip(results, expected[0], strict=True)):
        assert result.applied, result.reason
        assert result.tokens == plain.tokens
        assert result.loss == pytest.approx(plain.loss, rel=2e-6), step
        assert result.z_loss == pytest.approx(plain.z_loss, rel=2e-6)
        assert result.grad_norm == pytest.approx(plain.grad_norm, rel=2e-5), step
        assert result.sources[1] == pytest.approx(plain.sources[1], rel=2e-6)
    assert first.keys() == expected[2].keys()
    for name, moment in expected[2].items():
        # After the first step Adam's first moment is the gradient times a constant.
        scale = max(float(moment.abs().max()), 1e-7)
        assert float((first[name] - moment).abs().max()) <= 1e-4 * scale, name
    assert weights.keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
