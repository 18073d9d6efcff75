"""Most success within a budget and within each candidate's capacity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InfeasibleError, InvalidDataError
from optllm_router._nearest import quoted
from optllm_router.allocation._dual import IMPOSSIBLE, DualPoint, Limits, minimise_dual
from optllm_router.allocation._limits import ROUNDING
from optllm_router.allocation._rounding import Problem, repaired, rounded
from optllm_router.allocation._solution import Solution
from optllm_router.allocation._sums import exact_sum
from optllm_router.allocation._validation import check_amount, check_instance, check_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from optllm_router._types import FloatArray, IntArray

# Rounding can end slightly over the limits with no way back: then aim a bit below them.
_MARGINS = (0.0, 3e-4, 3e-3, 3e-2)
_TINY = 1e-200  # a limit below this is none at all
_MOST_CHOICES, _MOST_SECONDS = 20_000, 10.0
"""Where rounding finds nothing, instances of up to so many are searched to the end, for so long."""


@dataclass(frozen=True, eq=False)
class CapacitatedSolution(Solution):
    """A solution under capacities.

    An online request maximises ``p - price * cost - capacity_price * load`` over candidates.

    Attributes:
        capacity_price: shape (k,), extra successes per extra unit of each capacity; 0 where it
            is not used up.
    """

    capacity_price: FloatArray


def solve_with_capacities(
    p: ArrayLike,
    cost: ArrayLike,
    capacities: ArrayLike,
    budget_usd: float = math.inf,
    *,
    loads: ArrayLike | None = None,
) -> CapacitatedSolution:
    """Find the most success within a budget and at most so many queries (or tokens) per candidate.

    One price per limit is found by minimising the Lagrangian dual; the allocation follows from
    the prices, and the dual itself is the certificate: ``bound`` holds whatever was rounded.

    Args:
        p: shape (n, k), success probabilities in 0..1.
        cost: shape (n, k), expected USD, finite and >= 0.
        capacities: shape (k,), >= 0, infinite where unlimited; counts queries, or the unit
            of ``loads``.
        budget_usd: the budget, >= 0; infinite for none. One within 1e-12 (relative) of the least
            cost counts as that.
        loads: shape (n, k), what a query takes of a candidate's capacity (tokens, say), finite
            and >= 0; 1 each when not given.

    Raises:
        InfeasibleError: when no allocation that keeps the limits was found; ``attainable`` is
            the least cost found, or what the queries take at least where the capacities alone
            are too small, and ``limit`` what there is of the same. Of more than 20,000 choices
            (queries times candidates), or where ten seconds of search do not decide it, one may,
            rarely, exist nevertheless.
        InvalidDataError: naming the first entry that cannot be.

    Example:
        Both queries want the strong candidate, which takes one.

        >>> solution = solve_with_capacities([[0.2, 0.9], [0.5, 0.8]], [[1, 2], [1, 2]], [2, 1])
        >>> solution.allocation, round(solution.success, 6)
        (array([1, 0]), 1.4)
    """
    problem = _checked(p, cost, capacities, budget_usd, loads)
    limits = _scaled(problem, problem.p, problem.usd)
    point = minimise_dual(limits)
    allocation = _feasible(problem, point, limits)
    if allocation is None:
        allocation = _from_cheapest(problem, limits.reduced(point.prices))
    return _certified(problem, point, allocation)


def _certified(problem: Problem, point: DualPoint, allocation: IntArray) -> CapacitatedSolution:
    """An allocation beside the dual's bound, and the dual's prices in the caller's units."""
    n = len(allocation)
    success = exact_sum(problem.p[np.arange(n), allocation])
    bound = max(success, point.bound)
    return CapacitatedSolution(
        allocation=allocation,
        cost=problem.spent(allocation),
        success=success,
        bound=bound,
        gap=bound - success,
        price=float(point.prices[0]) * _per_unit(n, problem.usd),
        capacity_price=point.prices[1:] * [_per_unit(n, limit) for limit in problem.capacities],
    )


def _feasible(problem: Problem, point: DualPoint, limits: Limits) -> IntArray | None:
    """A feasible allocation near the relaxed solution, or None when none was found."""
    for margin in _MARGINS if math.isfinite(problem.usd) else (0.0,):
        if margin:
            limits = _scaled(problem, problem.p, problem.usd * (1.0 - margin))
            point = minimise_dual(limits)
        if point.infeasible:
            return None
        found = repaired(problem, rounded(point.shares), limits.reduced(point.prices))
        if found is not None:
            return found
    return None


def _from_cheapest(problem: Problem, worth: FloatArray) -> IntArray:
    """Improve the cheapest allocation that the capacities allow, or say that none will do."""
    thrift = -problem.cost / max(float(problem.cost.max(initial=0.0)), 1e-300)
    unpaid = Problem(thrift, problem.cost, problem.load, problem.capacities, math.inf)
    limits = _scaled(unpaid, thrift, math.inf)
    cheapest = _feasible(unpaid, minimise_dual(limits), limits)
    if _may_be_missed(problem, cheapest):
        cheapest = _cheaper(problem, cheapest, _searched(unpaid))
    n = len(problem.p)
    if cheapest is None:
        raise InfeasibleError(
            f"no allocation of {n} queries was found within the capacities "
            f"{[float(f'{limit:.10g}') for limit in problem.capacities]}; raise them or send fewer "
            "queries",
            limit=float(problem.capacities.sum()),
            attainable=exact_sum(problem.load.min(axis=1)),
        )
    improved = repaired(problem, cheapest, worth)
    least = problem.spent(cheapest)
    if improved is None and problem.usd >= least * (1.0 - ROUNDING):
        return cheapest
    if improved is None:
        raise InfeasibleError(
            f"no allocation within the capacities was found for {problem.usd:.10g} USD: the "
            f"cheapest found costs {least:.10g} USD; raise the budget to that, raise the "
            "capacities of cheap candidates, or send fewer queries",
            limit=problem.usd,
            attainable=least,
        )
    return improved


