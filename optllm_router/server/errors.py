"""What goes wrong, as OpenAI's API says it: a status and ``{"error": {...}}``.

OpenAI's clients raise by the status, and show the message. What is nobody's business outside
(which database cannot be reached, which key a provider refused) is logged and not told.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from optllm_router._errors import (
    PROVIDER_QUOTA_CODE,
    AllCandidatesFailedError,
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    OptLLMError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    StoreError,
    UnknownModelError,
    error_code,
)
from optllm_router._openai_errors import error_body, error_type, shared_cause, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = logging.getLogger("optllm_router.server")

_MOST_TOLD = 2_000
"""Characters of a message: it may quote the request."""


@dataclass
class Refused(Exception):
    """A request that is not carried out.

    Attributes:
        status: of the response.
        message: what was wrong and what to do.
        code: for programs, like ``invalid_api_key``.
        param: the field that was wrong.
        headers: of the response.
        type: the kind of error, where status and code do not tell.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)


def as_refusal(error: Exception) -> Refused:
    """Any error as a response; one that nobody expected is logged, without its values."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        code = error.detail.lower().replace(" ", "_")  # not_found, method_not_allowed
        return Refused(
            error.status_code,
            f"{error.detail.lower()}; GET /openapi.json lists what is served, and how it is called",
            code=code,
            headers=error.headers or {},
        )
    if isinstance(error, (InvalidRequestError, UnknownModelError, BudgetExceededError)):
        return _told(error)
    for fault in filter(_concerns_us, _faults(error)):
        _log.error("candidate %r refuses the router's key: %s", fault.candidate, fault)
        return Refused(
            502,
            f"candidate {fault.candidate!r} refuses the router's credentials; whoever runs this "
            "server has to correct them",
            code="provider_authentication",
        )
    if isinstance(error, StoreError):
        _log.error("the store cannot be used: %s", error)
        return Refused(
            503, "the router's books cannot be kept; nothing more was sent", code="store_error"
        )
    if isinstance(error, OptLLMError) and error_code(error) == PROVIDER_QUOTA_CODE:
        return _used_up(error)
    if isinstance(error, OptLLMError):
        return _told(error)
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("unexpected %s:\n%s", type(error).__name__, where)
    return Refused(500, "the router failed; its log says more", code="internal_error")


def refusal_body(refused: Refused) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = refused.type or error_type(refused.status, refused.code)
    return {
        "error": {
            "message": _encodable(refused.message),
            "type": kind,
            "param": None if refused.param is None else _encodable(refused.param),
            "code": refused.code,
        }
    }


def _encodable(text: str) -> str:
    """What a caller wrote may hold half of a surrogate pair, which has no form in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(refused: Refused) -> JSONResponse:
    """The response to a request that is refused."""
    return JSONResponse(refusal_body(refused), refused.status, headers=dict(refused.headers))


def budget_headers(error: BudgetExceededError) -> dict[str, str]:
    """When to come back, where time helps; ``x-should-retry`` is what openai's clients go by."""
    headers = {"x-should-retry": "false"}
    if error.next_window is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.next_window - time.time())))
    return headers


def _faults(error: Exception) -> Sequence[ProviderError]:
    """What providers did wrong."""
    return error.causes if isinstance(error, (AllCandidatesFailedError, ProviderError)) else ()


def _concerns_us(error: ProviderError) -> bool:
    """Whether the provider's complaint is about our credentials, not about the request."""
    return isinstance(error, ProviderAuthenticationError) or error.status in (401, 403)


def _used_up(error: OptLLMError) -> Refused:
    """The router's accounts have no money left: nothing that a caller's budget or patience mends.

    As with OpenAI's own ``insufficient_quota``, its clients are told not to try again.
    """
    _log.error("the quota of the router's account is used up: %s", error)
    return Refused(
        status_of(error),
        "the quota of the router's account with the provider is used up; whoever runs this server "
        "has to raise it",
        code=PROVIDER_QUOTA_CODE,
        headers={"x-should-retry": "false"},
        type=error_body(error)["type"],
    )


def _told(error: OptLLMError) -> Refused:
    """An error whose message is for the caller, with the status that OpenAI would give it."""
    status = status_of(error)
    kind = shared_cause(error) or error
    if isinstance(kind, ProviderTimeoutError):
        status = 504
    elif isinstance(kind, ProviderConnectionError):
        status = 502
    elif isinstance(error, ConfigurationError) and status == 500:
        status = 400
    headers = budget_headers(error) if isinstance(error, BudgetExceededError) else {}
    told = error_body(error)
    return Refused(
        status,
        str(error)[:_MOST_TOLD],
        code=told["code"],
        param=told["param"],
        headers=headers,
        type=told["type"],
    )
