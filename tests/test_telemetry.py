"""Spans by OpenTelemetry's conventions for generative AI; nothing at all where nobody traces."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import litellm_clients
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from optllm_router import (
    AllCandidatesFailedError,
    AsyncOptLLM,
    Call,
    Candidate,
    Chunk,
    Completion,
    OptLLM,
    Price,
    ProviderConnectionError,
    ProviderError,
    Usage,
)
from optllm_router._routing import RoutingInfo
from optllm_router._telemetry import attempt_span, continued, end_attempt
from optllm_router.candidates import read_candidates
from optllm_router.simulation import Faults
from optllm_router.transports._endpoints import server_of
from optllm_router.transports.traced import TracedTransport

MESSAGES = [{"role": "user", "content": "my-private-words"}]
MODEL = Candidate("m", "x/m", Price(Decimal(1), Decimal(1), "test"), 10)


@pytest.fixture
def spans(monkeypatch):
    """What was exported so far."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter.get_finished_spans
    provider.shutdown()


@pytest.fixture
def small(models) -> list[dict]:
    return [entry for entry in models if entry["model_name"] == "sim-small"]


def eventually(check) -> None:
    """Who lets go of a stream does not wait for its end."""
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def by_name(spans) -> dict:
    return {span.name: span for span in spans()}


def test_a_request_and_its_attempt_are_told(spans, small, sqlite_url):
    with OptLLM(small, store=sqlite_url) as client:
        answer = client.chat.completions.create(messages=MESSAGES, max_tokens=50)
    found = by_name(spans)
    request, attempt = found["route auto"], found["chat sim-small"]
    assert attempt.parent.span_id == request.context.span_id
    assert request.attributes["gen_ai.operation.name"] == "chat"
    assert request.attributes["gen_ai.request.model"] == "auto"
    assert request.attributes["optllm.decision_id"] == answer.id
    assert request.attributes["optllm.candidate"] == "sim-small"
    assert request.attributes["optllm.cost_nano"] == answer.optllm.cost_nano
    assert attempt.kind is trace.SpanKind.CLIENT
    assert attempt.attributes["gen_ai.provider.name"] == "openai"
    assert attempt.attributes["gen_ai.request.max_tokens"] == 50
    assert attempt.attributes["gen_ai.response.model"] == "sim-small"
    for span in (request, attempt):
        usage = answer.usage
        assert span.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
        assert span.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
        assert "my-private-words" not in span.to_json()


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_attempt_is_told_by_the_conventions(spans, small, sqlite_url, server, stream, transport):
    small = [{**entry, "router": {"transport": transport}} for entry in small]
    asked = {"messages": MESSAGES, "temperature": 0.5, "n": 2, "stop": ["secret"]}
    with OptLLM(small, store=sqlite_url) as client:
        answer = client.chat.completions.create(**asked, stream=stream)
        list(answer)
    told = dict(by_name(spans)["chat sim-small"].attributes)
    assert told.pop("gen_ai.response.id")
    assert told.pop("gen_ai.usage.input_tokens") > 0
    assert told.pop("gen_ai.usage.output_tokens") > 0
    reasons = told.pop("gen_ai.response.finish_reasons")
    once = stream and transport == "litellm"  # which tells the end of a stream one time only
    assert reasons == ("stop",) * (1 if once else 2)
    told.pop("gen_ai.request.max_tokens", None)  # our own bound, under a hard budget
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "sim-small",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 2,
        **({"gen_ai.request.stream": True} if stream else {}),
        "gen_ai.response.model": "sim-small",
        "optllm.candidate": "sim-small",
        "server.address": "127.0.0.1",
        "server.port": int(server.base_url.split(":")[2].split("/")[0]),
    }


def test_embeddings_are_told_by_the_conventions(spans, server, small, sqlite_url):
    (entry,) = small
    embeds = {
        "model_name": "sim-embedding",
        "litellm_params": {**entry["litellm_params"], "model": "openai/sim-embedding"},
        "model_info": {"mode": "embedding"},
    }
    with OptLLM([*small, embeds], store=sqlite_url) as client:
        client.embeddings.create(model="sim-embedding", input="my-private-words")
    attempt = by_name(spans)["embeddings sim-embedding"]
    assert attempt.attributes["gen_ai.operation.name"] == "embeddings"
    assert attempt.attributes["gen_ai.usage.input_tokens"] > 0
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert not any("max_tokens" in name or "choice" in name for name in attempt.attributes)


