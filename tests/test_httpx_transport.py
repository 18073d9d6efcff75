"""What only the httpx transport does: its connections, its bounds, and whom it tells what."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import socket
import threading
import time
from contextlib import closing
from decimal import Decimal
from urllib.parse import quote, quote_plus, urlsplit

import httpx
import pytest
from scripted_http import ScriptedProvider, listening

from optllm_router._errors import (
    ConfigurationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router._types import Call, Candidate, Price, Usage
from optllm_router.simulation import EMBEDDING_MODEL, SIMULATED_MODELS, Faults, SimulationServer
from optllm_router.transports import (
    DispatchingTransport,
    HttpxTransport,
    LiteLLMTransport,
    all_transports,
)
from optllm_router.transports import httpx as room
from optllm_router.transports._endpoints import body, endpoint, headers
from optllm_router.transports._faults import fault_of_error
from optllm_router.transports._secrets import first_line

MODEL = SIMULATED_MODELS[-1]
CALL = Call([{"role": "user", "content": "What is 2 + 3?"}], timeout_seconds=20)
FREE = Price(Decimal(0), Decimal(0), "test")


def candidate(base_url: str | None, model: str = f"openai/{MODEL.name}", **changes) -> Candidate:
    parameters = {} if base_url is None else {"api_base": base_url}
    parameters.update(changes.pop("parameters", {}))
    return Candidate("mine", model, FREE, 100, parameters=parameters, transport="httpx", **changes)


def run(how: str, to: Candidate, call: Call = CALL, *, streamed: bool = False):
    """The completion, or the list of chunks."""
    transport = HttpxTransport()

    async def wait():
        try:
            if streamed:
                return [chunk async for chunk in transport.astream(to, call)]
            return await transport.asend(to, call)
        finally:
            await transport.aclose()

    if how == "async":
        return asyncio.run(wait())
    with closing(transport):
        return list(transport.stream(to, call)) if streamed else transport.send(to, call)


both = pytest.mark.parametrize("how", ["sync", "async"])
either = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


# What is sent, and where


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/v1?api-version=1", "https://h/v1/chat/completions?api-version=1"),
        ("https://h/v1/?api-version=1", "https://h/v1/chat/completions?api-version=1"),
        ("https://h/v1/chat/completions?a=1", "https://h/v1/chat/completions?a=1"),
    ],
)
def test_the_url(base, url):
    assert endpoint(candidate(base)) == url


@pytest.mark.parametrize(
    ("model", "base", "url"),
    [
        ("ollama_chat/llama3.1", "http://h:11434", "http://h:11434/v1/chat/completions"),
        ("ollama/llama3.1", "http://h:11434/", "http://h:11434/v1/chat/completions"),
        ("ollama/llama3.1", "http://h:11434/v1", "http://h:11434/v1/chat/completions"),
        ("ollama/llama3.1", "http://h/behind/v1", "http://h/behind/v1/chat/completions"),
        ("openai/llama3.1", "http://h:11434", "http://h:11434/chat/completions"),
    ],
)
def test_ollama_is_found_where_litellm_finds_it(model, base, url):
    assert endpoint(candidate(base, model)) == url


def test_what_a_model_s_entry_adds_to_the_url():
    further = {"extra_query": {"api-version": "2025-01-01", "b": "x & y"}}
    to = candidate("https://h/v1", parameters=further)
    added = "api-version=2025-01-01&b=x+%26+y"
    assert endpoint(to) == f"https://h/v1/chat/completions?{added}"
    to = candidate("https://h/v1?a=1", parameters=further)
    assert endpoint(to) == f"https://h/v1/chat/completions?a=1&{added}"
    assert "extra_query" not in body(to, CALL)


class Asked(ScriptedProvider):
    """Between us and the simulation: keeps the URLs that it was asked under."""

    urls: list[str]
    provider: str

    def do_POST(self) -> None:
        self.urls.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/v1")
        answer = httpx.post(self.provider + path, content=self.read(), timeout=60)
        self.send_bytes(answer.content, answer.status_code, answer.headers["content-type"])


@both
@either
def test_the_url_of_a_model_s_entry_is_asked(server, how, streamed):
    Asked.urls, Asked.provider = [], server.base_url
    with listening(Asked) as gateway:
        to = candidate(f"{gateway}/v1", parameters={"extra_query": {"api-version": "2025-01-01"}})
        assert run(how, to, streamed=streamed)
        embeds = dataclasses.replace(to, model=f"openai/{EMBEDDING_MODEL}", operation="embedding")
        assert run(how, embeds, dataclasses.replace(CALL, operation="embedding"))
    query = "?api-version=2025-01-01"
    assert Asked.urls == [f"/v1/chat/completions{query}", f"/v1/embeddings{query}"]


def test_what_an_entry_adds_to_the_url_is_in_no_message(server):
    with contextlib.closing(HttpxTransport()) as transport:
        to = candidate(server.base_url, parameters={"extra_query": {"key": 5, "b": "sesame-open"}})
        with pytest.raises(ConfigurationError, match="extra_query of model 'mine'") as caught:
            transport.check([to])
    assert "sesame-open" not in str(caught.value)
    assert first_line("no: sesame-open", to) == "no: [key]"


SECRET = "ab+cd/efgh 12=="


@pytest.mark.parametrize(
    "sent", [SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET)]
)
@pytest.mark.parametrize("where", ["extra_query", "api_base", "base_url", "environment"])
def test_what_the_url_holds_is_masked_as_it_is_sent(monkeypatch, where, sent):
    url, parameters = f"http://localhost/v1?a=b&code={quote_plus(SECRET)}#top", {}
    if where == "environment":
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    else:
        parameters = {where: {"code": SECRET} if where == "extra_query" else url}
    to = candidate(None, parameters=parameters)
    assert first_line(f"no /v1?code={sent}", to) == "no /v1?code=[key]"


def test_a_login_in_the_url_is_masked():
    to = candidate("https://bob:hunter%402@h.example/v1")
    assert first_line("error for url 'https://bob:hunter%402@h.example/v1'", to) == (
        "error for url 'https://[key]h.example/v1'"
    )
    sent = base64.b64encode(b"bob:hunter@2").decode()
    assert first_line(f"hunter@2? Basic {sent}", to) == "[key]? Basic [key]"
    with pytest.raises(ConfigurationError, match="is no URL") as caught:
        endpoint(candidate("ftp://bob:hunter%402@h.example/v1"))
    assert "hunter" not in str(caught.value)


def test_what_is_sent_is_masked():
    to = candidate(
        "http://localhost/v1?sig=QUJD+/REVG==", parameters={"extra_query": {"c": SECRET}}
    )
    query = urlsplit(endpoint(to)).query
    assert first_line(f"no such page: ?{query}", to) == "no such page: ?sig=[key]&c=[key]"


def test_an_api_s_version_and_short_values_are_told():
    query = {"api-version": "2025-01-01-preview", "mode": "fast"}
    to = candidate("http://localhost/v1?apiVersion=2024-10-21", parameters={"extra_query": query})
    told = "no version 2025-01-01-preview or 2024-10-21 in mode fast"
    assert first_line(told, to) == told


def test_openai_is_where_models_of_openai_are(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    assert endpoint(candidate(None)) == "https://api.openai.com/v1/chat/completions"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert endpoint(candidate(None)) == "http://localhost:1/v1/chat/completions"


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("openai/gpt-4o", "gpt-4o"),
        ("hosted_vllm/meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("ollama/llama3", "llama3"),
        ("gpt-4o", "gpt-4o"),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
    ],
)
def test_the_name_of_the_model_is_the_server_s(model, sent):
    assert body(candidate("http://h/v1", model), CALL)["model"] == sent


def test_the_bound_has_the_name_that_the_server_takes(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    call = Call(CALL.messages, max_output_tokens=7)
    assert body(candidate(None), call)["max_completion_tokens"] == 7
    assert body(candidate("http://h/v1"), call)["max_tokens"] == 7


def test_what_litellm_alone_understands_is_not_sent():
    to = candidate("http://h/v1", parameters={"num_retries": 3, "temperature": 0.5, "rpm": 9})
    assert body(to, CALL).keys() == {"model", "messages", "temperature"}


def test_the_key_of_the_environment_goes_to_openai_and_nobody_else(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    assert headers(candidate(None), CALL)["authorization"] == "Bearer from-the-environment"
    for other in ("http://localhost:8000/v1", "https://api.openai.com.evil.example/v1"):
        assert "authorization" not in headers(candidate(other), CALL)
    assert headers(candidate("http://h/v1", api_key="mine"), CALL)["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("to", "named"),
    [
        (candidate(None, "mistral/large"), "api_base"),
        (candidate("localhost:8000/v1"), "localhost:8000/v1"),
        (candidate("http://h/v1", parameters={"api_version": "1"}), "api_version"),
        (candidate(None), "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_be_called_is_found_before_it_is(monkeypatch, to, named):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=named):
        HttpxTransport().check([to])


def test_a_local_server_needs_no_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    local = candidate(server.base_url)
    HttpxTransport().check([local])
    assert run("sync", local).body["choices"][0]["message"]["content"]


# Each candidate through its own transport


def test_a_candidate_is_asked_through_the_transport_that_it_names(server):
    asked: list[str] = []

    class Noted(HttpxTransport):
        def send(self, candidate, call):
            asked.append("httpx")
            return super().send(candidate, call)

    with closing(DispatchingTransport({"litellm": LiteLLMTransport(), "httpx": Noted()})) as each:
        to = candidate(server.base_url, api_key="unused")
        litellm_s = Candidate(
            "other", to.model, FREE, 100, parameters=to.parameters, api_key="unused"
        )
        assert each.send(to, CALL).usage == each.send(litellm_s, CALL).usage
    assert asked == ["httpx"]


def test_a_transport_that_is_not_there_is_found_before_it_is_asked_for():
    to = Candidate("mine", "openai/x", FREE, 100, transport="pigeon")
    with closing(all_transports()) as each, pytest.raises(ConfigurationError, match="pigeon"):
        each.check([to])


# Connections


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until either side closes; the other one is told."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Counting(threading.Thread):
    """Passes connections on to a server and counts those that are opened and still open."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.opened = 0
        self.open = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        self.start()

    def run(self) -> None:
        while True:
            try:
                inner, _ = self.listener.accept()
            except OSError:
                return
            self.opened += 1
            self.open += 1
            threading.Thread(target=self.pass_on, args=(inner,), daemon=True).start()

    def pass_on(self, inner: socket.socket) -> None:
        with inner, socket.create_connection(("127.0.0.1", self.port)) as outer:
            back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
            back.start()
            pump(inner, outer)
            back.join()
        self.open -= 1

    def wait_until_closed(self) -> bool:
        deadline = time.monotonic() + 5
        while self.open > 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.open == 0


