"""What the user wants, turned into an allocation. No I/O: forecasts and money in, choices out.

A policy looks at queries and names a point of their Pareto front. Queries that are planned on
their own take that point's allocation (:func:`choose`). Requests that arrive one by one are
decided at that point's shadow price, the front being that of recent traffic: each of them takes
the candidate with the highest ``p - cost * price`` (:func:`follow`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from optllm_router._errors import ConfigurationError, InfeasibleError
from optllm_router.allocation import ParetoFront, Solution, exact_front

if TYPE_CHECKING:
    from optllm_router._types import BoolArray, FloatArray, IntArray

    Valuation: TypeAlias = Callable[["Forecast"], FloatArray]

_DRAWS = 32
_SAME_RATE = 1e-12
"""Success rates that differ by less are the same: sums are rounded."""
_CORRELATION = 0.1
"""Between the errors of a predictor on two queries. ``match_best`` lost nothing on three recorded
data sets from 0.04 on, see docs/evaluation.md."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of n queries and k candidates; arrays of shape (n, k).

    Attributes:
        p: success probabilities, 0..1.
        std: their uncertainty.
        cost: expected USD.
        able: which candidates can serve the query; ``None`` for all of them.
        loyalty: what a candidate is worth beside its success, in successes: the partner of a
            conversation. ``None`` for nothing.
    """

    p: FloatArray
    std: FloatArray
    cost: FloatArray
    able: BoolArray | None = None
    loyalty: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.p)

    def among(self, able: BoolArray) -> Forecast:
        """With candidates that cannot serve a query made worse for it than any that can.

        Args:
            able: shape (n, k), at least one per query.
        """
        dearest = np.where(able, self.cost, 0.0).max(axis=1, keepdims=True)
        return Forecast(
            np.where(able, self.p, 0.0),
            np.where(able, self.std, 0.0),
            np.where(able, self.cost, 2.0 * dearest + 1.0),
            able,
            None if self.loyalty is None else np.where(able, self.loyalty, 0.0),
        )


@dataclass(frozen=True)
class Aim:
    """The point that a policy names.

    Attributes:
        price: shadow price there, in successes per USD; 0 when money is no object.
        reason: why, in one sentence for people.
    """

    price: float
    reason: str


class Outlook(Protocol):
    """What a policy makes of some queries."""

    @property
    def costs(self) -> tuple[float, float]:
        """USD of the cheapest and of the dearest allocation that it may aim for."""
        ...

    def value(self, forecast: Forecast) -> FloatArray:
        """Shape (n, k), the success in 0..1 that is counted on, for these queries or like ones."""
        ...

    def aim(self, usd: float) -> Aim:
        """The point to take when ``usd`` may be spent on the queries that were looked at.

        It may cost more where the policy does not care; never raises for lack of money.
        """
        ...

    def solution(self, usd: float) -> Solution:
        """The allocation at that point."""
        ...


class Policy(Protocol):
    """Names a point of the front; hashable, as what it makes of recent traffic is kept."""

    def look(self, queries: Forecast) -> Outlook:
        """Look at n queries, at least one."""
        ...


@dataclass(frozen=True)
class _Affordable:
    """The most success that money buys."""

    front: ParetoFront

    @property
    def costs(self) -> tuple[float, float]:
        return float(self.front.cost[0]), float(self.front.cost[-1])

    def value(self, forecast: Forecast) -> FloatArray:
        return forecast.p

    def aim(self, usd: float) -> Aim:
        price = self.front.shadow_price(self._payable(usd))
        if price == 0:
            return Aim(price, "highest predicted success; the budget does not bind")
        return Aim(
            price, f"most success within the budget: a success more costs {1 / price:.2g} USD"
        )

    def solution(self, usd: float) -> Solution:
        return self.front.at_budget(self._payable(usd))

    def _payable(self, usd: float) -> float:
        return max(usd, float(self.front.cost[0]))


@dataclass(frozen=True)
class _Settled:
    """A point that is the same whatever there is to spend."""

    value: Valuation
    allocated: Solution
    point: Aim

    @property
    def costs(self) -> tuple[float, float]:
        return self.allocated.cost, self.allocated.cost

    def aim(self, usd: float) -> Aim:
        return self.point

    def solution(self, usd: float) -> Solution:
        return self.allocated


@dataclass(frozen=True)
class Choice:
    """What a policy chose for n queries.

    Attributes:
        allocation: shape (n,), a candidate's index for each query.
        fallbacks: shape (n, k), all candidates for each query by falling ``p - cost * price``.
        price: shadow price in successes per USD.
        reason: why, in one sentence for people.
    """

    allocation: IntArray
    fallbacks: IntArray
    price: float
    reason: str


@dataclass(frozen=True)
class MaxSuccess:
    """The most successes that the budget buys."""

    def look(self, queries: Forecast) -> Outlook:
        """Aims for the dearest point within the budget; all-cheapest where nothing fits."""
        return _Affordable(exact_front(queries.p, queries.cost))


@dataclass(frozen=True)
class MinCost:
    """The least cost at which the mean predicted success reaches a target.

    Attributes:
        target: success rate to reach, over 0 and up to 1.
    """

    target: float

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ConfigurationError(
                f"target success {self.target!r} must lie over 0 and up to 1, like 0.9"
            )

    def look(self, queries: Forecast) -> Outlook:
        """Aims for the cheapest point that reaches the target, or for the most success."""
        front = exact_front(queries.p, queries.cost)
        try:
            solution = front.at_success(self.target)
        except InfeasibleError as error:
            solution = front.at_budget(math.inf)
            reason = f"target success {self.target:g} is out of reach: {error.attainable:.3g} is"
            return _Settled(_probability, solution, Aim(solution.price, f"{reason} the most"))
        reason = f"least cost for a success rate of {self.target:g}"
        return _Settled(_probability, solution, Aim(_keeping(front, solution), reason))


@dataclass(frozen=True)
class MatchBest:
    """The least cost at which success is, with confidence, no worse than the best single model's.

    The value of a candidate is ``p - z * u * std``, that of the best single model its plain
    ``p``: together the switches away from it have to earn their own uncertainty. Where nothing
    does, every query stays with the best model. The best is the one of the highest mean ``p``,
    the dearest of several; the reason says where it is not sure which one that is.

    ``u`` is what remains of the uncertainty in a sum over n queries whose errors correlate by
    ``r``: ``sqrt(r + (1 - r) / n)``, the root of Kish's design effect over n. The correlation
    is that of one fitted predictor's errors, taken as 0.1.

    Attributes:
        confidence: one-sided confidence, 0.5..0.999, that no success is lost.
    """

    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence <= 0.999:
            raise ConfigurationError(
                f"confidence {self.confidence!r} must lie between 0.5 and 0.999"
            )

    def look(self, queries: Forecast) -> Outlook:
        """Aims for the cheapest point whose robust success is that of the best single model."""
        means = queries.p.mean(axis=0)
        equal = means >= means.max() - _SAME_RATE
        best = int(np.where(equal, queries.cost.mean(axis=0), -1.0).argmax())
        shared = math.sqrt(_CORRELATION + (1.0 - _CORRELATION) / len(queries))
        margin = NormalDist().inv_cdf(self.confidence) * shared

        def value(forecast: Forecast) -> FloatArray:
            robust = np.clip(forecast.p - margin * forecast.std, 0.0, 1.0)
            robust[:, best] = forecast.p[:, best]
            return robust

        target = float(queries.p[:, best].mean())
        front = exact_front(value(queries), queries.cost)
        solution = front.at_success(target)
        if np.all(solution.allocation == best):
            doubt = margin * queries.std.mean(axis=0)
            rivals = means + doubt >= means[best] - doubt[best]
            unsure = ", nor is it which model is best" if rivals.sum() > 1 else ""
            reason = f"stays with the best model: no switch is confident enough{unsure}"
        else:
            reason = f"as good as the best single model with confidence {self.confidence:g}"
        return _Settled(value, solution, Aim(_keeping(front, solution), reason))


@dataclass(frozen=True)
class WillingnessToPay:
    """A better answer is bought as long as it costs no more than it is worth.

    Attributes:
        usd_per_success: what one more correct answer is worth, in USD, over 0.
    """

    usd_per_success: float

    def __post_init__(self) -> None:
        if not (self.usd_per_success > 0 and math.isfinite(self.usd_per_success)):
            raise ConfigurationError(
                f"usd_per_success {self.usd_per_success!r} must be a finite number over 0"
            )

    def look(self, queries: Forecast) -> Outlook:
        """Aims for the point where one more success would cost more than it is worth."""
        solution = exact_front(queries.p, queries.cost).at_price(self.usd_per_success)
        reason = f"a success is worth {self.usd_per_success:g} USD"
        return _Settled(_probability, solution, Aim(1 / self.usd_per_success, reason))


def choose(policy: Policy, batch: Forecast, *, left_usd: float = math.inf) -> Choice:
    """Decide for n queries together, as if no others were to come.

    Args:
        policy: what the user wants.
        batch: what is expected of the queries.
        left_usd: what may be spent in all.
    """
    outlook = policy.look(batch)
    allocation = outlook.solution(left_usd).allocation
    return _choice(outlook.value(batch), batch, outlook.aim(left_usd), left_usd, allocation)


def follow(outlook: Outlook, batch: Forecast, *, usd: float, left_usd: float) -> Choice:
    """Decide for n queries at the price of the queries that were looked at.

    Args:
        outlook: what a policy made of recent traffic.
        batch: what is expected of the queries.
        usd: what may be spent on as many queries as were looked at.
        left_usd: what may be spent on the batch.
    """
    return _choice(outlook.value(batch), batch, outlook.aim(usd), left_usd)


def _choice(
    value: FloatArray,
    batch: Forecast,
    aim: Aim,
    left_usd: float,
    allocation: IntArray | None = None,
) -> Choice:
    """The allocation, by default that of highest worth, if there is money for it."""
    ranking = _ranked(value, batch, aim.price)
    if allocation is None:
        allocation = ranking[:, 0]
    if _cost(batch, allocation) <= left_usd:
        return Choice(allocation, ranking, aim.price, aim.reason)
    affordable = _Affordable(exact_front(value, batch.cost)).solution(left_usd)
    ranking = _ranked(value, batch, affordable.price)
    reason = "most success with what is left of the budget"
    return Choice(affordable.allocation, ranking, affordable.price, reason)


def _ranked(value: FloatArray, batch: Forecast, price: float) -> IntArray:
    """Each query's candidates by falling worth; ties go to the cheaper one."""
    worth = value - price * batch.cost
    if batch.loyalty is not None:
        worth = worth + batch.loyalty
    return np.asarray(np.lexsort((batch.cost, -worth), axis=1))


