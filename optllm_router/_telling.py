"""openai's classes, made to tell how an answer was made: ``optllm``, a :class:`RoutingInfo`.

openai's parsers make plain values of what they do not know, and its helpers around streams build
their answers themselves. So this is told of what comes out of them, here and for all: whole and
parsed answers, streams, helpers and raw responses, of either client. Imported with openai, on
first use.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from openai import AsyncStream, Stream
from openai.lib.streaming.chat import (
    AsyncChatCompletionStream,
    AsyncChatCompletionStreamManager,
    ChatCompletionStream,
    ChatCompletionStreamManager,
)
from openai.lib.streaming.responses import (
    AsyncResponseStream,
    AsyncResponseStreamManager,
    ResponseStream,
    ResponseStreamManager,
)

from optllm_router._openai_http import http
from optllm_router._routing import RoutingInfo

MADE = "optllm_made"
"""A response's extension: a function that tells how its answer was made, once that is whole."""


class Telling:
    """Of an openai client: each of its answers, and each of its streams, has ``optllm``.

    A stream and its helper have it from the start; it is ``None`` until the last event was read,
    as what an answer costs is known only then. The whole answers that they end with have it, too:
    ``get_final_completion()``, ``get_final_response()`` and the last event's ``response``.
    """

    @functools.cached_property
    def chat(self) -> Any:
        """openai's."""
        parent: Any = super()
        return _with_telling_helpers(parent.chat)

    @functools.cached_property
    def beta(self) -> Any:
        """openai's; up to its version 1.92 the helpers of ``chat`` were here."""
        parent: Any = super()
        beta = parent.beta
        if hasattr(beta, "chat"):
            _with_telling_helpers(beta.chat)
        return beta

    @functools.cached_property
    def responses(self) -> Any:
        """openai's."""
        parent: Any = super()
        responses = parent.responses
        responses.stream = _telling_helper(responses.stream)
        return responses

    def post(self, path: str, *, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
        """openai's, whose result is parsed by :func:`_parsed`."""
        parent: Any = super()
        further = {**(options or {})}
        further["post_parser"] = functools.partial(_parsed, further.get("post_parser"))
        return parent.post(path, options=further, **given)

    def _process_response_data(self, *, data: object, cast_to: Any, response: http.Response) -> Any:
        parent: Any = super()
        answer = parent._process_response_data(data=data, cast_to=cast_to, response=response)
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        if MADE in response.extensions and not streamed:
            answer.optllm = response.extensions[MADE]()
        return answer


def _with_telling_helpers(chat: Any) -> Any:
    completions = chat.completions
    if hasattr(completions, "stream"):
        completions.stream = _telling_helper(completions.stream)
    return chat


def _telling_helper(stream: Callable[..., Any]) -> Callable[..., Any]:
    """A resource's ``stream``, whose helper tells."""

    @functools.wraps(stream)
    def telling(*positional: Any, **arguments: Any) -> Any:
        return _as_telling(stream(*positional, **arguments))

    return telling


def _parsed(parser: Callable[[Any], Any] | None, answer: Any) -> Any:
    """What openai's parser makes of an answer, and of a stream one that tells."""
    parsed = parser(answer) if parser else answer
    if parsed is not answer and hasattr(answer, "optllm"):
        parsed.optllm = answer.optllm
    return _as_telling(parsed)


def _events(kind: Any) -> Any:
    """A class of streams, or of helpers around them, that tell."""

    class Events(kind):  # type: ignore[misc]
        @property
        def optllm(self) -> RoutingInfo | None:
            """How the answer was made; ``None`` until the last event was read."""
            return _made(self)

        def __next__(self) -> Any:
            return _told(super().__next__(), self.optllm)

        def __iter__(self) -> Iterator[Any]:
            for event in super().__iter__():
                yield _told(event, self.optllm)

    return Events


def _async_events(kind: Any) -> Any:
    """As :func:`_events`, with ``async for``."""

    class AsyncEvents(kind):  # type: ignore[misc]
        @property
        def optllm(self) -> RoutingInfo | None:
            """As that of :func:`_events`."""
            return _made(self)

        async def __anext__(self) -> Any:
            return _told(await super().__anext__(), self.optllm)

        async def __aiter__(self) -> AsyncIterator[Any]:
            async for event in super().__aiter__():
                yield _told(event, self.optllm)

    return AsyncEvents


def _chat(kind: Any) -> Any:
    """A class of helpers that put an answer together."""

    class ChatEvents(_events(kind)):  # type: ignore[misc]
        def get_final_completion(self) -> Any:
            completion = super().get_final_completion()
            completion.optllm = self.optllm
            return completion

    return ChatEvents


def _async_chat(kind: Any) -> Any:
    """As :func:`_chat`, with ``await``."""

    class AsyncChatEvents(_async_events(kind)):  # type: ignore[misc]
        async def get_final_completion(self) -> Any:
            completion = await super().get_final_completion()
            completion.optllm = self.optllm
            return completion

    return AsyncChatEvents


def _manager(kind: Any) -> Any:
    """A class of context managers around helpers."""

    class Manager(kind):  # type: ignore[misc]
        def __enter__(self) -> Any:
            return _as_telling(super().__enter__())

    return Manager


def _async_manager(kind: Any) -> Any:
    """As :func:`_manager`, with ``async with``."""

    class AsyncManager(kind):  # type: ignore[misc]
        async def __aenter__(self) -> Any:
            return _as_telling(await super().__aenter__())

    return AsyncManager


def _made(stream: Any) -> RoutingInfo | None:
    response = getattr(stream, "_raw_stream", stream).response
    made: RoutingInfo | None = response.extensions[MADE]()
    return made


def _told(event: Any, made: RoutingInfo | None) -> Any:
    """An event; that of a response's end has the response."""
    if made is not None and hasattr(event, "response"):
        event.response.optllm = made
    return event


_TELLING: Mapping[type, type] = {
    Stream: _events(Stream),
    AsyncStream: _async_events(AsyncStream),
    ResponseStream: _events(ResponseStream),
    AsyncResponseStream: _async_events(AsyncResponseStream),
    ChatCompletionStream: _chat(ChatCompletionStream),
    AsyncChatCompletionStream: _async_chat(AsyncChatCompletionStream),
    ResponseStreamManager: _manager(ResponseStreamManager),
    AsyncResponseStreamManager: _async_manager(AsyncResponseStreamManager),
    ChatCompletionStreamManager: _manager(ChatCompletionStreamManager),
    AsyncChatCompletionStreamManager: _async_manager(AsyncChatCompletionStreamManager),
}
"""By a class of openai's, its subclass that tells."""


def _as_telling(one: Any) -> Any:
    """An object that openai's code made, as one of the class that tells, where there is one."""
    if type(one) in _TELLING:
        one.__class__ = _TELLING[type(one)]
    return one
