"""openai's own client, whose requests never leave the process.

What is seldom called (``parse``, ``with_raw_response``, ``responses``, ``embeddings`` and so on) is
left to openai's code: it speaks HTTP to a transport that hands every request to our runtime. The
types, the helpers and the signatures are then openai's by construction. Imported on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import openai

from optllm_router._arguments import QUERY_ELSEWHERE, arguments_of_body
from optllm_router._chat import Prepared, completion_body
from optllm_router._chunks import AsyncChatChunks, ChatChunks
from optllm_router._embeddings import ENCODINGS, embedding_body
from optllm_router._errors import InvalidRequestError, OptLLMError, ProviderError
from optllm_router._openai_errors import as_openai_error, error_body, status_of
from optllm_router._openai_http import http
from optllm_router._openai_streams import PAID, Encode, chat_events, event_response
from optllm_router._response_events import ResponseEvents
from optllm_router._responses import chat_arguments, response_body, response_param
from optllm_router._routing import routing_headers, routing_info
from optllm_router._session import Session
from optllm_router._steps import Answer
from optllm_router._telling import MADE, Telling

_BASE_URL = "https://optllm.invalid/v1"
_KEY = "unused"
_ERROR = "optllm_error"
_ENDPOINTS = ("chat/completions", "embeddings", "responses")
PARSED = "optllm_parsed"
"""A request's extension: its body as JSON values, where it was read before."""
LARGE_BYTES = 200_000
"""What is larger is read and checked in a thread: event loops have others to serve."""
_OWN_HEADERS = frozenset(
    (
        *("accept", "accept-encoding", "connection", "content-length", "content-type", "host"),
        *("openai-organization", "openai-project", "user-agent", "idempotency-key"),
    )
)
"""What openai's client sends by itself, besides ``x-stainless-...``."""


@dataclass(frozen=True)
class _Asked:
    """What a request asks for, and what its answer becomes."""

    prepared: Prepared
    body: Callable[[Answer], Mapping[str, Any]] = completion_body
    encode: Encode = chat_events


def _listed(session: Session, request: http.Request) -> http.Response:
    """The models, or one of them."""
    endpoint, _, name = request.url.path.removeprefix("/v1/").partition("/")
    if endpoint != "models":
        raise _not_served(request)
    found = session.model(name) if name else {"object": "list", "data": session.models()}
    return http.Response(200, json=found, request=request)


def _not_served(request: http.Request) -> InvalidRequestError:
    return InvalidRequestError(
        f"{request.method} {request.url.path} is not served: only chat completions, responses "
        "and embeddings are made here"
    )


def _asked(session: Session, request: http.Request) -> _Asked:
    endpoint = request.url.path.removeprefix("/v1/")
    if request.method != "POST" or endpoint not in _ENDPOINTS:
        raise _not_served(request)
    if request.url.query:
        raise InvalidRequestError(
            f"argument 'extra_query' is not taken: {QUERY_ELSEWHERE}", param="extra_query"
        )
    given = request.extensions.get(PARSED)
    if given is None:
        given = json.loads(request.content)
    arguments = arguments_of_body(given)
    arguments["timeout"] = request.extensions.get("timeout", {}).get("read")
    arguments["extra_headers"] = _further_headers(request)
    if endpoint == "chat/completions":
        return _Asked(_prepared(session, arguments))
    if endpoint == "embeddings":
        encoding = given.get("encoding_format") or ENCODINGS[0]
        encode = functools.partial(embedding_body, encoding=encoding)
        return _Asked(session.prepare_embedding(arguments), encode)
    prepared = _prepared(session, chat_arguments(arguments))
    return _Asked(prepared, functools.partial(_response, given), ResponseEvents(given))


@contextlib.contextmanager
def _named_as_asked(request: http.Request) -> Iterator[None]:
    """Call an argument that is wrong what it is called in the request."""
    try:
        yield
    except (InvalidRequestError, ProviderError) as error:
        if request.url.path == "/v1/responses":
            error.param = response_param(error.param)
        raise


def _prepared(session: Session, arguments: dict[str, Any]) -> Prepared:
    messages, model = arguments.pop("messages", None), arguments.pop("model", "auto")
    return session.prepare(messages, model, arguments)


