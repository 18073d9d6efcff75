"""The router: predictions, forecast costs and policy, wired into decisions that improve.

Decides and learns; it neither sends nor pays (that is :mod:`._runtime`'s).
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._bounds import bound_on_answer
from optllm_router._errors import InvalidRequestError
from optllm_router._money import NANO_PER_USD, usd_from_nano
from optllm_router._nearest import quoted
from optllm_router._query import Query
from optllm_router._types import Candidate, Decision, Figures, Usage
from optllm_router.allocation import ParetoFront, exact_front
from optllm_router.candidates import read_candidates, unknown_model
from optllm_router.capabilities import cannot_serve, left_out
from optllm_router.config import read_policy
from optllm_router.features import Texts
from optllm_router.learning import Learner, LengthLearner
from optllm_router.policy import Choice, Forecast, Policy, choose, explore
from optllm_router.predictor import LengthPredictor, predictor_maker
from optllm_router.pricing import (
    CostForecast,
    worst_case_nano,
)
from optllm_router.store import Partner
from optllm_router.traffic import Means, Traffic

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, IntArray, Predictor

_UNIFORM_PER_CANDIDATE = 2.0
_DOUBTED_PER_CANDIDATE = 20.0
_MOST_DOUBT = 0.5
"""How exploration starts and fades, see :class:`Router`. Chosen on simulated models: without doubt
the cheap specialists were found late or, with one seed of three, never."""
_LOYALTY = 0.05
"""Successes that staying with the model of a conversation is worth: another one has to be better
by this much, or cheaper by what this much is worth."""
_CACHED_TOKENS = 1024
_CACHED_SECONDS = 300.0
"""From which length on, and for how long, providers keep a prompt in their cache."""
_PLAN_ROUNDS = 8
"""Bisections for the most that a plan may spend: to within 1/256 of the unrestricted plan."""
_PRIOR_SUCCESS = (0.4, 0.6)
"""Success taken for granted before any label, of the cheapest and of the dearest candidate."""


@dataclass(frozen=True)
class Quote:
    """What a plan is expected to cost and to achieve.

    Attributes:
        queries: how many.
        expected_usd: forecast cost of all of them together.
        high_usd: a cost that they exceed with a probability of about 2.5 %.
        expected_success: predicted success rate, 0..1.
        bound: no allocation within the same money has a higher predicted success rate.
        shares: fraction of the queries that each candidate answers.
    """

    queries: int
    expected_usd: float
    high_usd: float
    expected_success: float
    bound: float
    shares: dict[str, float]


class Router:
    """Chooses a candidate for every query, and learns from scores and from usage; thread-safe.

    Args:
        candidates: the ways to answer.
        policy: what the user wants.
        predictor: name of a predictor, see ``optllm_router.predictor.PREDICTORS``, or one of your
            own for these candidates: of an object deep copies are used, and refitted.
        expected_queries: queries expected per window of the budget; ``None`` to extrapolate
            the traffic of the window so far.
        explore: scale of exploration, 0 for never. The n-th decision is uniformly random with
            probability ``u / (u + n)``, where ``u`` is 2 per candidate times this, and otherwise
            doubts its predictions by ``0.5 sqrt(d / (d + n))`` of their uncertainty, where ``d``
            is 20 per candidate times this; see ``optllm_router.policy.explore``.
        seed: of all random choices; ``None`` for fresh ones.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        policy: Policy,
        *,
        predictor: str | Predictor = "auto",
        expected_queries: int | None = None,
        explore: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.candidates = tuple(candidates)
        self.names = tuple(candidate.name for candidate in candidates)
        self.groups = frozenset(candidate.group for candidate in candidates if candidate.group)
        self._policy = policy
        self._explore = explore * len(candidates)
        self._rng = np.random.default_rng(seed)
        self._costs = CostForecast(candidates)
        self._traffic = Traffic(len(candidates), expected_queries)
        self._decided = 0
        self._lock = threading.Lock()
        k, prior = len(candidates), _prior(self.candidates)
        make = predictor_maker(predictor, n_candidates=k, prior=prior, seed=seed or 0)
        self._learner = Learner(make, k)
        self._lengths = LengthLearner(lambda: LengthPredictor(k, seed=seed or 0), k)

    @classmethod
    def from_models(
        cls,
        models: Sequence[str | Mapping[str, Any] | Candidate],
        policy: str | Policy = "max_success",
        **settings: Any,
    ) -> Router:
        """A router for models and a policy as :class:`OptLLM` takes them.

        Args:
            models: litellm model names, entries of a LiteLLM ``model_list``, or candidates.
            policy: a policy, or its name.
            **settings: further arguments of ``__init__``.
        """
        return cls(read_candidates(models), read_policy(policy), **settings)

    def index(self, name: str) -> int:
        """Position of a candidate.

        Raises:
            UnknownModelError: none has that name.
        """
        if name not in self.names:
            raise unknown_model(name, self.names)
        return self.names.index(name)

    def know_refusals(self, refused: Mapping[str, frozenset[str]]) -> None:
        """Take note of the arguments that candidates, by name, do not take; others are as before.

        A call with one of them, other than to ask for nothing, is not theirs to answer.
        """
        self.candidates = tuple(
            replace(one, refuses=refused.get(one.name, one.refuses)) for one in self.candidates
        )

    def decide(
        self, queries: Sequence[Query], means: Means | None = None, policy: Policy | None = None
    ) -> list[Decision]:
        """Decide for requests that arrived together, with the traffic to come in mind.

        Args:
            queries: at least one.
            means: what there is to spend.
            policy: instead of the router's own.

        Raises:
            InvalidRequestError: no candidate can serve one of the queries, see :meth:`check`.
        """
        means = means or Means()
        unable = [self.check(query) for query in queries]
        forecast = self._loyal(self.forecast(queries), queries, means.now)
        forecast = self._able(forecast, unable)
        with self._lock:
            choice = self._traffic.choose(policy or self._policy, forecast, means)
            allocation, propensity = explore(
                choice,
                forecast,
                doubt=_MOST_DOUBT * math.sqrt(self._exploration(_DOUBTED_PER_CANDIDATE)),
                uniform=self._exploration(_UNIFORM_PER_CANDIDATE),
                rng=self._rng,
            )
            self._decided += len(queries)
        return self._decisions(forecast, choice, allocation, propensity, unable)

    def pin(self, query: Query, name: str) -> Decision:
        """The decision that a caller made by naming the model.

        Of several that share the name the cheapest is asked first, and of those that cost the same
        any one; the others are its fallbacks.

        Raises:
            UnknownModelError: no candidate has that name.
            InvalidRequestError: it cannot serve the query.
        """
        self.index(name)
        named = [candidate for candidate in self.candidates if name in _names(candidate)]
        reasons = left_out(named, query.call)
        able = [candidate for candidate in named if candidate.name not in reasons]
        if not able:
            told = f"model {name!r} {reasons[name]}; name another, or 'auto'"
            raise cannot_serve(told, named, query.call, param="model")
        (first, *others), propensity = self._spread(able, query.partner)
        j = self.index(first.name)
        forecast = self.forecast([query])
        return Decision(
            id=new_id(),
            candidate=first.name,
            fallbacks=tuple(other.name for other in others),
            p=float(forecast.p[0, j]),
            std=float(forecast.std[0, j]),
            expected_cost_nano=_nano(forecast.cost[0, j]),
            propensity=propensity,
            price=0.0,
            reason=f"the caller named the {'group' if name in self.groups else 'model'}",
            left_out=reasons,
            foreseen=_Foreseen.of(self.names, forecast, 0),
        )

    def _spread(
        self, group: Sequence[Candidate], partner: Partner | None
    ) -> tuple[list[Candidate], float]:
        """A group in the order in which it is asked, and how probable its first was to be that.

        The cheapest first; those of one price in any order, so that they share the load, but the
        partner of the conversation before the others: its provider may still have the prompt.
        """
        if len(group) == 1:
            return list(group), 1.0
        stays = None if partner is None else partner.candidate
        with self._lock:
            chance = self._rng.permutation(len(group))
        order = [group[i] for i in chance.tolist()]
        order.sort(key=lambda one: (_rate(one), one.name != stays))
        alike = sum(_rate(one) == _rate(order[0]) for one in group)
        return order, 1.0 if order[0].name == stays else 1 / alike

    def plan(
        self, queries: Sequence[Query], usd: float, policy: Policy | None = None
    ) -> tuple[list[Decision], Quote, ParetoFront]:
        """Allocate n queries jointly within ``usd``, without regard to other traffic.

        Some of the money is kept back: for forecasts that turn out too low, and for the
        reservation of the last call, which is larger than its cost.
        """
        if not queries:
            raise InvalidRequestError("there is nothing to plan: pass at least one query")
        unable = [self.check(query) for query in queries]
        forecast = self._able(self.forecast(queries), unable)
        choice = self._with_reserve(queries, forecast, policy or self._policy, usd)
        front = exact_front(forecast.p, forecast.cost)
        certain = np.ones(len(queries))
        decisions = self._decisions(forecast, choice, choice.allocation, certain, unable)
        return decisions, self._quote(forecast, choice.allocation, front), front

    def check(self, query: Query) -> dict[str, str]:
        """The candidates that cannot serve a query, each with the reason.

        Raises:
            InvalidRequestError: none can.
        """
        reasons = left_out(self.candidates, query.call)
        if len(reasons) == len(self.names):
            each = "; ".join(f"{name!r} {reason}" for name, reason in reasons.items())
            told = f"no model can serve this call: {each}"
            raise cannot_serve(told, self.candidates, query.call)
        return reasons

    def forecast(self, queries: Sequence[Query]) -> Forecast:
        """Success probabilities, their uncertainty and expected USD; arrays of shape (n, k)."""
        texts = Texts(query.text for query in queries)
        prediction = self._learner.predict(texts)
        return Forecast(prediction.p, prediction.std, self._expected_usd(queries, texts))

    def expected_usd(self, queries: Sequence[Query]) -> FloatArray:
        """What each candidate is expected to charge for each query, USD, shape (n, k)."""
        return self._expected_usd(queries, Texts(query.text for query in queries))

    def _expected_usd(self, queries: Sequence[Query], texts: Texts) -> FloatArray:
        lengths = self._lengths.predict(texts)
        if np.isnan(lengths).all():
            return np.array([self._costs.expected_usd(query.call) for query in queries])
        pairs = zip(queries, lengths.tolist(), strict=True)
        return np.array([self._costs.expected_usd(query.call, row) for query, row in pairs])

    def likely_nano(self, query: Query) -> dict[str, int]:
        """What a call to each candidate will hardly exceed, in nano-dollars: the price of a length
        that 95 % of the answers keep to, see ``LengthPredictor.predict_high``.
        """
        (lengths,) = self._lengths.predict_high(Texts([query.text])).tolist()
        known = None if any(map(math.isnan, lengths)) else lengths
        likely = self._costs.likely_usd(query.call, known)
        return {name: _nano(usd) for name, usd in zip(self.names, likely, strict=True)}

    def observe(self, text: str, name: str, prompt_bytes: int, usage: Usage) -> None:
        """Learn what a call with one choice consumed; the next forecast already knows."""
        j = self.index(name)
        self._costs.learn(j, prompt_bytes, usage)
        self._lengths.learn(text, j, usage.completion_tokens, usage.cut)

    def observe_many(self, used: Iterable[tuple[str, str, int, Usage]]) -> None:
        """Learn (text, candidate, prompt bytes, usage) in the background; see :meth:`wait`."""
        many = [(text, self.index(name), size, usage) for text, name, size, usage in used]
        for _, j, size, usage in many:
            self._costs.learn(j, size, usage)
        self._lengths.learn_many(
            (text, j, usage.completion_tokens, usage.cut) for text, j, _, usage in many
        )

    def remember_arrivals(self, by_hour: Mapping[int, int]) -> None:
        """Learn how many queries came in earlier hours, counted since 1970: others will."""
        with self._lock:
            self._traffic.arrivals.add_hours(by_hour)

    def learn(self, text: str, name: str, score: float, *, replaces: float | None = None) -> None:
        """Learn how good an answer was, 0..1; the next decision already knows.

        Args:
            text: of the query.
            name: of the candidate that answered.
            score: how good the answer was.
            replaces: the score that the same answer was given before, if any.
        """
        self._learner.learn(text, self.index(name), checked_score(score), replaces=replaces)

    def learn_many(self, scored: Iterable[tuple[str, str, float]]) -> None:
        """Learn (text, candidate, score) triples in the background; see :meth:`wait`."""
        self._learner.learn_many(
            (text, self.index(name), checked_score(score)) for text, name, score in scored
        )

    def wait(self) -> None:
        """Wait for refits that are under way; raises what one raised, when all are over."""
        try:
            self._learner.wait()
        finally:
            self._lengths.wait()

    def _with_reserve(
        self, queries: Sequence[Query], forecast: Forecast, policy: Policy, usd: float
    ) -> Choice:
        """The best choice that needs no more than ``usd``, by bisection; else the cheapest."""
        choice = choose(policy, forecast, left_usd=usd)
        if self._needed(queries, forecast, choice.allocation) <= usd:
            return choice
        low, high = 0.0, _sum(forecast.cost, choice.allocation)
        choice = choose(policy, forecast, left_usd=low)
        for _ in range(_PLAN_ROUNDS):
            middle = (low + high) / 2
            trial = choose(policy, forecast, left_usd=middle)
            if self._needed(queries, forecast, trial.allocation) <= usd:
                low, choice = middle, trial
            else:
                high = middle
        return choice

    def _needed(self, queries: Sequence[Query], forecast: Forecast, allocation: IntArray) -> float:
        """USD with which an allocation is almost surely carried out as it stands."""
        largest = max(
            worst_case_nano(
                self.candidates[j],
                query.call.most_prompt_tokens,
                bound_on_answer(self.candidates[j], query.call),
                query.call.choices,
                audio_tokens=query.call.most_audio_tokens,
            )
            for query, j in zip(queries, allocation, strict=True)
        )
        return self._high_usd(forecast, allocation) + usd_from_nano(largest)

    def _high_usd(self, forecast: Forecast, allocation: IntArray) -> float:
        calls = np.bincount(allocation, minlength=len(self.names))
        return _sum(forecast.cost, allocation) + 2.0 * self._costs.spread_usd(calls.tolist())

    def _quote(self, forecast: Forecast, allocation: IntArray, front: ParetoFront) -> Quote:
        n = len(forecast)
        usd, success = _sum(forecast.cost, allocation), _sum(forecast.p, allocation)
        bound = front.at_budget(max(usd, float(front.cost[0]))).bound
        shares = np.bincount(allocation, minlength=len(self.names)) / n
        return Quote(
            queries=n,
            expected_usd=usd,
            high_usd=self._high_usd(forecast, allocation),
            expected_success=success / n,
            bound=max(success, bound) / n,
            shares=dict(zip(self.names, shares.tolist(), strict=True)),
        )

    def _exploration(self, per_candidate: float) -> float:
        """A share that starts at 1 and falls to a half after so many decisions and labels."""
        first = self._explore * per_candidate
        known = self._decided + self._learner.labels
        return first / (first + known) if first else 0.0

    def _able(self, forecast: Forecast, unable: Sequence[Mapping[str, str]]) -> Forecast:
        if not any(unable):
            return forecast
        return forecast.among(
            np.array([[name not in one for name in self.names] for one in unable])
        )

    def _loyal(self, forecast: Forecast, queries: Sequence[Query], now: float) -> Forecast:
        """With what staying is worth: no change of voice, and a prompt that is read already."""
        partners = {
            i: query.partner
            for i, query in enumerate(queries)
            if query.partner is not None and query.partner.candidate in self.names
        }
        if not partners:
            return forecast
        loyalty, cost = np.zeros_like(forecast.p), forecast.cost.copy()
        for i, partner in partners.items():
            j = self.names.index(partner.candidate)
            loyalty[i, j] = _LOYALTY
            cost[i, j] = self._cost_of_staying(j, cost[i, j], partner, now)
        return replace(forecast, cost=cost, loyalty=loyalty)

    def _cost_of_staying(self, j: int, usd: float, partner: Partner, now: float) -> float:
        """The expected cost, less the discount on what the provider has in its cache."""
        price = self.candidates[j].price
        known = partner.prompt_tokens if now - partner.at < _CACHED_SECONDS else 0
        if price.cached is None or price.cached >= price.prompt or known < _CACHED_TOKENS:
            return usd
        saved = float(known * (price.prompt - price.cached)) / NANO_PER_USD
        return max(usd - saved, usd * float(price.cached / price.prompt))

    def _decisions(
        self,
        forecast: Forecast,
        choice: Choice,
        allocation: IntArray,
        propensity: FloatArray,
        unable: Sequence[Mapping[str, str]],
    ) -> list[Decision]:
        decisions = []
        for i, (j, ranking) in enumerate(zip(allocation.tolist(), choice.fallbacks, strict=True)):
            others = (self.names[other] for other in ranking.tolist() if other != j)
            explored = j != choice.allocation[i]
            decision = Decision(
                id=new_id(),
                candidate=self.names[j],
                fallbacks=tuple(name for name in others if name not in unable[i]),
                p=float(forecast.p[i, j]),
                std=float(forecast.std[i, j]),
                expected_cost_nano=_nano(forecast.cost[i, j]),
                propensity=float(propensity[i]),
                price=choice.price,
                reason="chosen at random to learn how good it is" if explored else choice.reason,
                left_out=unable[i],
                foreseen=_Foreseen.of(self.names, forecast, i),
            )
            decisions.append(decision)
        return decisions