def explore(
    choice: Choice,
    batch: Forecast,
    *,
    doubt: float,
    uniform: float,
    rng: np.random.Generator,
) -> tuple[IntArray, FloatArray]:
    """Choose with an open mind, so that every candidate that may be good gets to be graded.

    Posterior sampling (Thompson 1933): the candidates of a query are compared on values drawn
    around ``p`` with a standard deviation of ``doubt * std``. One of 32 such draws is
    followed, so that the propensity is known: the share of the draws that agree with it. Besides,
    with probability ``uniform``, one of the candidates that can serve the query is drawn
    uniformly, whatever is believed of it. Conversations under way are no place to experiment.

    Args:
        choice: what the policy chose.
        batch: what is expected of the n queries.
        doubt: how much of the uncertainty is explored; 0 follows the choice.
        uniform: probability, 0..1, of a uniform draw.
        rng: source of all randomness.

    Returns:
        The allocation, shape (n,), and the propensity of each choice: the probability, in
        (0, 1], with which this procedure makes it. Off-policy estimators divide by it.
    """
    if doubt == 0 and uniform == 0:
        return choice.allocation, np.ones(len(batch))
    n, k = batch.p.shape
    draws, shares = choice.allocation[None, :], np.full(n, uniform)
    if doubt > 0:
        worth = batch.p - choice.price * batch.cost
        if batch.able is not None:
            worth = np.where(batch.able, worth, -np.inf)
        noise = rng.standard_normal((_DRAWS, n, k))
        noise *= doubt * batch.std
        noise += worth
        draws = noise.argmax(axis=2)
    if batch.loyalty is not None:
        settled = batch.loyalty.any(axis=1)
        draws = np.where(settled, choice.allocation, draws)
        shares[settled] = 0.0
    allocation, among = draws[0], np.full(n, k) if batch.able is None else batch.able.sum(axis=1)
    blind = (rng.random(n) < shares).nonzero()[0]
    if len(blind):
        allocation = allocation.copy()
        allocation[blind] = _any_one(batch, blind, rng)
    agreement = np.add.reduce(draws == allocation, axis=0) / len(draws)
    return allocation, shares / among + (1.0 - shares) * agreement


