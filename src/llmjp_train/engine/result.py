"""What an optimizer step tells the loop."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step over the global batch, equal on every rank."""

    loss: float
    """Mean cross-entropy per target token, in nats, without the z-loss."""
    z_loss: float
    """Mean of log(Z)^2 per target token, unweighted; 0 when the option is off."""
    grad_norm: float
    """Global gradient norm before clipping; NaN when the step ended before it was known."""
    tokens: int
    """Target tokens."""
    applied: bool
    """Whether the weights changed; when not, they are what they were before the step."""
    reason: str = ""
    """Why the step was not applied."""
    sources: list[tuple[int, float]] = field(default_factory=list)
    """Target tokens and mean loss of each source; the loss is NaN for a source without tokens."""
    forward_backward_s: float = 0.0
    """Seconds in forward and backward passes, gradient reduction included."""
    optimizer_s: float = 0.0
    """Seconds in the optimizer and in spreading the new weights."""
