"""What the user wants, turned into an allocation. No I/O: forecasts and balance in, choices out.

Every policy names a point of a Pareto front. Queries that are planned on their own take that
point's allocation. Requests that arrive one by one are decided at that point's shadow price:
the front is then computed over recent traffic and the new requests together, and each of them
takes the candidate with the highest ``p - cost * price``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

import numpy as np

from optllm_router._errors import ConfigurationError, InfeasibleError
from optllm_router.allocation import Solution, exact_front

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, IntArray

_DRAWS = 32
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
    """

    p: FloatArray
    std: FloatArray
    cost: FloatArray

    def __len__(self) -> int:
        return len(self.p)

    def followed_by(self, other: Forecast) -> Forecast:
        """Both, one below the other."""
        return Forecast(
            np.vstack([self.p, other.p]),
            np.vstack([self.std, other.std]),
            np.vstack([self.cost, other.cost]),
        )


@dataclass(frozen=True)
class Aim:
    """The point that a policy names.

    Attributes:
        value: shape (n, k), the success in 0..1 that the policy counts on.
        solution: the point, on the front of ``value`` against cost.
        reason: why, in one sentence for people.
    """

    value: FloatArray
    solution: Solution
    reason: str


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


class Policy(Protocol):
    """Names a point of the front."""

    def aim(self, forecast: Forecast, usd: float) -> Aim:
        """The point to take for these queries when ``usd`` may be spent on them.

        The point may cost more where the policy does not care; never raises for lack of money.
        """
        ...


@dataclass(frozen=True)
class MaxSuccess:
    """The most successes that the budget buys."""

    def aim(self, forecast: Forecast, usd: float) -> Aim:
        """The dearest point within the budget; all-cheapest where nothing fits."""
        solution = _within(forecast.p, forecast.cost, usd)
        if solution.price == 0:
            return Aim(forecast.p, solution, "highest predicted success; the budget does not bind")
        return Aim(
            forecast.p,
            solution,
            f"most success within the budget: a success more costs {1 / solution.price:.2g} USD",
        )


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

    def aim(self, forecast: Forecast, usd: float) -> Aim:
        """The cheapest point that reaches the target; the one of most success if none does."""
        front = exact_front(forecast.p, forecast.cost)
        try:
            solution = front.at_success(self.target)
        except InfeasibleError as error:
            reason = f"target success {self.target:g} is out of reach: {error.attainable:.3g} is"
            return Aim(forecast.p, front.at_budget(math.inf), f"{reason} the most")
        return Aim(forecast.p, solution, f"least cost for a success rate of {self.target:g}")


@dataclass(frozen=True)
class MatchBest:
    """The least cost at which success is, with confidence, no worse than the best single model's.

    The value of a candidate is ``p - z * u * std``, that of the best single model its plain
    ``p``: together the switches away from it have to earn their own uncertainty. Where nothing
    does, every query stays with the best model.

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

    def aim(self, forecast: Forecast, usd: float) -> Aim:
        """The cheapest point whose robust success is that of the best single model."""
        best = int(np.argmax(forecast.p.mean(axis=0)))
        shared = math.sqrt(_CORRELATION + (1.0 - _CORRELATION) / len(forecast))
        margin = NormalDist().inv_cdf(self.confidence) * shared * forecast.std
        value = np.clip(forecast.p - margin, 0.0, 1.0)
        value[:, best] = forecast.p[:, best]
        solution = exact_front(value, forecast.cost).at_success(float(value[:, best].mean()))
        if np.all(solution.allocation == best):
            reason = "stays with the best model: no switch is confident enough"
        else:
            reason = f"as good as the best single model with confidence {self.confidence:g}"
        return Aim(value, solution, reason)


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

    def aim(self, forecast: Forecast, usd: float) -> Aim:
        """The point where one more success would cost more than it is worth."""
        solution = exact_front(forecast.p, forecast.cost).at_price(self.usd_per_success)
        reason = f"a success is worth {self.usd_per_success:g} USD"
        return Aim(forecast.p, replace(solution, price=1 / self.usd_per_success), reason)


def choose(
    policy: Policy,
    batch: Forecast,
    *,
    left_usd: float = math.inf,
    traffic: Forecast | None = None,
    expected_queries: float | None = None,
) -> Choice:
    """Decide for the n queries of a batch together.

    Args:
        policy: what the user wants.
        batch: what is expected of the queries.
        left_usd: what may be spent in all.
        traffic: what was expected of recent queries: a sample of those still to come.
        expected_queries: how many are still to come under this budget, the batch included.
            The budget is then shared with them; ``None`` gives the batch all that is left.
    """
    n = len(batch)
    reference = batch if traffic is None else traffic.followed_by(batch)
    share = math.inf
    if expected_queries is not None:
        share = left_usd * len(reference) / max(expected_queries, n)
    aim = policy.aim(reference, share)
    value, price, reason = aim.value[-n:], aim.solution.price, aim.reason
    allocation = aim.solution.allocation if traffic is None else _ranked(value, batch, price)[:, 0]
    if _cost(batch, allocation) > left_usd:
        affordable = _within(value, batch.cost, left_usd)
        allocation, price = affordable.allocation, affordable.price
        reason = "most success with what is left of the budget"
    return Choice(allocation, _ranked(value, batch, price), price, reason)


def _ranked(value: FloatArray, batch: Forecast, price: float) -> IntArray:
    """Each query's candidates by falling worth; ties go to the cheaper one."""
    worth = value - price * batch.cost
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
    with probability ``uniform``, a candidate is drawn uniformly, whatever is believed of it.

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
    n, k = batch.p.shape
    draws = choice.allocation[None, :]
    if doubt > 0:
        worth = batch.p - choice.price * batch.cost
        noise = rng.standard_normal((_DRAWS, n, k)) * (doubt * batch.std)
        draws = np.argmax(worth + noise, axis=2)
    allocation = np.where(rng.random(n) < uniform, rng.integers(k, size=n), draws[0])
    agreement = (draws == allocation).mean(axis=0)
    return allocation, uniform / k + (1.0 - uniform) * agreement


def match_best_allocation(
    p: FloatArray, std: FloatArray, cost: FloatArray, confidence: float
) -> IntArray:
    """The allocation of :class:`MatchBest`, shape (n,), from arrays of shape (n, k)."""
    return MatchBest(confidence).aim(Forecast(p, std, cost), math.inf).solution.allocation


def _within(value: FloatArray, cost: FloatArray, usd: float) -> Solution:
    front = exact_front(value, cost)
    return front.at_budget(max(usd, float(front.cost[0])))


def _cost(forecast: Forecast, allocation: IntArray) -> float:
    return math.fsum(forecast.cost[np.arange(len(forecast)), allocation])
