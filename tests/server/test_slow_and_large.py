"""Clients that send slowly, much, or not at all, read nothing, or leave: none holds the server."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from running import RunningServer, until, write_config
from simulated_entries import model_entries, through_httpx

from optllm_router.server import Limits
from optllm_router.simulation import SimulationServer
from optllm_router.store import Database
from optllm_router.store.schema import reservations

LIMITS = Limits(
    connections=20,
    requests=4,
    header_bytes=4_000,
    headers=30,
    header_seconds=0.5,
    body_bytes=10_000,
    body_seconds=0.5,
    request_seconds=3.0,
    send_seconds=0.5,
)
BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n"
)


@pytest.fixture(scope="module")
def slow_provider():
    """Takes a while for an answer: long enough to leave in the middle."""
    with SimulationServer(latency_seconds=1.5) as running:
        yield running


@pytest.fixture(scope="module")
def config(slow_provider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    return write_config(
        folder, through_httpx(model_entries(slow_provider.base_url)), budget="1 USD"
    )


@pytest.fixture(scope="module")
def served(config):
    with RunningServer(config, limits=LIMITS) as running:
        until(lambda: answers(running), seconds=60)  # the first call loads what others only use
        yield running


def answers(served: RunningServer) -> bool:
    headers = {"content-type": "application/json"}
    url = f"{served.url}/v1/chat/completions"
    return httpx.post(url, content=BODY, headers=headers, timeout=30).status_code == 200


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def received_until(connection: socket.socket, end: bytes) -> bytes:
    """All that comes until these bytes do."""
    parts = b""
    while not parts.endswith(end):
        part = connection.recv(65_536)
        assert part, parts
        parts += part
    return parts


def refused_while_sending(connection: socket.socket, data: bytes, pause: float) -> bool:
    """Whether the server closes the connection while the same is sent over and over."""
    start = time.monotonic()
    while time.monotonic() - start < 10:
        try:
            connection.sendall(data)
        except OSError:
            return True
        time.sleep(pause)
    return False


def alive(served: RunningServer) -> bool:
    return httpx.get(f"{served.url}/health/live", timeout=10).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health/live HTTP/1.1\r\nx: y\r\n"])
def test_headers_that_never_end_are_not_waited_for(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert received(connection) == b""
        assert time.monotonic() - start < 5
    assert alive(served)


def test_a_trickle_of_headers_does_not_move_the_deadline(served):
    with served.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        assert refused_while_sending(connection, b"x: y\r\n", pause=0.1)
        assert time.monotonic() - start < 5


def test_a_later_request_on_a_connection_has_the_same_deadline(served):
    with served.connect() as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        received_until(connection, b'"live"}')
        connection.sendall(b"GET /health/li")
        start = time.monotonic()
        assert received(connection) == b""
        assert time.monotonic() - start < 5


def test_a_body_that_never_ends_is_answered_408(served):
    with served.connect() as connection:
        connection.sendall(HEAD % 1_000 + b"\r\n{")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"over 0.5 seconds" in answer


def test_a_body_that_nobody_waits_for_is_not_read_for_ever(served):
    with served.connect() as connection:
        connection.sendall(HEAD.replace(b"localhost", b"evil.example") % 10**9 + b"\r\n")
        assert received_until(connection, b"}").startswith(b"HTTP/1.1 403")
        assert refused_while_sending(connection, b"x", pause=0.05)


def test_a_body_that_is_too_large_is_answered_413(served):
    response = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=b"x" * 15_000,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_an_endless_body_is_cut(served):
    with served.connect() as connection:
        connection.sendall(HEAD.replace(b"content-length: %d", b"transfer-encoding: chunked"))
        connection.sendall(b"\r\n")
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        assert refused_while_sending(connection, chunk, pause=0)
    assert alive(served)


@pytest.mark.parametrize("extra", [{f"x-{i}": "1" for i in range(40)}, {"x": "y" * 3_990}])
def test_too_many_headers_are_answered_431(served, extra):
    response = httpx.get(f"{served.url}/health/live", headers=extra)
    assert response.status_code == 431


def test_headers_without_bounds_end_the_connection(served):
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert not received(connection).startswith(b"HTTP/1.1 2")
    assert alive(served)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02", b"GET / HTTP/9\r\n\r\n", b"\r\n\r\n\r\nx\r\n"]
)
def test_what_is_not_http_is_no_reason_to_stop(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        assert not received(connection).startswith(b"HTTP/1.1 2")
    assert alive(served)


def test_more_requests_than_allowed_are_told_to_come_back(served, slow_provider):
    before = sum(slow_provider.requests.values())
    waiting = [served.connect() for _ in range(LIMITS.requests)]
    try:
        for connection in waiting:
            connection.sendall(HEAD % len(BODY) + b"\r\n" + BODY)
        until(lambda: sum(slow_provider.requests.values()) == before + LIMITS.requests)
        response = httpx.get(f"{served.url}/health/live")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        for connection in waiting:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    finally:
        for connection in waiting:
            connection.close()


def test_more_connections_than_allowed_are_closed(served):
    idle = [served.connect() for _ in range(LIMITS.connections + 5)]
    try:
        start = time.monotonic()
        assert received(idle[-1]) == b""
        assert time.monotonic() - start < LIMITS.header_seconds  # it was not that deadline
    finally:
        for connection in idle:
            connection.close()
    time.sleep(0.2)
    assert alive(served)


def test_a_client_that_leaves_ends_the_call_and_the_books_are_closed(served, config, slow_provider):
    before = sum(slow_provider.requests.values())
    with served.connect() as connection:
        connection.sendall(HEAD % len(BODY) + b"\r\n" + BODY)
        until(lambda: sum(slow_provider.requests.values()) == before + 1)
    database = Database(f"sqlite:///{config.parent}/optllm.db")
    try:
        until(lambda: open_reservations(database) == 0)
    finally:
        database.close()
    metrics = httpx.get(f"{served.url}/metrics").text
    assert 'route="/v1/chat/completions",status="499"' in metrics


def open_reservations(database: Database) -> int:
    with database.read() as connection:
        rows = connection.execute(reservations.select()).all()
    assert rows
    return sum(row.state == "open" for row in rows)