def _any_one(batch: Forecast, queries: IntArray, rng: np.random.Generator) -> IntArray:
    """For each of some queries one of the candidates that can serve it, drawn uniformly."""
    if batch.able is None:
        return rng.integers(batch.p.shape[1], size=len(queries))
    able = batch.able[queries]
    ables_first = np.argsort(~able, axis=1, kind="stable")
    drawn = ables_first[np.arange(len(queries)), rng.integers(able.sum(axis=1))]
    return np.asarray(drawn, dtype=np.int64)


def match_best_allocation(
    p: FloatArray, std: FloatArray, cost: FloatArray, confidence: float
) -> IntArray:
    """The allocation of :class:`MatchBest`, shape (n,), from arrays of shape (n, k)."""
    return MatchBest(confidence).look(Forecast(p, std, cost)).solution(math.inf).allocation


def _probability(forecast: Forecast) -> FloatArray:
    return forecast.p


def _keeping(front: ParetoFront, solution: Solution) -> float:
    """A price at which a promise is kept, and not nearly kept: the last move that it takes is
    made by every query like it."""
    return solution.price * (1.0 if solution.cost <= front.cost[0] else 1.0 - 1e-9)


def _cost(forecast: Forecast, allocation: IntArray) -> float:
    return math.fsum(forecast.cost[np.arange(len(forecast)), allocation])
