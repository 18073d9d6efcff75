"""Connections of an event loop: as :mod:`._connections`, in a third of the time of httpx's.

Its layers take locks, checkpoints and clocks for what has one user at a time here. The protocol is
kept by h11, as there; the bytes are asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import anyio
import h11
import httpx
from typing_extensions import Self

from optllm_router.transports._connections import Idle, is_direct

_MOST_AT_ONCE = 65_536
_MOST_HEADER_BYTES = 100 * 1024


class AsyncConnection:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADER_BYTES)

    @classmethod
    async def to(cls, url: httpx.URL, seconds: float) -> Self:
        """Connect to the server of a URL, which is without TLS."""
        host = url.raw_host.decode("ascii")
        try:
            # In no task of its own, nor in several that race for an address, as asyncio can: who
            # is cancelled as a task is done would leave its connection open.
            with anyio.fail_after(seconds):
                return cls(*await asyncio.open_connection(host, url.port or 80))
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {seconds:g} seconds") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent: the server has not hung up, as far as is known."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, request: httpx.Request) -> h11.Response:
        """Send a request; returns the head of the response."""
        http = self._http
        with _faults_of_httpx():
            head = h11.Request(
                method=request.method, target=request.url.raw_path, headers=request.headers.raw
            )
            content = h11.Data(data=request.content)
            pieces = [http.send(event) or b"" for event in (head, content, h11.EndOfMessage())]
            self._writer.write(b"".join(pieces))
            with contextlib.suppress(ConnectionError):  # the server may have said why
                await self._writer.drain()
        while not isinstance(event := await self._event(), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the server sent no response")
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the response, as it comes."""
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    def finish(self) -> bool:
        """Be ready for the next request; False when there can be none."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        """Hang up."""
        self._writer.transport.abort()

    async def _event(self) -> object:
        with _faults_of_httpx():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_MOST_AT_ONCE))
            return event


class AsyncSender:
    """Sends requests: over connections of its own without TLS, else as httpx does.

    Args:
        idle_seconds: how long a connection may wait to be used again.
        http2: whether to speak HTTP/2 with servers that offer it.
    """

    def __init__(self, idle_seconds: float, *, http2: bool) -> None:
        self._limits = httpx.Limits(keepalive_expiry=idle_seconds)
        self._http2 = http2
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._is_direct = is_direct()
        self._idle: Idle[AsyncConnection] = Idle(idle_seconds)

    async def send(self, request: httpx.Request, *, streamed: bool = False) -> httpx.Response:
        """Send a request; returns the response, whose body is to be read or closed.

        One that is ``streamed`` is sent in HTTP/1.1, for the server to hear when it is closed:
        httpx resets no stream of HTTP/2.
        """
        url = request.url
        if url.scheme != "http" or url.userinfo or not self._is_direct:
            return await self._client(self._http2 and not streamed).send(request, stream=True)
        server = url.raw_host + b":%d" % (url.port or 0)
        connection = self._waiting(server)
        if connection is None:
            connection = await AsyncConnection.to(url, request.extensions["timeout"]["connect"])
        try:
            head = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        body = _Body(self._idle, server, connection)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body)

    async def aclose(self) -> None:
        """Close what waits, and calls under way when they end."""
        self._idle.close()
        for client in self._clients.values():
            await client.aclose()
        await asyncio.sleep(0)  # asyncio closes a socket in its next round

    def _client(self, http2: bool) -> httpx.AsyncClient:
        if http2 not in self._clients:
            self._clients[http2] = httpx.AsyncClient(http2=http2, limits=self._limits)
        return self._clients[http2]

    def _waiting(self, server: bytes) -> AsyncConnection | None:
        while (connection := self._idle.take(server)) is not None:
            if connection.is_open:
                return connection
            connection.close()
        return None


class _Body(httpx.AsyncByteStream):
    """What comes over a connection, which goes back to the others at the end."""

    def __init__(
        self, idle: Idle[AsyncConnection], server: bytes, connection: AsyncConnection
    ) -> None:
        self._idle = idle
        self._server = server
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.body()

    async def aclose(self) -> None:
        if not self._connection.finish():
            self._connection.close()
            return
        self._idle.give_back(self._server, self._connection)


@contextlib.contextmanager
def _faults_of_httpx() -> Iterator[None]:
    try:
        yield
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except OSError as error:
        raise httpx.ReadError(str(error)) from error
