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

_BLOCK = 32_768  # steps whose working arrays fit a core's cache


def exact_sum(values: FloatArray) -> float:
    """The correctly rounded sum of a vector."""
    return math.fsum(values.tolist())


def running_totals(start: FloatArray, before: FloatArray, after: FloatArray) -> FloatArray:
    """Totals of a vector whose entries are replaced one at a time.

    Args:
        start: shape (n,), the entries at first.
        before: shape (m,), the entry that step i removes.
        after: shape (m,), the entry that step i puts in its place.

    Returns:
        shape (m + 1,): the total at first, and after every step.

    >>> running_totals(np.array([1.0, 2.0]), np.array([2.0]), np.array([5.0]))
    array([3., 6.])
    """
    entries = start.tolist()
    head = math.fsum(entries)
    lost = math.fsum([*entries, -head])  # what rounding took from the first total
    totals = np.empty(len(before) + 1)
    totals[0] = carried = head
    for first in range(0, len(before), _BLOCK):
        block = slice(first, first + _BLOCK)
        carried, lost = _accumulate(
            carried, lost, before[block], after[block], out=totals[1:][block]
        )
    return totals


def _accumulate(
    carried: float, lost: float, before: FloatArray, after: FloatArray, *, out: FloatArray
) -> tuple[float, float]:
    """Write the totals of some steps; returns the plain total and what it has lost so far."""
    terms = after - before
    plain = np.cumsum(np.concatenate([[carried], terms]))
    errors = _sum_error(after, -before, terms) + _sum_error(plain[:-1], terms, plain[1:])
    errors[0] += lost
    np.cumsum(errors, out=errors)
    np.add(plain[1:], errors, out=out)
    return float(plain[-1]), float(errors[-1])


def _sum_error(a: FloatArray, b: FloatArray, total: FloatArray) -> FloatArray:
    """What ``total = a + b`` lost to rounding, exactly (TwoSum)."""
    b_part = total - a
    error = total - b_part
    np.subtract(a, error, out=error)
    np.subtract(b, b_part, out=b_part)
    error += b_part
    return error
