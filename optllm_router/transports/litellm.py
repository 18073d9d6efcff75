"""Providers through litellm, imported on first use.

litellm is told to stay quiet and local before it is imported: it would otherwise fetch its
price map and tokenizers over the network. Its own retries are off; ours know the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optllm_router._errors import (
    ConfigurationError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router._types import Call, Candidate, Completion
from optllm_router.transports._usage import read_usage

_MOST_ERROR_CHARACTERS = 300
_FREE_FAILURES = (500, 503, 529)
"""Failures of the provider itself. With 502, 504, 52x, a gateway lost an answer that was made."""
_SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET")
_SHORTEST_SECRET = 8
"""Shorter values are words that messages need, and no keys."""
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|gsk|xai|AIza)[-_]?[A-Za-z0-9_\-*]{12,}")
_import_lock = threading.Lock()


def load_litellm() -> Any:
    """Import litellm with network look-ups, telemetry and console noise off."""
    with _import_lock:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        litellm: Any = importlib.import_module("litellm")
        litellm.disable_hf_tokenizer_download = True
        litellm.suppress_debug_info = True
        litellm.telemetry = False
        logging.getLogger("LiteLLM").setLevel(logging.ERROR)
        return litellm


def keys_in_sight(candidates: Sequence[Candidate]) -> bool:
    """Whether every candidate plainly has a key, as far as can be told without litellm.

    Providers name their variables ``OPENAI_API_KEY``, ``ANTHROPIC_API_KEY`` and so on; for
    those that do not, :meth:`LiteLLMTransport.check` knows.
    """
    return all(
        candidate.api_key is not None
        or f"{candidate.model.partition('/')[0].upper()}_API_KEY" in os.environ
        for candidate in candidates
    )


class LiteLLMTransport:
    """Sends calls with ``litellm.completion`` and ``litellm.acompletion``."""

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise ``ConfigurationError`` when a provider's key is nowhere to be found."""
        litellm = load_litellm()
        for candidate in candidates:
            if candidate.api_key is not None:
                continue
            found = litellm.validate_environment(
                model=candidate.model, api_base=candidate.parameters.get("api_base")
            )
            missing = [name for name in found["missing_keys"] if name.endswith("_KEY")]
            if missing:
                raise ConfigurationError(
                    f"no key for model {candidate.name!r}: set the environment variable "
                    f"{missing[0]}, or api_key in its litellm_params"
                )

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        litellm = load_litellm()
        with _mapped(litellm, candidate):
            return _completion(litellm.completion(**_arguments(candidate, call)), candidate)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        litellm = load_litellm()
        with _mapped(litellm, candidate):
            answer = await litellm.acompletion(**_arguments(candidate, call))
            return _completion(answer, candidate)


def _arguments(candidate: Candidate, call: Call) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **candidate.parameters,
        **call.parameters,
        "model": candidate.model,
        "messages": list(call.messages),
        "timeout": call.timeout_seconds,
        "num_retries": 0,
        "max_retries": 0,
    }
    for name in ("extra_headers", "extra_body"):
        # The configuration wins: it may hold the key.
        both = {**(call.parameters.get(name) or {}), **(candidate.parameters.get(name) or {})}
        if both:
            arguments[name] = both
    if call.parameters.get("metadata"):
        # litellm keeps its own notes in metadata; the caller's have a place of their own there.
        notes = candidate.parameters.get("metadata") or {}
        arguments["metadata"] = {**notes, "requester_metadata": dict(call.parameters["metadata"])}
    if arguments.get("tools") and _looks_for_mcp():
        arguments["_skip_mcp_handler"] = True
    if call.max_output_tokens is not None:
        arguments["max_tokens"] = call.max_output_tokens
    if candidate.api_key is not None:
        arguments["api_key"] = candidate.api_key
    return arguments


@functools.cache
def _looks_for_mcp() -> bool:
    """Whether this litellm looks for servers of its own among tools, and needs ``mcp`` for it."""
    try:
        found = importlib.util.find_spec("litellm.responses.mcp.chat_completions_handler")
    except ModuleNotFoundError:
        return False
    return found is not None


