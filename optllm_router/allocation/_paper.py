"""The solvers of the OptLLM paper, kept beside the exact front so that they can be compared.

Liu et al., "OptLLM: Optimal Assignment of Queries to Large Language Models", 2024,
arXiv 2405.15130. Both are heuristics over the moves of :mod:`._exchange`; what they return
carries the certificate of the exact front, which shows what the heuristic left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router.allocation._archive import Archive, Certifier
from optllm_router.allocation._exchange import Exchange, cheapest, most_successful
from optllm_router.allocation._limits import payable, reachable
from optllm_router.allocation._sums import exact_sum
from optllm_router.allocation._validation import (
    check_amount,
    check_count,
    check_instance,
    check_values,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray
    from optllm_router.allocation._solution import Solution

_REFINEMENTS = 20


def optllm_m(
    p: ArrayLike,
    cost: ArrayLike,
    *,
    std: ArrayLike | None = None,
    alpha: float = 0.5,
    grid: int = 10,
) -> Archive:
    """OptLLM-M: a set of non-dominated allocations between the two extremes.

    From the all-cheapest allocation upwards, and from the most successful one downwards, the
    distance between the extremes is walked in ``grid`` partitions: each step destroys (crudely
    changes as many queries as it takes) and reconstructs (exchanges until no exchange gains).
    All non-dominated results make the front.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), expected USD, finite and >= 0.
        std: shape (n, k), uncertainty of ``p``, >= 0; none when not given.
        alpha: weight of the uncertainty: the search believes ``p - alpha * std``.
        grid: number of partitions, >= 1; more of them make more points.

    Raises:
        InvalidDataError: naming the first entry that cannot be, or a grid below 1.
    """
    p_matrix, cost_matrix = check_instance(p, cost)
    check_count(grid, "the grid number")
    believed = robust(p_matrix, std, alpha)
    low = Exchange(believed, cost_matrix, cheapest(believed, cost_matrix))
    high = Exchange(believed, cost_matrix, most_successful(believed, cost_matrix))
    found = [low.allocation.copy(), high.allocation.copy()]
    gain, saving = (high.success - low.success) / grid, (high.cost - low.cost) / grid
    for _ in range(1, grid):
        low.destroy_success(gain)
        low.reconstruct()
        high.destroy_cost(saving)
        high.reconstruct()
        found += [low.allocation.copy(), high.allocation.copy()]
    return Archive(p_matrix, cost_matrix, np.array(found))


def optllm_s(
    p: ArrayLike,
    cost: ArrayLike,
    *,
    std: ArrayLike | None = None,
    alpha: float = 0.5,
) -> SingleConstraint:
    """OptLLM-S: one allocation for one constraint, a budget or a success rate.

    The search runs when it is asked, see :class:`SingleConstraint`.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), expected USD, finite and >= 0.
        std: shape (n, k), uncertainty of ``p``, >= 0; none when not given.
        alpha: weight of the uncertainty: the search believes ``p - alpha * std``.

    Raises:
        InvalidDataError: naming the first entry that cannot be.
    """
    p_matrix, cost_matrix = check_instance(p, cost)
    return SingleConstraint(p_matrix, cost_matrix, robust(p_matrix, std, alpha))


def robust(p: FloatArray, std: ArrayLike | None, alpha: float) -> FloatArray:
    """The paper's robust prediction, ``p - alpha * std`` kept in 0..1, shape (n, k)."""
    if std is None:
        return p
    uncertainty = check_values(std, "std", (p.shape[0], p.shape[1]))
    if (uncertainty < 0.0).any():
        raise InvalidDataError(f"std goes down to {uncertainty.min()!r}: it must be >= 0")
    if check_amount(alpha, "alpha") == np.inf:
        raise InvalidDataError("alpha is inf: it must be a number >= 0")
    believed: FloatArray = np.clip(p - alpha * uncertainty, 0.0, 1.0)
    return believed


class SingleConstraint:
    """OptLLM-S on one instance: searches anew for every constraint that it is asked for.

    Destruction from the extreme that breaks the constraint to where it holds, reconstruction,
    then refinement: whatever the exchanges broke is mended and what they left over is used.
    """

    def __init__(self, p: FloatArray, cost: FloatArray, believed: FloatArray) -> None:
        self._cost, self._believed = cost, believed
        self._certifier = Certifier(p, cost)

    def at_budget(self, usd: float) -> Solution:
        """The most success found within a budget.

        Raises:
            InfeasibleError: when even the all-cheapest allocation costs more.
            InvalidDataError: when ``usd`` is NaN or negative.
        """
        front = self._certifier.front
        usd = payable(usd, least=float(front.cost[0]), n=front.shape[0])
        search = Exchange(self._believed, self._cost, most_successful(self._believed, self._cost))
        search.destroy_cost(search.cost - usd)
        best, most = cheapest(self._believed, self._cost), -1.0
        for _ in range(_REFINEMENTS):
            search.reconstruct()
            search.save(search.cost - usd)
            search.spend(usd - search.cost)
            if search.cost > usd or search.success <= most:
                break
            best, most = search.allocation.copy(), search.success
        return self._certifier.within_budget(best, usd)

    def at_success(self, rate: float) -> Solution:
        """The least cost found for a mean success rate, held against the robust prediction.

        Raises:
            InfeasibleError: when no allocation reaches it; ``attainable`` is a rate, too.
            InvalidDataError: when ``rate`` is not a number in 0..1.
        """
        best = most_successful(self._believed, self._cost)
        highest = exact_sum(self._believed[np.arange(len(best)), best])
        target = reachable(rate, highest=highest, n=len(best))
        search = Exchange(self._believed, self._cost, cheapest(self._believed, self._cost))
        search.destroy_success(target - search.success)
        least = np.inf
        for _ in range(_REFINEMENTS):
            search.reconstruct()
            search.gain(target - search.success)
            search.forgo(search.success - target)
            if search.success < target or search.cost >= least:
                break
            best, least = search.allocation.copy(), search.cost
        return self._certifier.reaching(best, target)
