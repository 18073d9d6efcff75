"""Every way in which a provider fails, over real HTTP and through litellm, sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import litellm_clients
import pytest

from optllm_router._errors import (
    ConfigurationError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router._types import Call, Candidate, Chunk, Completion, Price, Usage
from optllm_router.simulation import SIMULATED_MODELS, Faults
from optllm_router.transports import HttpxTransport, LiteLLMTransport
from optllm_router.transports.litellm import _shared_timeout

KEY = "sk-proj-0123456789abcdefghijSECRET"
MODEL = SIMULATED_MODELS[-1]
CALL = Call([{"role": "user", "content": "What is 2 + 3?"}], timeout_seconds=20)
FREE = Price(Decimal(0), Decimal(0), "test")


def candidate(base_url: str, name: str = MODEL.name, key: str | None = KEY, **parameters):
    parameters = {"api_base": base_url, **parameters}
    return Candidate("mine", f"openai/{name}", FREE, 100, parameters=parameters, api_key=key)


def send(how: str, to: Candidate, call: Call = CALL) -> Completion:
    transport = KINDS[how.partition(" ")[0]]()
    if how.endswith(" sync"):
        with closing(transport):
            return transport.send(to, call)

    async def wait() -> Completion:
        try:
            return await transport.asend(to, call)
        finally:
            await asyncio.to_thread(transport.close)

    return litellm_clients.run(wait())


def send_through(transport, how: str, to: Candidate) -> Completion:
    if how == "sync":
        return transport.send(to, CALL)
    return litellm_clients.run(transport.asend(to, CALL))


def stream(how: str, to: Candidate, call: Call = CALL) -> list[Chunk]:
    transport = KINDS[how.partition(" ")[0]]()
    if how.endswith(" sync"):
        with closing(transport):
            return list(transport.stream(to, call))

    async def collect() -> list[Chunk]:
        try:
            return [chunk async for chunk in transport.astream(to, call)]
        finally:
            await asyncio.to_thread(transport.close)

    return litellm_clients.run(collect())


def said(chunks: list[Chunk]) -> str:
    choices = [choice for chunk in chunks for choice in chunk.body["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


KINDS = {"litellm": LiteLLMTransport, "httpx": HttpxTransport}
both = pytest.mark.parametrize("how", ["sync", "async"])
every = pytest.mark.parametrize(
    "how", [f"{kind} {how}" for kind in KINDS for how in ("sync", "async")]
)


class Scripted(ThreadingHTTPServer):
    """A provider that answers each request with the same bytes and keeps what it was sent."""

    daemon_threads = True

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.status, self.body, self.content_type = status, body, content_type
        self.further = headers
        self.received: list[dict] = []
        self.headers: list[Message] = []
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class ScriptedHandler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.headers.append(self.headers)
        self.server.received.append(
            json.loads(self.rfile.read(int(self.headers["content-length"])))
        )
        self.send_response(self.server.status)
        self.send_header("content-type", self.server.content_type)
        self.send_header("content-length", str(len(self.server.body)))
        for name, value in self.server.further.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


def chat(message="5", **changes) -> bytes:
    body = {
        "id": "theirs",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": message},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        **changes,
    }
    return json.dumps(body).encode()


def error_body(message: str, code: str | None = None) -> bytes:
    error = {"message": message, "type": "some_error", "param": None, "code": code}
    return json.dumps({"error": error}).encode()


# Answers


@every
def test_an_answer(server, how):
    expected = MODEL.reply("What is 2 + 3?")
    completion = send(how, candidate(server.base_url))
    assert completion.body["choices"][0]["message"]["content"] == expected.text
    assert completion.usage == Usage(expected.prompt_tokens, expected.completion_tokens)
    assert server.served == {MODEL.name: (completion.usage,)}


@every
def test_what_is_asked_for_is_sent(how):
    call = Call(
        [{"role": "user", "content": "Hi"}],
        parameters={"temperature": 0.5, "seed": 7},
        max_output_tokens=11,
        timeout_seconds=20,
    )
    with Scripted(200, chat()) as provider:
        send(how, candidate(provider.base_url, top_p=0.25), call)
    (received,) = provider.received
    assert received["messages"] == [{"role": "user", "content": "Hi"}]
    assert received["max_tokens"] == 11
    assert (received["temperature"], received["seed"], received["top_p"]) == (0.5, 7, 0.25)


@every
def test_headers_and_body_of_a_call_are_added_to_the_configured_ones(how):
    call = Call(
        CALL.messages,
        parameters={
            "extra_headers": {"x-request-id": "5", "x-team": "theirs"},
            "extra_body": {"top_k": 3, "min_p": 0.1},
        },
    )
    with Scripted(200, chat()) as provider:
        configured = {"extra_headers": {"x-team": "ours"}, "extra_body": {"top_k": 2}}
        send(how, candidate(provider.base_url, **configured), call)
    (headers,), (received,) = provider.headers, provider.received
    assert (headers["x-request-id"], headers.get_all("x-team")) == ("5", ["ours"])
    assert (received["top_k"], received["min_p"]) == (2, 0.1)


@every
def test_tools_are_sent(how):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with Scripted(200, chat()) as provider:
        send(how, candidate(provider.base_url), Call(CALL.messages, {"tools": tools}))
    (received,) = provider.received
    assert received["tools"] == tools
    assert not [name for name in received if "mcp" in name]


@every
@pytest.mark.parametrize("name", ["model_info", "tags", "hidden_params", "mine"])
def test_metadata_of_a_call_is_not_taken_for_litellm_s_own(how, name):
    with Scripted(200, chat()) as provider:
        call = Call(CALL.messages, {"metadata": {name: "text"}})
        assert send(how, candidate(provider.base_url), call).usage is not None


@every
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "seven",
        {"prompt_tokens": 3},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -3, "completion_tokens": 4, "total_tokens": 1},
        {"prompt_tokens": 3, "completion_tokens": 10**30, "total_tokens": 10**30},
    ],
)
def test_a_usage_block_that_counts_nothing_is_no_usage(how, usage):
    body = chat(usage=usage)
    with Scripted(200, body) as provider, contextlib.suppress(ProviderResponseError):
        assert send(how, candidate(provider.base_url)).usage is None


@every
def test_the_cost_that_a_gateway_reports_comes_through(how):
    byok = {"is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}
    counted = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "cost": 0.0001}
    with Scripted(200, chat(usage=counted)) as provider:
        usage = send(how, candidate(provider.base_url)).usage
        assert usage == Usage(3, 4, reported_nano=100_000)
    with Scripted(200, chat(usage={**counted, **byok})) as provider:
        usage = send(how, candidate(provider.base_url)).usage
        assert usage == Usage(3, 4, reported_nano=2_100_000)
    with Scripted(200, chat(), headers={"x-litellm-response-cost": "2e-05"}) as provider:
        usage = send(how, candidate(provider.base_url)).usage
        assert usage == Usage(3, 4, reported_nano=20_000)


@every
def test_an_answer_without_a_usage_block_has_no_usage(how):
    body = json.loads(chat())
    del body["usage"]
    with Scripted(200, json.dumps(body).encode()) as provider:
        assert send(how, candidate(provider.base_url)).usage is None


# Streams


def events(*bodies: str | dict, end: str = "data: [DONE]\n\n") -> bytes:
    texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
    return ("".join(f"data: {text}\n\n" for text in texts) + end).encode()


def piece(delta: dict, finish_reason: str | None = None, **changes) -> dict:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    envelope = {"id": "theirs", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**envelope, "choices": [choice], **changes}


FIVE = piece({"role": "assistant", "content": "5"})
STOP = piece({}, "stop")
COUNT = piece({}, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})


def streaming(*bodies: str | dict, **changes) -> Scripted:
    return Scripted(200, events(*bodies, **changes), "text/event-stream")


@every
def test_a_stream_is_the_answer_in_pieces_with_its_usage_at_the_end(server, how):
    expected = MODEL.reply("What is 2 + 3?")
    chunks = stream(how, candidate(server.base_url))
    assert said(chunks) == expected.text
    *pieces, finish, last = chunks
    assert not [chunk for chunk in (*pieces, finish) if chunk.usage]
    assert [choice["finish_reason"] for choice in finish.body["choices"]] == ["stop"]
    assert last.body["choices"] == []
    assert last.usage == Usage(expected.prompt_tokens, expected.completion_tokens)
    assert last.body["usage"]["completion_tokens"] == expected.completion_tokens
    assert {chunk.body["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert server.served == {MODEL.name: (last.usage,)}


@every
@pytest.mark.parametrize("options", [None, {"include_usage": False, "other": 1}])
def test_the_provider_of_a_stream_is_always_asked_for_usage(how, options):
    call = Call(CALL.messages, {"stream_options": options}, timeout_seconds=20)
    with streaming(FIVE, STOP, COUNT) as provider:
        chunks = stream(how, candidate(provider.base_url), call)
    (received,) = provider.received
    assert received["stream"] is True
    assert received["stream_options"] == {**(options or {}), "include_usage": True}
    assert chunks[-1].usage == Usage(3, 4)


@every
def test_a_stream_whose_provider_does_not_count_has_no_usage(how):
    with streaming(FIVE, STOP) as provider:
        chunks = stream(how, candidate(provider.base_url))
    assert said(chunks) == "5"
    assert not [chunk for chunk in chunks if chunk.usage or "usage" in chunk.body]


@every
@pytest.mark.parametrize(
    ("fault", "kind", "maybe_billed"),
    [
        ("rate_limit", ProviderRateLimitedError, False),
        ("server_error", ProviderUnavailableError, False),
        ("timeout", ProviderTimeoutError, True),
        ("garbage", ProviderResponseError, True),
    ],
)
def test_a_stream_that_does_not_begin(server, how, fault, kind, maybe_billed):
    server.faults = Faults(script=(fault,))
    call = Call(CALL.messages, timeout_seconds=2 if fault == "timeout" else 20)
    with pytest.raises(ProviderError) as caught:
        stream(how, candidate(server.base_url), call)
    assert type(caught.value) is kind
    assert caught.value.maybe_billed is maybe_billed
    assert caught.value.retry_after_seconds == (1.0 if fault == "rate_limit" else None)


@every
@pytest.mark.parametrize(
    ("provider", "kind"),
    [
        (lambda: streaming(FIVE, "{", STOP), ProviderResponseError),
        (lambda: streaming(FIVE, "[]", STOP), ProviderResponseError),
        (lambda: streaming(FIVE, {"error": {"message": "no"}}), ProviderResponseError),
        (lambda: streaming(FIVE), ProviderConnectionError),
        (lambda: streaming(FIVE, end=""), ProviderConnectionError),
    ],
    ids=["malformed", "list", "error", "unfinished", "ended"],
)
def test_a_stream_that_breaks_after_its_first_chunk_was_billed(how, provider, kind):
    with provider() as running, pytest.raises(ProviderError) as caught:
        stream(how, candidate(running.base_url))
    assert type(caught.value) is kind
    assert caught.value.maybe_billed


@every
def test_a_stream_takes_no_longer_than_it_may(how):
    endless = streaming(*[FIVE] * 200_000)
    with endless as provider, pytest.raises(ProviderTimeoutError, match="in time"):
        stream(how, candidate(provider.base_url), Call(CALL.messages, timeout_seconds=0.2))


# Failures


@every
@pytest.mark.parametrize(
    ("fault", "kind", "status", "maybe_billed"),
    [
        ("rate_limit", ProviderRateLimitedError, 429, False),
        ("server_error", ProviderUnavailableError, 500, False),
        ("timeout", ProviderTimeoutError, None, True),
        ("cut", ProviderConnectionError, None, True),
        ("garbage", ProviderResponseError, None, True),
    ],
)
def test_each_fault_of_the_simulation(server, how, fault, kind, status, maybe_billed):
    server.faults = Faults(script=(fault,))
    call = Call(CALL.messages, timeout_seconds=2 if fault == "timeout" else 20)
    with pytest.raises(ProviderError) as caught:
        send(how, candidate(server.base_url), call)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.maybe_billed) == (status, maybe_billed)
    assert error.candidate == "mine"
    assert "'mine'" in str(error)
    assert "\n" not in str(error)
    assert server.requests == {MODEL.name: 1}


@every
@pytest.mark.parametrize(
    ("status", "kind", "maybe_billed"),
    [
        (400, ProviderRejectedError, False),
        (401, ProviderAuthenticationError, False),
        (403, ProviderAuthenticationError, False),
        (404, ProviderRejectedError, False),
        (413, ProviderRejectedError, False),
        (422, ProviderRejectedError, False),
        (429, ProviderRateLimitedError, False),
        (500, ProviderUnavailableError, False),
        (503, ProviderUnavailableError, False),
        (529, ProviderUnavailableError, False),
        # Nobody knows what the server behind the gateway did.
        (408, ProviderTimeoutError, True),
        (502, ProviderUnavailableError, True),
        (504, ProviderTimeoutError, True),
        (520, ProviderUnavailableError, True),
        (524, ProviderUnavailableError, True),
    ],
)
def test_each_status(how, status, kind, maybe_billed):
    with Scripted(status, error_body("no")) as provider, pytest.raises(ProviderError) as caught:
        send(how, candidate(provider.base_url))
    assert type(caught.value) is kind
    assert caught.value.maybe_billed is maybe_billed
    assert len(provider.received) == 1


@every
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("context_length_exceeded", "This model's maximum context length is 10 tokens."),
        ("content_policy_violation", "Your request was rejected by our safety system."),
    ],
)
def test_requests_that_the_provider_refuses_cost_nothing(how, code, message):
    body = error_body(message, code)
    with Scripted(400, body) as provider, pytest.raises(ProviderRejectedError) as caught:
        send(how, candidate(provider.base_url))
    assert not caught.value.maybe_billed


def refused(how: str, status: int, error: dict, key: str = KEY) -> ProviderError:
    """What comes of a provider's refusal."""
    body = json.dumps({"error": {"message": "no", **error}}).encode()
    with Scripted(status, body) as provider, pytest.raises(ProviderError) as caught:
        send(how, candidate(provider.base_url, key=key))
    return caught.value