def test_what_nobody_asked_for_is_not_told(spans):
    price = Price(Decimal(1), Decimal(1), "test")
    end_attempt(attempt_span(Candidate("m", "x/m", price, 10), Call([])))
    (span,) = spans()
    assert not any(
        name.startswith("gen_ai.request.m") and name != "gen_ai.request.model"
        for name in span.attributes
    )
    assert "gen_ai.request.choice.count" not in span.attributes


def test_tokens_that_are_counted_apart_are_told(spans):
    price = Price(Decimal(1), Decimal(1), "test")
    usage = Usage(100, 50, cached_tokens=80, cache_write_tokens=5, reasoning_tokens=30)
    end_attempt(attempt_span(Candidate("m", "x/m", price, 10), Call([])), usage=usage)
    (span,) = spans()
    assert span.attributes["gen_ai.usage.cache_read.input_tokens"] == 80
    assert span.attributes["gen_ai.usage.cache_creation.input_tokens"] == 5
    assert span.attributes["gen_ai.usage.reasoning.output_tokens"] == 30


@pytest.mark.parametrize(
    ("model", "parameters", "transport", "server"),
    [
        ("openai/a", {}, "httpx", ("api.openai.com", 443)),
        ("openai/a", {}, "litellm", None),
        ("vllm/a", {"api_base": "http://localhost/v1"}, "httpx", ("localhost", 80)),
        ("vllm/a", {"base_url": "http://[::1]:8000/v1"}, "httpx", ("::1", 8000)),
        ("azure/a", {"api_base": "https://us.example.org"}, "litellm", ("us.example.org", 443)),
        ("azure/a", {"api_base": "https://x:99999999"}, "litellm", None),
        ("x/a", {"api_base": "unix:/run/llm"}, "litellm", None),
        ("x/a", {}, "httpx", None),
    ],
)
def test_where_a_candidate_is_asked(monkeypatch, model, parameters, transport, server):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    price = Price(Decimal(1), Decimal(1), "test")
    one = Candidate("a", model, price, 10, parameters=parameters, transport=transport)
    assert server_of(one) == server


def test_an_attempt_at_a_stream_lasts_to_its_end(spans, small, sqlite_url):
    async def read() -> None:
        async with AsyncOptLLM(small, store=sqlite_url) as client:
            stream = await client.chat.completions.create(messages=MESSAGES, stream=True)
            assert spans() == ()
            async for _ in stream:
                pass

    litellm_clients.run(read())
    attempt = by_name(spans)["chat sim-small"]
    assert attempt.attributes["gen_ai.usage.output_tokens"] > 0
    assert attempt.parent.span_id == by_name(spans)["route auto"].context.span_id


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_for_a_stream_lasts_until_it_is_settled(spans, small, sqlite_url, asynchronous):
    asked = {"messages": MESSAGES, "stream": True}

    async def read() -> RoutingInfo:
        async with AsyncOptLLM(small, store=sqlite_url) as client:
            stream = await client.chat.completions.create(**asked)
            await anext(stream)
            assert spans() == ()
            async for _ in stream:
                pass
            return stream.optllm

    if asynchronous:
        made = litellm_clients.run(read())
    else:
        with OptLLM(small, store=sqlite_url) as client:
            stream = client.chat.completions.create(**asked)
            next(stream)
            assert spans() == ()
            list(stream)
            made = stream.optllm
    request, attempt = by_name(spans)["route auto"], by_name(spans)["chat sim-small"]
    assert len(spans()) == 2
    assert request.attributes["optllm.decision_id"] == made.decision_id
    assert request.attributes["optllm.answered_by"] == made.candidate
    assert request.attributes["optllm.cost_nano"] == made.cost_nano
    for tokens in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
        assert request.attributes[tokens] == attempt.attributes[tokens] > 0
    assert request.end_time >= attempt.end_time
    assert request.status.is_unset


ANY_INDEX = (1, "0", 2, None, [3], {"a": 4}, -1.5, "1")
ANY_CHUNKS = (
    *({"choices": [{"index": one, "finish_reason": f"because of {one}"}]} for one in ANY_INDEX),
    *({"choices": one} for one in (None, 7, "stop", {"index": 0}, ["stop", None, [], 7])),
    *({"choices": [{"finish_reason": one}]} for one in (7, ["stop"], {"a": 1}, True)),
    {"id": ["x"], "model": {"a": 1}},
    {"id": "first", "model": "one"},
    {"id": "second", "model": 7},
)


