"""How far a layout may be from one process. docs/decisions/0004 derives the bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmjp_train.config.training import OptimizerConfig
from llmjp_train.verify.measure import Measurement

LOSS = 1e-6
"""fp32: relative difference of a step's loss."""
NORM = 1e-5
"""fp32: relative difference of a step's gradient norm."""
GRADIENT = 2e-5
"""fp32: difference of a gradient's element, relative to the largest of its tensor."""
FLOOR = 1e-6
"""fp32: the same, relative to the largest of the model: what cancels to zero is rounding noise of what does not."""
BF16 = 4.0
"""bf16: times the largest distance of the reference from itself in other orders of reduction."""


@dataclass
class Verdict:
    """A layout's distance from the reference, as shares of what is allowed: up to 1 is equal."""

    loss: float = 0.0
    norm: float = 0.0
    gradient: float = 0.0
    weight: float = 0.0
    failures: list[str] = field(default_factory=list)
    """What lies outside, in the order of computation: step, figure or parameter."""

    @property
    def equal(self) -> bool:
        """Whether nothing lies outside."""
        return not self.failures

    def note(self, kind: str, share: float, what: str) -> None:
        """Take a distance; NaN lies outside."""
        share = math.inf if math.isnan(share) else share
        setattr(self, kind, max(getattr(self, kind), share))
        if share > 1:
            self.failures.append(f"{what}: {share:.3g} times what is allowed")


def compare(
    found: Measurement,
    reference: Measurement,
    settings: OptimizerConfig,
    others: Sequence[Measurement] = (),
) -> Verdict:
    """Compare a layout with one process.

    Args:
        others: the reference in other orders of reduction, whose largest distance is the unit; none: fp32's bounds.
    """
    verdict = Verdict()
    order = [f"initial weights: {name}" for name in reference.initial if name not in found.initial]
    for name, value in reference.initial.items():
        if name in found.initial and not torch.equal(found.initial[name], value):
            order.append(f"initial weights: {name} differs")
    verdict.failures += order
    _figures(verdict, found, reference, others, first=True)
    if not others:
        _gradients(verdict, found, reference)
    else:
        _relative(verdict, "gradient", found.gradients, reference.gradients, [o.gradients for o in others])
    _figures(verdict, found, reference, others, first=False)
    if not others:
        _weights(verdict, found, reference, settings)
    else:
        moved = [_moved(other) for other in others]
        _relative(verdict, "weight", _moved(found), _moved(reference), moved)
    return verdict


def _moved(which: Measurement) -> dict[str, Tensor]:
    """How far each weight has come from where it started."""
    return {
        name: value - which.initial[name] for name, value in which.weights.items() if name in which.initial
    }


def _figures(
    verdict: Verdict,
    found: Measurement,
    reference: Measurement,
    others: Sequence[Measurement],
    *,
    first: bool,
) -> None:
    """Losses and norms: of the first step, or of those after it."""
    for kind, allowed in (("losses", LOSS), ("norms", NORM)):
        mine, theirs = getattr(found, kind), getattr(reference, kind)
        steps = range(1) if first else range(1, len(theirs))
        if others:
            # One step of one order may agree by chance: the largest distance of all is the unit.
            noise = max(
                abs(a - b) / abs(b)
                for other in others
                for a, b in zip(getattr(other, kind), theirs, strict=True)
            )
            allowed = BF16 * max(noise, 1e-4)
        for step in steps:
            share = abs(mine[step] - theirs[step]) / (allowed * abs(theirs[step]))
            word = {"losses": "loss", "norms": "norm"}[kind]
            verdict.note(word, share, f"step {step + 1}: {'gradient ' * (word == 'norm')}{word}")


def gradient_bounds(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Largest allowed difference of an element of each gradient."""
    largest = {name: float(value.abs().max()) for name, value in gradients.items()}
    floor = FLOOR * max(largest.values())
    return {name: GRADIENT * value + floor for name, value in largest.items()}


def _gradients(verdict: Verdict, found: Measurement, reference: Measurement) -> None:
    for name, allowed in gradient_bounds(reference.gradients).items():
        if name not in found.gradients:
            verdict.note("gradient", math.inf, f"step 1: gradient of {name} is missing")
            continue
        share = float((found.gradients[name] - reference.gradients[name]).abs().max()) / allowed
        verdict.note("gradient", share, f"step 1: gradient of {name}")


def weight_bound(
    weight: Tensor, squares: list[Tensor], gradient: float, lr: float, settings: OptimizerConfig
) -> Tensor:
    """Largest allowed difference of each element of a weight after the steps of ``squares``.

    |difference| <= sum over steps of lr * min(2 c, (1 + c) dg / (sqrt(v) + eps)), and the weight's own rounding.

    Args:
        squares: Adam's second moment, corrected for its start, after each step.
        gradient: largest allowed difference of an element of the gradient.
    """
    momentum = momentum_bound(settings.beta1, settings.beta2)
    allowed = torch.zeros_like(weight)
    for square in squares:
        update = (1 + momentum) * gradient / (square.sqrt() + settings.eps)
        allowed += lr * update.clamp(max=2 * momentum)
    # Each step also rounds the weight itself, in both.
    return allowed + len(squares) * 2**-22 * weight.abs()


def _weights(verdict: Verdict, found: Measurement, reference: Measurement, settings: OptimizerConfig) -> None:
    for name, gradient in gradient_bounds(reference.gradients).items():
        if name not in found.weights:
            verdict.note("weight", math.inf, f"step {len(reference.losses)}: {name} is missing")
            continue
        squares = [each[name] for each in reference.squares]
        allowed = weight_bound(reference.weights[name], squares, gradient, settings.lr, settings)
        share = float(
            ((found.weights[name] - reference.weights[name]).abs() / allowed.clamp(min=1e-12)).max()
        )
        verdict.note("weight", share, f"step {len(reference.losses)}: weight {name}")


def momentum_bound(beta1: float, beta2: float) -> float:
    """Largest |m| / sqrt(v) of Adam (Cauchy-Schwarz over the two exponential means)."""
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))


def _relative(
    verdict: Verdict,
    kind: str,
    found: dict[str, Tensor],
    reference: dict[str, Tensor],
    others: Sequence[dict[str, Tensor]],
) -> None:
    """Distance of each tensor in the 2-norm, in units of the distance that other orders make."""
    noise = {name: max(_distance(o[name], value) for o in others) for name, value in reference.items()}
    # Another layout's noise falls on other tensors than the reference's own: nine tenths of them are the measure.
    usual = sorted(noise.values())[9 * len(noise) // 10]
    for name, value in reference.items():
        share = (
            _distance(found[name], value) / (BF16 * max(noise[name], usual, 1e-6))
            if name in found
            else math.inf
        )
        verdict.note(kind, share, f"{kind} of {name}")


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm().clamp(min=1e-30))
