"""Any OpenAI-compatible endpoint over plain HTTP: vLLM, Ollama, llama.cpp, LM Studio, OpenAI.

A call costs a fraction of what it costs through litellm, and means the same. Connections are
kept for the next call: one for each call under way without TLS (as to servers nearby), those of
httpx's own pool with TLS. There, whole answers come in HTTP/2 where the server offers it, many over
one connection; a stream has one of HTTP/1.1 to itself, for httpx does not tell a server of HTTP/2
that nobody reads on, and it would go on to make, and to bill, what was abandoned. httpx is imported
on first use.

A call has one deadline, for connecting, sending, waiting and reading together. The connection of
a synchronous call is cut then; one of HTTP/2, which others use, too, is looked at whenever
something arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from optllm_router._errors import ProviderError
from optllm_router._types import Call, Candidate, Chunk, Completion
from optllm_router.transports import _endpoints
from optllm_router.transports._bodies import ChunkReader, read_completion
from optllm_router.transports._cutting import StreamDeadline
from optllm_router.transports._faults import (
    BROKEN_OFF,
    NO_ANSWER,
    TIMED_OUT,
    UNREACHABLE,
    Fault,
    error_in,
    fault_of_status,
    message_in,
)
from optllm_router.transports._waiting import retry_after_seconds

if TYPE_CHECKING:
    import httpx

    from optllm_router.transports._async_connections import AsyncSender

_MOST_BYTES = 10_000_000
"""Of a whole answer, and of one event of a stream."""
_MOST_STREAMED_BYTES = 10 * _MOST_BYTES
_MOST_ERROR_BYTES = 100_000
_MOST_CONNECT_SECONDS = 10.0
_MOST_CLOSING_SECONDS = 5.0
_IDLE_SECONDS = 4.0
"""Connections are dropped before servers drop them: uvicorn, and so vLLM, does after 5."""


class HttpxTransport:
    """Sends calls with httpx; thread-safe, and for any number of event loops.

    Args:
        http2: whether to speak HTTP/2 with servers that offer it, where answers come whole.
    """

    def __init__(self, *, http2: bool = True) -> None:
        self._http2 = http2
        self._lock = threading.Lock()
        self._clients: dict[bool, httpx.Client] = {}
        self._mounts: dict[str, httpx.BaseTransport] = {}
        self._async_senders: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSender] = (
            weakref.WeakKeyDictionary()
        )

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Raise ``ConfigurationError`` when a candidate cannot be called over plain HTTP."""
        for candidate in candidates:
            _endpoints.check(candidate)

    def close(self) -> None:
        """Close the connections, of event loops as far as they run; it can be used again.

        Called from a coroutine, the connections of its event loop close a moment later.
        """
        with self._lock:
            clients, self._clients = self._clients, {}
            others = list(self._async_senders.items())
            self._async_senders.clear()
        for client in clients.values():
            client.close()
        for loop, other in others:
            if loop.is_running():
                closed = asyncio.run_coroutine_threadsafe(other.aclose(), loop)
                if loop is not _running_loop():
                    closed.result(_MOST_CLOSING_SECONDS)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        with self._lock:
            sender = self._async_senders.pop(asyncio.get_running_loop(), None)
        if sender is not None:
            await sender.aclose()

    def send(self, candidate: Candidate, call: Call) -> Completion:
        """Ask a candidate and wait for its whole answer."""
        exchange = _Exchange(candidate, call, _MOST_BYTES)
        request = exchange.request()
        with exchange.mapped(), exchange.deadline:
            response = self._sync_client().send(request, stream=True)
            with contextlib.closing(response):
                pieces = map(exchange.received, response.iter_bytes())
                if not response.is_success:
                    raise exchange.refusal(response, _beginning(pieces))
                data = b"".join(pieces)
            return read_completion(data, response.headers, candidate, call)

    async def asend(self, candidate: Candidate, call: Call) -> Completion:
        """As :meth:`send`, without blocking the event loop."""
        exchange = _Exchange(candidate, call, _MOST_BYTES)
        request = exchange.request()
        with exchange.mapped(), exchange.time_left():
            response = await self._async_sender().send(request)
            async with contextlib.aclosing(response):
                if not response.is_success:
                    raise exchange.refusal(response, await _abeginning(response))
                data = b"".join([exchange.received(d) async for d in response.aiter_bytes()])
            return read_completion(data, response.headers, candidate, call)

    def stream(self, candidate: Candidate, call: Call) -> Generator[Chunk, None, None]:
        """Ask a candidate and hand on its chunks as they come; see ``Transport.stream``."""
        exchange = _Exchange(candidate, call, _MOST_STREAMED_BYTES)
        request = exchange.request(streamed=True)
        with exchange.mapped(), contextlib.ExitStack() as opened:
            with exchange.deadline:
                response = self._sync_client(streamed=True).send(request, stream=True)
                opened.callback(response.close)
            pieces = map(exchange.received, response.iter_bytes())
            if not response.is_success:
                with exchange.deadline:
                    raise exchange.refusal(response, _beginning(pieces))
            reader = exchange.read_stream(response)
            while True:
                with exchange.deadline:
                    piece = next(pieces, None)
                if piece is None:
                    break
                for chunk in reader.feed(piece):
                    exchange.deadline.saw(chunk)
                    yield chunk
            reader.finish()

    async def astream(self, candidate: Candidate, call: Call) -> AsyncGenerator[Chunk, None]:
        """As :meth:`stream`, without blocking the event loop; ``aclose()`` ends it."""
        exchange = _Exchange(candidate, call, _MOST_STREAMED_BYTES)
        request = exchange.request(streamed=True)
        with exchange.mapped():
            with exchange.time_left():
                response = await self._async_sender().send(request, streamed=True)
            async with contextlib.aclosing(response):
                if not response.is_success:
                    with exchange.time_left():
                        raise exchange.refusal(response, await _abeginning(response))
                reader = exchange.read_stream(response)
                pieces = response.aiter_bytes()
                while True:
                    with exchange.time_left():
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    for chunk in reader.feed(exchange.received(piece)):
                        exchange.deadline.saw(chunk)
                        yield chunk
                reader.finish()

    def _sync_client(self, *, streamed: bool = False) -> httpx.Client:
        http2 = self._http2 and not streamed
        with self._lock:
            if http2 not in self._clients:
                import httpx

                from optllm_router.transports._connections import Connections, is_direct

                if not self._clients:  # without TLS, all calls share what is idle
                    self._mounts = {"http://": Connections(_IDLE_SECONDS)} if is_direct() else {}
                limits = httpx.Limits(keepalive_expiry=_IDLE_SECONDS)
                self._clients[http2] = httpx.Client(http2=http2, limits=limits, mounts=self._mounts)
            return self._clients[http2]

    def _async_sender(self) -> AsyncSender:
        """That of the running event loop: connections belong to the loop they began in."""
        loop = asyncio.get_running_loop()
        with self._lock:
            sender = self._async_senders.get(loop)
            if sender is None:
                from optllm_router.transports._async_connections import AsyncSender

                sender = AsyncSender(_IDLE_SECONDS, http2=self._http2)
                self._async_senders[loop] = sender
            return sender