@pytest.fixture
def counting(server):
    proxy = Counting(httpx.URL(server.base_url).port)
    yield proxy
    proxy.listener.close()


@either
def test_calls_share_a_connection(counting, streamed):
    with closing(HttpxTransport()) as transport:
        for _ in range(3):
            if streamed:
                assert list(transport.stream(candidate(counting.base_url), CALL))[-1].usage
            else:
                assert transport.send(candidate(counting.base_url), CALL).usage
        assert counting.opened == 1
    assert counting.wait_until_closed()


def test_whole_answers_and_streams_share_a_connection(counting):
    to = candidate(counting.base_url)
    with closing(HttpxTransport()) as transport:
        for _ in range(2):
            assert transport.send(to, CALL).usage
            assert list(transport.stream(to, CALL))[-1].usage
        assert counting.opened == 1
        transport.close()
        assert counting.wait_until_closed()
        assert list(transport.stream(to, CALL))[-1].usage
        assert transport.send(to, CALL).usage
        assert counting.opened == 2
    assert counting.wait_until_closed()


@either
def test_calls_of_an_event_loop_share_connections(counting, streamed):
    transport = HttpxTransport()
    to = candidate(counting.base_url)

    async def one() -> None:
        if streamed:
            assert [chunk async for chunk in transport.astream(to, CALL)][-1].usage
        else:
            assert (await transport.asend(to, CALL)).usage

    async def several() -> None:
        for _ in range(3):
            await asyncio.gather(one(), one())
        await asyncio.to_thread(transport.close)

    asyncio.run(several())
    assert counting.opened == 2
    assert counting.wait_until_closed()


