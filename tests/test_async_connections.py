"""Connections without TLS of an event loop, with servers that say what a test wants."""

from __future__ import annotations

import asyncio
import base64
import contextlib

import httpx
import pytest

from optllm_router.transports._async_connections import AsyncSender
from optllm_router.transports._connections import Idle

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOk"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nOk\r\n0\r\n\r\n"


class Server:
    """Answers requests with what it was given, one after the other; ``None`` hangs up."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(2))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                if b"close" in answer or b"content-length: 9" in answer:
                    break
        writer.close()


async def hang_up(listening: asyncio.Server, server: Server) -> None:
    listening.close()
    for writer in server.writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def asking(*answers: bytes | None, idle_seconds: float = 4.0):
    """The server, and a function that asks it and returns status and body."""
    server = Server(*answers)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    sender = AsyncSender(idle_seconds, http2=False)
    port = listening.sockets[0].getsockname()[1]

    async def ask(user: str = "") -> tuple[int, bytes]:
        request = httpx.Request(
            "POST",
            f"http://{user}127.0.0.1:{port}/v1",
            content=b"{}",
            extensions={"timeout": httpx.Timeout(5).as_dict()},
        )
        response = await sender.send(request)
        async with contextlib.aclosing(response):
            return response.status_code, await response.aread()

    try:
        yield server, ask
    finally:
        await sender.aclose()
        await hang_up(listening, server)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        CHUNKED,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + CHUNKED,
    ],
    ids=["length", "chunks", "100", "103"],
)
def test_a_connection_is_used_again(answer):
    async def program() -> None:
        async with asking(answer, answer, answer) as (server, ask):
            for _ in range(3):
                assert await ask() == (200, b"Ok")
            assert server.connections == 1
            for request in server.requests:
                assert request.startswith(b"POST /v1 HTTP/1.1\r\nHost: 127.0.0.1")
                assert request.endswith(b"\r\n\r\n{}")

    asyncio.run(program())


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nOk",
        b"HTTP/1.0 200 OK\r\nx: close\r\n\r\nOk",
    ],
    ids=["said", "until the end", "HTTP/1.0"],
)
def test_a_connection_that_the_server_ends_is_not_used_again(answer):
    async def program() -> None:
        async with asking(answer, OK) as (server, ask):
            assert [await ask(), await ask()] == [(200, b"Ok")] * 2
            assert server.connections == 2

    asyncio.run(program())


def test_a_connection_that_was_closed_while_it_waited_is_not_used_again():
    async def program() -> None:
        async with asking(OK, OK) as (server, ask):
            assert await ask() == (200, b"Ok")
            server.writers[0].close()
            await asyncio.sleep(0.05)
            assert await ask() == (200, b"Ok")
            assert server.connections == 2

    asyncio.run(program())


def test_a_connection_that_waited_too_long_is_not_used_but_closed():
    async def program() -> None:
        async with asking(OK, OK, OK, idle_seconds=0) as (server, ask):
            for number in (1, 2, 3):
                assert await ask() == (200, b"Ok")
                assert server.connections == number
            for writer in server.writers[:2]:
                await asyncio.wait_for(writer.wait_closed(), 20)

    asyncio.run(program())


class Noted:
    """A connection that is only told to close."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_only_young_connections_are_taken_and_the_older_are_closed():
    now = 100.0
    idle: Idle = Idle(4.0, clock=lambda: now)
    first, second, third, other = Noted(), Noted(), Noted(), Noted()
    idle.give_back(b"a:1", first)
    idle.give_back(b"b:1", other)
    now = 102.0
    idle.give_back(b"a:1", second)
    idle.give_back(b"a:1", third)
    now = 105.9
    assert idle.take(b"a:1") is third
    assert first.closed == 0  # nobody looked at it
    now = 106.0
    assert idle.take(b"a:1") is None
    assert [one.closed for one in (first, second, third, other)] == [1, 1, 0, 0]
    assert idle.take(b"a:1") is None
    assert idle.take(b"b:1") is None
    assert other.closed == 1


def test_giving_one_back_closes_those_that_nobody_needed():
    now = 100.0
    idle: Idle = Idle(4.0, clock=lambda: now)
    old, young, late = Noted(), Noted(), Noted()
    idle.give_back(b"a:1", old)
    now = 104.5
    idle.give_back(b"a:1", young)
    assert (old.closed, young.closed) == (1, 0)
    idle.close()
    idle.give_back(b"a:1", late)
    assert (old.closed, young.closed, late.closed) == (1, 1, 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nOk", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nx: " + 200_000 * b"x", httpx.RemoteProtocolError),
    ],
    ids=["hung up", "no HTTP", "broken off", "endless head"],
)
def test_what_is_no_answer(answer, error):
    async def program() -> None:
        async with asking(answer, OK) as (server, ask):
            with pytest.raises(error):
                await ask()
            server.writers[0].close()
            assert await ask() == (200, b"Ok")
            assert server.connections == 2

    asyncio.run(program())


def test_nobody_listens():
    async def program() -> None:
        async with asking() as (_, ask):
            pass
        with pytest.raises(httpx.ConnectError):
            await ask()

    asyncio.run(program())


def test_a_user_in_the_url_is_told_as_httpx_tells_it():
    async def program() -> None:
        async with asking(OK) as (server, ask):
            assert await ask("me:secret@") == (200, b"Ok")
            assert base64.b64encode(b"me:secret") in server.requests[0]

    asyncio.run(program())


def test_a_proxy_of_the_environment_is_asked(monkeypatch):
    async def program() -> None:
        async with asking(OK) as (server, ask):
            assert await ask() == (200, b"Ok")
            assert server.requests == []

    async def proxied() -> None:
        proxy = Server(OK)
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        await program()
        assert proxy.requests[0].startswith(b"POST http://127.0.0.1")
        await hang_up(listening, proxy)

    asyncio.run(proxied())
