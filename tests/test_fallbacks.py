"""What is told of an answer is told of who answered, also where that was not who was chosen."""

from __future__ import annotations

import sqlite3
from urllib.parse import unquote

import litellm_clients
import pytest
from simulated_entries import model_entries

from optllm_router import AsyncOptLLM, OptLLM
from optllm_router._money import usd_from_nano
from optllm_router._query import Query
from optllm_router.simulation import Faults

ASKED = {"messages": [{"role": "user", "content": "What is 12 + 30?"}]}
CHOSEN, NEXT, LAST = "sim-frontier", "sim-small", "sim-tiny"
NAMES = (CHOSEN, NEXT, LAST)
LEARNT = [
    *([("What is 12 + 30?", CHOSEN, 1.0)] * 60),
    *([("What is 12 + 30?", NEXT, 0.6)] * 60),
    *([("What is 12 + 30?", LAST, 0.0)] * 60),
]
BROKEN = Faults(rates={"server_error": 1.0})


@pytest.fixture
def settings(server, sqlite_url) -> dict:
    entries = [one for one in model_entries(server.base_url) if one["model_name"] in NAMES]
    return {"models": entries, "store": sqlite_url, "explore": 0, "max_retries": 0, "seed": 0}


def taught(client):
    client.learn(LEARNT)
    client.wait_for_refit()
    return client


@pytest.fixture
def client(settings):
    with OptLLM(**settings) as client:
        yield taught(client)


def foreseen(client, name: str) -> tuple[float, float, float]:
    """The success probability, its uncertainty and the expected USD of a candidate."""
    router = client._runtime.router
    forecast = router.forecast([Query.from_messages(ASKED["messages"])])
    at = 0, router.index(name)
    return tuple(float(values[at]) for values in (forecast.p, forecast.std, forecast.cost))


def figures(made) -> tuple[float, float, float]:
    return made.p, made.std, made.expected_cost_usd


def test_who_was_chosen_and_answers_is_the_only_one_tried(client):
    made = client.chat.completions.create(**ASKED).optllm
    assert (made.candidate, made.tried) == (CHOSEN, (CHOSEN,))
    assert "next best" not in made.reason


def test_a_fallback_s_figures_are_its_own(client, server):
    expected = foreseen(client, NEXT)
    chosen = client.chat.completions.create(**ASKED).optllm
    server.faults = {CHOSEN: BROKEN}
    made = client.chat.completions.create(**ASKED).optllm
    assert (made.candidate, made.tried) == (NEXT, (CHOSEN, NEXT))
    assert made.reason == f"{CHOSEN!r} failed; next best: {chosen.reason}"
    assert figures(made) == pytest.approx(expected, rel=1e-2)
    assert made.p < chosen.p
    assert made.expected_cost_usd < chosen.expected_cost_usd


def test_so_they_are_without_blocking(settings, server):
    server.faults = {CHOSEN: BROKEN}

    async def ask():
        async with AsyncOptLLM(**settings) as client:
            taught(client)
            whole = (await client.chat.completions.create(**ASKED)).optllm
            stream = await client.chat.completions.create(**ASKED, stream=True)
            assert [chunk async for chunk in stream]
            return whole, stream

    whole, stream = litellm_clients.run(ask())
    for made in (whole, stream.optllm):
        assert (made.candidate, made.tried) == (NEXT, (CHOSEN, NEXT))
        assert made.reason.startswith(f"{CHOSEN!r} failed; next best: ")
    assert stream.response.headers["x-optllm-p"] == f"{stream.optllm.p:.6g}"


def test_headers_tell_the_same(client, server):
    server.faults = {CHOSEN: BROKEN, NEXT: BROKEN}
    raw = client.chat.completions.with_raw_response.create(**ASKED, model="auto")
    stream = client.chat.completions.create(**ASKED, stream=True)
    assert list(stream)
    for headers, made in (
        (raw.headers, raw.parse().optllm),
        (stream.response.headers, stream.optllm),
    ):
        assert headers["x-optllm-candidate"] == made.candidate == LAST
        assert made.tried == (CHOSEN, NEXT, LAST)
        assert unquote(headers["x-optllm-reason"]) == made.reason
        assert made.reason.startswith(f"{CHOSEN!r} failed, {NEXT!r} failed; next best: ")
        assert headers["x-optllm-p"] == f"{made.p:.6g}"
        assert headers["x-optllm-std"] == f"{made.std:.6g}"
        expected = usd_from_nano(int(headers["x-optllm-expected-cost-nano"]))
        assert expected == made.expected_cost_usd
        assert made.p == pytest.approx(foreseen(client, LAST)[0], rel=1e-2)


def test_what_the_store_keeps_is_the_policy_s_choice(client, server, sqlite_url):
    server.faults = {CHOSEN: BROKEN}
    made = client.chat.completions.create(**ASKED).optllm
    client.close()
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as database:
        query = "SELECT candidate, p, reason, propensity FROM decisions"
        ((candidate, p, reason, propensity),) = database.execute(query).fetchall()
    assert candidate == CHOSEN
    assert p > made.p
    assert propensity == made.propensity
    assert "next best" not in reason
