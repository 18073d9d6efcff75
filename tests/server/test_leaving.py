"""Clients that leave in the middle of a stream, read nothing, or wait for too long, and servers."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from running import RunningServer, until, write_config
from scripted_http import COMPLETION, ScriptedProvider, listening
from simulated_entries import model_entries, through_httpx

from optllm_router.ledger import Ledger
from optllm_router.server import Limits
from optllm_router.simulation import SimulationServer
from optllm_router.store import Database
from optllm_router.store.schema import reservations

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)


def states(folder) -> list[str]:
    """Of all reservations so far."""
    database = Database(f"sqlite:///{folder}/optllm.db")
    with closing(database), database.read() as connection:
        return [row.state for row in connection.execute(reservations.select())]


def wait_until_settled(folder, calls: int) -> None:
    """Until that many calls are over and paid, and the books are right."""
    until(lambda: len(found := states(folder)) == calls and "open" not in found, seconds=60)
    assert set(states(folder)) == {"settled"}
    with closing(Database(f"sqlite:///{folder}/optllm.db")) as database:
        ledger = Ledger(database)
        assert ledger.verify() == []
        (balance,) = ledger.balances()
    assert balance.reserved_nano == 0
    assert balance.spent_nano > 0


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
def test_a_stream_that_is_left_ends_at_the_provider_and_is_settled(tmp_path, transport):
    with SimulationServer(chunk_seconds=0.3, chunk_tokens=1) as provider:
        entries = [one for one in model_entries(provider.base_url) if "small" in str(one)]
        for one in entries:
            one["router"] = {"transport": transport}
        config = write_config(tmp_path, entries, budget="1 USD")
        asked = {
            "/v1/chat/completions": {"messages": QUESTION},
            "/v1/responses": {"input": QUESTION[0]["content"]},
        }
        with RunningServer(config) as server:
            for path, fields in asked.items():
                body = {"model": "sim-small", "stream": True, **fields}
                with httpx.stream("POST", server.url + path, json=body, timeout=60) as response:
                    assert response.status_code == 200
                    words = (line for line in response.iter_lines() if "delta" in line)
                    for _ in range(4):
                        next(words)
            # What the provider made until it was told; the whole takes many seconds more.
            until(lambda: len(provider.served.get("sim-small", ())) == len(asked), seconds=60)
            wait_until_settled(tmp_path, len(asked))
            metrics = httpx.get(f"{server.url}/metrics").text
            for path in asked:
                assert f'route="{path}",status="499"' in metrics
            made = [usage.completion_tokens for usage in provider.served["sim-small"]]
    whole = whole_answer()
    assert all(0 < tokens < whole for tokens in made), (made, whole)


def whole_answer() -> int:
    """How many tokens the answer has when nobody leaves."""
    with SimulationServer() as provider:
        body = {"model": "sim-small", "messages": QUESTION}
        answer = httpx.post(f"{provider.base_url}/chat/completions", json=body, timeout=60).json()
    return answer["usage"]["completion_tokens"]


class Flooding(http.server.BaseHTTPRequestHandler):
    """A provider whose stream does not end, and comes as fast as it is read."""

    left = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunk = {"choices": [{"index": 0, "delta": {"content": "word " * 10_000}}]}
        event = f"data: {json.dumps(chunk)}\n\n".encode()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(event)
        self.left.set()

    def log_message(self, *_: object) -> None:
        pass


def test_a_client_that_reads_nothing_is_not_waited_for_and_its_stream_is_settled(tmp_path):
    body = json.dumps({"model": "auto", "messages": QUESTION, "stream": True}).encode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flooding) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        entries = through_httpx(model_entries(f"http://127.0.0.1:{provider.server_port}/v1")[-1:])
        config = write_config(tmp_path, entries, budget="1 USD")
        with RunningServer(config, limits=Limits(send_seconds=0.5)) as server:
            with server.connect() as connection:
                connection.sendall(REQUEST % len(body) + body)
                assert Flooding.left.wait(60)
                wait_until_settled(tmp_path, 1)
            metrics = httpx.get(f"{server.url}/metrics").text
        provider.shutdown()
    assert "optllm_requests_under_way 1.0" in metrics  # the one that asks


def test_an_answer_that_takes_too_long_is_a_504_and_settled(tmp_path):
    with SimulationServer(latency_seconds=60) as provider:
        config = write_config(
            tmp_path, through_httpx(model_entries(provider.base_url)[-1:]), budget="1 USD"
        )
        with RunningServer(config, limits=Limits(request_seconds=1.0)) as server:
            body = {"model": "auto", "messages": QUESTION}
            response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert sum(provider.requests.values()) == 1
            wait_until_settled(tmp_path, 1)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    assert "within 1 seconds" in response.json()["error"]["message"]


STREAMED = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/responses": {"input": QUESTION[0]["content"]},
}


def last_words(server: RunningServer, path: str) -> dict:
    """Ask for a stream and read all of it: the error under which its body ends."""
    body = {"model": "sim-small", "stream": True, **STREAMED[path]}
    response = httpx.post(server.url + path, json=body, timeout=60)  # raises for a body cut off
    assert response.status_code == 200
    assert "delta" in response.text
    *_, last = response.text.strip().split("\n\n")
    name, _, data = last.rpartition("\n")
    assert name == ("event: error" if path == "/v1/responses" else "")
    return json.loads(data.removeprefix("data: "))["error"]


@pytest.fixture
def slow_stream(tmp_path):
    """A configuration whose model makes a token every 0.3 s."""
    with SimulationServer(chunk_seconds=0.3, chunk_tokens=1) as provider:
        entries = [one for one in model_entries(provider.base_url) if "small" in str(one)]
        yield write_config(tmp_path, through_httpx(entries), budget="1 USD")


@pytest.mark.parametrize("path", STREAMED)
def test_a_stream_that_takes_too_long_ends_in_an_error_and_is_settled(tmp_path, slow_stream, path):
    with RunningServer(slow_stream, limits=Limits(request_seconds=2.0)) as server:
        error = last_words(server, path)
        wait_until_settled(tmp_path, 1)
    assert (error["code"], error["type"]) == ("request_timeout", "server_error")
    assert "within 2 seconds" in error["message"]
    assert "ASGI" not in "".join(server.log)


@pytest.mark.parametrize("path", STREAMED)
def test_a_stream_that_a_stop_cuts_ends_in_an_error_and_is_settled(tmp_path, slow_stream, path):
    with RunningServer(slow_stream, "--grace", "1") as server, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(last_words, server, path)
        until(lambda: states(tmp_path) == ["open"], seconds=60)
        server.process.send_signal(signal.SIGTERM)
        error = asking.result(60)
        assert server.stop() == 0
        wait_until_settled(tmp_path, 1)
    assert (error["code"], error["type"]) == ("stopping", "server_error")
    (line,) = server.events("decision")
    assert (line["code"], line["whole"]) == ("stopping", False)
    assert "ASGI" not in "".join(server.log)


def test_who_does_not_read_the_end_of_a_stream_is_not_waited_for(tmp_path):
    Flooding.left.clear()
    body = json.dumps({"model": "auto", "messages": QUESTION, "stream": True}).encode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flooding) as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        entries = through_httpx(model_entries(f"http://127.0.0.1:{provider.server_port}/v1")[-1:])
        config = write_config(tmp_path, entries, budget="1 USD")
        limits = Limits(request_seconds=1.0, send_seconds=60)
        with RunningServer(config, limits=limits) as server, server.connect() as connection:
            connection.sendall(REQUEST % len(body) + body)
            assert Flooding.left.wait(30)
            wait_until_settled(tmp_path, 1)
            until(lambda: "under_way 1.0" in httpx.get(f"{server.url}/metrics").text)
        provider.shutdown()


class Listening(ScriptedProvider):
    """A provider that keeps the headers that it was sent."""

    heard: list[str | None]

    def do_POST(self) -> None:
        self.heard.append(self.headers["x-request-id"])
        self.read()
        self.send(COMPLETION)


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
def test_the_id_of_a_request_reaches_the_provider(tmp_path, transport):
    Listening.heard = []
    with listening(Listening) as provider:
        entries = [{**model_entries(f"{provider}/v1")[-1], "router": {"transport": transport}}]
        with RunningServer(write_config(tmp_path, entries)) as server:
            url = f"{server.url}/v1/chat/completions"
            body = {"model": "auto", "messages": QUESTION}
            for given in ({"x-request-id": "mine-7"}, {}):
                response = httpx.post(url, json=body, headers=given, timeout=60)
                assert response.status_code == 200
    assert Listening.heard == ["mine-7", response.headers["x-request-id"]]