def words(error: ProviderError) -> tuple:
    return error.code, error.param, error.type


@every
@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
@pytest.mark.parametrize(
    "told",
    [
        ("context_length_exceeded", "messages", "invalid_request_error"),
        ("content_filter", "tools[0].function.parameters", "BadRequestError"),
        (None, "extra_body.top-k", None),
    ],
)
def test_the_words_for_why_a_request_is_refused_are_kept(how, status, told):
    code, param, kind = told
    assert words(refused(how, status, {"code": code, "param": param, "type": kind})) == told


@every
@pytest.mark.parametrize("status", [401, 402, 408, 429, 500, 503])
def test_the_words_for_what_is_no_fault_of_the_request_are_not_kept(how, status):
    error = {"code": "content_filter", "param": "messages", "type": "odd"}
    assert words(refused(how, status, error)) == (None, None, None)


@every
@pytest.mark.parametrize("status", [400, 403, 429])
@pytest.mark.parametrize("name", ["code", "type"])
def test_an_account_that_is_used_up_is_no_budget_of_ours(how, status, name):
    error = refused(how, status, {name: "insufficient_quota"})
    assert words(error) == ("provider_quota_exceeded", None, "insufficient_quota")


@every
@pytest.mark.parametrize(
    "odd",
    [
        400,
        True,
        ["content_filter"],
        {"a": 1},
        "",
        "400",
        "a sentence of words",
        "<b>",
        "line\nbreak",
        "ends\n",
        "a\x00b",
        "\u202eabc",
        "gr\u00f6\u00dfe",
        "\ud83d",
        "a" * 101,
        f"at-{KEY}",
        "sk-0123456789abcdef0123",
    ],
    ids=ascii,
)
def test_words_that_are_not_plain_or_hold_a_key_are_not_kept(how, odd):
    error = refused(how, 400, {"code": odd, "param": odd, "type": odd})
    assert words(error) == (None, None, None)
    assert type(error) is ProviderRejectedError