def _completion(answer: Any, candidate: Candidate) -> Completion:
    body: Mapping[str, Any] = answer.model_dump()
    choices = body.get("choices")
    if not choices or not all(isinstance(choice.get("message"), Mapping) for choice in choices):
        raise ProviderResponseError(
            f"model {candidate.name!r} answered something that is not a chat completion; "
            "check its api_base",
            candidate=candidate.name,
        )
    answered = any(choice["message"].get("content") for choice in choices)
    usage = read_usage(body.get("usage"), answered=answered, headers=_headers(answer))
    return Completion(body=body, usage=usage)


def _headers(answer: Any) -> Mapping[str, Any]:
    """The provider's headers, under the names that litellm gives them."""
    hidden = getattr(answer, "_hidden_params", None) or {}
    return hidden.get("additional_headers") or {}


@contextlib.contextmanager
def _mapped(litellm: Any, candidate: Candidate) -> Iterator[None]:
    try:
        yield
    except ProviderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes ours
        # The cause is cut off: a provider's text may quote the key, and tracebacks are logged.
        raise _our_error(litellm, candidate, error) from None


def _our_error(litellm: Any, candidate: Candidate, error: Exception) -> ProviderError:
    """Map by litellm's class, then by what lies under it: litellm calls much a 500."""
    theirs = litellm.exceptions
    httpx = importlib.import_module("httpx")
    below = list(_chain(error))
    answered = next((one for one in below if isinstance(one, httpx.HTTPStatusError)), None)
    status = answered.response.status_code if answered else None
    kind: type[ProviderError]
    maybe_billed: bool | None = None
    if isinstance(error, theirs.Timeout):
        kind, what = ProviderTimeoutError, "did not answer in time"
    elif isinstance(error, theirs.AuthenticationError) or status == 403:
        kind, what = ProviderAuthenticationError, "does not accept the key"
    elif isinstance(error, theirs.RateLimitError):
        kind, what = ProviderRateLimitedError, "asks for fewer calls"
    elif isinstance(error, _rejections(theirs)) or (status is not None and status < 500):
        kind, what = ProviderRejectedError, "refuses the request"
    elif status is not None:
        kind, what = ProviderUnavailableError, "failed"
    elif any(isinstance(one, httpx.TransportError) for one in below):
        kind, what = ProviderConnectionError, "could not be reached, or broke off"
        unsent = (httpx.ConnectError, httpx.ConnectTimeout)
        maybe_billed = not any(isinstance(one, unsent) for one in below)
    else:
        kind, what = ProviderResponseError, "answered something that is not a chat completion"
    if status is not None and status >= 500 and status not in _FREE_FAILURES:
        maybe_billed = True
    return kind(
        f"model {candidate.name!r} {what}: {_first_line(error, candidate)}",
        candidate=candidate.name,
        status=status,
        maybe_billed=maybe_billed,
    )


def _rejections(theirs: Any) -> tuple[type[Exception], ...]:
    return theirs.BadRequestError, theirs.NotFoundError, theirs.UnprocessableEntityError


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception, candidate: Candidate) -> str:
    """What the error says, with every secret masked before it is cut: half a key is one, too."""
    line = str(error).strip().partition("\n")[0]
    for secret in sorted(_secrets(candidate), key=len, reverse=True):
        line = line.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", line)[:_MOST_ERROR_CHARACTERS]


def _secrets(candidate: Candidate) -> set[str]:
    """The keys that this process knows: a provider may quote any of them in a refusal."""
    headers = candidate.parameters.get("extra_headers") or {}
    values = [value for name, value in os.environ.items() if name.endswith(_SECRET_NAMES)]
    values += [
        value
        for name, value in candidate.parameters.items()
        if isinstance(value, str) and name.upper().endswith(_SECRET_NAMES)
    ]
    values += [word for value in headers.values() for word in str(value).split()]
    long = {value for value in values if len(value) >= _SHORTEST_SECRET}
    return long | ({candidate.api_key} if candidate.api_key else set())