@both
def test_an_abandoned_stream_closes_its_connection_and_ends_the_bill(how):
    with SimulationServer(chunk_seconds=0.05, chunk_tokens=1) as server:
        to = candidate(server.base_url)
        transport = HttpxTransport()

        async def abandon() -> None:
            chunks = transport.astream(to, CALL)
            await anext(chunks)
            await chunks.aclose()
            await asyncio.sleep(0.2)
            await transport.aclose()

        if how == "async":
            asyncio.run(abandon())
        else:
            chunks = transport.stream(to, CALL)
            next(chunks)
            chunks.close()
            time.sleep(0.2)
            transport.close()
        (billed,) = server.served[MODEL.name]
        time.sleep(0.2)
        assert server.served[MODEL.name] == (billed,)
    whole = MODEL.reply("What is 2 + 3?")
    assert billed.prompt_tokens == whole.prompt_tokens
    assert billed.completion_tokens < whole.completion_tokens


def test_a_cancelled_call_closes_its_connection(counting, server):
    server.faults = Faults(script=("timeout",))
    transport = HttpxTransport()

    async def cancel() -> None:
        task = asyncio.ensure_future(transport.asend(candidate(counting.base_url), CALL))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(counting.wait_until_closed)
        await transport.aclose()

    asyncio.run(cancel())


