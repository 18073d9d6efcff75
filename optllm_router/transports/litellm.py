"""Providers through litellm, imported on first use.

litellm is told to stay quiet and local before it is imported: it would otherwise fetch its
price map and tokenizers over the network. Its own retries are off; ours know the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import math
import os
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optllm_router._dispensable import is_dispensable
from optllm_router._errors import ConfigurationError, ProviderError
from optllm_router._types import Call, Candidate, Chunk, Completion, Usage
from optllm_router.transports._bodies import says_something
from optllm_router.transports._cutting import Deadline, StreamDeadline
from optllm_router.transports._faults import (
    BROKEN_OFF,
    NO_ANSWER,
    TIMED_OUT,
    UNREACHABLE,
    Fault,
    error_in,
    fault_of_status,
)
from optllm_router.transports._usage import read_usage
from optllm_router.transports._waiting import retry_after_seconds

_import_lock = threading.Lock()
_litellm: Any = None


def load_litellm() -> Any:
    """litellm, imported with network look-ups, telemetry and console noise off."""
    return _litellm or _import_litellm()


def _import_litellm() -> Any:
    global _litellm
    with _import_lock:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        litellm: Any = importlib.import_module("litellm")
        litellm.disable_hf_tokenizer_download = True
        litellm.suppress_debug_info = True
        litellm.telemetry = False
        # Once only: it makes every logger of the program forget what it is to log.
        logging.getLogger("LiteLLM").setLevel(logging.ERROR)
        _litellm = litellm
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

    def close(self) -> None:
        """Nothing to do: litellm keeps its connections for the life of the process."""

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        litellm = load_litellm()
        with _mapped(litellm, candidate), Deadline(call.timeout_seconds):
            if call.operation == "embedding":
                return _embeddings(litellm.embedding(**_arguments(candidate, call)), candidate)
            return _completion(litellm.completion(**_arguments(candidate, call)), candidate)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        litellm = load_litellm()
        with _mapped(litellm, candidate), _time_left(Deadline(call.timeout_seconds)):
            if call.operation == "embedding":
                answer = await litellm.aembedding(**_arguments(candidate, call))
                return _embeddings(answer, candidate)
            answer = await litellm.acompletion(**_arguments(candidate, call))
            return _completion(answer, candidate)

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """Ask a candidate and hand on its chunks as they come; see ``Transport.stream``."""
        litellm = load_litellm()
        reading = _Reading(candidate, call)
        with _mapped(litellm, candidate, reading), contextlib.ExitStack() as opened:
            with reading.deadline:
                stream = litellm.completion(**_arguments(candidate, call, streamed=True))
                opened.callback(_close, stream)
            while True:
                with reading.deadline:
                    piece = next(stream, None)
                if piece is None:
                    break
                chunk = reading.chunk(stream, piece)
                if chunk is not None:
                    yield chunk

    async def astream(self, candidate: Candidate, call: Call) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        litellm = load_litellm()
        reading = _Reading(candidate, call)
        with _mapped(litellm, candidate, reading):
            with _time_left(reading.deadline):
                stream = await litellm.acompletion(**_arguments(candidate, call, streamed=True))
            try:
                while True:
                    with _time_left(reading.deadline):
                        piece = await anext(stream, None)
                    if piece is None:
                        break
                    chunk = reading.chunk(stream, piece)
                    if chunk is not None:
                        yield chunk
            finally:
                await stream.aclose()


def _time_left(deadline: Deadline) -> contextlib.AbstractContextManager[Any]:
    """Cancels what is inside at the deadline; for coroutines, and around no ``yield``."""
    import anyio

    return anyio.fail_after(max(deadline.seconds_left, 0.0))


def _arguments(candidate: Candidate, call: Call, *, streamed: bool = False) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **candidate.parameters,
        **call.parameters,
        "model": candidate.model,
        "timeout": _shared_timeout(call.timeout_seconds),
        "num_retries": 0,
        "max_retries": 0,
    }
    for name in candidate.refuses.intersection(call.parameters):
        if is_dispensable(name, call.parameters[name]):
            del arguments[name]
    if call.operation == "embedding":
        arguments["input"] = [message["content"] for message in call.messages]
    else:
        arguments["messages"] = list(call.messages)
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
    if call.max_output_tokens is not None and call.operation == "chat":
        arguments["max_tokens"] = call.max_output_tokens
    if candidate.api_key is not None:
        arguments["api_key"] = candidate.api_key
    if streamed:
        options = call.parameters.get("stream_options") or {}
        arguments["stream"] = True
        arguments["stream_options"] = {**options, "include_usage": True}
    return arguments


def _shared_timeout(seconds: float) -> float:
    """The time limit, rounded up to one of 20 per decade.

    litellm keeps an HTTP client, with connections of its own, for each value it ever saw, and what
    is left of a deadline is never the same twice.
    """
    return float(f"{10 ** (math.ceil(20 * math.log10(seconds) - 1e-9) / 20):.4g}")


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
        raise NO_ANSWER.of(candidate)
    answered = says_something(choice["message"] for choice in choices)
    usage = read_usage(body.get("usage"), answered=answered, headers=_headers(answer))
    return Completion(body=body, usage=_priced(usage, answer))


def _embeddings(answer: Any, candidate: Candidate) -> Completion:
    body: Mapping[str, Any] = answer.model_dump()
    if not body.get("data"):
        raise NO_ANSWER.of(candidate)
    usage = read_usage(body.get("usage"), answered=False, headers=_headers(answer))
    return Completion(body=body, usage=_priced(usage, answer))


def _priced(usage: Usage | None, answer: Any) -> Usage | None:
    """Usage that costs nothing where litellm took the answer from a cache that the program set."""
    hidden = getattr(answer, "_hidden_params", None) or {}
    return replace(usage, reported_nano=0) if usage and hidden.get("cache_hit") is True else usage


def _headers(answer: Any) -> Mapping[str, Any]:
    """The provider's headers, under the names that litellm gives them."""
    hidden = getattr(answer, "_hidden_params", None) or {}
    return hidden.get("additional_headers") or {}