@both
@pytest.mark.parametrize(
    ("model", "said", "told"),
    [
        ("anthropic/m", "prompt is too long: 9 tokens", ("context_length_exceeded", "messages")),
        ("openai/m", "rejected: content_policy_violation", ("content_filter", None)),
        ("anthropic/m", "max_tokens: must be at least 1", (None, None)),
    ],
)
def test_what_litellm_understands_of_a_sentence_is_a_code(how, model, said, told):
    """Anthropic's API has none."""
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    with Scripted(400, json.dumps(error).encode()) as provider:
        parameters = {"api_base": provider.base_url}
        to = Candidate("mine", model, FREE, 9, parameters=parameters, api_key=KEY)
        with pytest.raises(ProviderRejectedError) as caught:
            send(f"litellm {how}", to)
    assert words(caught.value) == (*told, "invalid_request_error")


@every
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"[1, 2]",
        b'"hello"',
        b"{}",
        b"{",
        b"\xff\xfe\x00",
        b"<html></html>",
        chat(choices=None),
        chat(choices=[]),
        chat(choices=[None]),
        chat(choices=[{}]),
        chat(choices=["text"]),
        chat(choices="text"),
        chat(choices=[{"index": 0, "message": None}]),
        chat(choices=[{"index": 0, "message": "text"}]),
        error_body("an error with status 200"),
    ],
    ids=lambda body: repr(body[-40:]),
)
def test_garbage_is_no_answer_and_may_have_been_billed(how, body):
    with Scripted(200, body) as provider, pytest.raises(ProviderError) as caught:
        send(how, candidate(provider.base_url))
    assert type(caught.value) is ProviderResponseError
    assert caught.value.maybe_billed


