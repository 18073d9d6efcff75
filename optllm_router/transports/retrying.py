"""Asking again when a provider is busy: faults that cost nothing, with growing waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optllm_router._errors import ProviderRateLimitedError, ProviderUnavailableError
from optllm_router._types import Call, Candidate, Completion, Transport


class RetryingTransport:
    """Repeats calls that failed without being billed (429, 500, 503, 529), with exponential jitter.

    Args:
        transport: what sends the calls.
        max_retries: how often a call is repeated; 0 for never.
        first_wait_seconds: wait before the first repetition; it doubles, up to 8 s.
    """

    def __init__(
        self, transport: Transport, *, max_retries: int = 2, first_wait_seconds: float = 0.5
    ) -> None:
        self._transport = transport
        self._max_retries = max_retries
        self._first_wait = first_wait_seconds

    def check(self, candidates: Sequence[Candidate]) -> None:
        """As the transport inside."""
        self._transport.check(candidates)

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Send, repeating; the last fault is raised as it came."""
        import tenacity

        return tenacity.Retrying(**self._rules())(self._transport.send, candidate, call)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        import tenacity

        return await tenacity.AsyncRetrying(**self._rules())(self._transport.asend, candidate, call)

    def _rules(self) -> dict[str, Any]:
        import tenacity

        return {
            "retry": tenacity.retry_if_exception(_costs_nothing),
            "stop": tenacity.stop_after_attempt(1 + self._max_retries),
            "wait": tenacity.wait_exponential_jitter(
                multiplier=self._first_wait, max=8.0, jitter=self._first_wait
            ),
            "reraise": True,
        }


def _costs_nothing(error: BaseException) -> bool:
    if not isinstance(error, (ProviderRateLimitedError, ProviderUnavailableError)):
        return False
    return not error.maybe_billed