class Sends:
    """In this process: a provider that sends any JSON."""

    def __init__(self, bodies) -> None:
        self._bodies = bodies

    def send(self, candidate, call) -> Completion:
        return Completion(self._bodies[0], None)

    def stream(self, candidate, call) -> Iterator[Chunk]:
        yield from map(Chunk, self._bodies)

    async def astream(self, candidate, call) -> AsyncIterator[Chunk]:
        for body in self._bodies:
            yield Chunk(body)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_json_a_stream_is_of_its_reader_has_all_of_it(spans, asynchronous):
    transport = TracedTransport(Sends(ANY_CHUNKS))

    async def read() -> list[Chunk]:
        return [chunk async for chunk in transport.astream(MODEL, Call([]))]

    chunks = asyncio.run(read()) if asynchronous else list(transport.stream(MODEL, Call([])))
    assert [chunk.body for chunk in chunks] == list(ANY_CHUNKS)
    (span,) = spans()
    told = span.attributes
    assert (told["gen_ai.response.id"], told["gen_ai.response.model"]) == ("first", "one")
    # In the order of arrival; 1 and "1" are the same choice, and so are 0 and none.
    reasons = ["1", "None", "2", "[3]", "{'a': 4}", "-1.5"]
    assert told["gen_ai.response.finish_reasons"] == tuple(f"because of {one}" for one in reasons)


@pytest.mark.parametrize("body", ANY_CHUNKS)
def test_whatever_json_an_answer_is_its_caller_has_it(spans, body):
    assert TracedTransport(Sends([body])).send(MODEL, Call([])).body == body
    assert len(spans()) == 1


@pytest.mark.parametrize("end", ["close", "let go", "close the client"])
def test_a_request_for_a_stream_that_is_left_ends(spans, small, sqlite_url, end):
    with OptLLM(small, store=sqlite_url) as client:
        stream = client.chat.completions.create(messages=MESSAGES, stream=True)
        next(stream)
        if end == "close":
            stream.close()
        elif end == "let go":
            del stream
            gc.collect()
            eventually(lambda: "route auto" in by_name(spans))
    request = by_name(spans)["route auto"]
    assert [span.name for span in spans()].count("route auto") == 1
    assert "optllm.cost_nano" not in request.attributes
    closed = end == "close the client"
    assert request.attributes.get("error.type") == ("InvalidRequestError" if closed else None)


@pytest.mark.parametrize("fault", ["server_error", "cut"])
def test_a_request_for_a_stream_that_fails_says_how(spans, small, sqlite_url, server, fault):
    server.faults = Faults(script=(fault,))
    with OptLLM(small, store=sqlite_url, max_retries=0) as client, pytest.raises(ProviderError):
        list(client.chat.completions.create(messages=MESSAGES, stream=True))
    (request,) = [span for span in spans() if span.name == "route auto"]
    expected = {"server_error": "ProviderUnavailableError", "cut": "ProviderConnectionError"}
    assert request.attributes["error.type"] == expected[fault]
    assert request.status.status_code is trace.StatusCode.ERROR
    assert request.events == ()


class BreaksOff:
    """In this process: the first that is asked breaks off before its first token."""

    def __init__(self) -> None:
        self.asked = 0

    def check(self, candidates) -> None:
        pass

    def _chunks(self, candidate) -> Iterator[Chunk]:
        self.asked += 1
        first = self.asked == 1
        for delta in ({"role": "assistant", "content": ""}, {"content": "Hi"}):
            yield Chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if first:
                raise ProviderConnectionError("it broke", candidate=candidate.name)
        yield Chunk({"choices": []}, Usage(5, 1))

    def stream(self, candidate, call) -> Iterator[Chunk]:
        yield from self._chunks(candidate)

    async def astream(self, candidate, call) -> AsyncIterator[Chunk]:
        for chunk in self._chunks(candidate):
            yield chunk


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_takes_over_while_a_stream_is_read_is_a_part_of_its_request(
    spans, sqlite_url, asynchronous
):
    price = Price(Decimal(1), Decimal(1), "test")
    models = [Candidate(name, f"x/{name}", price, 10) for name in ("one", "two")]
    settings = {"store": sqlite_url, "transport": BreaksOff(), "max_retries": 0}

    async def read() -> None:
        async with AsyncOptLLM(models, **settings) as client:
            stream = await client.chat.completions.create(messages=MESSAGES, stream=True)
            assert spans() == ()
            assert [chunk async for chunk in stream]

    if asynchronous:
        asyncio.run(read())
    else:
        with OptLLM(models, **settings) as client:
            stream = client.chat.completions.create(messages=MESSAGES, stream=True)
            assert spans() == ()
            assert list(stream)
    request, attempts = by_name(spans)["route auto"], [s for s in spans() if s.parent is not None]
    assert len(attempts) == 2
    assert {span.parent.span_id for span in attempts} == {request.context.span_id}


