"""Providers that send something for ever, and never an answer: a call has one time limit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import httpcore
import litellm_clients
import pytest

from optllm_router._errors import ProviderTimeoutError
from optllm_router._types import Call, Candidate, Price
from optllm_router.transports import HttpxTransport, LiteLLMTransport, _cutting
from optllm_router.transports._cutting import Deadline

CALL = Call([{"role": "user", "content": "What is 2 + 3?"}], timeout_seconds=0.4)
BEGINNING = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"
DRIBBLES = {
    "a status line": (b"HTTP/1.1 200 ", b"O"),
    "headers": (BEGINNING % b"application/json", b"x"),
    "a body of blanks": (BEGINNING % b"application/json" + b"\r\n", b" "),
    "comments in a stream": (BEGINNING % b"text/event-stream" + b"\r\n", b": wait\n\n"),
}


class Dribbler:
    """A provider that sends a beginning, and then a little again and again."""

    def __init__(self, beginning: bytes, again: bytes) -> None:
        self._beginning, self._again = beginning, again
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        """One call, until the caller hangs up."""
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(self._beginning)
            while True:
                time.sleep(0.02)
                connection.sendall(self._again)


def ask(kind: str, how: str, base_url: str, *, streamed: bool, call: Call = CALL) -> None:
    price = Price(Decimal(0), Decimal(0), "test")
    to = Candidate("mine", "openai/m", price, 9, parameters={"api_base": base_url}, api_key="k")
    transport = {"litellm": LiteLLMTransport, "httpx": HttpxTransport}[kind]()
    if how == "sync":
        with closing(transport):
            _ = list(transport.stream(to, call)) if streamed else transport.send(to, call)
        return

    async def wait() -> None:
        try:
            if streamed:
                _ = [chunk async for chunk in transport.astream(to, call)]
            else:
                await transport.asend(to, call)
        finally:
            await asyncio.to_thread(transport.close)

    litellm_clients.run(wait())


@pytest.mark.parametrize("kind", ["litellm", "httpx"])
@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", DRIBBLES)
def test_a_provider_that_dribbles_is_left_at_the_deadline(kind, how, streamed, what):
    with (
        Dribbler(*DRIBBLES[what]) as provider,
        pytest.raises(ProviderTimeoutError) as caught,
    ):
        ask(kind, how, provider.base_url, streamed=streamed)
    assert caught.value.maybe_billed


@pytest.mark.parametrize("kind", ["litellm", "httpx"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_role_is_no_first_token(kind, how):
    """vLLM sends one at once, whenever it comes to the prompt."""
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    beginning = BEGINNING % b"text/event-stream" + b"\r\n" + role
    call = replace(CALL, timeout_seconds=600.0, first_token_seconds=0.4)
    with Dribbler(beginning, b": wait\n\n") as provider, pytest.raises(ProviderTimeoutError):
        ask(kind, how, provider.base_url, streamed=True, call=call)


def test_a_thread_is_cut_off_at_its_own_socket_only():
    """Two threads wait for the same kind of connection; one of them has time."""
    ends = {}

    def read(name: str, seconds: float, stream) -> None:
        try:
            with Deadline(seconds):
                ends[name] = stream.read(1, timeout=10)
        except TimeoutError as error:
            ends[name] = type(error)

    with contextlib.ExitStack() as stack:
        threads, ours = [], []
        backend = httpcore.SyncBackend()
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for name, seconds in (("hasty", 0.1), ("patient", 60.0)):
            stream = backend.connect_tcp(*listener.getsockname())
            stack.callback(stream.close)
            ours.append(stack.enter_context(listener.accept()[0]))
            threads.append(threading.Thread(target=read, args=(name, seconds, stream)))
        for thread in threads:
            thread.start()
        threads[0].join()
        ours[1].sendall(b"!")
        threads[1].join()
    assert ends == {"hasty": TimeoutError, "patient": b"!"}


def test_a_connection_that_calls_share_is_not_cut():
    # A method as httpcore's are: on the stack, it is known by its module and by its object.
    space = {"__name__": "httpcore.of.this.test"}
    exec("def method(self, further):\n    return further()", space)
    method = space["method"]

    def found():
        return _cutting._connection(sys._getframe())

    shared = httpcore.HTTP2Connection.__new__(httpcore.HTTP2Connection)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = httpcore.SyncBackend().connect_tcp(*listener.getsockname())
        assert method(stream, found) is stream.get_extra_info("socket")
        assert method(shared, lambda: method(stream, found)) is None
        stream.close()


def test_the_thread_that_looks_after_deadlines_ends():
    with Deadline(60.0):
        assert "optllm-deadlines" in [thread.name for thread in threading.enumerate()]
    deadline = time.monotonic() + 20
    while "optllm-deadlines" in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.05)


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_stacks_are_looked_at(monkeypatch, collects):
    """The interpreter would wait for itself: python/cpython#106883."""
    look, seen = sys._current_frames, []

    def looked() -> dict:
        seen.append(gc.isenabled())
        return look()

    monkeypatch.setattr(sys, "_current_frames", looked)
    try:
        if not collects:
            gc.disable()
        assert _cutting._stack(threading.get_ident()) is not None
        assert (seen, gc.isenabled()) == ([False], collects)
    finally:
        gc.enable()