def _beginning(pieces: Iterator[bytes]) -> bytes:
    """As much of a body as says why there is no answer; the rest is not read."""
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) >= _MOST_ERROR_BYTES:
            break
    return bytes(data[:_MOST_ERROR_BYTES])


async def _abeginning(response: httpx.Response) -> bytes:
    """As :func:`_beginning`, without blocking the event loop."""
    data = bytearray()
    all_pieces = response.aiter_bytes()
    assert isinstance(all_pieces, AsyncGenerator)
    async with contextlib.aclosing(all_pieces) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) >= _MOST_ERROR_BYTES:
                break
    return bytes(data[:_MOST_ERROR_BYTES])


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Exchange:
    """One call on its way: its size, and what its faults mean.

    Attributes:
        deadline: when a stream's first token must be there, then when the answer must be whole.
    """

    def __init__(self, candidate: Candidate, call: Call, most_bytes: int) -> None:
        self._candidate = candidate
        self._call = call
        self.deadline = StreamDeadline(call)
        self._most_bytes = most_bytes
        self._size = 0
        self._reader: ChunkReader | None = None

    def request(self, *, streamed: bool = False) -> httpx.Request:
        """What to send."""
        import httpx

        connect = min(self.deadline.seconds_left, _MOST_CONNECT_SECONDS)
        timeout = httpx.Timeout(self._call.timeout_seconds, connect=connect)
        return httpx.Request(
            "POST",
            _endpoints.endpoint(self._candidate),
            headers=_endpoints.headers(self._candidate, self._call),
            content=json.dumps(
                _endpoints.body(self._candidate, self._call, streamed=streamed),
                ensure_ascii=False,
                separators=(",", ":"),
            ).encode(),
            extensions={"timeout": timeout.as_dict()},
        )

    def received(self, data: bytes) -> bytes:
        """Count what has come.

        Raises:
            ProviderError: it is too much, or too late.
        """
        self._size += len(data)
        if self._size > self._most_bytes:
            raise NO_ANSWER.of(self._candidate, f"more than {self._most_bytes} bytes")
        if self.deadline.seconds_left <= 0 and not self._is_complete():
            raise TIMED_OUT.of(self._candidate, self._limit())
        return data

    def refusal(self, response: httpx.Response, data: bytes) -> ProviderError:
        """What a response means that is no success; ``data`` is the beginning of its body."""
        error = None
        try:
            body = json.loads(data)
            said, error = message_in(body), error_in(body)
        except (ValueError, RecursionError):
            said = data[:1000].decode(errors="replace")
        return fault_of_status(response.status_code).of(
            self._candidate,
            said,
            status=response.status_code,
            retry_after_seconds=retry_after_seconds(response.headers),
            error=error,
        )

    def read_stream(self, response: httpx.Response) -> ChunkReader:
        """What turns the body into chunks."""
        self._reader = ChunkReader(response.headers, self._candidate, _MOST_BYTES)
        return self._reader

    def time_left(self) -> contextlib.AbstractContextManager[Any]:
        """Cancels what is inside at the deadline; for coroutines, and around no ``yield``."""
        import anyio

        return anyio.fail_after(max(self.deadline.seconds_left, 0))

    @contextlib.contextmanager
    def mapped(self) -> Iterator[None]:
        """Every fault below becomes ours; the cause is cut off, as it may quote a key."""
        import httpx

        try:
            yield
        except ProviderError as error:
            self._add_bill(error)
            raise
        except Exception as error:
            fault = _fault(httpx, error)
            if fault is None:
                raise
            if self._is_complete():
                return
            said = self._limit() if fault is TIMED_OUT else str(error) or type(error).__name__
            ours = fault.of(self._candidate, said)
            self._add_bill(ours)
            raise ours from None

    def _add_bill(self, error: ProviderError) -> None:
        if self._reader is not None and self._reader.begun:
            error.maybe_billed = True

    def _is_complete(self) -> bool:
        """Whether a stream said its end: what goes wrong after it does not matter."""
        return self._reader is not None and self._reader.ended

    def _limit(self) -> str:
        return f"within {self.deadline.seconds:g} seconds"


def _fault(httpx: Any, error: Exception) -> Fault | None:
    """What an exception of httpx, or in reading an answer, means."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return UNREACHABLE
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return TIMED_OUT
    if isinstance(error, httpx.DecodingError):
        return NO_ANSWER
    if isinstance(error, httpx.HTTPError):
        return BROKEN_OFF
    # JSON, UTF-8 and events that are none, or too deep or too large.
    return NO_ANSWER if isinstance(error, (ValueError, RecursionError)) else None
