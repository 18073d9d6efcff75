"""Our errors as openai's: what the client raises is caught by either name.

``except openai.RateLimitError`` and ``except optllm_router.BudgetExceededError`` both catch a
budget that is used up, as OpenAI reports its own quota. The classes are made here, on the
first error, because importing openai takes a second that importing us must not take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optllm_router._errors import (
    AllCandidatesFailedError,
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    OptLLMError,
    OverloadedError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnknownModelError,
    error_code,
)

if TYPE_CHECKING:
    import openai

_STATUS: dict[type[OptLLMError], int] = {
    BudgetExceededError: 429,
    OverloadedError: 503,
    ProviderRateLimitedError: 429,
    ProviderAuthenticationError: 401,
    ProviderRejectedError: 400,
    InvalidRequestError: 400,
    UnknownModelError: 404,
    ProviderUnavailableError: 503,
    ProviderResponseError: 502,
    AllCandidatesFailedError: 503,
    ConfigurationError: 400,
}
"""The first that fits counts."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
"""``error.type`` by status; otherwise that of the caller's mistakes, or of others'."""
_LONGEST_PARAM = 200

_joined_classes: dict[tuple[type, type], type] = {}


@contextlib.contextmanager
def openai_errors() -> Iterator[None]:
    """Raise what leaves the block as an error of both trees.

    openai is imported as a whole before: where several threads import parts of it at once for the
    first time, Python would rather hand out half a module than wait for ever.
    """
    import openai  # noqa: F401

    try:
        yield
    except OptLLMError as error:
        joined = as_openai_error(error)
        raise joined.with_traceback(error.__traceback__) from error.__cause__


def as_openai_error(error: OptLLMError) -> OptLLMError:
    """The same error, also of openai's fitting class."""
    import openai

    if isinstance(error, openai.OpenAIError):
        return error
    joined = _joined(type(error), _theirs(error))
    twin: Any = joined.__new__(joined)
    twin.__dict__.update(error.__dict__)
    _fill(twin, error)
    twin.args = error.args
    if isinstance(error, (ProviderError, AllCandidatesFailedError)):
        twin._causes = tuple(map(as_openai_error, error._causes))
    same: OptLLMError = twin
    return same


def _fill(twin: Any, error: OptLLMError) -> None:
    import openai

    from optllm_router._openai_http import http

    message, body = str(error), error_body(error)
    request = http.Request("POST", "https://optllm.invalid/v1/chat/completions")
    if isinstance(twin, openai.APITimeoutError):
        openai.APITimeoutError.__init__(twin, request)
    elif isinstance(twin, openai.APIConnectionError):
        openai.APIConnectionError.__init__(twin, message=message, request=request)
    elif isinstance(twin, openai.APIStatusError):
        response = http.Response(
            status_of(error), headers=_headers(error), request=request, json={"error": body}
        )
        openai.APIStatusError.__init__(twin, message, response=response, body=body)
    if isinstance(twin, openai.APIError):  # also of those that come without a response
        twin.code, twin.param, twin.type = body["code"], body["param"], body["type"]


def _headers(error: OptLLMError) -> dict[str, str]:
    """How long the provider wants to be left alone, where OpenAI's users look for it."""
    seconds = getattr(shared_cause(error) or error, "retry_after_seconds", None)
    return {} if seconds is None else {"retry-after": f"{seconds:g}"}


def error_body(error: OptLLMError) -> dict[str, str | None]:
    """What OpenAI's API would say under ``error``."""
    return {
        "message": str(error),
        "type": _own_type(error) or error_type(status_of(error), error_code(error)),
        "param": _param(error),
        "code": error_code(error),
    }


def error_type(status: int, code: str | None) -> str:
    """OpenAI's word for the kind of an error."""
    if code == "insufficient_quota":
        return code
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def _own_type(error: OptLLMError) -> str | None:
    """The provider's word, where it refuses the request itself."""
    error = shared_cause(error) or error
    return error.type if isinstance(error, ProviderError) else None


def _param(error: OptLLMError) -> str | None:
    """The argument that was wrong, cut short: it may be of the caller's naming."""
    if isinstance(error, UnknownModelError):
        return "model"
    param = error.param if isinstance(error, (InvalidRequestError, ProviderError)) else None
    return None if param is None else param[:_LONGEST_PARAM]


def status_of(error: OptLLMError) -> int:
    """The HTTP status with which OpenAI's API would report this error."""
    error = shared_cause(error) or error
    if isinstance(error, ProviderError) and error.status is not None and error.status >= 400:
        return error.status
    return next((status for ours, status in _STATUS.items() if isinstance(error, ours)), 500)


def shared_cause(error: OptLLMError) -> ProviderError | None:
    """The first cause where all candidates failed in one way: who waits for it is to hear of it."""
    causes = error.causes if isinstance(error, AllCandidatesFailedError) else ()
    return causes[0] if len({type(cause) for cause in causes}) == 1 else None


def _theirs(error: OptLLMError) -> type[openai.OpenAIError]:
    import openai

    error = shared_cause(error) or error
    if isinstance(error, ProviderTimeoutError):
        return openai.APITimeoutError
    if isinstance(error, ProviderConnectionError):
        return openai.APIConnectionError
    if not isinstance(error, tuple(_STATUS)):
        return openai.OpenAIError
    status = status_of(error)
    by_status = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        409: openai.ConflictError,
        422: openai.UnprocessableEntityError,
        429: openai.RateLimitError,
    }
    return by_status.get(
        status, openai.InternalServerError if status >= 500 else openai.APIStatusError
    )


def _joined(ours: type[OptLLMError], theirs: type[openai.OpenAIError]) -> Any:
    """One class per pair, so that what is caught once can be compared with what comes later."""
    if (ours, theirs) not in _joined_classes:
        namespace = {"__module__": ours.__module__, "__doc__": ours.__doc__}
        _joined_classes[ours, theirs] = type(ours.__name__, (ours, theirs), namespace)
    return _joined_classes[ours, theirs]
