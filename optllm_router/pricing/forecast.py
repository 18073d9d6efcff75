"""Expected cost of a call, learnt from the token counts of earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from optllm_router._types import Candidate, Usage

_PRIOR_WEIGHT = 4.0
"""How many observed calls the prior trends are worth."""
_PRIOR_BYTES = 400.0
"""Prompt size, in bytes, around which the prior trends are held."""


class _Trend:
    """A line ``y = a + b x`` by least squares with a ridge prior, updated one pair at a time.

    Centred on running means, so that the intercept is free where the slope is uncertain.
    """

    def __init__(self, intercept: float, slope: float) -> None:
        self._slope = slope
        self._weight = _PRIOR_WEIGHT
        self._mean_x = _PRIOR_BYTES
        self._mean_y = intercept + slope * _PRIOR_BYTES
        self._xx = _PRIOR_WEIGHT * _PRIOR_BYTES**2
        self._xy = self._xx * slope

    def learn(self, x: float, y: float) -> None:
        self._weight += 1.0
        dx = x - self._mean_x
        self._mean_x += dx / self._weight
        self._mean_y += (y - self._mean_y) / self._weight
        self._xx += dx * (x - self._mean_x)
        self._xy += dx * (y - self._mean_y)

    def at(self, x: float) -> float:
        return max(0.0, self._mean_y + self._xy / self._xx * (x - self._mean_x))


class CostForecast:
    """Forecasts tokens, and so USD, of a call to each candidate; thread-safe.

    Prompt and completion tokens each follow a line in the prompt's size in bytes. Before
    any history a token is four bytes and an answer has 200 tokens.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = tuple(candidates)
        self._prompt = [_Trend(8.0, 0.25) for _ in candidates]
        self._completion = [_Trend(200.0, 0.0) for _ in candidates]
        self._lock = threading.Lock()

    def learn(self, candidate: int, size: int, usage: Usage) -> None:
        """Learn from one answered call of ``size`` prompt bytes."""
        with self._lock:
            self._prompt[candidate].learn(size, usage.prompt_tokens)
            self._completion[candidate].learn(size, usage.completion_tokens)

    def expected_usd(self, size: int, max_output_tokens: int | None = None) -> list[float]:
        """Expected USD of a call of ``size`` prompt bytes, for each candidate in order.

        Args:
            size: bytes of the prompt.
            max_output_tokens: the caller's own bound on the answer, where there is one.
        """
        with self._lock:
            return [
                self._one(index, candidate, size, max_output_tokens)
                for index, candidate in enumerate(self._candidates)
            ]

    def _one(self, index: int, candidate: Candidate, size: int, bound: int | None) -> float:
        longest = bound or candidate.max_output_tokens
        completion = min(self._completion[index].at(size), longest)
        nano = float(candidate.price.prompt) * self._prompt[index].at(size)
        return (nano + float(candidate.price.completion) * completion) * 1e-9