class _Reading:
    """What both twins make of litellm's stream, piece by piece.

    Attributes:
        deadline: when the first token must be there, then when the answer must be whole.
        begun: whether a chunk was handed on; what follows it was billed.
    """

    def __init__(self, candidate: Candidate, call: Call) -> None:
        self.begun = False
        self._answered = False
        self._candidate = candidate
        self.deadline = StreamDeadline(call)

    def chunk(self, stream: Any, piece: Any) -> Chunk | None:
        """One chunk; ``None`` for what litellm made up.

        Raises:
            ProviderError: the answer takes too long, or ended without its end.
        """
        if self.deadline.seconds_left <= 0:
            raise TIMED_OUT.of(self._candidate, f"within {self.deadline.seconds:g} seconds")
        body = piece.model_dump(exclude_none=True)
        choices = [choice for choice in body.get("choices", ()) if not _is_empty(choice)]
        if any("finish_reason" in choice for choice in choices) and not _was_finished(stream):
            raise self.unfinished()
        # Without a count by the provider, litellm counts for itself and does not say so.
        block = body.pop("usage", None)
        counted = block and any(getattr(one, "usage", None) for one in stream.chunks)
        usage = None
        if counted:
            usage = read_usage(block, answered=self._answered, headers=_headers(stream))
        if usage is not None:
            body["usage"] = block
        elif not choices:
            return None
        for choice in choices:
            choice.setdefault("finish_reason", None)
            self._answered = self._answered or says_something([choice["delta"]])
        self.begun = True
        chunk = Chunk({**body, "choices": choices}, usage)
        self.deadline.saw(chunk)
        return chunk

    def unfinished(self) -> ProviderError:
        """What it is when a stream is over without its end."""
        if self.begun:
            return BROKEN_OFF.of(self._candidate, "there is no end to its answer")
        return NO_ANSWER.of(self._candidate)


def _is_empty(choice: Mapping[str, Any]) -> bool:
    return "finish_reason" not in choice and not choice.get("delta")


def _was_finished(stream: Any) -> bool:
    """Whether the provider said why it ended; else litellm makes a reason up."""
    return bool(stream.received_finish_reason or stream.intermittent_finish_reason)


