"""The exact Pareto front: every query's hull, merged by slope.

A step along one query's hull is a *move*: it costs dc, gains dp, and its slope is dp / dc.
Sorting the moves of all queries by slope, steepest first, gives a chain of allocations, each
one move apart, of which every one is the best that its own cost can buy: the corner points of
the linear relaxation of the multiple-choice knapsack (Sinha & Zoltners, Operations Research
27(3), 1979; Zemel, Information Processing Letters 18, 1984). Between two corners that
relaxation is their straight connection, hence a bound on what any allocation can reach, hence
the certificate of every answer. What is kept are arrays over moves, never an allocation per
point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router.allocation._fill import Trade, spend
from optllm_router.allocation._hull import Hulls, upper_hulls
from optllm_router.allocation._limits import payable, reachable
from optllm_router.allocation._solution import FrontPoint, Solution
from optllm_router.allocation._sums import RunningTotal, exact_sum
from optllm_router.allocation._validation import (
    check_amount,
    check_instance,
    check_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray, IntArray

_BLOCK_MOVES = 32_768  # moves whose working arrays fit a core's cache


def exact_front(p: ArrayLike, cost: ArrayLike) -> ParetoFront:
    """Compute the exact front of all allocations, from all-cheapest to most successful.

    Takes time O(n k h + m log m) for m moves and hulls of h vertices.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), expected USD, finite and >= 0. Matrices of float64 are not copied:
            leave both unchanged while the front is in use.

    Raises:
        InvalidDataError: naming the first entry that is NaN, infinite or out of range.

    Example:
        Two queries, a cheap and a strong candidate; the second query gains more per dollar.

        >>> front = exact_front([[0.9, 1.0], [0.2, 0.8]], [[1.0, 2.0], [1.0, 3.0]])
        >>> front.cost, front.success
        (array([2., 4., 5.]), array([1.1, 1.7, 1.8]))
        >>> front.at_budget(4.5).allocation
        array([0, 1])
    """
    return ParetoFront(*check_instance(p, cost))


class ParetoFront:
    """The allocations of n queries to k candidates that are optimal for some price of money.

    ``len(front)`` points, ordered by cost: point 0 gives every query its cheapest candidate,
    and point i differs from point i - 1 in one move. Built by :func:`exact_front`.

    Attributes:
        cost: shape (m + 1,), USD of every point.
        success: shape (m + 1,), expected number of successful queries of every point.
        slope: shape (m,), gain in successes per USD of every move, never increasing.
    """

    def __init__(self, p: FloatArray, cost: FloatArray) -> None:
        self._p, self._cost = p, cost
        self._hulls = upper_hulls(p, cost)
        self._move = _moves_by_slope(self._hulls)
        self.slope: FloatArray = self._hulls.slope[self._move]
        self.cost: FloatArray = self._totals(self._hulls.cost)
        self.success: FloatArray = self._totals(self._hulls.p)

    def __len__(self) -> int:
        return len(self.cost)

    def __iter__(self) -> Iterator[FrontPoint]:
        for index in range(len(self)):
            cost, success = float(self.cost[index]), float(self.success[index])
            yield FrontPoint(index, cost, success, self._price(index))

    def __repr__(self) -> str:
        n, k = self.shape
        return (
            f"<ParetoFront of {n} queries and {k} candidates: {len(self)} points, "
            f"{self.cost[0]:.6g} to {self.cost[-1]:.6g} USD, "
            f"{self.success[0]:.6g} to {self.success[-1]:.6g} successes>"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): how many queries and candidates."""
        n, k = self._p.shape
        return n, k

    @property
    def move_query(self) -> IntArray:
        """Shape (m,): the query that each move reassigns."""
        return self._hulls.owner[self._move].astype(np.int64)

    @property
    def move_to(self) -> IntArray:
        """Shape (m,): the candidate that each move assigns."""
        return self._hulls.candidate[self._move].astype(np.int64)

    def allocation(self, index: int) -> IntArray:
        """The candidate of every query at one point, shape (n,).

        Args:
            index: in ``range(len(front))``; negative ones count from the end.

        Raises:
            IndexError: when there is no such point.
        """
        position = range(len(self))[index]
        return self._hulls.candidate[self._vertices(position)].astype(np.int64)

    def along(self, values: ArrayLike) -> FloatArray:
        """Sum any per-pair values over the allocation at every point, shape (m + 1,).

        True scores give the true success of every point, true costs its true cost.

        Args:
            values: shape (n, k), finite.

        Raises:
            InvalidDataError: when the shape differs, or a value is NaN or infinite.
        """
        matrix = check_values(values, "values", self.shape)
        return self._totals(matrix[self._hulls.owner, self._hulls.candidate])

    def at_budget(self, usd: float) -> Solution:
        """The most success that a budget buys.

        The best point within the budget, then the rest is spent greedily on changes that fit.
        The cost never exceeds the budget, not by a rounding error either; only a budget within
        1e-12 (relative) of the least possible cost counts as that cost.

        Args:
            usd: the budget, >= 0; infinity for no limit.

        Raises:
            InfeasibleError: when even the all-cheapest allocation costs more.
            InvalidDataError: when ``usd`` is NaN or negative.
        """
        usd = self._payable(usd)
        index, vertices = self._within(usd)
        if index + 1 == len(self):
            return self._corner(index)
        trade = Trade(1, paid=self._cost, gained=self._p, paid_at=self._hulls.cost)
        left = usd - exact_sum(self._hulls.cost[vertices])
        allocation = self._improved(
            vertices, trade, left, keeps=lambda a: self._sum(self._cost, a) <= usd
        )
        most = float(np.interp(usd, self.cost, self.success))
        return self._certified(allocation, self.shadow_price(usd), most_success=most)

    def at_success(self, rate: float) -> Solution:
        """The least cost that reaches a mean success rate, within 1e-12 (relative) of it.

        The first point that reaches it, then what it has too much is traded back greedily.
        ``bound`` and ``gap`` are in USD here.

        Args:
            rate: mean expected success per query, 0..1.

        Raises:
            InfeasibleError: when no allocation reaches it; ``attainable`` is a rate, too.
            InvalidDataError: when ``rate`` is not a number in 0..1.
        """
        target = reachable(rate, highest=float(self.success[-1]), n=self.shape[0])
        index = int(np.searchsorted(self.success, target, side="left"))
        if index == 0:
            least = float(self.cost[0])
            return self._certified(self.allocation(0), self._price(0), least_cost=least)
        vertices = self._vertices(index)
        trade = Trade(-1, paid=self._p, gained=self._cost, paid_at=self._hulls.p)
        surplus = max(0.0, exact_sum(self._hulls.p[vertices]) - target)
        allocation = self._improved(
            vertices, trade, surplus, keeps=lambda a: self._sum(self._p, a) >= target
        )
        least = float(np.interp(target, self.success, self.cost))
        return self._certified(allocation, self._price(index - 1), least_cost=least)

    def at_price(self, usd_per_success: float) -> Solution:
        """The best allocation for a willingness to pay; always exact, its gap is 0.

        Every move is taken that costs at most this much per additional success: the allocation
        maximises ``success * usd_per_success - cost``.

        Args:
            usd_per_success: what one more success is worth, >= 0; infinity for any price.

        Raises:
            InvalidDataError: when the price is NaN or negative.
        """
        worth = check_amount(usd_per_success, "usd_per_success")
        if worth == 0.0:
            return self._corner(0)
        return self._corner(int(np.searchsorted(-self.slope, -1.0 / worth, side="right")))

    def knee(self) -> Solution:
        """The point of most success above the straight line from the first point to the last.

        There the next dollar stops buying more than the average dollar does. Its gap is 0.
        """
        gained = float(self.success[-1] - self.success[0])
        paid = float(self.cost[-1] - self.cost[0])
        if paid == 0.0:  # a single point, or moves too cheap to show in the total
            return self._corner(len(self) - 1)
        average = gained / paid
        return self._corner(int(np.searchsorted(-self.slope, -average, side="right")))

    def shadow_price(self, usd: float) -> float:
        """Extra expected successes per extra USD at a budget; 0.0 where money no longer helps.

        Args:
            usd: the budget, >= 0; infinity for no limit.

        Raises:
            InfeasibleError: when even the all-cheapest allocation costs more.
            InvalidDataError: when ``usd`` is NaN or negative.
        """
        return self._price(int(np.searchsorted(self.cost, self._payable(usd), side="right")) - 1)

    def _price(self, index: int) -> float:
        """Shadow price at a point: the slope of the move that follows."""
        return float(self.slope[index]) if index < len(self.slope) else 0.0

    def _corner(self, index: int) -> Solution:
        """A point of the front as a solution: nothing of its cost has more success."""
        return self._certified(self.allocation(index), self._price(index))

    def _certified(
        self,
        allocation: IntArray,
        price: float,
        *,
        most_success: float = 0.0,
        least_cost: float | None = None,
    ) -> Solution:
        """An allocation beside the bound of its objective: cost if ``least_cost`` is given."""
        cost, success = self._sum(self._cost, allocation), self._sum(self._p, allocation)
        if least_cost is not None:
            bound = min(cost, least_cost)
            return Solution(allocation, cost, success, bound, cost - bound, price)
        bound = max(success, most_success)
        return Solution(allocation, cost, success, bound, bound - success, price)

    def _improved(
        self,
        vertices: IntArray,
        trade: Trade,
        amount: float,
        *,
        keeps: Callable[[IntArray], bool],
    ) -> IntArray:
        """Spend what is left over, but only as far as the exact sums keep to the limit."""
        for share in (1.0, 1.0 - 1e-9):  # a rounding error in the greedy sums: spend a bit less
            allocation = spend(trade, self._hulls, vertices, amount * share)
            if keeps(allocation):
                return allocation
        return self._hulls.candidate[vertices].astype(np.int64)

    def _payable(self, usd: float) -> float:
        return payable(usd, least=float(self.cost[0]), n=self.shape[0])

    def _within(self, usd: float) -> tuple[int, IntArray]:
        """The last point that costs at most ``usd``, by its exact sum, and its vertices."""
        index = int(np.searchsorted(self.cost, usd, side="right")) - 1
        vertices = self._vertices(index)
        while index > 0 and exact_sum(self._hulls.cost[vertices]) > usd:
            index = max(0, int(np.searchsorted(self.cost, self.cost[index], side="left")) - 1)
            vertices = self._vertices(index)
        return index, vertices

    def _vertices(self, index: int) -> IntArray:
        """Every query's hull vertex after the first ``index`` moves."""
        steps = np.bincount(self._hulls.owner[self._move[:index]], minlength=self.shape[0])
        return self._hulls.first + steps

    def _totals(self, at_vertex: FloatArray) -> FloatArray:
        """Totals at every point of a quantity known at every vertex."""
        total = RunningTotal(at_vertex[self._hulls.first])
        totals = np.empty(len(self._move) + 1)
        totals[0] = total.initial
        for start in range(0, len(self._move), _BLOCK_MOVES):
            move = self._move[start : start + _BLOCK_MOVES]
            steps = total.replace(at_vertex[move - 1], at_vertex[move])
            totals[start + 1 : start + 1 + len(move)] = steps
        return totals

    def _sum(self, values: FloatArray, allocation: IntArray) -> float:
        return exact_sum(values[np.arange(len(allocation)), allocation])


def _moves_by_slope(hulls: Hulls) -> IntArray:
    """The vertices that moves lead to, steepest move first.

    Slopes never increase along a hull and the order is stable, so the moves of one query keep
    their order.
    """
    is_move = np.ones(len(hulls.slope), dtype=np.bool_)
    is_move[hulls.first] = False
    vertex = np.flatnonzero(is_move)
    return vertex[_steepest_first(hulls.slope[vertex])]


def _steepest_first(slope: FloatArray) -> IntArray:
    """A stable descending argsort of numbers >= 0, at twice the speed of ``numpy.argsort``.

    The bits of floats >= 0 order like the floats. So their leading bits and the position share
    one integer, plain integers are sorted (which vectorises), and the few neighbours that
    differ only in the bits that were cut off are put right by a sort that likes sorted input.
    """
    width = np.uint64(len(slope).bit_length())
    keys = ~slope.view(np.uint64)
    keys >>= width
    keys <<= width
    keys |= np.arange(len(slope), dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << width) - np.uint64(1)
    order: IntArray = keys.view(np.int64)
    repaired: IntArray = order[np.argsort(-slope[order], kind="stable")]
    return repaired