@pytest.mark.parametrize(
    ("model", "provider", "name", "told"),
    [
        ("openai/gpt-4o", "", "openai", "gpt-4o"),
        ("gpt-4o", "openai", "openai", "gpt-4o"),
        ("gpt-4o", "", "unknown", "gpt-4o"),
        ("azure/our-deployment", "", "azure.ai.openai", "our-deployment"),
        ("bedrock/us-east-1/anthropic.claude", "", "aws.bedrock", "us-east-1/anthropic.claude"),
        ("anthropic.claude", "bedrock_converse", "aws.bedrock", "anthropic.claude"),
        ("gemini-pro", "vertex_ai-language-models", "gcp.vertex_ai", "gemini-pro"),
        ("openrouter/mistralai/mixtral", "", "openrouter", "mistralai/mixtral"),
        ("mistral/small", "", "mistral_ai", "small"),
    ],
)
def test_providers_have_the_names_of_the_conventions(spans, model, provider, name, told):
    price = Price(Decimal(1), Decimal(1), "test")
    end_attempt(attempt_span(Candidate("m", model, price, 10, provider=provider), Call([])))
    (span,) = spans()
    assert span.attributes["gen_ai.provider.name"] == name
    assert span.attributes["gen_ai.request.model"] == told


def test_the_catalogue_says_who_runs_a_model_without_a_prefix():
    plain, prefixed, own = read_candidates(
        [
            "gpt-4o-mini",
            "openai/gpt-4o-mini",
            {
                "model_name": "mine",
                "litellm_params": {"model": "gpt-4o", "custom_llm_provider": "azure"},
            },
        ]
    )
    assert [one.owner for one in (plain, prefixed, own)] == ["openai", "openai", "azure"]


def test_a_reader_who_leaves_ends_the_span_without_an_error(spans, small, sqlite_url):
    with OptLLM(small, store=sqlite_url) as client:
        stream = client.chat.completions.create(messages=MESSAGES, stream=True)
        next(stream)
        stream.close()
    attempt = by_name(spans)["chat sim-small"]
    assert attempt.status.is_unset
    assert "error.type" not in attempt.attributes


def test_faults_are_told_by_name_only(spans, small, sqlite_url, server):
    server.faults = Faults(rates={"server_error": 1.0})
    with (
        OptLLM(small, store=sqlite_url, max_retries=1) as client,
        pytest.raises((ProviderError, AllCandidatesFailedError)),
    ):
        client.chat.completions.create(messages=MESSAGES)
    attempts = [span for span in spans() if span.name == "chat sim-small"]
    assert len(attempts) == 2
    assert {span.attributes["error.type"] for span in attempts} == {"ProviderUnavailableError"}
    assert not by_name(spans)["route auto"].status.is_ok
    assert all(span.events == () for span in spans())


def test_the_caller_s_trace_goes_on(spans, small, sqlite_url):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with OptLLM(small, store=sqlite_url) as client, continued({"traceparent": parent}):
        client.chat.completions.create(messages=MESSAGES)
    assert {f"{span.context.trace_id:032x}" for span in spans()} == {parent.split("-")[1]}


def test_nothing_is_imported_where_nobody_traces():
    program = """
import sys
from optllm_router._telemetry import attempt_span, continued, end_attempt, request_span
with continued({"traceparent": "x"}), request_span("chat", "auto") as span:
    print(span)
end_attempt(attempt_span(None, None))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "None\n[]\n"), ran.stderr
