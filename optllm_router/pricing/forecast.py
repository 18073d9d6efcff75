"""Expected cost of a call, learnt from the token counts of earlier ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

from optllm_router._bounds import bound_on_answer
from optllm_router._types import Call, Candidate, Price, Usage
from optllm_router.pricing.charge import rates_at

_PRIOR_WEIGHT = 4.0
"""How many observed calls the prior trends are worth."""
_PRIOR_BYTES = 400.0
"""Prompt size, in bytes, around which the prior trends are held."""
_SOUND_SHARE = 0.2
"""Of the bound on a sound's tokens, what is expected: OpenAI counts 10 where it allows 50."""
_PRIOR_TOKENS = 1000.0
"""How many tokens of no special kind are taken to have come before the first call."""


class _Trend:
    """A line ``y = a + b x`` by least squares with a ridge prior, updated one pair at a time.

    Kept as running means and centred moments, so that nothing cancels.
    """

    def __init__(self, intercept: float, slope: float) -> None:
        self._weight = _PRIOR_WEIGHT
        self._mean_x = _PRIOR_BYTES
        self._mean_y = intercept + slope * _PRIOR_BYTES
        self._xx = _PRIOR_WEIGHT * _PRIOR_BYTES**2
        self._xy = self._xx * slope
        self.variance = self._mean_y**2

    def learn(self, x: float, y: float) -> None:
        self._weight += 1.0
        surprise = y - self.at(x)
        self.variance += (surprise**2 - self.variance) / self._weight
        dx = x - self._mean_x
        self._mean_x += dx / self._weight
        self._mean_y += (y - self._mean_y) / self._weight
        self._xx += dx * (x - self._mean_x)
        self._xy += dx * (y - self._mean_y)

    def at(self, x: float) -> float:
        return max(0.0, self._mean_y + self._xy / self._xx * (x - self._mean_x))

    def high_at(self, x: float) -> float:
        """Two standard deviations above the line."""
        return self.at(x) + 2.0 * math.sqrt(self.variance)


class _Rates:
    """Nano-dollars per prompt and completion token, at the kinds that calls consisted of so far."""

    def __init__(self, price: Price) -> None:
        self.request = float(price.request)
        levels = sorted({-1, *(tier.above_tokens for tier in price.tiers)}, reverse=True)
        self._exact = [
            (above, {kind: float(rate) for kind, rate in rates_at(price, above + 1).items()})
            for above in levels
        ]
        self._prompt_tokens = self._completion_tokens = _PRIOR_TOKENS
        self._of_prompt = dict.fromkeys(("cached", "cache_write"), 0.0)
        self._reasoning = 0.0
        self._blended = [(above, self._blend(rates)) for above, rates in self._exact]

    def learn(self, usage: Usage) -> None:
        self._prompt_tokens += usage.prompt_tokens - usage.audio_tokens
        self._completion_tokens += usage.completion_tokens
        self._of_prompt["cached"] += usage.cached_tokens
        self._of_prompt["cache_write"] += usage.cache_write_tokens
        self._reasoning += usage.reasoning_tokens
        self._blended = [(above, self._blend(rates)) for above, rates in self._exact]

    def at(self, prompt_tokens: float) -> tuple[float, float, float]:
        """For a prompt of so many tokens: prompt, completion, and sound in the prompt."""
        return next(rates for above, rates in self._blended if prompt_tokens > above)

    def _blend(self, rates: Mapping[str, float]) -> tuple[float, float, float]:
        prompt = rates["prompt"] + sum(
            (rates[kind] - rates["prompt"]) * tokens / self._prompt_tokens
            for kind, tokens in self._of_prompt.items()
        )
        reasoning = self._reasoning / self._completion_tokens
        completion = rates["completion"] + (rates["reasoning"] - rates["completion"]) * reasoning
        return max(0.0, prompt), completion, rates["audio"]