def _close(stream: Any) -> None:
    """Close the connection of a synchronous stream; litellm closes asynchronous ones."""
    close = getattr(stream.completion_stream, "close", None)
    if close is not None:
        close()


@contextlib.contextmanager
def _mapped(litellm: Any, candidate: Candidate, reading: _Reading | None = None) -> Iterator[None]:
    try:
        yield
    except ProviderError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes ours
        if reading is not None and _is_over(error):
            ours = reading.unfinished()
        else:
            ours = _our_error(litellm, candidate, error)
        if reading is not None and reading.begun:
            ours.maybe_billed = True
        # The cause is cut off: a provider's text may quote the key, and tracebacks are logged.
        raise ours from None


def _is_over(error: BaseException) -> bool:
    """Whether litellm complains that the provider's stream was over before its end.

    One that was cut at its deadline is over, too, but in time's name.
    """
    return not isinstance(error, TimeoutError) and any(
        isinstance(one, (StopIteration, StopAsyncIteration)) for one in _chain(error)
    )


def _our_error(litellm: Any, candidate: Candidate, error: Exception) -> ProviderError:
    error = getattr(error, "original_exception", None) or error  # of a stream
    below = list(_chain(error))
    refusals = _of_http("HTTPStatusError")
    answered: Any = next((one for one in below if isinstance(one, refusals)), None)
    fault = _fault(litellm.exceptions, below, answered and answered.response.status_code)
    return fault.of(
        candidate,
        str(error),
        status=answered and answered.response.status_code,
        retry_after_seconds=answered and retry_after_seconds(answered.response.headers),
        error=_words(litellm.exceptions, below, answered),
    )


def _words(theirs: Any, below: Sequence[BaseException], answered: Any) -> Mapping[str, Any]:
    """What the provider's body has under ``error``, with what litellm understood of it.

    Anthropic's and others' have no code; litellm's class then tells what they say in a sentence.
    """
    bodies = (getattr(one, "body", None) for one in below)
    said = _error_in(answered) or next((body for body in bodies if isinstance(body, Mapping)), {})
    if isinstance(said.get("code"), str):
        return said
    if isinstance(below[0], theirs.ContextWindowExceededError):
        return {**said, "code": "context_length_exceeded", "param": "messages"}
    if isinstance(below[0], theirs.ContentPolicyViolationError):
        return {**said, "code": "content_filter"}
    return said


def _error_in(answered: Any) -> Mapping[str, Any]:
    """The ``error`` of a response; nothing where it is of another form, or was not read."""
    unread = _of_http("StreamError")
    try:
        error = error_in(json.loads(answered.response.content)) if answered else None
    except unread:
        return {}
    except (ValueError, RecursionError):
        return {}
    return error if isinstance(error, Mapping) else {}


def _of_http(*names: str) -> tuple[type[BaseException], ...]:
    """Classes of the HTTP libraries that litellm may have used: httpx, and openai 3's httpx2."""
    loaded = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(getattr(library, name) for library in loaded for name in names)


def _fault(theirs: Any, below: Sequence[BaseException], status: int | None) -> Fault:
    """Map by litellm's class, then by what lies under it: litellm calls much a 500."""
    error = below[0]
    if isinstance(error, (theirs.Timeout, TimeoutError)):
        return TIMED_OUT
    if isinstance(error, theirs.AuthenticationError):
        return fault_of_status(401)
    if isinstance(error, theirs.RateLimitError):
        return fault_of_status(429)
    if status is not None and status >= 500:
        return fault_of_status(status)
    if isinstance(error, _rejections(theirs)):
        return fault_of_status(status or 400)
    if status is not None:
        return fault_of_status(status)
    if any(isinstance(one, _of_http("ConnectError", "ConnectTimeout")) for one in below):
        return UNREACHABLE
    if any(isinstance(one, _of_http("TransportError")) for one in below):
        return BROKEN_OFF
    return NO_ANSWER


def _rejections(theirs: Any) -> tuple[type[Exception], ...]:
    return theirs.BadRequestError, theirs.NotFoundError, theirs.UnprocessableEntityError


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