def test_threads_share_a_transport(server):
    to = candidate(server.base_url)
    usages: list[Usage | None] = []
    with closing(HttpxTransport()) as transport:
        threads = [
            threading.Thread(target=lambda: usages.append(transport.send(to, CALL).usage))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(usages) == 8
    assert len(set(usages)) == 1


def test_a_closed_transport_can_be_used_again(server):
    transport = HttpxTransport()
    for _ in range(2):
        assert transport.send(candidate(server.base_url), CALL).usage
        transport.close()
        transport.close()


# Bounds


@both
@either
def test_an_answer_of_more_than_10_megabytes_is_none(server, how, streamed):
    server.faults = Faults(script=("huge",))
    with pytest.raises(ProviderResponseError, match="10000000 bytes") as caught:
        run(how, candidate(server.base_url), streamed=streamed)
    assert caught.value.maybe_billed


@both
def test_a_stream_is_bounded_as_a_whole(server, how, monkeypatch):
    monkeypatch.setattr(room, "_MOST_STREAMED_BYTES", 20_000)
    server.faults = Faults(script=("endless",))
    with pytest.raises(ProviderResponseError, match="20000 bytes") as caught:
        run(how, candidate(server.base_url), streamed=True)
    assert caught.value.maybe_billed


class Complaining(threading.Thread):
    """Refuses a request with 400, and says why at great length."""

    most = 60_000_000

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        self.sent = 0

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 Bad\r\nconnection: close\r\n\r\nmax_tokens is bad")
            while self.sent < self.most:
                connection.sendall(b"x" * 100_000)
                self.sent += 100_000


@both
@either
def test_of_an_error_only_the_beginning_is_read(how, streamed):
    server = Complaining()
    server.start()
    with server.listener, pytest.raises(ProviderRejectedError, match="max_tokens is bad") as caught:
        run(how, candidate(server.base_url), streamed=streamed)
    server.join(30)
    assert server.sent < 20_000_000  # what fits into the buffers of sockets, at most
    assert (caught.value.status, caught.value.maybe_billed) == (400, False)


@both
@either
@pytest.mark.parametrize("fault", ["endless", "stall"])
def test_a_provider_that_never_ends_is_left_at_the_deadline(server, how, fault, streamed):
    server.faults = Faults(script=(fault,))
    start = time.monotonic()
    with pytest.raises(ProviderTimeoutError, match=r"within 0\.3 seconds") as caught:
        run(
            how,
            candidate(server.base_url),
            Call(CALL.messages, timeout_seconds=0.3),
            streamed=streamed,
        )
    assert time.monotonic() - start < 3
    assert caught.value.maybe_billed


@both
@either
def test_a_connection_that_is_cut_early_was_billed(server, how, streamed):
    server.faults = Faults(script=("cut_early",))
    with pytest.raises(ProviderConnectionError) as caught:
        run(how, candidate(server.base_url), streamed=streamed)
    assert caught.value.maybe_billed


@both
@either
def test_json_that_breaks_off_is_no_answer(server, how, streamed):
    server.faults = Faults(script=("malformed",))
    with pytest.raises(ProviderResponseError) as caught:
        run(how, candidate(server.base_url), streamed=streamed)
    assert caught.value.maybe_billed


@both
@either
def test_a_right_answer_with_a_wrong_type_is_an_answer(server, how, streamed):
    server.faults = Faults(script=("wrong_type",))
    result = run(how, candidate(server.base_url), streamed=streamed)
    usage = result[-1].usage if streamed else result.usage
    assert server.served == {MODEL.name: (usage,)}


# Errors


@pytest.mark.parametrize(
    ("error", "kind", "status", "maybe_billed"),
    [
        ({"code": 429}, ProviderRateLimitedError, 429, False),
        ({"code": 502, "message": "no"}, ProviderUnavailableError, 502, True),
        ({"code": "context_length_exceeded"}, ProviderRejectedError, 400, False),
        ({"type": "overloaded_error"}, ProviderUnavailableError, 529, False),
        ({"code": None, "type": "server_error"}, ProviderUnavailableError, 500, False),
        ({"code": 5}, ProviderResponseError, None, True),
        ({"message": "something"}, ProviderResponseError, None, True),
        ("text", ProviderResponseError, None, True),
    ],
)
def test_an_error_that_comes_with_a_status_of_200(error, kind, status, maybe_billed):
    fault, found = fault_of_error(error)
    assert (fault.error, fault.maybe_billed, found) == (kind, maybe_billed, status)


def leaves(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(httpx.HTTPError), ids=lambda kind: kind.__name__)
def test_every_fault_of_httpx_is_mapped(monkeypatch, kind):
    if kind is httpx.HTTPStatusError:
        error: Exception = kind("no", request=None, response=None)
    else:
        error = kind("no")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(httpx.Client, "send", fail)
    with closing(HttpxTransport()) as transport, pytest.raises(ProviderError) as caught:
        transport.send(candidate("http://localhost:1/v1"), CALL)
    assert caught.value.__suppress_context__
    unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    assert caught.value.maybe_billed is not issubclass(kind, unsent)


def test_a_mistake_of_our_own_is_not_taken_for_the_provider_s(monkeypatch):
    monkeypatch.setattr(httpx.Client, "send", lambda *_, **__: 1 / 0)
    with closing(HttpxTransport()) as transport, pytest.raises(ZeroDivisionError):
        transport.send(candidate("http://localhost:1/v1"), CALL)


def test_what_cannot_be_json_is_not_sent_and_not_billed(server):
    call = Call([{"role": "user", "content": "\ud800"}])
    with closing(HttpxTransport()) as transport, pytest.raises(UnicodeEncodeError):
        transport.send(candidate(server.base_url), call)
    assert not server.requests


# Embeddings


@both
@pytest.mark.parametrize(
    ("transport", "encoding"), [("litellm", "float"), ("httpx", "float"), ("httpx", "base64")]
)
def test_embeddings_of_either_transport(server, how, transport, encoding):
    import litellm_clients

    to = Candidate(
        "mine",
        f"openai/{EMBEDDING_MODEL}",
        FREE,
        1,
        parameters={"api_base": server.base_url},
        api_key="unused",
        operation="embedding",
        transport=transport,
    )
    call = Call(
        [{"role": "user", "content": text} for text in ("the cat", "sat")],
        {"encoding_format": encoding},
        operation="embedding",
        max_output_tokens=1,
    )
    each = all_transports()

    async def wait():
        answer = await each.asend(to, call)
        await asyncio.to_thread(each.close)
        return answer

    answer = each.send(to, call) if how == "sync" else litellm_clients.run(wait())
    each.close()
    assert answer.usage == Usage(3, 0)
    assert [item["index"] for item in answer.body["data"]] == [0, 1]
    vectors = [item["embedding"] for item in answer.body["data"]]
    assert all(isinstance(vector, str if encoding == "base64" else list) for vector in vectors)
    assert server.served == {EMBEDDING_MODEL: (Usage(3, 0),)}


@both
@pytest.mark.parametrize("fault", ["garbage", "malformed"])
def test_embeddings_that_are_none(server, how, fault):
    server.faults = Faults(script=(fault,))
    to = candidate(server.base_url, f"openai/{EMBEDDING_MODEL}", operation="embedding")
    call = Call(CALL.messages, operation="embedding", timeout_seconds=20)
    with pytest.raises(ProviderResponseError):
        run(how, to, call)


def test_the_body_of_embeddings_is_openai_s(server):
    sent = body(
        candidate("http://h/v1", operation="embedding"),
        Call(CALL.messages, {"dimensions": 8}, max_output_tokens=5, operation="embedding"),
    )
    assert sent == {"model": MODEL.name, "input": ["What is 2 + 3?"], "dimensions": 8}
    assert json.dumps(sent)
