"""A front that is a list of allocations: what heuristics find, judged by the exact front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router.allocation._front import ParetoFront
from optllm_router.allocation._limits import payable, reachable
from optllm_router.allocation._solution import Solution
from optllm_router.allocation._sums import exact_sum
from optllm_router.allocation._validation import check_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray, IntArray


class Certifier:
    """Judges allocations of one instance against its exact front."""

    def __init__(self, p: FloatArray, cost: FloatArray) -> None:
        self._p, self._cost = p, cost
        self.front = ParetoFront(p, cost)

    def within_budget(self, allocation: IntArray, usd: float) -> Solution:
        """An allocation beside the most success that the budget could buy."""
        cost, success = self.totals(allocation)
        bound = max(success, float(np.interp(usd, self.front.cost, self.front.success)))
        price = self.front.shadow_price(usd)
        return Solution(allocation, cost, success, bound, bound - success, price)

    def reaching(self, allocation: IntArray, successes: float) -> Solution:
        """An allocation beside the least cost of as many successes."""
        cost, success = self.totals(allocation)
        bound = min(cost, float(np.interp(successes, self.front.success, self.front.cost)))
        price = self.front.shadow_price(max(bound, float(self.front.cost[0])))
        return Solution(allocation, cost, success, bound, cost - bound, price)

    def totals(self, allocation: IntArray) -> tuple[float, float]:
        """USD and expected successes of an allocation."""
        rows = np.arange(len(allocation))
        return exact_sum(self._cost[rows, allocation]), exact_sum(self._p[rows, allocation])


class Archive:
    """The non-dominated ones among some allocations, cheapest first.

    Attributes:
        cost: shape (m,), USD of every point, increasing.
        success: shape (m,), expected number of successful queries of every point, increasing.
    """

    def __init__(self, p: FloatArray, cost: FloatArray, allocations: IntArray) -> None:
        self._certifier = Certifier(p, cost)
        totals = np.array([self._certifier.totals(allocation) for allocation in allocations])
        kept = _non_dominated(totals[:, 0], totals[:, 1])
        self.cost: FloatArray = totals[kept, 0]
        self.success: FloatArray = totals[kept, 1]
        self._allocations = allocations[kept]

    def __len__(self) -> int:
        return len(self.cost)

    def allocation(self, index: int) -> IntArray:
        """The candidate of every query at one point, shape (n,)."""
        chosen: IntArray = self._allocations[index].copy()
        return chosen

    def along(self, values: ArrayLike) -> FloatArray:
        """Sum any per-pair values, shape (n, k), over the allocation at every point.

        Raises:
            InvalidDataError: when the shape differs, or a value is NaN or infinite.
        """
        matrix = check_values(values, "values", self._certifier.front.shape)
        rows = np.arange(len(matrix))
        return np.array([exact_sum(matrix[rows, allocation]) for allocation in self._allocations])

    def at_budget(self, usd: float) -> Solution:
        """The last point within a budget.

        Raises:
            InfeasibleError: when even the all-cheapest allocation costs more.
            InvalidDataError: when ``usd`` is NaN or negative.
        """
        usd = payable(usd, least=float(self.cost[0]), n=self._allocations.shape[1])
        index = int(np.searchsorted(self.cost, usd, side="right")) - 1
        return self._certifier.within_budget(self.allocation(index), usd)

    def at_success(self, rate: float) -> Solution:
        """The first point that reaches a mean success rate; bound and gap are in USD.

        Raises:
            InfeasibleError: when no point reaches it; ``attainable`` is a rate, too.
            InvalidDataError: when ``rate`` is not a number in 0..1.
        """
        n = self._allocations.shape[1]
        target = reachable(rate, highest=float(self.success[-1]), n=n)
        index = int(np.searchsorted(self.success, target, side="left"))
        return self._certifier.reaching(self.allocation(index), target)


def _non_dominated(cost: FloatArray, success: FloatArray) -> IntArray:
    """Positions of the points that no other point beats, cheapest first, without duplicates."""
    order = np.lexsort((-success, cost))
    highest_before = np.maximum.accumulate(np.concatenate([[-np.inf], success[order][:-1]]))
    kept: IntArray = order[success[order] > highest_before]
    return kept
