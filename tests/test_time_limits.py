"""How long one attempt may take: LiteLLM's ``timeout`` and ``stream_timeout`` of a model."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import litellm_clients
import pytest
from simulated_entries import model_entries
from sqlalchemy import create_engine

from optllm_router import OptLLM, Price
from optllm_router._errors import ConfigurationError, ProviderTimeoutError
from optllm_router._health import Gate
from optllm_router._query import Query
from optllm_router._runtime import Runtime
from optllm_router._sending import Sending
from optllm_router._steps import Request
from optllm_router._types import Candidate, Decision
from optllm_router.candidates import read_candidates
from optllm_router.config import read_settings
from optllm_router.simulation import Faults, SimulationServer

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
SLOW, SOUND = "sim-tiny", "sim-small"
DECISION = Decision("d", SLOW, (SOUND,), 0.5, 0.1, 1, 1.0, 0.0, "to see")
SOON = 20.0
"""Long before the call's own deadline, also on a busy machine."""


@pytest.fixture(scope="module")
def hanging():
    """One model never answers; another does."""
    with SimulationServer(faults={SLOW: Faults(rates={"timeout": 1.0})}) as server:
        yield server


def models(server, transport: str, **limits) -> list[dict]:
    """The two models, of which the slow one has time limits."""
    entries = {one["model_name"]: one for one in model_entries(server.base_url)}
    entries[SLOW]["litellm_params"].update(limits)
    return [{**entries[name], "router": {"transport": transport}} for name in (SLOW, SOUND)]


def answered(settings, how: str, *, streamed: bool) -> tuple[str, list]:
    """Who answered, and what is recorded of each attempt."""
    query = Query.from_messages(QUESTION, streamed=streamed)
    with closing(Runtime(settings)) as runtime:
        if how == "sync":
            if streamed:
                stream = runtime.stream(DECISION, query)
                assert list(stream)
                found = stream.paid
            else:
                found = runtime.answer(DECISION, query)
        else:
            found = litellm_clients.run(awaited(runtime, query, streamed))
    rows = "SELECT candidate, error, cost_nano > 0 FROM outcomes ORDER BY attempt"
    engine = create_engine(settings.store)
    with engine.connect() as connection:
        attempts = [tuple(row) for row in connection.exec_driver_sql(rows)]
    engine.dispose()
    return found.candidate.name, attempts


async def awaited(runtime: Runtime, query: Query, streamed: bool):
    try:
        if not streamed:
            return await runtime.aanswer(DECISION, query)
        stream = await runtime.astream(DECISION, query)
        assert [chunk async for chunk in stream]
        return stream.paid
    finally:
        await asyncio.to_thread(runtime.close)


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(
    ("streamed", "limits"),
    [
        (False, {"timeout": 0.5, "stream_timeout": 500}),
        (True, {"timeout": 500, "stream_timeout": 0.5}),
        (True, {"timeout": 0.5}),
    ],
    ids=["whole", "streamed", "streamed, by timeout"],
)
def test_another_is_asked_once_a_provider_hangs(
    hanging, sqlite_url, transport, how, streamed, limits
):
    settings = read_settings(models(hanging, transport, **limits), store=sqlite_url)
    began = time.monotonic()
    name, attempts = answered(settings, how, streamed=streamed)
    assert time.monotonic() - began < SOON
    assert name == SOUND
    assert attempts == [(SLOW, "ProviderTimeoutError", 1), (SOUND, "", 1)]


@pytest.mark.parametrize("transport", ["litellm", "httpx"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_stream_that_has_begun_has_the_time_of_the_call(sqlite_url, transport, how):
    limit = 1.0
    with SimulationServer(latency_seconds=0.0, chunk_tokens=1, chunk_seconds=limit / 3) as server:
        settings = read_settings(models(server, transport, timeout=limit), store=sqlite_url)
        began = time.monotonic()
        name, _ = answered(settings, how, streamed=True)
        assert time.monotonic() - began > limit
    assert name == SLOW


def test_the_call_s_own_deadline_holds_all_the_same(hanging, sqlite_url):
    with OptLLM(models(hanging, "httpx", timeout=500), store=sqlite_url, timeout=0.5) as client:
        began = time.monotonic()
        with pytest.raises(ProviderTimeoutError):
            client.chat.completions.create(model=SLOW, messages=QUESTION)
        assert time.monotonic() - began < SOON


def test_who_keeps_hanging_for_a_limit_of_its_own_is_left_alone():
    """Unlike for a caller that is in a hurry, a short limit of the model's is a fault of its."""
    now = 0.0
    limited = Candidate("slow", "x/slow", Price(Decimal(1), Decimal(1), "test"), 9)
    limited = replace(limited, timeout_seconds=2.0, first_token_seconds=1.0)
    call = Query.from_messages(QUESTION).call
    gate = Gate(clock=lambda: now)
    request = Request(DECISION, call, {"slow": limited}, {}, (), clock=lambda: now)
    hasty, slow = [], []
    for seconds, met in ((1.9, hasty), (2.0, slow)):
        sending = Sending(request, limited, 0)
        sending.begin(now + 600.0, bounded=False)
        assert sending.call.timeout_seconds == 2.0
        now += seconds
        met.append(sending.met_own_limit)
    assert (hasty, slow) == ([False], [True])
    for own_limit, rests in ((False, False), (True, True)):
        for _ in range(3):
            gate.enter(1).leave(ProviderTimeoutError("slow", candidate="slow"), own_limit=own_limit)
        assert isinstance(gate.enter(1), float) == rests


def test_limits_of_streams_are_those_of_their_first_token():
    known = model_entries("http://localhost/v1", timeout="30", stream_timeout=4)[:1]
    (candidate,) = read_candidates(known)
    assert (candidate.timeout_seconds, candidate.first_token_seconds) == (30.0, 4.0)
    assert candidate.parameters.keys() == {"api_base"}
    (candidate,) = read_candidates(model_entries("http://localhost/v1", timeout=30)[:1])
    assert candidate.first_token_seconds == 30.0
    (candidate,) = read_candidates(model_entries("http://localhost/v1", stream_timeout=4)[:1])
    assert (candidate.timeout_seconds, candidate.first_token_seconds) == (None, 4.0)


@pytest.mark.parametrize("wrong", [0, -1, True, "soon", "nan", float("inf"), 10**400, [30]])
@pytest.mark.parametrize("name", ["timeout", "stream_timeout"])
def test_a_limit_that_is_none_is_named(name, wrong):
    entries = model_entries("http://localhost/v1", **{name: wrong})[:1]
    with pytest.raises(ConfigurationError, match=rf"^{name} .* of model 'sim-frontier' must be"):
        read_candidates(entries)
