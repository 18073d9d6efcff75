"""One line per decision, whatever became of it; none where nobody listens."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import fields

import litellm_clients
import pytest

from optllm_router import (
    AsyncOptLLM,
    BudgetExceededError,
    Decision,
    OptLLM,
    OptLLMError,
    StoreError,
)
from optllm_router._decision_log import _NO_LINE, DecisionLine, decision_line
from optllm_router._routing import RoutingInfo
from optllm_router.simulation import Faults

MESSAGES = [{"role": "user", "content": "my-private-words: what is 12 + 30?"}]
DECISION = Decision("d", "a", (), 0.5, 0.1, 1, 1.0, 0.0, "a test")


@pytest.fixture
def lines(caplog):
    """The fields of the lines so far."""
    caplog.set_level(logging.INFO, "optllm_router.decisions")
    name = "optllm_router.decisions"
    return lambda: [one.fields for one in caplog.records if one.name == name]


@pytest.fixture
def make(models, sqlite_url, server):
    made = []

    def make(**settings) -> OptLLM:
        settings = {"models": models, "store": sqlite_url, "seed": 0, "max_retries": 0, **settings}
        made.append(OptLLM(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(client, **arguments):
    return client.chat.completions.create(messages=MESSAGES, **arguments)


def test_an_answer_is_one_line_with_what_it_took(make, lines):
    answer = ask(make(), model="sim-tiny")
    (line,) = lines()
    assert (line["decision_id"], line["candidate"]) == (answer.id, "sim-tiny")
    assert (line["whole"], line["tried"]) == (True, ["sim-tiny"])
    assert line["cost_nano"] == answer.optllm.cost_nano > 0
    assert line["completion_tokens"] == answer.usage.completion_tokens
    assert "my-private-words" not in repr(line)
    assert answer.choices[0].message.content not in repr(line)


def test_a_fallback_tells_who_was_asked_before(make, lines, server):
    server.faults = {"sim-frontier": Faults(rates={"server_error": 1.0})}
    answer = ask(make(explore=0))
    (line,) = lines()
    assert line["tried"] == ["sim-frontier", answer.model]


def test_a_failure_is_one_line_with_its_cause(make, lines, server):
    server.faults = Faults(rates={"rate_limit": 1.0})
    with pytest.raises(OptLLMError):
        ask(make(max_retries=1), model="sim-tiny")
    (line,) = lines()
    assert (line["code"], line["error"]) == ("provider_rate_limited", "ProviderRateLimitedError")
    assert line["tried"] == ["sim-tiny"] * 2
    assert line["causes"] == ["ProviderRateLimitedError"] * 2
    assert (line["whole"], line["reason"]) == (False, "the caller named the model")
    assert "my-private-words" not in repr(line)


def test_a_decision_that_no_budget_pays_for_is_one_line(make, lines):
    with pytest.raises(BudgetExceededError):
        ask(make(budget="0.000000001 USD"), model="sim-tiny")
    (line,) = lines()
    assert (line["code"], line["tried"]) == ("insufficient_quota", [])


def test_a_call_without_a_decision_is_no_line(make, lines):
    with pytest.raises(OptLLMError):
        ask(make(), model="sim-tyni")
    assert lines() == []


def test_a_stream_is_one_line_at_its_end(make, lines):
    stream = ask(make(), model="sim-tiny", stream=True)
    next(stream)
    for _ in stream:
        pass
    (line,) = lines()
    assert (line["whole"], line["tried"]) == (True, ["sim-tiny"])
    assert line["first_token"] > 0


def test_a_stream_that_its_reader_leaves_is_one_line(make, lines):
    stream = ask(make(), model="sim-tiny", stream=True)
    next(stream)
    stream.close()
    (line,) = lines()
    assert (line["code"], line["whole"], line["tried"]) == ("abandoned", False, ["sim-tiny"])


def test_a_stream_of_a_fallback_that_is_left_tells_of_who_was_answering(make, lines, server):
    server.faults = {"sim-frontier": Faults(rates={"server_error": 1.0})}
    stream = ask(make(explore=0), stream=True)
    next(stream)
    stream.close()
    (line,) = lines()
    assert line["candidate"] == line["tried"][1] != line["tried"][0] == "sim-frontier"
    assert line["reason"].startswith("'sim-frontier' failed; next best: ")
    assert line["code"] == "abandoned"


@pytest.mark.parametrize(("fault", "code"), [("cut", "provider_connection"), ("garbage", None)])
def test_a_stream_that_breaks_is_one_line(make, lines, server, fault, code):
    server.faults = Faults(rates={fault: 1.0})
    with pytest.raises(OptLLMError):
        list(ask(make(), model="sim-tiny", stream=True))
    (line,) = lines()
    assert line["code"].startswith(code or "provider_")
    assert (line["whole"], line["tried"]) == (False, ["sim-tiny"])


def test_a_call_that_is_cancelled_is_one_line(models, sqlite_url, server, lines):
    server.faults = Faults(rates={"timeout": 1.0})

    async def cancelled():
        async with AsyncOptLLM(models, store=sqlite_url) as client:
            task = asyncio.create_task(ask(client, model="sim-tiny"))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    litellm_clients.run(cancelled())
    (line,) = lines()
    assert (line["code"], line["tried"]) == ("cancelled", ["sim-tiny"])


def test_where_nobody_listens_nothing_is_gathered(caplog):
    assert not logging.getLogger("optllm_router.decisions").isEnabledFor(logging.INFO)
    assert decision_line(DECISION) is _NO_LINE
    caplog.set_level(logging.INFO, "optllm_router.decisions")
    assert isinstance(decision_line(DECISION), DecisionLine)


def test_a_failure_tells_all_of_its_decision_that_an_answer_tells(lines):
    with pytest.raises(OptLLMError), decision_line(DECISION):
        raise StoreError("full")
    (line,) = lines()
    of_an_answer = {field.name for field in fields(RoutingInfo)}
    took = {"cost_usd", "cost_nano", "cost_estimated", "cached", "latency_seconds", "provider_id"}
    assert of_an_answer - line.keys() == took