def _may_be_missed(problem: Problem, cheapest: IntArray | None) -> bool:
    """Whether there may be a feasible allocation nevertheless, and few enough to search."""
    if cheapest is not None and problem.spent(cheapest) <= problem.usd:
        return False
    least = exact_sum(problem.cost.min(axis=1))
    return least <= problem.usd and problem.p.size <= _MOST_CHOICES


def _cheaper(problem: Problem, one: IntArray | None, other: IntArray | None) -> IntArray | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other, key=problem.spent)


def _searched(unpaid: Problem) -> IntArray | None:
    """The cheapest allocation that the capacities allow, by branch and bound (HiGHS).

    Costs are scaled: HiGHS takes what differs by a millionth for the same.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    n, k = unpaid.cost.shape
    choice = np.arange(n * k)
    query, candidate = np.divmod(choice, k)
    bounded = np.isfinite(unpaid.capacities)
    taken = csr_array((unpaid.load.ravel(), (candidate, choice)), shape=(k, n * k))[bounded]
    once = csr_array((np.ones(n * k), (query, choice)), shape=(n, n * k))
    found = milp(
        unpaid.cost.ravel() / max(float(unpaid.cost.max(initial=0.0)), 1e-300),
        integrality=np.ones(n * k),
        bounds=Bounds(0.0, 1.0),
        constraints=[
            LinearConstraint(once, 1.0, 1.0),
            LinearConstraint(taken, -np.inf, unpaid.capacities[bounded]),
        ],
        options={"time_limit": _MOST_SECONDS, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    allocation = np.asarray(found.x).reshape(n, k).argmax(axis=1)
    return allocation if unpaid.keeps_limits(allocation) else None


def _checked(
    p: ArrayLike, cost: ArrayLike, capacities: ArrayLike, usd: float, loads: ArrayLike | None
) -> Problem:
    p_matrix, cost_matrix = check_instance(p, cost)
    n, k = p_matrix.shape
    load = np.ones((n, k)) if loads is None else check_values(loads, "loads", (n, k))
    if (load < 0.0).any():
        query, candidate = np.argwhere(load < 0.0)[0]
        raise InvalidDataError(
            f"loads[{query}, {candidate}] is {float(load[query, candidate])!r}: it must be >= 0"
        )
    limits = _checked_capacities(capacities, k)
    if loads is not None:
        limits = limits * (1.0 + ROUNDING)  # loads that fill a capacity may add up to a bit more
    usd, least = check_amount(usd, "the budget in USD"), exact_sum(cost_matrix.min(axis=1))
    if least * (1.0 - ROUNDING) <= usd < least:
        usd = least
    problem = Problem(p_matrix, cost_matrix, load, limits, usd)
    _check_each_query_fits(problem)
    return problem


def _checked_capacities(capacities: ArrayLike, k: int) -> FloatArray:
    try:
        limits = np.asarray(capacities, dtype=np.float64)
    except (TypeError, ValueError):
        limits = np.empty(0)
    if limits.shape != (k,) or np.isnan(limits).any() or (limits < 0.0).any():
        raise InvalidDataError(
            f"capacities are {quoted(capacities)}: one number >= 0 is needed for each of the "
            f"{k} candidates, infinity where there is no limit"
        )
    return limits


def _check_each_query_fits(problem: Problem) -> None:
    impossible = _impossible(problem).all(axis=1)
    if not impossible.any():
        return
    query = int(impossible.argmax())
    load, cost = problem.load[query], problem.cost[query]
    roomy = load <= problem.capacities
    if roomy.any():
        limit, attainable = problem.usd, float(cost[roomy].min())
    else:
        nearest = int((load - problem.capacities).argmin())
        limit, attainable = float(problem.capacities[nearest]), float(load[nearest])
    raise InfeasibleError(
        f"query {query} fits no candidate: each costs more than the budget of "
        f"{problem.usd:.10g} USD or takes more than its capacity",
        limit=limit,
        attainable=attainable,
    )


def _impossible(problem: Problem) -> NDArray[np.bool_]:
    """Shape (n, k): the choices that break a limit all by themselves."""
    impossible: NDArray[np.bool_] = (problem.load > problem.capacities) | (
        problem.cost > problem.usd
    )
    return impossible


def _scaled(problem: Problem, value: FloatArray, usd: float) -> Limits:
    """The problem with every limit scaled to 1 per query."""
    n = len(value)
    impossible = _impossible(problem)
    per_capacity = np.array([_per_unit(n, limit) for limit in problem.capacities])
    return Limits(
        value=np.where(impossible, IMPOSSIBLE, value),
        cost=np.where(impossible, 0.0, problem.cost) * _per_unit(n, usd),
        load=np.where(impossible, 0.0, problem.load) * per_capacity,
    )


def _per_unit(n: int, limit: float) -> float:
    """What one unit of a limit is in scaled units; 0 where it binds nobody, or everybody."""
    return n / limit if _TINY < limit < math.inf else 0.0
