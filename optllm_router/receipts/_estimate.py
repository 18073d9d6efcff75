"""Figures that are estimated, with the interval in which they lie with 95 % confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.96
"""Standard deviations of a normal distribution on either side of its mean that hold 95 % of it."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval.

    Attributes:
        value: the best guess.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def normal(cls, value: float, std: float) -> Estimate:
        """With errors that spread evenly."""
        return cls(value, value - Z * std, value + Z * std)

    @classmethod
    def lognormal(cls, value: float, factor: float, std: float) -> Estimate:
        """``value`` times a factor whose logarithm is known up to ``std``."""
        return cls(*(value * factor * math.exp(sign * Z * std) for sign in (0, -1, 1)))

    def within(self, least: float, most: float) -> Estimate:
        """The same, with everything outside of what is possible cut off."""
        return Estimate(*(min(max(end, least), most) for end in (self.value, self.low, self.high)))


def total(parts: Sequence[Estimate]) -> Estimate:
    """The sum of independent estimates.

    The distances of the ends from the value add up in quadrature (MOVER: Zou and Donner,
    Statistics in Medicine 27, 2008), which lets each part be as lopsided as it is.
    """
    value = math.fsum(part.value for part in parts)
    below = math.hypot(*(part.value - part.low for part in parts))
    above = math.hypot(*(part.high - part.value for part in parts))
    return Estimate(value, value - below, value + above)
