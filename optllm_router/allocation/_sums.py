"""Running totals that stay exact over millions of terms.

A plain ``cumsum`` of m amounts drifts by up to ``m * 1e-16``. Budgets are compared with these
totals, so they are compensated: the rounding error of every addition (Knuth's TwoSum) and of
every difference is computed exactly and summed beside it. The result is within an ulp or two
of the true total, as ``math.fsum`` would give it. Method: Ogita, Rump & Oishi, "Accurate sum
and dot product", SIAM J. Sci. Comput. 26(6), 2005, algorithm 4.4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from optllm_router._types import FloatArray


def exact_sum(values: FloatArray) -> float:
    """The correctly rounded sum of a vector."""
    return math.fsum(values.tolist())


class RunningTotal:
    """The total of a vector whose entries are replaced one at a time.

    Attributes:
        initial: the total at first.

    >>> total = RunningTotal(np.array([1.0, 2.0]))
    >>> total.initial
    3.0
    >>> total.replace(np.array([2.0, 1.0]), np.array([5.0, 0.0]))
    array([6., 5.])
    """

    def __init__(self, entries: FloatArray) -> None:
        terms = entries.tolist()
        self.initial = self._plain = math.fsum(terms)
        self._lost = math.fsum([*terms, -self._plain])

    def replace(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """Replace entries one after the other; the total after each, shape (m,).

        Args:
            before: shape (m,), the entry that step i removes.
            after: shape (m,), the entry that step i puts in its place.
        """
        terms = after - before
        plain = np.cumsum(np.concatenate([[self._plain], terms]))
        lost = _sum_error(after, -before, terms) + _sum_error(plain[:-1], terms, plain[1:])
        lost[0] += self._lost
        np.cumsum(lost, out=lost)
        self._plain, self._lost = float(plain[-1]), float(lost[-1])
        lost += plain[1:]
        return lost


def _sum_error(a: FloatArray, b: FloatArray, total: FloatArray) -> FloatArray:
    """What ``total = a + b`` lost to rounding, exactly (TwoSum)."""
    b_part = total - a
    error = total - b_part
    np.subtract(a, error, out=error)
    np.subtract(b, b_part, out=b_part)
    error += b_part
    return error
