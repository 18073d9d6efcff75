"""Streams as openai's own classes, so that programs written for them see no difference.

Imported on the first stream: importing openai takes a second.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Protocol

from openai import AsyncStream, Stream
from openai.types.chat import ChatCompletionChunk

from optllm_router._chat import as_openai
from optllm_router._chunks import AsyncChatChunks, ChatChunks
from optllm_router._openai_http import http
from optllm_router._routing import RoutingInfo, routing_headers, routing_info
from optllm_router._steps import Paid
from optllm_router._telling import MADE

PAID = "optllm_paid"
"""A response's extension: a function that tells what the answer took, once it is whole."""
FAULT = "optllm_fault"
"""A stream's extension: a function that tells an error as the last bytes."""


class Encode(Protocol):
    """A stream's bodies as server-sent events."""

    def __call__(self, body: Mapping[str, Any], /) -> Iterable[bytes]:
        """One body; an empty one stands for the end."""
        ...

    def fault(self, error: Mapping[str, Any], /) -> Iterable[bytes]:
        """The end of a stream that broke, from what OpenAI's API says under ``error``."""
        ...


class ChatEvents:
    """Chunks as chat completions are streamed."""

    def __call__(self, body: Mapping[str, Any]) -> Iterable[bytes]:
        """A chunk's event; that of the end for an empty chunk."""
        data = json.dumps(body).encode() if body else b"[DONE]"  # ASCII: readers split at U+2028
        yield b"data: " + data + b"\n\n"

    def fault(self, error: Mapping[str, Any]) -> Iterable[bytes]:
        """What openai's clients raise."""
        return self({"error": error})


chat_events = ChatEvents()


class EventBytes(http.SyncByteStream):
    """A streamed answer as the bytes of an HTTP response."""

    def __init__(self, chunks: ChatChunks, encode: Encode = chat_events) -> None:
        self._chunks = chunks
        self._encode = encode

    def __iter__(self) -> Iterator[bytes]:
        for body in self._chunks:
            yield from self._encode(body)
        yield from self._encode({})

    def close(self) -> None:
        """End the stream, at the provider as well."""
        self._chunks.close()


class AsyncEventBytes(http.AsyncByteStream):
    """As :class:`EventBytes`, with ``async for``."""

    def __init__(self, chunks: AsyncChatChunks, encode: Encode = chat_events) -> None:
        self._chunks = chunks
        self._encode = encode

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for body in self._chunks:
            for event in self._encode(body):
                yield event
        for event in self._encode({}):
            yield event

    async def aclose(self) -> None:
        """As :meth:`EventBytes.close`."""
        await self._chunks.close()


def event_response(
    chunks: ChatChunks | AsyncChatChunks, request: http.Request, encode: Encode = chat_events
) -> http.Response:
    """The HTTP response that a stream would be; closing it ends the stream."""
    answer = chunks.answer
    candidate = answer.candidate.name if answer.candidate else answer.decision.candidate
    headers = {
        "content-type": "text/event-stream; charset=utf-8",
        **routing_headers(answer.decision, candidate),
    }
    stream: http.SyncByteStream | http.AsyncByteStream
    if isinstance(chunks, ChatChunks):
        stream = EventBytes(chunks, encode)
    else:
        stream = AsyncEventBytes(chunks, encode)
    extensions = {
        MADE: lambda: _made(answer.paid),
        PAID: lambda: answer.paid,
        FAULT: encode.fault,
    }
    return http.Response(
        200, headers=headers, stream=stream, request=request, extensions=extensions
    )


def _nowhere() -> http.Request:
    return http.Request("POST", "https://optllm.invalid/v1/chat/completions")


class ChatStream(Stream[ChatCompletionChunk]):
    """A streamed chat completion: an iterator of chunks, and a context manager that closes it."""

    def __init__(self, chunks: ChatChunks) -> None:
        self._chunks = chunks
        self.response = event_response(chunks, _nowhere())

    @property
    def optllm(self) -> RoutingInfo | None:
        """How the answer was made; ``None`` until the last chunk was read."""
        return _made(self._chunks.answer.paid)

    def __next__(self) -> ChatCompletionChunk:
        return as_openai(ChatCompletionChunk, next(self._chunks))

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self


class AsyncChatStream(AsyncStream[ChatCompletionChunk]):
    """As :class:`ChatStream`, with ``async for``."""

    def __init__(self, chunks: AsyncChatChunks) -> None:
        self._chunks = chunks
        self.response = event_response(chunks, _nowhere())

    @property
    def optllm(self) -> RoutingInfo | None:
        """As :attr:`ChatStream.optllm`."""
        return _made(self._chunks.answer.paid)

    async def __anext__(self) -> ChatCompletionChunk:
        return as_openai(ChatCompletionChunk, await anext(self._chunks))

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self


def _made(paid: Paid | None) -> RoutingInfo | None:
    return None if paid is None else routing_info(paid)
