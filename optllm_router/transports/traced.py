"""A span of OpenTelemetry around every call to a provider, for programs that trace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from optllm_router._telemetry import attempt_span, end_attempt, finish_reasons
from optllm_router._types import Call, Candidate, Chunk, Completion, Transport, Usage
from optllm_router.transports._endpoints import server_of

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
        span = attempt_span(candidate, call, server_of)
        try:
            completion = self._transport.send(candidate, call)
        except BaseException as error:
            end_attempt(span, error=error)
            raise
        end_attempt(span, completion.body, completion.usage)
        return completion

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        span = attempt_span(candidate, call, server_of)
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
        span = attempt_span(candidate, call, server_of, streamed=True)
        return chunks if span is None else _traced(chunks, span)

    def astream(self, candidate: Candidate, call: Call) -> AsyncIterator[Chunk]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        chunks = self._transport.astream(candidate, call)
        span = attempt_span(candidate, call, server_of, streamed=True)
        return chunks if span is None else _atraced(chunks, span)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._transport.close()


def _traced(chunks: Iterator[Chunk], span: Span) -> Generator[Chunk, None, None]:
    heard = _Heard()
    try:
        with contextlib.closing(cast("Generator[Chunk, None, None]", chunks)):
            for chunk in chunks:
                heard.record(chunk)
                yield chunk
    except BaseException as error:
        heard.end(span, error)
        raise
    heard.end(span)


async def _atraced(chunks: AsyncIterator[Chunk], span: Span) -> AsyncGenerator[Chunk, None]:
    heard = _Heard()
    try:
        async with contextlib.aclosing(cast("AsyncGenerator[Chunk, None]", chunks)):
            async for chunk in chunks:
                heard.record(chunk)
                yield chunk
    except BaseException as error:
        heard.end(span, error)
        raise
    heard.end(span)


class _Heard:
    """What the chunks of a stream said beside the answer's own words."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._finish_reasons: dict[str, str] = {}
        self._usage: Usage | None = None

    def record(self, chunk: Chunk) -> None:
        """Take what is of use; a provider may send any JSON, and its reader is to have that."""
        for name in ("id", "model"):
            value = chunk.body.get(name)
            if isinstance(value, str):
                self._told.setdefault(name, value)
        for choice, reason in finish_reasons(chunk.body):
            self._finish_reasons[choice] = reason
        self._usage = chunk.usage or self._usage

    def end(self, span: Span, error: BaseException | None = None) -> None:
        """End a stream's span; a reader who leaves early is no error."""
        reasons = [{"finish_reason": one} for one in self._finish_reasons.values()]
        left = isinstance(error, GeneratorExit)
        body = {**self._told, "choices": reasons}
        end_attempt(span, body, self._usage, None if left else error)
