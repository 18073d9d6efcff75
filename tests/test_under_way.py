"""Requests under way: plans with a cap of their own, callbacks that fail, clients that close."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal

import pytest
from openai.types.chat import ChatCompletion

from optllm_router import (
    AsyncOptLLM,
    BudgetExceededError,
    Candidate,
    InvalidRequestError,
    OptLLM,
    Price,
    Router,
    StoreError,
    _performing,
)
from optllm_router._steps import Pause
from optllm_router._types import Completion, Usage
from optllm_router.store import Records

TOKENS, NANO_PER_TOKEN = 10, 1000
NANO_PER_CALL = TOKENS * NANO_PER_TOKEN
MODEL = Candidate("even", "x/even", Price(Decimal(0), Decimal(NANO_PER_TOKEN), "test"), TOKENS)
HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
PROMPTS = [f"What is {i} + 1?" for i in range(10)]


class Even:
    """A provider in this process: each choice has exactly ``TOKENS`` tokens, once it may answer."""

    def __init__(self) -> None:
        self.sent = 0
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._lock = threading.Lock()

    def check(self, candidates) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        with self._lock:
            self.sent += 1
        self.asked.set()
        assert self.may_answer.wait(10)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "42"},
                "finish_reason": "stop",
            }
            for i in range(call.choices)
        ]
        body = {"id": "x", "object": "chat.completion", "created": 0, "choices": choices}
        return Completion(body, Usage(5, TOKENS * call.choices))

    async def asend(self, candidate, call) -> Completion:
        return await asyncio.to_thread(self.send, candidate, call)


@pytest.fixture
def provider() -> Even:
    return Even()


@pytest.fixture
def settings(provider, sqlite_url) -> dict:
    return {"models": [MODEL], "budget": "1 USD", "store": sqlite_url, "transport": provider}


@pytest.fixture
def client(settings):
    with OptLLM(**settings) as client:
        yield client


def caps(client: OptLLM) -> list:
    return [one for one in client._runtime.ledger.balances() if one.budget.startswith("plan-")]


def kinds(results) -> Counter:
    return Counter(type(result).__name__ for result in results)


# The cap of a plan


def test_a_plan_for_nothing_sends_nothing(client, provider):
    results = client.plan(PROMPTS, budget_usd=0).apply()
    assert all(isinstance(result, BudgetExceededError) for result in results)
    assert all(result.budget.startswith("plan-") for result in results)
    assert provider.sent == client.balance.spent_nano == 0
    assert client.verify() == []


@pytest.mark.parametrize("budget", ["1 USD", None])
def test_a_plan_never_costs_more_than_its_cap(settings, provider, budget):
    half = len(PROMPTS) // 2
    with OptLLM(**{**settings, "budget": budget}) as client:
        plan = client.plan(PROMPTS, budget_usd=Decimal(half * NANO_PER_CALL) / 10**9)
        assert kinds(plan.apply(concurrency=4)) == {"ChatCompletion": 5, "BudgetExceededError": 5}
        assert provider.sent == half
        (cap,) = caps(client)
        assert (cap.limit_nano, cap.spent_nano, cap.reserved_nano) == (
            half * NANO_PER_CALL,
            half * NANO_PER_CALL,
            0,
        )
        assert client.verify() == []
        assert len(client.plan(PROMPTS).apply()) == len(PROMPTS)
        assert caps(client) == [cap]  # without budget_usd, a plan has no cap of its own


def test_an_asynchronous_plan_has_the_same_cap(settings, provider):
    async def planned() -> Counter:
        async with AsyncOptLLM(**settings) as client:
            plan = await client.plan(PROMPTS, budget_usd=3 * NANO_PER_CALL * 1e-9)
            return kinds(await plan.apply(concurrency=4))

    assert asyncio.run(planned()) == {"ChatCompletion": 3, "BudgetExceededError": 7}
    assert provider.sent == 3


# Callbacks that fail


def failing(seen: list[int]):
    def on_result(position: int, result) -> None:
        seen.append(position)
        if position in (2, 7):
            raise ValueError(f"no bar for {position}")

    return on_result


def test_a_callback_that_fails_loses_nothing(client, caplog):
    plan, seen = client.plan(PROMPTS), []
    assert plan.results == [None] * len(PROMPTS)
    with pytest.raises(ValueError, match="no bar for 2"):
        plan.apply(concurrency=1, on_result=failing(seen))
    assert "on_result failed for query 7" in caplog.text
    assert seen == list(range(len(PROMPTS)))
    assert all(isinstance(result, ChatCompletion) for result in plan.results)
    assert client.balance.spent_nano == len(PROMPTS) * NANO_PER_CALL


def test_an_asynchronous_callback_that_fails_loses_nothing(settings, provider):
    async def planned() -> list:
        async with AsyncOptLLM(**settings) as client:
            plan, seen = await client.plan(PROMPTS), []
            with pytest.raises(ValueError, match="no bar"):
                await plan.apply(concurrency=2, on_result=failing(seen))
            assert sorted(seen) == list(range(len(PROMPTS)))
            return plan.results

    assert all(isinstance(result, ChatCompletion) for result in asyncio.run(planned()))
    assert provider.sent == len(PROMPTS)


# Closing


def test_closing_waits_for_what_is_under_way_and_refuses_more(settings, provider):
    client = OptLLM(**settings)
    provider.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(client.chat.completions.create, messages=HELLO)
        assert provider.asked.wait(10)
        closed = pool.submit(client.close)
        try:
            while not client._runtime._closing:
                time.sleep(0.001)
            with pytest.raises(InvalidRequestError, match="closed; create a new one"):
                client.chat.completions.create(messages=HELLO)
            assert not closed.done()
        finally:
            provider.may_answer.set()
        assert isinstance(asked.result(10), ChatCompletion)
        closed.result(10)
    assert provider.sent == 1
    with OptLLM(**settings) as again:
        assert again.balance.spent_nano == NANO_PER_CALL
        assert again.balance.reserved_nano == 0


def test_closing_an_asynchronous_client_leaves_the_event_loop_running(settings, provider):
    async def closed_meanwhile() -> None:
        client = AsyncOptLLM(**settings)
        asked = asyncio.create_task(client.chat.completions.create(messages=HELLO))
        await asyncio.to_thread(provider.asked.wait, 10)
        closing = asyncio.create_task(client.close())
        try:
            while not client._runtime._closing:
                await asyncio.sleep(0.001)
            with pytest.raises(InvalidRequestError, match="closed"):
                await client.chat.completions.create(messages=HELLO)
            assert not closing.done()
        finally:
            provider.may_answer.set()
        assert isinstance(await asked, ChatCompletion)
        await closing

    provider.may_answer.clear()
    asyncio.run(closed_meanwhile())
    assert provider.sent == 1


def test_a_plan_can_be_ended_from_its_callback(settings, provider):
    client = OptLLM(**settings)
    plan = client.plan(PROMPTS)
    results = plan.apply(concurrency=1, on_result=lambda *_: client.close())
    assert kinds(results) == {"ChatCompletion": 1, "InvalidRequestError": len(PROMPTS) - 1}
    assert provider.sent == 1


def test_a_client_closes_after_a_refit_that_failed(settings, monkeypatch, caplog):
    client = OptLLM(**settings)

    def wait() -> None:
        raise ArithmeticError("singular")

    monkeypatch.setattr(client._runtime.router, "wait", wait)
    with caplog.at_level(logging.WARNING, logger="optllm_router"):
        client.close()
    assert "refit failed" in caplog.text
    with pytest.raises(StoreError, match="closed"):
        client._runtime.keep_score("x", 1.0)


# What waits, and what is recorded


def test_calls_that_wait_share_a_look_for_dead_processes(client, monkeypatch):
    looks = []
    monkeypatch.setattr(client._runtime.ledger, "recover", lambda: looks.append(1))
    monkeypatch.setattr(_performing, "_RECOVERY_SECONDS", 3600.0)
    for _ in range(20):
        client._runtime._performer.perform("", Pause(0.0))
        asyncio.run(client._runtime._performer.aperform("", Pause(0.0)))
    assert len(looks) == 1


def test_a_decision_that_cannot_be_recorded_is_logged(client, monkeypatch, caplog):
    def add_decision(decision, query, scopes) -> Future:
        lost: Future[None] = Future()
        lost.set_exception(StoreError("the disk is full"))
        return lost

    monkeypatch.setattr(client._runtime._records, "add_decision", add_decision)
    with caplog.at_level(logging.ERROR, logger="optllm_router"):
        answer = client.chat.completions.create(messages=HELLO)
    assert f"decision {answer.id} could not be recorded: the disk is full" in caplog.text


def test_forecasts_learn_the_length_of_one_choice(settings, monkeypatch):
    with OptLLM(**settings) as client:
        observed = []
        monkeypatch.setattr(client._runtime.router, "observe", lambda *one: observed.append(one))
        assert len(client.chat.completions.create(messages=HELLO, n=4).choices) == 4
        assert client.balance.spent_nano == 4 * NANO_PER_CALL
        (recorded,) = Records(client._runtime._database).usages(10)
    assert [one[-1] for one in observed] == [Usage(5, TOKENS, cut=True)]
    assert (recorded.usage, recorded.choices) == (Usage(5, 4 * TOKENS, cut=True), 4)

    remembered = []
    monkeypatch.setattr(Router, "observe_many", lambda _, many: remembered.extend(many))
    with OptLLM(**settings):
        assert [one[-1] for one in remembered] == [Usage(5, TOKENS, cut=True)]
