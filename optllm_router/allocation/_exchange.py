"""Local search over one allocation, all queries at once: the moves of the paper's solvers.

Every query has at most one *upgrade* in view (the candidate of most gained success per extra
USD) and one *downgrade* (of least lost success per saved USD). Candidates that are cheaper and
no worse are taken at once. *Destruction* pushes an allocation by a given amount towards the
other extreme, crudely; *reconstruction* then exchanges: as long as the best upgrade yields more
per USD than the best downgrade loses, both are made (Liu et al., "OptLLM: Optimal Assignment of
Queries to Large Language Models", 2024, arXiv 2405.15130, the optimization component).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router.allocation._sums import exact_sum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray

_ROUNDS = 200


def most_successful(p: FloatArray, cost: FloatArray) -> IntArray:
    """Each query's candidate of highest p, of equals the cheapest, shape (n,)."""
    best = p == p.max(axis=1, keepdims=True)
    candidate: IntArray = np.where(best, cost, np.inf).argmin(axis=1)
    return candidate


def cheapest(p: FloatArray, cost: FloatArray) -> IntArray:
    """Each query's candidate of least cost, of equals the most successful, shape (n,)."""
    least = cost == cost.min(axis=1, keepdims=True)
    candidate: IntArray = np.where(least, p, -1.0).argmax(axis=1)
    return candidate


class Exchange:
    """An allocation under search.

    Attributes:
        allocation: shape (n,), as it stands.
    """

    def __init__(self, p: FloatArray, cost: FloatArray, allocation: IntArray) -> None:
        n = len(p)
        self._p, self._cost = p, cost
        self.allocation: IntArray = allocation.copy()
        self._up_to, self._down_to = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._up_rate, self._down_rate = np.zeros(n), np.zeros(n)
        self._look(np.arange(n))

    @property
    def cost(self) -> float:
        """USD of the allocation."""
        return exact_sum(self._now(self._cost))

    @property
    def success(self) -> float:
        """Expected successes of the allocation."""
        return exact_sum(self._now(self._p))

    def destroy_cost(self, usd: float) -> None:
        """Give the queries that save the most their cheapest candidate until ``usd`` is saved."""
        to = cheapest(self._p, self._cost)
        self._destroy(to, self._now(self._cost) - self._at(self._cost, to), usd)

    def destroy_success(self, successes: float) -> None:
        """Give the queries that gain the most their best candidate until so much is gained."""
        to = most_successful(self._p, self._cost)
        self._destroy(to, self._at(self._p, to) - self._now(self._p), successes)

    def reconstruct(self) -> None:
        """Exchange best upgrades for best downgrades until no exchange is a gain."""
        for _ in range(_ROUNDS):
            up = np.flatnonzero(self._up_rate > self._down_rate.min(initial=np.inf))
            down = np.flatnonzero(self._down_rate < self._up_rate.max(initial=0.0))
            up = up[np.argsort(-self._up_rate[up], kind="stable")]
            down = down[np.argsort(self._down_rate[down], kind="stable")]
            pairs = min(len(up), len(down))
            gains = self._up_rate[up[:pairs]] > self._down_rate[down[:pairs]]
            up, down = up[:pairs][gains], down[:pairs][gains]
            if not len(up):
                break
            self._assign(np.setdiff1d(down, up), self._down_to)
            self._assign(up, self._up_to)

    def save(self, usd: float) -> None:
        """Downgrade, least loss per saved USD first, until at least ``usd`` is saved."""
        self._downgrade(self._cost, usd, past=True)

    def gain(self, successes: float) -> None:
        """Upgrade, most gain per USD first, until at least so many ``successes`` are gained."""
        self._upgrade(self._p, successes, past=True)

    def spend(self, usd: float) -> None:
        """Upgrade, most gain per USD first, for at most ``usd``."""
        self._upgrade(self._cost, usd, past=False)

    def forgo(self, successes: float) -> None:
        """Downgrade, least loss per saved USD first, losing at most so many ``successes``."""
        self._downgrade(self._p, successes, past=False)

    def _upgrade(self, values: FloatArray, amount: float, *, past: bool) -> None:
        done = 1.0
        while amount > 0.0 and done > 0.0:
            done = self._follow(-self._up_rate, self._up_to, values, amount, past=past)
            amount -= done

    def _downgrade(self, values: FloatArray, amount: float, *, past: bool) -> None:
        done = 1.0
        while amount > 0.0 and done > 0.0:
            done = self._follow(self._down_rate, self._down_to, values, amount, past=past)
            amount -= done

    def _follow(
        self, order: FloatArray, to: IntArray, values: FloatArray, amount: float, *, past: bool
    ) -> float:
        """Make moves of one kind, lowest ``order`` first; returns by how much ``values`` changed.

        Until the change reaches ``amount`` (``past``), or as far as it stays within it.
        """
        change = np.abs(self._at(values, to) - self._now(values))
        query = np.flatnonzero((to != self.allocation) & ((change <= amount) | past))
        query = query[np.argsort(order[query], kind="stable")]
        total = np.cumsum(change[query])
        count = int(np.searchsorted(total, amount, side="left" if past else "right")) + past
        query = query[:count]
        if not len(query):
            return 0.0
        self._assign(query, to)
        return float(total[len(query) - 1])

    def _destroy(self, to: IntArray, change: FloatArray, amount: float) -> None:
        query = np.argsort(-change, kind="stable")
        query = query[change[query] > 0.0]
        count = int(np.searchsorted(np.cumsum(change[query]), amount)) + 1
        self._assign(query[:count], to)

    def _assign(self, query: IntArray, to: IntArray) -> None:
        self.allocation[query] = to[query]
        self._look(query)

    def _look(self, query: IntArray) -> None:
        """Take what is free, then note the best upgrade and downgrade of some queries."""
        p, cost, row = self._p[query], self._cost[query], np.arange(len(query))
        here = _free_improvement(p, cost, self.allocation[query])
        self.allocation[query] = here
        gain = p - p[row, here][:, np.newaxis]
        price = cost - cost[row, here][:, np.newaxis]
        rate = np.divide(gain, price, out=np.zeros_like(gain), where=price != 0.0)
        up = np.where(gain > 0.0, rate, 0.0)
        down = np.where(price < 0.0, rate, np.inf)
        self._up_rate[query], self._down_rate[query] = up.max(axis=1), down.min(axis=1)
        self._up_to[query] = np.where(up.any(axis=1), up.argmax(axis=1), here)
        self._down_to[query] = np.where(np.isfinite(down).any(axis=1), down.argmin(axis=1), here)

    def _now(self, values: FloatArray) -> FloatArray:
        return self._at(values, self.allocation)

    def _at(self, values: FloatArray, candidate: IntArray) -> FloatArray:
        picked: FloatArray = values[np.arange(len(candidate)), candidate]
        return picked


def _free_improvement(p: FloatArray, cost: FloatArray, here: IntArray) -> IntArray:
    """The most successful candidate that costs no more than the present one."""
    affordable: NDArray[np.bool_] = cost <= cost[np.arange(len(here)), here][:, np.newaxis]
    return most_successful(np.where(affordable, p, -1.0), cost)