def _response(request: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
    return response_body(request, completion_body(answer))


def _further_headers(request: http.Request) -> dict[str, str] | None:
    """What the caller added to openai's own headers."""
    further = {
        name: value
        for name, value in request.headers.items()
        if name not in _OWN_HEADERS and not name.startswith("x-stainless-")
    }
    if further.get("authorization") == f"Bearer {_KEY}":
        del further["authorization"]
    return further or None


class Wire(http.BaseTransport):
    """Answers openai's requests in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle_request(self, request: http.Request) -> http.Response:
        """Answer one; what goes wrong becomes the response that OpenAI would send."""
        try:
            return self.answer(request)
        except OptLLMError as error:
            return _failed(error, request)

    def answer(self, request: http.Request) -> http.Response:
        """Answer one; raises what goes wrong before the first chunk."""
        with _named_as_asked(request):
            return self._answer(request)

    def _answer(self, request: http.Request) -> http.Response:
        if request.method == "GET":
            return _listed(self._session, request)
        asked = _asked(self._session, request)
        if asked.prepared.stream:
            stream = self._session.stream(asked.prepared)
            chunks = ChatChunks(stream, asked.prepared.include_usage)
            return event_response(chunks, request, asked.encode)
        return _whole(asked, self._session.complete(asked.prepared), request)


class AsyncWire(http.AsyncBaseTransport):
    """As :class:`Wire`, without blocking the event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def handle_async_request(self, request: http.Request) -> http.Response:
        """As :meth:`Wire.handle_request`."""
        try:
            return await self.answer(request)
        except OptLLMError as error:
            return _failed(error, request)

    async def answer(self, request: http.Request) -> http.Response:
        """As :meth:`Wire.answer`."""
        with _named_as_asked(request):
            return await self._answer(request)

    async def _answer(self, request: http.Request) -> http.Response:
        if request.method == "GET":
            return _listed(self._session, request)
        if len(request.content) > LARGE_BYTES:
            asked = await asyncio.to_thread(_asked, self._session, request)
        else:
            asked = _asked(self._session, request)
        if asked.prepared.stream:
            stream = await self._session.astream(asked.prepared)
            chunks = AsyncChatChunks(stream, asked.prepared.include_usage)
            return event_response(chunks, request, asked.encode)
        return _whole(asked, await self._session.acomplete(asked.prepared), request)


def _whole(asked: _Asked, answer: Answer, request: http.Request) -> http.Response:
    headers = routing_headers(answer.decision, answer.candidate.name, answer)
    made = routing_info(answer, str(answer.completion.body.get("id") or ""))
    return http.Response(
        200,
        headers={"content-type": "application/json", **headers},
        content=json.dumps(asked.body(answer)),  # in ASCII, for half a surrogate pair to pass
        request=request,
        extensions={MADE: lambda: made, PAID: lambda: answer},
    )


def _failed(error: OptLLMError, request: http.Request) -> http.Response:
    """The error as a response, which carries it: openai's client is to raise that very one."""
    joined = as_openai_error(error)
    # Redirects and the like would be followed; what has no status of its own is an error of ours.
    status = max(status_of(error), 400)
    body = {"error": error_body(error)}
    return http.Response(status, json=body, request=request, extensions={_ERROR: joined})


class _Faithful(Telling):
    """Raises the error that a response carries, and tells of an answer how it was made."""

    def _make_status_error(self, err_msg: str, *, body: object, response: http.Response) -> Any:
        carried = response.extensions.get(_ERROR)
        make: Any = super()
        return carried or make._make_status_error(err_msg, body=body, response=response)


class InProcessOpenAI(_Faithful, openai.OpenAI):
    """An ``openai.OpenAI`` that routes within budget."""


class AsyncInProcessOpenAI(_Faithful, openai.AsyncOpenAI):
    """An ``openai.AsyncOpenAI`` that routes within budget."""


def openai_over(session: Session) -> openai.OpenAI:
    """openai's client over a session, made once, and again where somebody closed it."""
    if "sync" not in session.over_wire or session.over_wire["sync"].is_closed():
        client = http.Client(transport=Wire(session))
        session.over_wire["sync"] = InProcessOpenAI(
            api_key=_KEY, base_url=_BASE_URL, timeout=None, max_retries=0, http_client=client
        )
    made: openai.OpenAI = session.over_wire["sync"]
    return made


def async_openai_over(session: Session) -> openai.AsyncOpenAI:
    """openai's asynchronous client over a session, as :func:`openai_over`."""
    if "async" not in session.over_wire or session.over_wire["async"].is_closed():
        client = http.AsyncClient(transport=AsyncWire(session))
        session.over_wire["async"] = AsyncInProcessOpenAI(
            api_key=_KEY, base_url=_BASE_URL, timeout=None, max_retries=0, http_client=client
        )
    made: openai.AsyncOpenAI = session.over_wire["async"]
    return made
