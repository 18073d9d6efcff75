"""One point of a front, and one allocation with its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optllm_router._types import IntArray


@dataclass(frozen=True)
class FrontPoint:
    """One allocation of a front, described without building it.

    Attributes:
        index: its position: how many moves away from the all-cheapest allocation.
        cost: USD of all queries together.
        success: expected number of successful queries.
        price: shadow price, the successes per USD of the next move; 0 at the last point.
    """

    index: int
    cost: float
    success: float
    price: float


@dataclass(frozen=True, eq=False)
class Solution:
    """One allocation, and how far from the best possible it can be at most.

    Attributes:
        allocation: shape (n,), the candidate of every query.
        cost: USD of the allocation, correctly rounded.
        success: expected number of successful queries, correctly rounded.
        bound: no allocation under the same constraint does better than this: the most successes
            where success is maximised, the least USD where cost is minimised (``at_success``).
        gap: distance between what is achieved and ``bound``, >= 0, in the unit of ``bound``.
        price: shadow price, extra successes per extra USD; 0 where money no longer helps.
    """

    allocation: IntArray
    cost: float
    success: float
    bound: float
    gap: float
    price: float
