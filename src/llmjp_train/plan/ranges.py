"""Figures that may be known within bounds only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A figure, or the bounds that hold while something is unknown."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Both ends multiplied."""
        return Range(self.low * factor, self.high * factor)

    def plus(self, other: "Range") -> "Range":
        """Ends added."""
        return Range(self.low + other.low, self.high + other.high)

    def inverse(self, factor: float) -> "Range":
        """``factor`` divided by each end."""
        return Range(factor / self.high, factor / self.low)

    def text(self, form: str = ".3g") -> str:
        """One figure, or two."""
        low, high = format(self.low, form), format(self.high, form)
        return low if low == high else f"{low} to {high}"
