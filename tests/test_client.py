"""The client from outside: real HTTP, a real database, providers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import litellm_clients
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletion
from sqlalchemy import create_engine, text

import optllm_router
from optllm_router import (
    AllCandidatesFailedError,
    AsyncOptLLM,
    Budget,
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    OptLLM,
    OptLLMError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StoreError,
    UnknownModelError,
    UnpricedModelError,
    _completions,
    _feedback,
    _models,
)
from optllm_router._openai_errors import as_openai_error, error_body
from optllm_router.ledger import Reservation
from optllm_router.pricing import charge_nano
from optllm_router.simulation import SIMULATED_MODELS, Faults, grade, make_tasks

HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
AUTO = ["auto", "auto:max_success", "auto:match_best"]
TINY = SIMULATED_MODELS[-1]
TASKS = make_tasks(40, np.random.default_rng(0))
TEXT = {"type": "text", "text": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CACHED = {"cache_control": {"type": "ephemeral"}}


def allowed(name: str, mode: str = "auto", **beside) -> dict:
    """The choice of one tool, among others."""
    tool = {"type": "function", "function": {"name": name, **beside}}
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool]}}


def image(url: str, **beside) -> dict:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **beside}}]}


REFUSED = {
    "api_base": "http://127.0.0.1:9",
    "api_key": "theirs",
    "audio": {"voice": "alloy", "format": "wav"},
    "base_url": "http://127.0.0.1:9",
    "best_of": 5,
    "custom_llm_provider": "anthropic",
    "fallbacks": ["openai/sim-frontier"],
    "mock_response": "Hi",
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "Hi"},
    "service_tier": "priority",
    "web_search_options": {},
}


@pytest.fixture
def make(models, sqlite_url):
    """Make clients of one store; they are closed at the end."""
    made = []

    def make(**settings) -> OptLLM:
        settings = {"models": models, "budget": "1 USD", "store": sqlite_url, "seed": 0, **settings}
        settings.setdefault("max_retries", 0)
        made.append(OptLLM(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(client: OptLLM, content: str = "What is 12 + 30?", **arguments) -> ChatCompletion:
    return client.chat.completions.create(
        messages=[{"role": "user", "content": content}], **arguments
    )


def warm_up(client: OptLLM) -> None:
    """Ask every model once, before threads do.

    litellm makes an HTTP client in each thread that finds none, keeps the last and loses the
    others, whose sockets nobody can close.
    """
    for candidate in client.settings.candidates:
        ask(client, model=candidate.name)


def rows(store: str, statement: str) -> list[tuple]:
    engine = create_engine(store)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]
    finally:
        engine.dispose()


def assert_books_are_closed(client: OptLLM) -> None:
    assert client.verify() == []
    assert client.balance.reserved_nano == 0
    store = client.settings.store
    assert rows(store, "SELECT count(*) FROM reservations WHERE state = 'open'") == [(0,)]


# Answers


def test_an_answer_is_a_chat_completion_with_its_routing(make, server):
    client = make()
    answer = ask(client, model="sim-tiny")
    expected = TINY.reply("What is 12 + 30?")
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == expected.completion_tokens
    assert (answer.object, answer.model) == ("chat.completion", "sim-tiny")
    assert answer._request_id == answer.id
    # 0.10 and 0.30 USD per million tokens are 100 and 300 nano-dollars per token.
    cost = 100 * expected.prompt_tokens + 300 * expected.completion_tokens
    assert answer.optllm.cost_nano == cost == client.balance.spent_nano
    assert answer.optllm.decision_id == answer.id
    assert answer.optllm.candidate == "sim-tiny"
    assert answer.optllm.cost_usd == pytest.approx(cost * 1e-9)
    assert not answer.optllm.cost_estimated
    assert answer.optllm.provider_id.startswith("chatcmpl-sim-")
    assert json.loads(answer.model_dump_json())["choices"][0]["message"]["role"] == "assistant"
    assert_books_are_closed(client)


def test_auto_chooses_and_is_the_default(make, server):
    client = make(explore=0)
    assert ask(client).model == ask(client, model="auto").model == "sim-frontier"
    cheap = {"optllm": {"policy": "min_cost:0.01"}}
    assert ask(client, extra_body=cheap).model == "sim-tiny"
    assert server.requests == {"sim-frontier": 2, "sim-tiny": 1}


def test_a_policy_can_be_named_with_the_model(make, server):
    client = make(explore=0)
    assert ask(client, model="auto:min_cost:0.01").model == "sim-tiny"
    assert ask(client, model="auto:max_success").model == "sim-frontier"
    with pytest.raises(InvalidRequestError, match="policy 'cheapest' is unknown"):
        ask(client, model="auto:cheapest")
    with pytest.raises(InvalidRequestError, match="did you mean 'match_best'"):
        ask(client, model="auto:matchbest")
    with pytest.raises(UnknownModelError, match="did you mean 'auto'"):
        ask(client, model="auto:")
    assert server.requests == {"sim-tiny": 1, "sim-frontier": 1}


def test_a_copy_with_options_shares_everything(make, server):
    client = make(explore=0)
    cheap = client.with_options(policy="min_cost:0.01", timeout=30)
    assert ask(cheap).model == "sim-tiny"
    assert ask(cheap, model="auto:max_success").model == "sim-frontier"
    assert ask(client).model == "sim-frontier"
    assert cheap.balance == client.balance
    assert cheap._session.prepare(HELLO, "auto", {}).query.call.timeout_seconds == 30
    assert cheap._session.prepare(HELLO, "auto", {"timeout": 5}).query.call.timeout_seconds == 5
    with pytest.raises(InvalidRequestError, match="policy 'best'") as caught:
        client.with_options(policy="best")
    assert isinstance(caught.value, openai.BadRequestError)
    bound = client.with_options(tenant="acme", tags=["a"])
    options = bound._session.prepare(
        HELLO, "auto", {"extra_body": {"optllm": {"tags": "b"}}}
    ).options
    assert options.scopes == ("tenant:acme", "tag:a", "tag:b")
    with pytest.raises(InvalidRequestError, match="for tenant 'acme' only"):
        ask(bound, extra_body={"optllm": {"tenant": "other"}})


def test_the_models_are_auto_and_the_configured(make):
    client = make()
    names = [*AUTO, *(model.name for model in SIMULATED_MODELS)]
    assert [model.id for model in client.models.list()] == names
    assert [model.id for model in client.models.list().data] == names
    assert client.models.retrieve("sim-tiny").owned_by == "openai"
    with pytest.raises(UnknownModelError, match="did you mean 'sim-tiny'"):
        client.models.retrieve("sim-tin")


def test_all_budgets_hold(make, server):
    client = make(budget=["1 USD", {"limit_usd": "0.00001", "window": "day", "name": "small"}])
    with pytest.raises(BudgetExceededError, match="'small'"):
        ask(client)
    assert server.requests == {}
    assert {one.budget: one.left_nano for one in client.balances} == {
        "default": 10**9,
        "small": 10_000,
    }
    assert client.balance.budget == "default"


def test_tenants_have_budgets_of_their_own(make, server):
    client = make(budget=["1 USD", "0.0005 USD per day for tenant:acme", "1 USD for tenant:*"])
    acme, other = client.with_options(tenant="acme"), client.with_options(tenant="other")
    with pytest.raises(BudgetExceededError, match="'tenant:acme'"):
        ask(acme, model="sim-frontier")
    assert ask(other, model="sim-frontier").optllm.cost_nano > 0
    paid = ask(acme, model="sim-tiny", extra_body={"optllm": {"tenant": "acme"}}).optllm.cost_nano
    spent = {one.budget: one.spent_nano for one in client.balances}
    assert spent["tenant:acme"] == paid
    assert sum(server.requests.values()) == 2
    with pytest.raises(ConfigurationError, match="'tag:nobody'") as caught:
        ask(client, extra_body={"optllm": {"tags": ["nobody"]}})
    assert isinstance(caught.value, openai.BadRequestError)
    with acme.chat.completions.create(messages=HELLO, model="sim-tiny", stream=True) as stream:
        assert list(stream)
    spent = {one.budget: one.spent_nano for one in client.balances}
    assert spent["tenant:acme"] == paid + stream.optllm.cost_nano
    assert_books_are_closed(client)


def test_a_threshold_is_reported(make):
    crossed, told = [], threading.Event()

    def report(crossing) -> None:
        crossed.append(crossing)
        told.set()

    client = make(budget=Budget("0.001", thresholds=(1,)), on_threshold=report)
    ask(client, model="sim-small")
    ask(client, model="sim-small")
    assert told.wait(10)
    assert [(one.budget, one.percent) for one in crossed] == [("default", 1)]
    with pytest.raises(ConfigurationError, match="on_threshold 5 must be a function"):
        make(on_threshold=5)


def test_arguments_that_openai_marks_as_not_given_are_left_out(make):
    answer = ask(make(), model="sim-tiny", n=openai.NOT_GIVEN, stop=openai.NOT_GIVEN)
    assert answer.choices


def test_answers_are_bounded_where_the_caller_sets_no_bound(make, models):
    models[-1]["litellm_params"]["max_tokens"] = 3
    answer = ask(make(), model="sim-tiny")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert ask(make(), model="sim-tiny", max_tokens=2).usage.completion_tokens == 2
    assert ask(make(), model="sim-tiny", max_completion_tokens=1).usage.completion_tokens == 1


def test_without_a_budget_calls_are_recorded_all_the_same(make, sqlite_url):
    client = make(budget=None)
    answer = ask(client, model="sim-tiny")
    assert client.balance is None
    assert client.verify() == []
    paid = rows(sqlite_url, "SELECT settled_nano, state FROM reservations")
    assert paid == [(answer.optllm.cost_nano, "settled")]


def test_feedback_teaches(make):
    client = make(explore=1.0)
    for task in TASKS:
        answer = ask(client, task.prompt)
        client.feedback.create(answer.id, score=grade(task, answer.choices[0].message.content))
    client.wait_for_refit()
    assert client._runtime.router._learner.labels == len(TASKS)
    assert_books_are_closed(client)


def test_a_later_score_of_the_same_answer_replaces_the_earlier(make):
    client = make()
    answer = ask(client)
    client.feedback.create(answer.id, score=1.0)
    client.feedback.create(answer.id, score=0.0)
    _, scores = client._runtime.router._learner._labels.matrix()
    assert np.nanmax(scores) == 0.0


def test_a_plan_is_quoted_before_anything_is_sent_and_applied_once(make, server):
    client = make()
    warm_up(client)
    sent = sum(server.requests.values())
    plan = client.plan([task.prompt for task in TASKS[:12]], budget_usd=0.5)
    assert plan.quote.queries == 12
    assert sum(server.requests.values()) == sent
    seen = []
    results = plan.apply(concurrency=4, on_result=lambda i, result: seen.append((i, result)))
    assert [result.optllm.candidate for result in results] == [d.candidate for d in plan.decisions]
    assert sorted(i for i, _ in seen) == list(range(12))
    assert all(results[i] is result for i, result in seen)
    assert sum(server.requests.values()) == sent + 12
    assert_books_are_closed(client)
    with pytest.raises(InvalidRequestError, match="applied"):
        plan.apply()
    assert sum(server.requests.values()) == sent + 12


def test_a_plan_waits_for_what_a_dead_process_reserved(make, sqlite_url):
    client = make(budget="0.01 USD", seed=3)
    left = client.balance.left_nano
    dead = Reservation("dead", "d", "c", left, (), "test", lease_seconds=0.5)
    assert client._runtime.ledger.reserve(dead).result() is None
    plan = client.plan(["What is 1 + 1?"], budget_usd=0.001)
    (result,) = plan.apply()
    assert isinstance(result, BudgetExceededError)  # settled in full, so it stays spent
    assert client.balance.spent_nano == left
    assert_books_are_closed(client)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_plan_needs_at_least_one_call_at_a_time(make, models, sqlite_url, concurrency):
    with pytest.raises(InvalidRequestError, match="concurrency"):
        make().plan(["What is 1 + 1?"]).apply(concurrency=concurrency)

    async def applied():
        async with AsyncOptLLM(models, store=sqlite_url) as client:
            plan = await client.plan(["What is 1 + 1?"])
            await asyncio.wait_for(plan.apply(concurrency=concurrency), 10)

    with pytest.raises(InvalidRequestError, match="concurrency"):
        litellm_clients.run(applied())


def test_a_plan_goes_on_where_one_query_fails(make, server):
    client = make()
    server.faults = {name: Faults(script=("server_error",)) for name in server.names}
    plan = client.plan(["What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?"])
    results = plan.apply(concurrency=1)
    assert all(isinstance(result, (ChatCompletion, OptLLMError)) for result in results)
    assert any(isinstance(result, ChatCompletion) for result in results)
    assert_books_are_closed(client)


# Bad arguments: nothing is sent, nothing is reserved


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"messages": []}, "0 entries"),
        ({"messages": "Hello"}, "messages is str"),
        ({"messages": None}, "messages is missing"),
        ({"messages": HELLO[0]}, "messages is dict"),
        ({"messages": ["Hello"]}, r"messages\[0\] has role None"),
        ({"messages": [None]}, r"messages\[0\]"),
        ({"messages": [{"content": "Hi"}]}, "role None"),
        ({"messages": [*HELLO, {"role": "robot", "content": "Hi"}]}, r"messages\[1\].*'robot'"),
        ({"messages": [{"role": [], "content": "Hi"}]}, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, "not int"),
        ({"messages": [{"role": "user", "content": {}}]}, "not dict"),
        ({"model": ""}, "model ''"),
        ({"model": None}, "model None"),
        ({"model": 5}, "model 5"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"max_tokens": -5}, "max_tokens -5"),
        ({"max_tokens": 1.5}, "max_tokens 1.5"),
        ({"max_tokens": "many"}, "max_tokens 'many'"),
        ({"max_tokens": True}, "max_tokens True"),
        ({"max_completion_tokens": 0}, "0"),
        ({"n": 0}, "n 0"),
        ({"n": 1000}, "n 1000"),
        ({"n": "two"}, "n 'two'"),
        ({"stream": "yes"}, "stream 'yes'"),
        ({"stream_options": {"include_usage": True}}, "stream=True is not"),
        ({"timeout": 0}, "timeout 0"),
        ({"timeout": -1}, "timeout -1"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"timeout": float("inf")}, "timeout inf"),
        ({"timeout": "soon"}, "timeout 'soon'"),
        ({"extra_body": 5}, "extra_body"),
        ({"extra_body": {"optllm": 5}}, "extra_body"),
        ({"extra_body": {"optllm": {"polcy": "match_best"}}}, "polcy"),
        ({"extra_body": {"optllm": {"policy": "best"}}}, "'best'"),
        ({"extra_body": {"optllm": {"policy": 5}}}, "5"),
        ({"extra_body": {"n": 5}}, "n"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ({"extra_body": {"max_completion_tokens": 5}}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
        # What would fail on the way, and be charged for nothing.
        ({"messages": [{"role": "user", "content": "Hi", "name": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": [TEXT | {"text": "\ud800"}]}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": [TEXT | {"text": 5}]}]}, "whose text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [image("gs://ours/a.png")]}, "neither data:image"),
        ({"messages": [image("https://x.example/?gs://ours/a.png")]}, "neither data:image"),
        ({"messages": [image("file:///etc/passwd")]}, "neither data:image"),
        ({"messages": [image("data:application/pdf;base64,JVBERi0=")]}, "neither data:image"),
        ({"messages": [image("https://x.example/a.pdf?b=c.png")]}, "neither data:image"),
        ({"messages": [image("https://[")]}, "neither data:image"),
        ({"messages": [image("https://x.example/a", format="application/pdf")]}, "'format'"),
        ({"messages": [image("https://x.example/a", detail="all of it")]}, "detail is none"),
        *[({name: "x" * 10_000}, "x[.][.][.]x") for name in ("max_tokens", "n", "seed")],
        ({"model": "auto:" + "x" * 10_000}, "x[.][.][.]x"),
        ({"x" * 10_000: 1}, "x[.][.][.]x"),
        ({"extra_body": {"x" * 10_000: 1}}, "x[.][.][.]x"),
        ({"extra_body": {"optllm": {"x" * 10_000: 1}}}, "x[.][.][.]x"),
        ({"messages": [{"role": "x" * 10_000, "content": "Hi"}]}, "x[.][.][.]x"),
        ({"messages": [{"role": "user", "content": [{"type": "x" * 10_000}]}]}, "x[.][.][.]x"),
        ({"messages": [{"role": "user", "content": "Hi", "at": {1, 2}}]}, "set is not JSON"),
        ({"messages": [{"role": "user", "content": "Hi", "at": float("nan")}]}, r"\[0\].* JSON"),
        ({"messages": [{"role": "user", "content": "Hi", "name": 5}]}, "name must be text"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "tool_call_id must be text"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "tool_calls must"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool_calls must"),
        ({"messages": [{"role": "assistant", "function_call": 5}]}, "function_call must"),
        ({"temperature": float("nan")}, "temperature nan must be a finite number"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"seed": 0.5}, "seed 0.5"),
        ({"logprobs": "yes"}, "logprobs 'yes'"),
        ({"stop": [5]}, "stop list must be text"),
        ({"user": "\ud800"}, "user holds half a surrogate"),
        ({"user": "x" * 1001}, "user .* must be text of at most 1000 characters"),
        ({"stop": ["a"] * 17}, "stop list must be text or a list of at most 16 texts"),
        ({"stop": "a" * 1001}, "stop .* of at most 1000 characters"),
        ({"stop": ["a" * 1001]}, "stop .* of at most 1000 characters"),
        ({"logit_bias": dict.fromkeys(map(str, range(2001)), 1)}, "logit_bias .* at most 2000"),
        ({"logit_bias": {"9" * 21: 1}}, "logit_bias .* at most 2000"),
        ({"metadata": {str(n): "a" for n in range(17)}}, "metadata .* at most 16 "),
        ({"metadata": {"a": "b" * 513}}, "metadata .* 512 characters"),
        ({"metadata": {"a" * 65: "b"}}, "metadata .* 64 "),
        ({"tools": [TOOL] * 1001}, "tools .* at most 1000"),
        ({"functions": [{"name": "f"}] * 1001}, "functions .* at most 1000"),
        ({"extra_body": {"stop_token_ids": [1] * 2001}}, "'stop_token_ids'.* at most 2000"),
        ({"store": True}, "store True must be False: answers are not kept"),
        ({"service_tier": "flex"}, "'service_tier' is not taken"),
        ({"modalities": ["text", "audio"]}, "'modalities' is not taken"),
        ({"extra_query": {"api-version": "1"}}, "'extra_query' is not taken.*transport httpx"),
        ({"max_retries": 3}, r"'max_retries' is not taken.*with_options\(max_retries="),
        ({"logit_bias": {"5": float("nan")}}, r"logit_bias \['5'\] must"),
        ({"metadata": {"a": 5}}, r"metadata \['a'\] must"),
        ({"tools": 5}, "tools 5 must be a list"),
        ({"tools": [TOOL | {"function": {"name": "f", "x": object()}}]}, "tools.*not JSON"),
        ({"tool_choice": 5}, "tool_choice 5"),
        ({"functions": [5]}, "functions list"),
        ({"function_call": 5}, "function_call 5"),
        ({"response_format": 5}, "response_format 5"),
        ({"response_format": Budget}, r"response_format type .*classes belong to parse"),
        # What is billed apart, answered by others, or sent elsewhere.
        ({"messages": [{"role": "user", "content": [TEXT | CACHED]}]}, "sets cache_control"),
        ({"messages": [HELLO[0] | CACHED]}, "sets cache_control"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "sets audio"),
        ({"tools": [TOOL | CACHED]}, "tools list"),
        ({"tools": [TOOL | {"function": {"name": "f", **CACHED}}]}, "sets cache_control"),
        ({"tools": [{"type": "web_search"}]}, "tools list.*billed apart"),
        ({"tools": [TOOL | {"googleSearch": {}}]}, "tools list"),
        ({"tool_choice": {"type": "allowed_tools"}}, r"tool_choice \['type'\] must"),
        ({"tools": [TOOL], "tool_choice": allowed("g")}, "allows the function tool 'g'.*not among"),
        ({"tool_choice": allowed("f")}, "allows the function tool 'f'.*not among"),
        ({"tools": [TOOL], "tool_choice": allowed("f", mode="none")}, "tool_choice .* must be"),
        ({"tools": [TOOL], "tool_choice": allowed("f", description="x")}, "tool_choice .* must be"),
        ({"temprature": 0.5}, "'temprature'.* did you mean temperature"),
        (
            {"extra_headers": {"Authorization": "theirs"}},
            r"extra_headers \['Authorization'\] must be",
        ),
        ({"extra_headers": {"X-Api-Key": "theirs"}}, r"extra_headers \['X-Api-Key'\] must be"),
        ({"extra_headers": {"user-agent": "a\r\nAuthorization: b"}}, r"\['user-agent'\] must be"),
        ({"extra_headers": {"x-title": "\u00e9"}}, r"\['x-title'\] must be"),
        ({"extra_body": {"top_k": "text"}}, "'top_k'.*numbers"),
        ({"extra_body": {"chat_template_kwargs": {"documents": ["text"]}}}, "numbers"),
        ({"extra_body": {"tools": [TOOL]}}, "sets tools; pass tools="),
        *(({name: value}, f"'{name}' is not taken") for name, value in REFUSED.items()),
        *(({"extra_body": {name: value}}, f"sets '{name}'") for name, value in REFUSED.items()),
        ({"extra_body": {"messages": HELLO * 1000}}, "sets 'messages'"),
        ({"extra_body": {"model": "sim-frontier"}}, "sets 'model'"),
        ({"extra_body": {"stream": True}}, "sets stream; pass stream="),
        ({"extra_body": {5: 5}}, "sets 5"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_sent(make, server, sqlite_url, arguments, shown):
    client = make()
    with pytest.raises(InvalidRequestError, match=shown) as caught:
        client.chat.completions.create(**{"messages": HELLO, **arguments})
    assert isinstance(caught.value, openai.BadRequestError)
    assert "\n" not in str(caught.value)
    assert server.requests == {}
    assert rows(sqlite_url, "SELECT * FROM reservations") == []
    assert rows(sqlite_url, "SELECT * FROM decisions") == []


def test_what_is_nested_without_end_is_refused(make, server):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        make().chat.completions.create(messages=[{**HELLO[0], "deep": deep}])
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        make().chat.completions.create(messages=HELLO, extra_body={"stop_token_ids": deep})
    assert server.requests == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.5, "top_p": 1, "frequency_penalty": -1, "presence_penalty": 0.5},
        {"seed": 7, "stop": ["a", "b"], "n": 2, "logit_bias": {5: 1, "6": -0.5}},
        {"stop": "a", "logprobs": True, "top_logprobs": 3, "store": False},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [TOOL], "tool_choice": allowed("f")},
        {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
        {"response_format": {"type": "json_object"}, "user": "me", "metadata": {"a": "b"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "a"},
        {"extra_headers": {"X-Request-ID": "5"}, "safety_identifier": "a"},
        {"extra_body": {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}},
        {"temperature": None, "stop": None, "tools": None, "extra_headers": None},
        {"stop": ["a" * 1000] * 16, "user": "x" * 1000, "tools": [TOOL] * 1000},
        {"logit_bias": dict.fromkeys(range(2000), 1), "metadata": {"a" * 64: "b" * 512}},
    ],
    ids=lambda arguments: ",".join(arguments),
)
def test_arguments_that_leave_the_price_alone_are_passed_on(make, arguments):
    call = make()._session.prepare(HELLO, "auto", arguments).query.call
    assert call.parameters == arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("service_tier", tier) for tier in (None, "auto", "default")),
        *(("modalities", kinds) for kinds in (None, ["text"], ("text",))),
        *(("extra_query", query) for query in (None, {})),
        *((name, None) for name in ("audio", "prediction", "moderation", "web_search_options")),
        *((f"prompt_cache_{name}", None) for name in ("options", "retention")),
    ],
)
def test_what_asks_for_what_is_done_anyway_is_taken_and_not_sent(make, name, value):
    call = make()._session.prepare(HELLO, "auto", {name: value}).query.call
    assert call.parameters == {}


def test_a_conversation_with_tools_is_taken(make):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    custom = {"id": "2", "type": "custom", "custom": {"name": "g", "input": "Hi"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, custom], "audio": None},
        {"role": "tool", "tool_call_id": "1", "content": [TEXT]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "5"},
    ]
    assert make()._session.prepare(messages, "auto", {}).query.call.messages == tuple(messages)


def test_an_unknown_model_gets_the_nearest_names(make, server):
    with pytest.raises(UnknownModelError, match="did you mean 'sim-frontier'") as caught:
        ask(make(), model="sim-frontie")
    assert isinstance(caught.value, openai.NotFoundError)
    assert caught.value.status_code == 404
    assert server.requests == {}


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf"), "good", None])
def test_a_score_out_of_range_is_refused(make, score):
    client = make()
    answer = ask(client, model="sim-tiny")
    with pytest.raises(InvalidRequestError, match="score"):
        client.feedback.create(answer.id, score=score)
    assert client._runtime.router._learner.labels == 0


def test_feedback_for_an_answer_that_nobody_gave(make):
    with pytest.raises(InvalidRequestError, match="'optllm-nobody'") as caught:
        make().feedback.create("optllm-nobody", score=1.0)
    assert isinstance(caught.value, openai.BadRequestError)


@pytest.mark.parametrize("id", [None, "\ud83d", "a\0b"])
def test_what_can_be_no_id_of_an_answer(make, id):
    with pytest.raises(InvalidRequestError, match="must be that of an answer"):
        make().feedback.create(id, score=1.0)


@pytest.mark.parametrize(
    ("queries", "arguments"),
    [
        ([], {}),
        (["ok", []], {}),
        (["ok"], {"budget_usd": -1}),
        (["ok"], {"budget_usd": float("nan")}),
        (["ok"], {"policy": "best"}),
        (["ok"], {"max_tokens": 0}),
        (["ok"], {"stream": True}),
        (None, {}),
        (5, {}),
    ],
)
def test_a_plan_that_is_none(make, server, queries, arguments):
    with pytest.raises((InvalidRequestError, ConfigurationError)):
        make().plan(queries, **arguments)
    assert server.requests == {}


@pytest.mark.parametrize("queries", ["hello", HELLO[0], b"hello"])
def test_one_query_is_no_list_of_its_parts(make, models, server, sqlite_url, queries):
    with pytest.raises(InvalidRequestError, match=r"queries is one .*pass a list") as caught:
        make().plan(queries)
    assert isinstance(caught.value, openai.BadRequestError)

    async def plan() -> None:
        async with AsyncOptLLM(models, store=sqlite_url) as client:
            await client.plan(queries)

    with pytest.raises(InvalidRequestError, match="queries is one"):
        litellm_clients.run(plan())
    assert server.requests == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"models": []},
        {"models": ["openai/no-such-model"]},
        {"budget": "-5 USD"},
        {"budget": "lots"},
        {"budget": float("nan")},
        {"policy": "best"},
        {"predictor": "crystal ball"},
        {"predictor": 5},
        {"seed": -1},
        {"explore": -1},
        {"max_retries": -1},
        {"timeout_seconds": "1m"},
        {"expected_queries": 0},
        {"batch_window_ms": -1},
    ],
    ids=str,
)
def test_a_setting_that_is_wrong_writes_nothing(make, tmp_path, settings):
    with pytest.raises(ConfigurationError):
        make(**settings)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_used(make, tmp_path):
    with pytest.raises(StoreError):
        make(store=f"sqlite:///{tmp_path}/nowhere/a.db")
    with pytest.raises(StoreError):
        make(store=5)


def test_an_unpriced_model_is_refused_at_the_start(make):
    with pytest.raises(UnpricedModelError, match="input_cost_per_token"):
        make(models=["openai/no-such-model"])


def test_a_missing_key_is_one_sentence_and_leaves_nothing_behind(
    make, models, server, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    del models[2]["litellm_params"]["api_key"]
    with pytest.raises(ConfigurationError, match=r"'sim-editor'.*OPENAI_API_KEY") as caught:
        make()
    assert "\n" not in str(caught.value)
    assert server.requests == {}
    assert list(tmp_path.iterdir()) == []


def test_an_answer_can_be_appended_to_the_conversation(make):
    client = make()
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    first = client.chat.completions.create(messages=messages, model="sim-tiny")
    messages += [first.choices[0].message, {"role": "user", "content": "And 1 + 1?"}]
    second = client.chat.completions.create(messages=messages, model="sim-tiny")
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert_books_are_closed(client)


def test_a_closed_client_says_so(make, server):
    client = make()
    client.close()
    client.close()
    for model in ("auto", "sim-tiny"):
        with pytest.raises(OptLLMError, match="closed; create a new"):
            ask(client, model=model)
    assert server.requests == {}


# Money


def test_a_call_that_does_not_fit_is_not_sent(make, server):
    client = make(budget="0.00001 USD")
    with pytest.raises(BudgetExceededError, match="nothing was sent") as caught:
        ask(client)
    error = caught.value
    assert isinstance(error, openai.RateLimitError)
    assert (error.status_code, error.code) == (429, "insufficient_quota")
    assert (error.budget, error.left_nano) == ("default", 10_000)
    assert error.needed_nano > error.left_nano
    assert server.requests == {}
    assert_books_are_closed(client)


def test_a_budget_near_its_end_degrades_to_cheaper_models(make, server):
    client = make(budget="0.0005 USD", explore=0)
    answered = []
    with contextlib.suppress(BudgetExceededError):
        while len(answered) < 1000:
            answered.append(ask(client).optllm)
    assert sum(one.cost_nano for one in answered) == client.balance.spent_nano <= 500_000
    assert {one.candidate for one in answered} <= {"sim-small", "sim-tiny", "sim-editor"}
    assert 5 < len(answered) < 1000
    assert sum(server.requests.values()) == len(answered)
    assert_books_are_closed(client)


def test_a_pinned_model_is_budgeted_and_not_replaced(make, server):
    client = make(budget="0.0005 USD")
    with pytest.raises(BudgetExceededError):
        ask(client, model="sim-frontier")
    assert server.requests == {}
    assert ask(client, model="sim-tiny").model == "sim-tiny"


def test_a_budget_that_is_used_up_says_when_there_is_money_again(make, server):
    client = make(budget="1 USD per month")
    ask(client, model="sim-tiny")
    spent, ledger = client.balance.spent_nano, client._runtime.ledger
    ledger.set_limit("default", f"{spent + 1}e-9")
    with pytest.raises(BudgetExceededError, match=r"Raise the budget or lower max_t") as caught:
        ask(client, model="sim-tiny")
    assert caught.value.next_window is None  # a whole window's money does not pay for the call
    ledger.set_limit("default", f"{spent + caught.value.needed_nano - 1}e-9")
    with pytest.raises(BudgetExceededError, match="wait for its next window") as caught:
        ask(client, model="sim-tiny")
    assert caught.value.next_window == client.balance.next_window
    start = datetime.fromtimestamp(client.balance.next_window, tz=timezone.utc)
    assert f"({start:%Y-%m-01 00:00} UTC)" in str(caught.value)
    assert sum(server.requests.values()) == 1


@pytest.mark.parametrize(
    ("fault", "ours", "theirs", "billed"),
    [
        ("rate_limit", ProviderRateLimitedError, openai.RateLimitError, False),
        ("server_error", ProviderUnavailableError, openai.InternalServerError, False),
        ("cut", ProviderConnectionError, openai.APIConnectionError, True),
        ("garbage", ProviderResponseError, openai.InternalServerError, True),
        ("timeout", ProviderTimeoutError, openai.APITimeoutError, True),
    ],
)
def test_a_provider_that_fails(make, server, sqlite_url, fault, ours, theirs, billed):
    client = make()
    server.faults = Faults(script=(fault,))
    with pytest.raises(ours) as caught:
        ask(client, model="sim-tiny", timeout=0.5 if fault == "timeout" else 20)
    assert isinstance(caught.value, theirs)
    assert caught.value.maybe_billed is billed
    assert_books_are_closed(client)
    kept = "SELECT state, reserved_nano, settled_nano, estimated FROM reservations"
    ((state, reserved, settled, estimated),) = rows(sqlite_url, kept)
    if billed:
        assert (state, settled, estimated) == ("settled", reserved, 1)
    else:
        assert (state, settled, estimated) == ("released", 0, 0)
    assert client.balance.spent_nano == settled
    outcomes = rows(sqlite_url, "SELECT status, error, cost_nano FROM outcomes")
    assert outcomes == [("error", ours.__name__, settled)]
    assert ask(client, model="sim-tiny").choices


def test_the_next_candidate_answers_where_one_fails(make, server):
    client = make(explore=0)
    server.faults = {"sim-frontier": Faults(rates={"server_error": 1.0})}
    answer = ask(client)
    assert answer.model != "sim-frontier"
    assert server.requests == {"sim-frontier": 1, answer.model: 1}
    client.feedback.create(answer.id, score=1.0)
    assert_books_are_closed(client)


def test_all_candidates_fail(make, server):
    client = make()
    server.faults = Faults(rates={"server_error": 1.0})
    with pytest.raises(AllCandidatesFailedError) as caught:
        ask(client)
    assert isinstance(caught.value, openai.InternalServerError)
    assert len(caught.value.causes) == len(SIMULATED_MODELS)
    assert all(isinstance(cause, ProviderError) for cause in caught.value.causes)
    assert client.balance.spent_nano == 0
    assert_books_are_closed(client)


def test_a_pinned_model_is_left_alone_for_as_long_as_it_told_another_call(make, server):
    client = make(max_retries=2)
    server.faults = Faults(script=("rate_limit",), retry_after_seconds=0.7)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        ask(client.with_options(max_retries=0), model="sim-tiny")
    assert ask(client, model="sim-tiny").optllm.candidate == "sim-tiny"
    assert time.monotonic() - began >= 0.7
    assert server.requests == {"sim-tiny": 2}


def test_every_try_of_a_busy_provider_is_reserved_and_recorded(make, server, sqlite_url):
    client = make(max_retries=1)
    server.faults = Faults(script=("rate_limit",))
    ask(client, model="sim-tiny")
    assert server.requests == {"sim-tiny": 2}
    assert client.verify() == []
    assert_books_are_closed(client)
    states = rows(sqlite_url, "SELECT state FROM reservations WHERE decision_id <> '' ORDER BY id")
    assert states == [("released",), ("settled",)]
    assert rows(sqlite_url, "SELECT attempt, status FROM outcomes ORDER BY attempt") == [
        (0, "error"),
        (1, "ok"),
    ]


@pytest.mark.parametrize("fault", [None, "cut", "garbage", "server_error"])
def test_a_cancelled_call_closes_its_reservation(models, sqlite_url, server, fault):
    server.faults = Faults(rates={"timeout": 1.0} if fault is None else {fault: 1.0})

    async def cancelled():
        async with AsyncOptLLM(models, budget="1 USD", store=sqlite_url, max_retries=0) as client:
            tasks = [
                asyncio.create_task(
                    client.chat.completions.create(messages=HELLO, model="sim-tiny")
                )
                for _ in range(20)
            ]
            while sum(server.requests.values()) < 10:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, (asyncio.CancelledError, OptLLMError)) for one in results)
        # What was cancelled while it closed its reservation is written by now.
        assert_books_are_closed(client)
        assert fault is not None or client.balance.spent_nano > 0

    litellm_clients.run(cancelled())


def test_everything_goes_wrong_at_random_and_the_books_hold(make, server):
    """What the server billed is at most what is booked: nothing is lost."""
    client = make(budget="0.05 USD")
    warm_up(client)
    rates = {"rate_limit": 0.1, "server_error": 0.1, "cut": 0.1, "garbage": 0.1}
    server.faults = Faults(rates=rates, seed=1)

    def one(task) -> None:
        with contextlib.suppress(openai.OpenAIError):
            ask(client, task.prompt)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, TASKS * 3))
    assert_books_are_closed(client)
    prices = {candidate.name: candidate.price for candidate in client.settings.candidates}
    billed = sum(
        charge_nano(prices[name], usage)
        for name, usages in server.served.items()
        for usage in usages
    )
    assert 0 < billed <= client.balance.spent_nano <= client.balance.limit_nano


def test_thirty_two_threads_share_a_client(make, server):
    client = make()
    warm_up(client)
    before, sent = client.balance.spent_nano, sum(server.requests.values())

    def one(n: int) -> int:
        task = TASKS[n % len(TASKS)]
        answer = ask(client, task.prompt, model="auto" if n % 2 else "sim-tiny")
        client.feedback.create(answer.id, score=grade(task, answer.choices[0].message.content))
        return answer.optllm.cost_nano

    with ThreadPoolExecutor(32) as pool:
        costs = list(pool.map(one, range(96)))
    assert sum(costs) == client.balance.spent_nano - before
    assert sum(server.requests.values()) == sent + 96
    client.wait_for_refit()
    assert client._runtime.router._learner.labels == 96
    assert_books_are_closed(client)


# Restarts


def test_a_client_remembers_spend_labels_and_usage(make):
    first = make()
    for task in TASKS[:25]:
        answer = ask(first, task.prompt)
        first.feedback.create(answer.id, score=grade(task, answer.choices[0].message.content))
    spent = first.balance.spent_nano
    costs = first._runtime.router._costs.expected_usd
    call = first._session.prepare(HELLO, "auto", {}).query.call
    expected = costs(call)
    first.close()
    again = make()
    again.wait_for_refit()
    assert again.balance.spent_nano == spent > 0
    assert again._runtime.router._learner.labels == 25
    assert again._runtime.router._costs.expected_usd(call) == pytest.approx(expected)
    assert ask(again).choices


def test_models_that_are_gone_are_forgotten(make, models):
    first = make(explore=1.0)
    for task in TASKS[:10]:
        first.feedback.create(ask(first, task.prompt).id, score=1.0)
    first.close()
    again = make(models=models[:1])
    again.wait_for_refit()
    assert ask(again).model == "sim-frontier"


def test_a_limit_changes_with_the_next_client(make):
    first = make(budget="1 USD")
    ask(first, model="sim-tiny")
    spent = first.balance.spent_nano
    first.close()
    again = make(budget=Budget("0.5"))
    assert (again.balance.limit_nano, again.balance.spent_nano) == (500_000_000, spent)


VICTIM = """
    import sys
    from optllm_router import Candidate, OptLLM, Price
    from decimal import Decimal

    class Hangs:
        def check(self, candidates):
            pass

        def send(self, candidate, call):
            print("sending", flush=True)
            sys.stdin.readline()

    candidate = Candidate("m", "x/m", Price(Decimal(1), Decimal(1), "test"), 100)
    client = OptLLM([candidate], budget="1 USD", store=sys.argv[1], transport=Hangs())
    client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}], timeout=0.001)