@every
def test_nobody_is_there(how):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ProviderConnectionError) as caught:
            send(how, candidate(base_url))
    assert not caught.value.maybe_billed


@every
def test_a_connection_closed_without_a_word_may_have_been_billed(how):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ProviderConnectionError) as caught:
            send(how, candidate(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
        thread.join()
    assert caught.value.maybe_billed


# Keys


@every
@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500])
@pytest.mark.parametrize("key", [KEY, "a-plain-word"])
def test_a_key_is_in_no_message(how, status, key):
    quoted = error_body(f"Incorrect API key provided: {key}. Bearer {key}")
    with Scripted(status, quoted) as provider, pytest.raises(ProviderError) as caught:
        send(how, candidate(provider.base_url, key=key))
    error = caught.value
    assert key not in str(error)
    assert key not in repr(error)
    # A logged traceback prints the cause, too.
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


@every
@pytest.mark.parametrize("name", ["ACME_API_KEY", "ACME_TOKEN", "ACME_SECRET"])
def test_a_key_of_the_environment_is_in_no_message(monkeypatch, how, name):
    secret = "0123456789abcdef0123456789abcdef"
    monkeypatch.setenv(name, secret)
    refusal = pytest.raises(ProviderAuthenticationError, match=r"Wrong: \[key\]")
    with Scripted(401, error_body(f"Wrong: {secret}")) as provider, refusal as caught:
        send(how, candidate(provider.base_url))
    assert secret not in str(caught.value)


