"""Spans by OpenTelemetry's conventions for generative AI; nothing at all where nobody traces."""

from __future__ import annotations

import subprocess
import sys

import litellm_clients
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from optllm_router import AllCandidatesFailedError, AsyncOptLLM, OptLLM, ProviderError
from optllm_router._telemetry import continued
from optllm_router.simulation import Faults

MESSAGES = [{"role": "user", "content": "my-private-words"}]


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


def test_an_attempt_at_a_stream_lasts_to_its_end(spans, small, sqlite_url):
    async def read() -> None:
        async with AsyncOptLLM(small, store=sqlite_url) as client:
            stream = await client.chat.completions.create(messages=MESSAGES, stream=True)
            assert set(by_name(spans)) == {"route auto"}
            async for _ in stream:
                pass

    litellm_clients.run(read())
    attempt = by_name(spans)["chat sim-small"]
    assert attempt.attributes["gen_ai.usage.output_tokens"] > 0
    assert attempt.parent.span_id == by_name(spans)["route auto"].context.span_id


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
