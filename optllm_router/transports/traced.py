"""A span of OpenTelemetry around every call to a provider, for programs that trace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from optllm_router._telemetry import attempt_span, end_attempt
from optllm_router._types import Call, Candidate, Chunk, Completion, Transport, Usage

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TracedTransport:
    """Hands each call on, inside a span of its own that lasts until its answer is whole.

    Args:
        transport: makes the calls.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise ``ConfigurationError`` when a candidate cannot be called, as without a key."""
        self._transport.check(candidates)

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        span = attempt_span(candidate, call)
        try:
            completion = self._transport.send(candidate, call)
        except BaseException as error:
            end_attempt(span, error=error)
            raise
        end_attempt(span, completion.body, completion.usage)
        return completion

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        span = attempt_span(candidate, call)
        try:
            completion = await self._transport.asend(candidate, call)
        except BaseException as error:
            end_attempt(span, error=error)
            raise
        end_attempt(span, completion.body, completion.usage)
        return completion

    def stream(self, candidate: Candidate, call: Call) -> Iterator[Chunk]:
        """Ask a candidate and hand on its chunks as they come."""
        chunks = self._transport.stream(candidate, call)
        span = attempt_span(candidate, call)
        return chunks if span is None else _traced(chunks, span)

    def astream(self, candidate: Candidate, call: Call) -> AsyncIterator[Chunk]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        chunks = self._transport.astream(candidate, call)
        span = attempt_span(candidate, call)
        return chunks if span is None else _atraced(chunks, span)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._transport.close()


def _traced(chunks: Iterator[Chunk], span: Span) -> Generator[Chunk, None, None]:
    last, usage = None, None
    try:
        with contextlib.closing(cast("Generator[Chunk, None, None]", chunks)):
            for last in chunks:
                usage = last.usage or usage
                yield last
    except BaseException as error:
        _end(span, last, usage, error)
        raise
    _end(span, last, usage, None)


async def _atraced(chunks: AsyncIterator[Chunk], span: Span) -> AsyncGenerator[Chunk, None]:
    last, usage = None, None
    try:
        async with contextlib.aclosing(cast("AsyncGenerator[Chunk, None]", chunks)):
            async for last in chunks:
                usage = last.usage or usage
                yield last
    except BaseException as error:
        _end(span, last, usage, error)
        raise
    _end(span, last, usage, None)


def _end(span: Span, last: Chunk | None, usage: Usage | None, error: BaseException | None) -> None:
    """A reader who leaves early is no error."""
    left = isinstance(error, GeneratorExit)
    end_attempt(span, last.body if last else None, usage, None if left else error)