@dataclass(frozen=True)
class _Foreseen:
    """Tells the figures of a candidate for one query; plain data, made into them when asked."""

    names: tuple[str, ...]
    p: FloatArray
    std: FloatArray
    usd: FloatArray

    @classmethod
    def of(cls, names: tuple[str, ...], forecast: Forecast, i: int) -> _Foreseen:
        return cls(names, forecast.p[i], forecast.std[i], forecast.cost[i])

    def __call__(self, name: str) -> Figures:
        j = self.names.index(name)
        return Figures(float(self.p[j]), float(self.std[j]), _nano(self.usd[j]))


def checked_score(score: Any) -> float:
    """A score in 0..1.

    Raises:
        InvalidRequestError: it is not.
    """
    if isinstance(score, (bool, int, float)) and 0 <= float(score) <= 1:
        return float(score)
    raise InvalidRequestError(
        f"score {quoted(score)} must be a number from 0 (wrong) to 1 (right)", param="score"
    )


def _prior(candidates: Sequence[Candidate]) -> FloatArray:
    """Success rates before any label: dearer models are taken to be somewhat better."""
    prices = np.array([float(_rate(candidate)) for candidate in candidates])
    rank = np.searchsorted(np.unique(prices), prices)
    low, high = _PRIOR_SUCCESS
    return np.asarray(low + (high - low) * rank / max(int(rank.max()), 1), dtype=np.float64)


def _rate(candidate: Candidate) -> Decimal:
    """How dear it is, to compare: by its tokens of either kind."""
    return candidate.price.prompt + candidate.price.completion


def _names(candidate: Candidate) -> tuple[str, str]:
    """What a call may name to have it asked."""
    return candidate.name, candidate.group


def _sum(values: FloatArray, allocation: IntArray) -> float:
    return math.fsum(values[np.arange(len(allocation)), allocation])


def _nano(usd: float) -> int:
    return math.ceil(usd * NANO_PER_USD)


def new_id() -> str:
    """Unique, and in order of time."""
    return f"optllm-{time.time_ns():016x}{secrets.token_hex(6)}"