@every
def test_a_secret_of_the_configuration_is_in_no_message(how):
    secrets = {"aws_secret_access_key": "abcdefgh", "extra_headers": {"x-auth": "Basic ijklmnop"}}
    refusal = pytest.raises(ProviderRejectedError, match=r"Wrong: \[key\] \[key\]")
    with Scripted(400, error_body("Wrong: abcdefgh ijklmnop")) as provider, refusal:
        send(how, candidate(provider.base_url, **secrets))


@every
def test_no_half_of_a_key_is_left_where_a_message_is_cut(how):
    for length in range(150, 300, 7):
        quoted = error_body("." * length + "a-plain-word")
        with Scripted(400, quoted) as provider, pytest.raises(ProviderRejectedError) as caught:
            send(how, candidate(provider.base_url, key="a-plain-word"))
        assert "a-p" not in str(caught.value)


def test_a_short_value_of_the_environment_is_a_word_and_stays(monkeypatch):
    monkeypatch.setenv("ACME_TOKEN", "Wrong")
    refusal = pytest.raises(ProviderRejectedError, match="Wrong")
    with Scripted(400, error_body("Wrong")) as provider, refusal:
        send("httpx sync", candidate(provider.base_url))


def test_a_candidate_does_not_show_its_key():
    secrets = {"aws_secret_access_key": "abcdefgh", "extra_headers": {"Authorization": "ijklmnop"}}
    shown = repr(candidate("http://x", **secrets))
    assert not [secret for secret in (KEY, "abcdefgh", "ijklmnop") if secret in shown]


def test_a_candidate_with_a_key_passes_the_check(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Scripted(200, chat()) as provider:
        keyed = candidate(provider.base_url)
        LiteLLMTransport().check([keyed])
        send("litellm sync", keyed)
    assert [sent["authorization"] for sent in provider.headers] == [f"Bearer {KEY}"]


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY") as caught:
        LiteLLMTransport().check([candidate("http://x"), candidate("http://x", key=None)])
    assert "'mine'" in str(caught.value)
    assert "api_key" in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "set")
    LiteLLMTransport().check([candidate("http://x", key=None)])


def test_what_is_left_of_deadlines_makes_no_clients_of_their_own(server):
    import litellm

    async def several() -> list[str]:
        for seconds in (600, 599.9998, 599.7, 595):
            await LiteLLMTransport().asend(
                candidate(server.base_url), Call(CALL.messages, timeout_seconds=seconds)
            )
        names = list(litellm.in_memory_llm_clients_cache.cache_dict)
        return [name for name in names if server.base_url in name]

    assert len(litellm_clients.run(several())) == 1


@pytest.mark.parametrize("seconds", [1e-6, 0.05, 0.3, 1, 7.3, 599.9998, 600, 86_400])
def test_a_shared_time_limit_is_no_shorter_and_hardly_longer(seconds):
    assert seconds <= _shared_timeout(seconds) * 1.0001 <= 1.13 * seconds


def test_calls_of_two_event_loops_share_a_transport(server):
    transport = LiteLLMTransport()
    for _ in range(3):
        assert send_through(transport, "async", candidate(server.base_url)).usage is not None