"""


def test_a_process_killed_while_sending_has_its_call_counted(make, sqlite_url):
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), sqlite_url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as victim:
        assert victim.stdout.readline() == "sending\n"
        victim.kill()
    survivor = make()
    reserved = survivor.balance.reserved_nano
    assert reserved > 0
    assert survivor.balance.spent_nano == 0
    survivor.close()
    # Its lease runs out.
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE reservations SET expires_at = 1"))
    engine.dispose()
    again = make()
    assert (again.balance.spent_nano, again.balance.reserved_nano) == (reserved, 0)
    assert again.verify() == []


# Two clients, one surface


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [
        (OptLLM, AsyncOptLLM),
        (_completions.Chat, _completions.AsyncChat),
        (_completions.Completions, _completions.AsyncCompletions),
        (_feedback.Feedback, _feedback.AsyncFeedback),
        (_models.Models, _models.AsyncModels),
        (optllm_router.Plan, optllm_router.AsyncPlan),
    ],
)
def test_sync_and_async_signatures_agree(sync, asynchronous):
    def public(kind) -> dict[str, inspect.Signature | type]:
        members = inspect.getmembers(kind, lambda member: not isinstance(member, type))
        return {
            name: [
                str(p) for p in inspect.signature(member).parameters.values() if p.name != "self"
            ]
            if callable(member)
            else type(member)
            for name, member in members
            if not name.startswith("_") or name == "__init__"
        }

    def parameters(kind) -> dict:
        return {
            name: str(value).replace("AsyncOptLLM", "OptLLM")
            for name, value in public(kind).items()
        }

    assert parameters(sync) == parameters(asynchronous)


def test_coroutines_that_ask_at_once_are_decided_together(models, sqlite_url, monkeypatch):
    batches = []

    def counted(queries, *rest):
        batches.append((len(queries), threading.current_thread()))
        return decide(queries, *rest)

    async def ask_at_once(client: AsyncOptLLM, calls: int, *, cancelled: int = 0) -> None:
        batches.clear()
        asking = [
            asyncio.create_task(client.chat.completions.create(messages=HELLO))
            for _ in range(calls)
        ]
        await asyncio.sleep(0)
        for task in asking[:cancelled]:
            task.cancel()
        await asyncio.gather(*asking[cancelled:])

    async def program() -> None:
        nonlocal decide
        async with AsyncOptLLM(models, budget="1 USD", store=sqlite_url, max_retries=0) as client:
            router = client._session.runtime.router
            decide = router.decide
            await client.check()
            client._runtime.means()  # what there is to spend is known, for a second
            monkeypatch.setattr(router, "decide", counted)
            await ask_at_once(client, 3)
            assert batches == [(3, threading.main_thread())]
            client._runtime.means()
            await ask_at_once(client, 3, cancelled=2)
            assert batches == [(1, threading.main_thread())]
            client._runtime.means()
            await ask_at_once(client, 20)
            assert [number for number, _ in batches] == [20]
            assert batches[0][1] is not threading.main_thread()

    decide = None
    litellm_clients.run(program())


def test_the_async_client_does_the_same(models, sqlite_url):
    async def both():
        async with AsyncOptLLM(models, budget="1 USD", store=sqlite_url, seed=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(messages=HELLO) for _ in range(8))
            )
            assert all(isinstance(answer, ChatCompletion) for answer in answers)
            await client.feedback.create(answers[0].id, score=1.0)
            plan = await client.plan(["What is 1 + 1?", "What is 2 + 2?"])
            results = await plan.apply()
            assert all(isinstance(result, ChatCompletion) for result in results)
            names = [*AUTO, *client._runtime.candidates]
            assert [model.id async for model in client.models.list()] == names
            assert [model.id for model in (await client.models.list()).data] == names
            assert (await client.models.retrieve("auto")).id == "auto"
            with pytest.raises(UnknownModelError):
                await client.chat.completions.create(messages=HELLO, model="nobody")
            with pytest.raises(InvalidRequestError):
                await client.feedback.create("nobody", score=1.0)
            assert_books_are_closed(client)
            assert client._runtime.router._learner.labels == 1
        await client.close()
        with pytest.raises(OptLLMError, match="closed"):
            await client.chat.completions.create(messages=HELLO)

    litellm_clients.run(both())


def test_an_async_client_serves_one_event_loop_after_the_other(models, sqlite_url):
    client = AsyncOptLLM(models, budget="1 USD", store=sqlite_url)
    for _ in range(3):
        answer = litellm_clients.run(client.chat.completions.create(messages=HELLO))
        assert answer.choices
    litellm_clients.run(client.close())


# Errors of both trees


def errors() -> list[OptLLMError]:
    def leaves(kind):
        below = kind.__subclasses__()
        return [kind, *(leaf for one in below for leaf in leaves(one))]

    made = []
    for kind in leaves(OptLLMError):
        if issubclass(kind, openai.OpenAIError):
            continue
        if issubclass(kind, ProviderError):
            made.append(kind("what went wrong", candidate="m"))
        elif kind is BudgetExceededError:
            made.append(kind("what went wrong", budget="b", needed_nano=2, left_nano=1))
        elif kind is AllCandidatesFailedError:
            made.append(kind("what went wrong", causes=[]))
        elif kind is optllm_router.InfeasibleError:
            made.append(kind("what went wrong", limit=1.0, attainable=2.0))
        else:
            made.append(kind("what went wrong"))
    return made


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_every_error_is_also_openai_s_and_keeps_what_it_says(error):
    joined = as_openai_error(error)
    assert isinstance(joined, type(error))
    assert isinstance(joined, openai.OpenAIError)
    assert str(joined) == "what went wrong"
    assert type(joined).__name__ == type(error).__name__
    filled = {"code", "type"}  # where it has none, as the server fills them
    said = {name: value for name, value in vars(error).items() if name not in filled or value}
    assert {name: getattr(joined, name) for name in said} == said
    if isinstance(joined, openai.APIError):
        body = error_body(error)
        assert (joined.code, joined.type) == (body["code"], body["type"])
    assert as_openai_error(joined) is joined
    assert type(as_openai_error(error)) is type(joined)
    if isinstance(joined, openai.APIStatusError):
        assert joined.status_code == joined.response.status_code >= 400
        assert joined.body["message"] == "what went wrong"


@pytest.mark.parametrize(
    ("status", "theirs"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (500, openai.InternalServerError),
        (529, openai.InternalServerError),
        (418, openai.APIStatusError),
    ],
)
def test_a_provider_s_status_decides_the_class(status, theirs):
    error = ProviderRejectedError("no", candidate="m", status=status)
    assert isinstance(as_openai_error(error), theirs)


# A configuration file


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (ProviderTimeoutError, openai.APITimeoutError),
        (ProviderRateLimitedError, openai.RateLimitError),
        (ProviderUnavailableError, openai.InternalServerError),
    ],
)
def test_what_all_candidates_do_wrong_decides_the_class(kind, theirs):
    alike, another = [kind("no", candidate="m")] * 2, ProviderResponseError("no", candidate="m")
    assert isinstance(as_openai_error(AllCandidatesFailedError("no", causes=alike)), theirs)
    mixed = as_openai_error(AllCandidatesFailedError("no", causes=[*alike, another]))
    assert isinstance(mixed, openai.InternalServerError)


def test_the_causes_are_openai_s_too():
    first = ProviderTimeoutError("late", candidate="m")
    last = ProviderRateLimitedError("busy", candidate="m", status=429)
    ours = last.after([first, last], {"n": "time was over"}, "busy; 2 attempts were made")
    for error in (ours, AllCandidatesFailedError("no", causes=[first, last])):
        joined = as_openai_error(error)
        kinds = [(ProviderTimeoutError, openai.APITimeoutError)]
        kinds.append((ProviderRateLimitedError, openai.RateLimitError))
        for cause, (own, theirs) in zip(joined.causes, kinds, strict=True):
            assert isinstance(cause, own)
            assert isinstance(cause, theirs)
    alone = as_openai_error(last)
    assert alone.causes == (alone,)
    assert as_openai_error(ours).left_out == {"n": "time was over"}


def test_a_pinned_model_that_fails_tells_every_attempt(make, server):
    client = make(max_retries=1)
    server.faults = Faults(rates={"rate_limit": 1.0})
    with pytest.raises(openai.RateLimitError, match="2 attempts were made") as caught:
        ask(client, model="sim-tiny")
    assert [type(one) for one in caught.value.causes] == [type(caught.value)] * 2
    assert {one.candidate for one in caught.value.causes} == {"sim-tiny"}


def test_a_client_from_a_litellm_configuration(models, tmp_path, server):
    import yaml

    path = tmp_path / "config.yaml"
    store = f"sqlite:///{tmp_path}/a.db"
    path.write_text(yaml.safe_dump({"model_list": models, "router": {"budget": "1 USD"}}))
    with OptLLM.from_config(path, store=store) as client:
        assert ask(client, model="sim-tiny").choices
        assert client.balance.limit_nano == 10**9
    with pytest.raises(ConfigurationError, match="cannot be read"):
        OptLLM.from_config(tmp_path / "nowhere.yaml")


LOADED = """
import sys
from optllm_router._openai_errors import openai_errors
assert "openai" not in sys.modules
with openai_errors():
    print(hasattr(sys.modules["openai"], "OpenAIError"))
"""


def test_openai_is_loaded_as_a_whole_before_threads_need_parts_of_it():
    """Two hundred first calls at once were handed half of it."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