class CostForecast:
    """Forecasts tokens, and so USD, of a call to each candidate; thread-safe.

    Prompt and completion tokens each follow a line in the prompt's size in bytes. Before
    any history a token is four bytes and an answer has 200 tokens. Who knows more about the
    answers passes their expected tokens. The share of cached tokens, and of the other kinds
    with a rate of their own, is that of the history. Sound comes on top, by how long it plays.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = tuple(candidates)
        self._prompt = [_Trend(8.0, 0.25) for _ in candidates]
        self._completion = [_Trend(200.0, 0.0) for _ in candidates]
        self._rates = [_Rates(candidate.price) for candidate in candidates]
        self._learnt = [0] * len(candidates)
        self._lock = threading.Lock()

    def learn(self, candidate: int, prompt_bytes: int, usage: Usage) -> None:
        """Learn what one answered call consumed.

        An answer that was cut off is taken to have gone on for as long as was expected of it.
        """
        with self._lock:
            self._prompt[candidate].learn(prompt_bytes, usage.prompt_tokens - usage.audio_tokens)
            lengths = self._completion[candidate]
            rest = lengths.at(prompt_bytes) if usage.cut else 0.0
            lengths.learn(prompt_bytes, usage.completion_tokens + rest)
            self._rates[candidate].learn(usage)
            self._learnt[candidate] += 1

    def expected_usd(
        self, call: Call, completion_tokens: Sequence[float] | None = None
    ) -> list[float]:
        """Expected USD of a call, for each candidate in order.

        Args:
            call: what would be sent.
            completion_tokens: of each candidate's answer, before any bound is applied; by
                default from the line.
        """
        with self._lock:
            if completion_tokens is None:
                completion_tokens = [line.at(call.prompt_bytes) for line in self._completion]
            prompt_tokens = [line.at(call.prompt_bytes) for line in self._prompt]
            return self._usd(call, prompt_tokens, completion_tokens)

    def likely_usd(
        self, call: Call, completion_tokens: Sequence[float] | None = None
    ) -> list[float]:
        """USD that a call will hardly exceed, for each candidate in order.

        Args:
            call: what would be sent.
            completion_tokens: that an answer will hardly exceed, before any bound is applied; by
                default two standard deviations over the line, as for the prompt.
        """
        with self._lock:
            if completion_tokens is None:
                completion_tokens = [line.high_at(call.prompt_bytes) for line in self._completion]
            prompt_tokens = [line.high_at(call.prompt_bytes) for line in self._prompt]
            return self._usd(call, prompt_tokens, completion_tokens)

    def spread_usd(self, calls: Sequence[int]) -> float:
        """Standard deviation, in USD, of what many calls cost together.

        Each call varies on its own, and the trend of a candidate is off by the same amount
        for all of its calls: ``n s^2 + (n s)^2 / m`` after ``m`` observed calls.

        Args:
            calls: how many calls each candidate gets.
        """
        with self._lock:
            variances = (self._variance(j) for j in range(len(self._candidates)))
            total = sum(
                n * variance + n * n * variance / (learnt + _PRIOR_WEIGHT)
                for n, variance, learnt in zip(calls, variances, self._learnt, strict=True)
            )
        return math.sqrt(total) * 1e-9

    def _usd(
        self, call: Call, prompt_tokens: Sequence[float], completion_tokens: Sequence[float]
    ) -> list[float]:
        pairs = zip(prompt_tokens, completion_tokens, strict=True)
        return [self._usd_of(j, call, *tokens) for j, tokens in enumerate(pairs)]

    def _usd_of(self, j: int, call: Call, prompt: float, completion_tokens: float) -> float:
        bound = bound_on_answer(self._candidates[j], call)
        completion = min(completion_tokens, bound) * call.choices
        sound = _SOUND_SHARE * call.most_audio_tokens
        rates = self._rates[j]
        per_prompt, per_completion, per_sound = rates.at(prompt + sound)
        tokens = per_prompt * prompt + per_sound * sound + per_completion * completion
        return (rates.request + tokens) * 1e-9

    def _variance(self, j: int) -> float:
        per_prompt, per_completion, _ = self._rates[j].at(0.0)
        return (
            per_prompt**2 * self._prompt[j].variance
            + per_completion**2 * self._completion[j].variance
        )
