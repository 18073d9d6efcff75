"""A connection for each call under way, found in constant time.

httpx's own pool looks at each of its connections for every request, which at 50 calls at a time
costs more than the rest of a call. Here, connections wait on a stack, one by one in transports of
httpx that hold no other: the one that was used last goes out first, and those at the bottom are
closed once nobody needed them for a while.

Imported when the first call is made, as httpx is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.request import getproxies

import httpx

if TYPE_CHECKING:
    from optllm_router.transports._async_connections import AsyncConnection

Connection = TypeVar("Connection", httpx.HTTPTransport, "AsyncConnection")


class Idle(Generic[Connection]):
    """Connections that wait, by the server that they lead to, each for a while only.

    A server closes what it has not heard of for long. A request that crosses that on its way gets
    no answer, and nobody can know whether it was carried out: it must not be sent again, and is
    paid. So no connection is used that may be as old.

    Args:
        seconds: how long one may wait; those that waited longer are closed here.
        clock: seconds, from any start, that never go back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._stacks: dict[bytes, deque[tuple[float, Connection]]] = {}
        self._closed = False

    def take(self, server: bytes) -> Connection | None:
        """The one that was used last, unless that is too long ago."""
        with self._lock:
            stack = self._stacks.get(server)
            if not stack:
                return None
            since, connection = stack.pop()
            if self._clock() - since < self._seconds:
                return connection
            del self._stacks[server]  # those below have waited for even longer
        connection.close()
        for _, older in stack:
            older.close()
        return None

    def give_back(self, server: bytes, connection: Connection) -> None:
        """Let one wait."""
        now = self._clock()
        old = []
        with self._lock:
            if self._closed:
                old.append(connection)
            else:
                stack = self._stacks.setdefault(server, deque())
                stack.append((now, connection))
                while now - stack[0][0] > self._seconds:
                    old.append(stack.popleft()[1])
        for one in old:
            one.close()

    def close(self) -> None:
        """Let none wait any more."""
        with self._lock:
            self._closed = True
            stacks, self._stacks = self._stacks, {}
        for stack in stacks.values():
            for _, connection in stack:
                connection.close()


def is_direct() -> bool:
    """Whether the environment names no proxy for plain HTTP: those are httpx's business."""
    return not getproxies().keys() & {"http", "all"}


class Connections(httpx.BaseTransport):
    """As the module says; thread-safe.

    Args:
        idle_seconds: how long a connection may wait to be used again.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._limits = httpx.Limits(max_connections=1, keepalive_expiry=idle_seconds)
        self._context = httpx.create_ssl_context()
        self._idle: Idle[httpx.HTTPTransport] = Idle(idle_seconds)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request over a connection of its own."""
        server = request.url.raw_host + b":%d" % (request.url.port or 0)
        connection = self._idle.take(server) or httpx.HTTPTransport(
            verify=self._context, limits=self._limits
        )
        try:
            response = connection.handle_request(request)
        except BaseException:
            connection.close()
            raise
        response.stream = _Body(response.stream, self._idle, server, connection)
        return response

    def close(self) -> None:
        """Close what waits, and calls under way when they end."""
        self._idle.close()


class _Body(httpx.SyncByteStream):
    """What comes over a connection, which goes back to the others at the end."""

    def __init__(
        self,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        idle: Idle[httpx.HTTPTransport],
        server: bytes,
        connection: httpx.HTTPTransport,
    ) -> None:
        assert isinstance(stream, httpx.SyncByteStream)
        self._stream = stream
        self._idle = idle
        self._server = server
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        try:
            self._stream.close()
        except BaseException:
            self._connection.close()
            raise
        self._idle.give_back(self._server, self._connection)
