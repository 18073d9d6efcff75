"""From the shares of a relaxed solution to a whole allocation that keeps every limit.

At good prices nearly every query has one choice; only about as many as there are limits are
split. So little is rounded, and little is repaired: queries that cross a limit are moved where
it costs least at these prices, and what is left of the limits is spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.allocation._sums import exact_sum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray

_ROUNDS = 1_000
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Problem:
    """Most success within a budget and within each candidate's capacity.

    Attributes:
        p: shape (n, k), success probabilities.
        cost: shape (n, k), USD.
        load: shape (n, k), what a query takes of a candidate's capacity.
        capacities: shape (k,), infinite where unlimited.
        usd: the budget; infinite for none.
    """

    p: FloatArray
    cost: FloatArray
    load: FloatArray
    capacities: FloatArray
    usd: float

    def used(self, allocation: IntArray) -> FloatArray:
        """Shape (k,): what an allocation takes of each capacity."""
        load = self.load[np.arange(len(allocation)), allocation]
        used = np.bincount(allocation, weights=load, minlength=len(self.capacities))
        return used.astype(np.float64)

    def spent(self, allocation: IntArray) -> float:
        """USD of an allocation."""
        return exact_sum(self.cost[np.arange(len(allocation)), allocation])

    def keeps_limits(self, allocation: IntArray) -> bool:
        """Whether an allocation is feasible."""
        within = bool(np.all(self.used(allocation) <= self.capacities))
        return within and self.spent(allocation) <= self.usd


def rounded(shares: FloatArray) -> IntArray:
    """One candidate per query, such that candidates get about their total shares.

    Query q takes the candidate in which the q-th number of the golden-ratio sequence falls: a
    sequence that covers 0..1 evenly, so that split queries are spread as their shares say.
    """
    position = (np.arange(1, len(shares) + 1) * _GOLDEN % 1.0)[:, np.newaxis]
    below = (np.cumsum(shares, axis=1) <= position).sum(axis=1)
    candidate: IntArray = np.minimum(below, shares.shape[1] - 1).astype(np.int64)
    return candidate


def repaired(problem: Problem, allocation: IntArray, worth: FloatArray) -> IntArray | None:
    """Change an allocation until it keeps all limits, then use what is left of them.

    Args:
        problem: the limits.
        allocation: shape (n,), where to start.
        worth: shape (n, k), what a choice is worth after paying the prices of the limits;
            minus infinity where it is impossible.

    Returns:
        A feasible allocation, or None when none was found.
    """
    allocation = allocation.copy()
    for _ in range(_ROUNDS):
        if not (_shed(problem, allocation, worth) or _save(problem, allocation, worth)):
            break
    if not problem.keeps_limits(allocation):
        return None
    for _ in range(_ROUNDS):
        if not _fill(problem, allocation, worth):
            break
    return allocation


def _shed(problem: Problem, allocation: IntArray, worth: FloatArray) -> bool:
    """Move queries away from the most overloaded candidate; False when nothing was moved."""
    room = problem.capacities - problem.used(allocation)
    crowded = int(room.argmin())
    if room[crowded] >= 0.0:
        return False
    query = np.flatnonzero((allocation == crowded) & (problem.load[:, crowded] > 0.0))
    possible = problem.load[query] <= room
    query, to, loss = _least_loss(query, allocation, worth, possible)
    relief = problem.load[query, crowded]
    order = np.argsort(loss / relief, kind="stable")
    enough = int(np.searchsorted(np.cumsum(relief[order]), -room[crowded])) + 1
    return _move(problem, allocation, room, query[order[:enough]], to[order[:enough]])


def _save(problem: Problem, allocation: IntArray, worth: FloatArray) -> bool:
    """Move queries to cheaper candidates while over budget; False when nothing was moved."""
    excess = problem.spent(allocation) - problem.usd
    if excess <= 0.0:
        return False
    room = problem.capacities - problem.used(allocation)
    query = np.arange(len(allocation))
    now = problem.cost[query, allocation]
    possible = (problem.cost < now[:, np.newaxis]) & (problem.load <= room)
    query, to, loss = _least_loss(query, allocation, worth, possible)
    saving = now[query] - problem.cost[query, to]
    order = np.argsort(loss / saving, kind="stable")
    enough = int(np.searchsorted(np.cumsum(saving[order]), excess)) + 1
    return _move(problem, allocation, room, query[order[:enough]], to[order[:enough]])


def _fill(problem: Problem, allocation: IntArray, worth: FloatArray) -> bool:
    """Move queries to more successful candidates where it fits; False when nothing was moved."""
    left = problem.usd - problem.spent(allocation)
    room = problem.capacities - problem.used(allocation)
    query = np.arange(len(allocation))
    price = problem.cost - problem.cost[query, allocation][:, np.newaxis]
    gain = problem.p - problem.p[query, allocation][:, np.newaxis]
    possible = (gain > 0.0) & (price <= left) & (problem.load <= room)
    query, to, loss = _least_loss(query, allocation, worth, possible)
    order = np.argsort(loss, kind="stable")
    query, to = query[order], to[order]
    affordable = np.cumsum(np.maximum(0.0, price[query, to])) <= left
    if len(query):
        affordable[0] = True
    return _move(problem, allocation, room, query[affordable], to[affordable])


def _least_loss(
    query: IntArray, allocation: IntArray, worth: FloatArray, possible: NDArray[np.bool_]
) -> tuple[IntArray, IntArray, FloatArray]:
    """For each query its possible candidate of most worth, and how much less that is worth.

    Queries that have no possible candidate are left out; ``possible`` has a row per query.
    """
    options = np.where(possible, worth[query], -np.inf)
    to = options.argmax(axis=1)
    loss = worth[query, allocation[query]] - options[np.arange(len(query)), to]
    some = np.isfinite(loss)
    return query[some], to[some], loss[some]


def _move(
    problem: Problem, allocation: IntArray, room: FloatArray, query: IntArray, to: IntArray
) -> bool:
    """Reassign queries in this order, as far as their new candidates have room."""
    fits = np.zeros(len(query), dtype=np.bool_)
    for candidate in np.unique(to):
        those = to == candidate
        load = problem.load[query[those], candidate]
        fits[those] = np.cumsum(load) <= room[candidate]
    allocation[query[fits]] = to[fits]
    return bool(fits.any())
