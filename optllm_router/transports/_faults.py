"""What an HTTP status, or an error body, says about a call that failed, and about its bill."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optllm_router._errors import (
    PROVIDER_QUOTA_CODE,
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
_QUOTA = "insufficient_quota"
_USED_UP = "says that the quota of the account is used up"
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
"""What a provider's ``code`` or ``type`` may be, to be handed on."""
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_.:/\[\]-]{0,99}")
"""What a provider's ``param`` may be, like ``tools[0].function.parameters``."""


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
        error: Any = None,
    ) -> ProviderError:
        """The error of a candidate.

        Args:
            candidate: who was asked.
            said: what the provider says, for people; masked and cut here.
            status: of its response.
            retry_after_seconds: how long it wants to be left alone.
            error: what its body has under ``error``; its words are checked here.
        """
        reason, words = first_line(said, candidate), self._words(error, status, candidate)
        what = _USED_UP if words.get("code") == PROVIDER_QUOTA_CODE else self.what
        return self.error(
            f"model {candidate.name!r} {what}{': ' if reason else ''}{reason}",
            candidate=candidate.name,
            status=status,
            maybe_billed=self.maybe_billed,
            retry_after_seconds=retry_after_seconds,
            **words,
        )

    def _words(self, error: Any, status: int | None, candidate: Candidate) -> dict[str, str | None]:
        """A provider's words for programs, where they are about the request, and plain text.

        What is wrong with the router's account is no concern of a caller's program, except that
        nobody need try again while it is used up.
        """
        fields = error if isinstance(error, Mapping) else {}
        code = _plain(fields.get("code"), _WORD, candidate)
        kind = _plain(fields.get("type"), _WORD, candidate)
        refuses = self.error is ProviderRejectedError or status == 403
        if _QUOTA in (code, kind) and (refuses or self.error is ProviderRateLimitedError):
            return {"code": PROVIDER_QUOTA_CODE, "type": _QUOTA}
        if not refuses:
            return {}
        return {"code": code, "type": kind, "param": _plain(fields.get("param"), _FIELD, candidate)}


def _plain(value: Any, form: re.Pattern[str], candidate: Candidate) -> str | None:
    """A provider's word, if it is one of that form without a secret in it."""
    if not isinstance(value, str) or not form.fullmatch(value):
        return None
    return value if first_line(value, candidate) == value else None


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
    error = error_in(body)
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def error_in(body: Any) -> Any:
    """What stands under ``error``, or the body itself where nothing does."""
    return body.get("error", body) if isinstance(body, Mapping) else body
