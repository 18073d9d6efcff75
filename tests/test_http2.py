"""Servers that offer HTTP/2, which is over TLS: whole answers share one connection, streams do not.

httpx never resets a stream of HTTP/2. What is streamed comes in HTTP/1.1, for the server to hear
that nobody reads on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from decimal import Decimal

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
)

from optllm_router._errors import ProviderTimeoutError
from optllm_router._types import Call, Candidate, Chunk, Price, Usage
from optllm_router.transports import HttpxTransport

CALL = Call([{"role": "user", "content": "Hello"}], timeout_seconds=60)
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}
CHUNKS = (
    {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": ANSWER["usage"]},
)
EVENTS = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in CHUNKS] + [b"data: [DONE]\n\n"]

both = pytest.mark.parametrize("how", ["sync", "async"])
either = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


class Http2Server:
    """Answers chat completions, on a thread of its own; use it as a context manager.

    Args:
        context: for TLS.
        together: answers wait until there are as many requests.

    Attributes:
        connections: that were opened.
        requests: the headers of each.
        protocols: what each connection agreed to speak.
        left: set when a client hangs up before its answer is whole.
        mute: of a stream only the first event is sent, of a whole answer nothing.
    """

    def __init__(self, context: ssl.SSLContext, together: int = 1) -> None:
        self._context = context
        self._together = together
        self._waiting: list[Callable[[], None]] = []
        self.connections = 0
        self.requests: list[dict[str, str]] = []
        self.protocols: list[str | None] = []
        self.left = threading.Event()
        self.mute = False

    def __enter__(self) -> Http2Server:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        async def listen() -> None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", 0, ssl=self._context
            )
            port = self._server.sockets[0].getsockname()[1]
            self.base_url = f"https://localhost:{port}/v1"
            started.set()

        def run() -> None:
            self._loop.run_until_complete(listen())
            self._loop.run_forever()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        try:
            if self.protocols[-1] == "h2":
                await self._serve_http2(reader, writer)
            else:
                await self._serve_http1(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve_http1(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.split(": ", 1) for line in head.splitlines()[1:-1]]
            headers = {name.lower(): value for name, value in lines}
            self.requests.append({":path": head.split()[1], **headers})
            asked = json.loads(await reader.readexactly(int(headers["content-length"])))
            parts = EVENTS if asked.get("stream") else [json.dumps(ANSWER).encode()]
            length = sum(map(len, parts))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length)
            if self.mute:
                writer.write(parts[0][: length - 1])
                await reader.read()
                self.left.set()
                return
            writer.writelines(parts)

    async def _serve_http2(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        bodies: dict[int, bytes] = {}
        while data := await reader.read(65_536):
            for event in connection.receive_data(data):
                self._take(connection, writer, bodies, event)
            writer.write(connection.data_to_send())

    def _take(self, connection, writer, bodies: dict[int, bytes], event) -> None:
        if isinstance(event, RequestReceived):
            self.requests.append(dict(event.headers))
            bodies[event.stream_id] = b""
        elif isinstance(event, DataReceived):
            bodies[event.stream_id] += event.data
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            writer.close()
        elif isinstance(event, StreamEnded):
            asked = json.loads(bodies[event.stream_id])
            self._waiting.append(lambda: self._answer(connection, writer, event.stream_id, asked))
            if len(self._waiting) >= self._together:
                for answer in self._waiting:
                    answer()
                self._waiting.clear()

    def _answer(self, connection, writer, stream: int, asked: dict) -> None:
        assert not asked.get("stream")
        if not self.mute:
            connection.send_headers(stream, [(":status", "200")])
            connection.send_data(stream, json.dumps(ANSWER).encode(), end_stream=True)
            writer.write(connection.data_to_send())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(made)]
    subprocess.run(command, capture_output=True, check=True)
    return made, key


@pytest.fixture
def context(certificate, monkeypatch):
    """Of a server whose certificate httpx takes."""
    made, key = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def candidate(server: Http2Server) -> Candidate:
    price = Price(Decimal(0), Decimal(0), "test")
    parameters = {"api_base": server.base_url}
    return Candidate("mine", "openai/m", price, 100, parameters=parameters, transport="httpx")


async def last(chunks: AsyncIterator[Chunk]) -> Usage | None:
    return [chunk async for chunk in chunks][-1].usage


def ask_twice(how: str, to: Candidate, *, streamed: bool) -> list[Usage | None]:
    transport = HttpxTransport()

    async def wait() -> list[Usage | None]:
        try:
            if streamed:
                return [await last(transport.astream(to, CALL)) for _ in range(2)]
            return [(await transport.asend(to, CALL)).usage for _ in range(2)]
        finally:
            await transport.aclose()

    if how == "async":
        return asyncio.run(wait())
    with closing(transport):
        if streamed:
            return [list(transport.stream(to, CALL))[-1].usage for _ in range(2)]
        return [transport.send(to, CALL).usage for _ in range(2)]


@both
@either
def test_calls_are_answered_over_one_connection(context, how, streamed):
    with Http2Server(context) as server:
        assert ask_twice(how, candidate(server), streamed=streamed) == [Usage(5, 1)] * 2
    assert (server.connections, server.protocols) == (1, ["http/1.1" if streamed else "h2"])
    assert [one[":path"] for one in server.requests] == ["/v1/chat/completions"] * 2


def test_calls_of_an_event_loop_go_over_one_connection_at_once(context):
    async def ask(server: Http2Server) -> None:
        transport = HttpxTransport()
        to = candidate(server)
        first = await transport.asend(to, CALL)  # then it is known what the server speaks
        server._together = 10
        answers = await asyncio.gather(*(transport.asend(to, CALL) for _ in range(10)))
        assert {answer.usage for answer in (first, *answers)} == {Usage(5, 1)}
        await transport.aclose()

    with Http2Server(context) as server:
        asyncio.run(ask(server))
    assert server.connections == 1
    assert len(server.requests) == 11


@both
def test_an_abandoned_stream_is_closed_at_the_server(context, how):
    async def abandon(server: Http2Server, transport: HttpxTransport) -> None:
        async with aclosing(transport.astream(candidate(server), CALL)) as chunks:
            await anext(chunks)
        assert await asyncio.to_thread(server.left.wait, 30)
        await transport.aclose()

    with Http2Server(context) as server, closing(HttpxTransport()) as transport:
        server.mute = True
        if how == "async":
            asyncio.run(abandon(server, transport))
        else:
            chunks = transport.stream(candidate(server), CALL)
            next(chunks)
            chunks.close()
            assert server.left.wait(30)


@both
def test_a_call_that_is_never_answered_ends_at_its_deadline(context, how):
    call = Call(CALL.messages, timeout_seconds=0.5)
    with Http2Server(context) as server, closing(HttpxTransport()) as transport:
        server.mute = True
        to = candidate(server)

        async def wait() -> None:
            try:
                await transport.asend(to, call)
            finally:
                await transport.aclose()

        with pytest.raises(ProviderTimeoutError):
            asyncio.run(wait()) if how == "async" else transport.send(to, call)
