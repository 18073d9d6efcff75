"""What an HTTP status, or an error body, says about a call that failed, and about its bill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optllm_router._errors import (
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router._types import Candidate
from optllm_router.transports._secrets import first_line

_FREE_FAILURES = (500, 503, 529)
"""Failures of the provider itself. With 502, 504, 52x, a gateway lost an answer that was made."""
_STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
    "server_error": 500,
    "internal_server_error": 500,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
}
"""What errors mean that come with a status of 200, or inside of a stream."""


@dataclass(frozen=True)
class Fault:
    """A kind of failure.

    Attributes:
        error: the class to raise.
        what: what the provider does, for people.
        maybe_billed: whether the provider may have charged for the call.
    """

    error: type[ProviderError]
    what: str
    maybe_billed: bool

    def of(
        self,
        candidate: Candidate,
        said: str = "",
        *,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> ProviderError:
        """The error of a candidate; ``said`` is what the provider says, masked and cut here."""
        reason = first_line(said, candidate)
        return self.error(
            f"model {candidate.name!r} {self.what}{': ' if reason else ''}{reason}",
            candidate=candidate.name,
            status=status,
            maybe_billed=self.maybe_billed,
            retry_after_seconds=retry_after_seconds,
        )


TIMED_OUT = Fault(ProviderTimeoutError, "did not answer in time", True)
UNREACHABLE = Fault(ProviderConnectionError, "could not be reached", False)
BROKEN_OFF = Fault(ProviderConnectionError, "broke off", True)
NO_ANSWER = Fault(
    ProviderResponseError,
    "answered something that is not a chat completion; check its api_base",
    True,
)


def fault_of_status(status: int) -> Fault:
    """What a status says that is not 200."""
    if status in (401, 402, 403):
        return Fault(ProviderAuthenticationError, "does not accept the key", False)
    if status in (408, 504):
        return TIMED_OUT
    if status == 429:
        return Fault(ProviderRateLimitedError, "asks for fewer calls", False)
    if 400 <= status < 500:
        return Fault(ProviderRejectedError, "refuses the request", False)
    if status >= 500:
        return Fault(ProviderUnavailableError, "failed", status not in _FREE_FAILURES)
    return Fault(NO_ANSWER.error, NO_ANSWER.what, status < 300)


def fault_of_error(error: Any) -> tuple[Fault, int | None]:
    """What an ``error`` in a body says, and the status that it stands for.

    OpenAI's has a ``type`` and a ``code`` in words, OpenRouter's a ``code`` that is a status.
    One that says nothing of that kind may have been billed.
    """
    fields = error if isinstance(error, Mapping) else {}
    for value in (fields.get("code"), fields.get("type"), fields.get("status")):
        status = _STATUS_OF_CODE.get(value) if isinstance(value, str) else value
        if isinstance(status, int) and 400 <= status < 600:
            return fault_of_status(status), status
    return NO_ANSWER, None


def message_in(body: Any) -> str:
    """What an error body says, for people; empty where it is of no known form."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""
