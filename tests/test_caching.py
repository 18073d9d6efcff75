"""Answers that were given before: what counts as the same call, what a hit costs, when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest
from simulated_entries import model_entries

from optllm_router import AsyncOptLLM, ConfigurationError, OptLLM
from optllm_router._errors import ProviderUnavailableError
from optllm_router._types import Call, Candidate, Price, Usage
from optllm_router.config import read_settings
from optllm_router.simulation import EMBEDDING_MODEL, SIMULATED_MODELS, Faults
from optllm_router.transports import CachingTransport, HttpxTransport, LocalStore
from optllm_router.transports import _answer_stores as room
from optllm_router.transports._answer_stores import CacheSettings, RedisStore, make_store
from optllm_router.transports.caching import cache_key

MODEL = SIMULATED_MODELS[-1]
CALL = Call([{"role": "user", "content": "What is 2 + 3?"}], timeout_seconds=20)
FREE = Price(Decimal(0), Decimal(0), "test")
REPLY = MODEL.reply("What is 2 + 3?")
PAID = Usage(REPLY.prompt_tokens, REPLY.completion_tokens)


def candidate(base_url: str, **changes) -> Candidate:
    parameters = {"api_base": base_url, **changes.pop("parameters", {})}
    model = f"openai/{MODEL.name}"
    return Candidate("mine", model, FREE, 100, parameters=parameters, transport="httpx", **changes)


@pytest.fixture(params=["local", "redis"])
def settings(request) -> CacheSettings:
    if request.param == "redis":
        pytest.importorskip("redis")
        try:
            socket.create_connection(("127.0.0.1", 6379), timeout=1).close()
        except OSError as error:
            pytest.skip(f"no Redis server at 127.0.0.1:6379 ({error})")
    return CacheSettings(request.param, ttl=60, namespace=f"optllm-test-{uuid.uuid4().hex}")


def ask(transport: CachingTransport, how: str, to: Candidate, call: Call = CALL) -> Usage | None:
    """Usage of the answer, however it is asked for."""

    async def wait() -> Usage | None:
        if how == "async stream":
            chunks = [chunk async for chunk in transport.astream(to, call)]
            usage = [chunk.usage for chunk in chunks if chunk.usage][-1]
        else:
            usage = (await transport.asend(to, call)).usage
        await asyncio.to_thread(transport.close)
        return usage

    if how.startswith("async"):
        return asyncio.run(wait())
    if how == "stream":
        return [chunk.usage for chunk in transport.stream(to, call) if chunk.usage][-1]
    return transport.send(to, call).usage


@pytest.mark.parametrize("how", ["whole", "stream", "async whole", "async stream"])
def test_a_call_is_sent_once_and_then_costs_nothing(server, settings, how):
    with closing(CachingTransport(HttpxTransport(), make_store(settings))) as transport:
        usages = [ask(transport, how, candidate(server.base_url)) for _ in range(3)]
    free = Usage(PAID.prompt_tokens, PAID.completion_tokens, reported_nano=0)
    assert usages == [PAID, free, free]
    assert server.served == {MODEL.name: (PAID,)}


def test_a_hit_says_what_was_said(server, settings):
    to = candidate(server.base_url)
    with closing(CachingTransport(HttpxTransport(), make_store(settings))) as transport:
        assert transport.send(to, CALL).body == transport.send(to, CALL).body
        first, second = list(transport.stream(to, CALL)), list(transport.stream(to, CALL))
    assert [chunk.body for chunk in first] == [chunk.body for chunk in second]
    assert server.requests == {MODEL.name: 2}


def test_embeddings_are_kept(server, settings):
    to = Candidate(
        "mine",
        f"openai/{EMBEDDING_MODEL}",
        FREE,
        1,
        parameters={"api_base": server.base_url},
        operation="embedding",
    )
    call = Call(CALL.messages, operation="embedding", timeout_seconds=20)
    with closing(CachingTransport(HttpxTransport(), make_store(settings))) as transport:
        assert transport.send(to, call).body == transport.send(to, call).body
    assert server.requests == {EMBEDDING_MODEL: 1}


def test_an_abandoned_hit_of_a_stream_costs_nothing(server, settings):
    to = candidate(server.base_url)
    with closing(CachingTransport(HttpxTransport(), make_store(settings))) as transport:
        list(transport.stream(to, CALL))
        chunks = transport.stream(to, CALL)
        assert next(chunks).usage.reported_nano == 0
        chunks.close()


def test_a_stream_that_did_not_end_is_not_kept(server, settings):
    server.faults = Faults(script=(None, "cut"))
    to = candidate(server.base_url)
    with closing(CachingTransport(HttpxTransport(), make_store(settings))) as transport:
        chunks = transport.stream(to, CALL)
        next(chunks)
        chunks.close()
        with pytest.raises(Exception, match="broke off"):
            list(transport.stream(to, CALL))
        assert list(transport.stream(to, CALL))[-1].usage == PAID
    assert server.requests == {MODEL.name: 3}


def test_a_failure_is_not_kept(server):
    server.faults = Faults(script=("server_error",))
    with closing(CachingTransport(HttpxTransport(), LocalStore(60))) as transport:
        with pytest.raises(ProviderUnavailableError):
            transport.send(candidate(server.base_url), CALL)
        assert transport.send(candidate(server.base_url), CALL).usage == PAID


@pytest.mark.parametrize(
    "other",
    [
        Call([{"role": "user", "content": "What is 2 + 4?"}]),
        Call([{"role": "system", "content": "What is 2 + 3?"}]),
        Call(CALL.messages, {"temperature": 0.5}),
        Call(CALL.messages, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        Call(CALL.messages, {"n": 2}, choices=2),
        Call(CALL.messages, max_output_tokens=5),
        Call(CALL.messages, operation="embedding"),
        Call(CALL.messages, scopes=("tenant:a",)),
    ],
)
def test_what_changes_an_answer_makes_another_call(other):
    to = candidate("http://h/v1")
    assert cache_key(to, other) != cache_key(to, CALL)


def test_who_answers_makes_another_call():
    one = candidate("http://h/v1")
    assert cache_key(candidate("http://other/v1"), CALL) != cache_key(one, CALL)
    assert cache_key(candidate("http://h/v1", parameters={"top_p": 1}), CALL) != cache_key(
        one, CALL
    )
    assert cache_key(one, CALL, streamed=True) != cache_key(one, CALL)


def test_what_changes_no_answer_makes_no_other_call():
    one = candidate("http://h/v1")
    call = Call(
        CALL.messages, {"user": "a", "metadata": {"b": "c"}, "extra_headers": {}}, timeout_seconds=5
    )
    assert cache_key(one, call) == cache_key(candidate("http://h/v1", api_key="key"), CALL)


def test_scopes_are_told_apart_unless_the_cache_is_shared():
    to = candidate("http://h/v1")
    one, same, other = (
        Call(CALL.messages, scopes=scopes)
        for scopes in (("tenant:a", "tag:x"), ("tag:x", "tenant:a"), ("tenant:b", "tag:x"))
    )
    assert cache_key(to, one) == cache_key(to, same)
    assert cache_key(to, one) != cache_key(to, other)
    assert cache_key(to, one, shared=True) == cache_key(to, CALL, shared=True)


def test_no_prompt_can_be_read_from_a_key():
    assert "2 + 3" not in cache_key(candidate("http://h/v1"), CALL)


# Where answers are kept


def test_what_is_kept_ends(settings):
    with closing(make_store(settings)) as store:
        store.put("kept for a minute", b"value")
        assert store.get("kept for a minute") == b"value"
    with closing(make_store(replace(settings, ttl=0.05))) as store:
        store.put("key", b"value")
        deadline = time.monotonic() + 10
        while store.get("key") is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_memory_is_bounded_and_what_was_not_used_for_longest_goes(monkeypatch):
    monkeypatch.setattr(room, "_MOST_LOCAL_BYTES", 30)
    store = LocalStore(60)
    for key in "abc":
        store.put(key, b"x" * 10)
    assert store.get("a")
    store.put("d", b"x" * 10)
    assert [key for key in "abcd" if store.get(key)] == ["a", "c", "d"]
    store.put("a", b"y" * 25)
    assert [key for key in "abcd" if store.get(key)] == ["a"]


def test_large_answers_are_not_kept(server):
    server.faults = Faults(script=("huge",))
    big = candidate(server.base_url)
    with closing(CachingTransport(HttpxTransport(), store := LocalStore(60))) as transport:
        room_before = store._bytes
        with pytest.raises(Exception, match="10000000 bytes"):
            transport.send(big, CALL)
        transport._keep("key", [({"text": "x" * 2_000_000}, None)])
        assert store._bytes == room_before


@pytest.mark.parametrize("value", [b"", b"{", b"5", b"[]", b"[[1]]", b'[[{}, {"no": 1}]]'])
def test_what_somebody_else_wrote_is_not_an_answer(server, value):
    store = LocalStore(60)
    to = candidate(server.base_url)
    store.put(cache_key(to, CALL), value)
    with closing(CachingTransport(HttpxTransport(), store)) as transport:
        assert transport.send(to, CALL).usage == PAID


def test_calls_go_on_without_redis_and_one_line_says_so(server, caplog):
    pytest.importorskip("redis")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        store = RedisStore(CacheSettings("redis", port=taken.getsockname()[1]))
        with closing(CachingTransport(HttpxTransport(), store)) as transport:
            for _ in range(3):
                assert transport.send(candidate(server.base_url), CALL).usage == PAID
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "cache" in warnings[0].getMessage()


class Silent(threading.Thread):
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.accepted.append(self.listener.accept()[0])

    def close(self) -> None:
        for one in (self.listener, *self.accepted):
            one.close()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_redis_that_never_answers_is_waited_for_once(server, how):
    pytest.importorskip("redis")
    calls = [Call([{"role": "user", "content": f"What is 2 + {one}?"}]) for one in range(20)]
    to = candidate(server.base_url)

    async def together(transport: CachingTransport) -> None:
        answers = await asyncio.gather(*(transport.asend(to, call) for call in calls))
        assert all(answer.usage for answer in answers)
        await asyncio.to_thread(transport.close)

    with closing(Silent()) as silent:
        silent.start()
        store = RedisStore(CacheSettings("redis", port=silent.port))
        with closing(CachingTransport(HttpxTransport(), store)) as transport:
            start = time.monotonic()
            if how == "async":
                asyncio.run(together(transport))
            else:
                assert all(transport.send(to, call).usage for call in calls)
            seconds = time.monotonic() - start
        attempts = len(silent.accepted)
    # A second or so for those that came together, in as many threads as there are; none after it.
    assert attempts <= (8 if how == "async" else 1) * (1 + seconds // 5)
    assert seconds < 30


class Flaky:
    """What ``redis.Redis`` does, or raises."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.asked = 0

    def get(self, key: str) -> bytes:
        self.asked += 1
        if self.fault:
            raise self.fault
        return b"kept"

    def close(self) -> None:
        pass


def test_after_a_fault_redis_is_left_alone_and_then_tried_by_one():
    redis = pytest.importorskip("redis")
    now = 100.0
    store = RedisStore(CacheSettings("redis"), clock=lambda: now)
    store.close()
    store._client = flaky = Flaky()
    assert store.get("a") == b"kept"
    flaky.fault = redis.TimeoutError("slow")
    assert [store.get("a") for _ in range(5)] == [None] * 5
    assert flaky.asked == 2
    now = 105.1
    assert store._may_ask()  # by one who is still waiting for the answer
    flaky.fault = None
    assert store.get("a") is None
    assert flaky.asked == 2
    now = 110.2
    assert [store.get("a") for _ in range(3)] == [b"kept"] * 3
    flaky.fault = redis.ResponseError("out of memory")  # no reason to wait: it answers
    assert store.get("a") is None
    flaky.fault = None
    assert store.get("a") == b"kept"


# Settings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("local", "mapping"),
        ({}, "type ''"),
        ({"type": "disk"}, "'disk'"),
        ({"type": "local", "tll": 5}, "ttl"),
        ({"type": "local", "ttl": 0}, "ttl 0"),
        ({"type": "local", "ttl": "long"}, "'long'"),
        ({"type": "redis", "password": "os.environ/NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"type": "redis", "port": "foo"}, "port 'foo'"),
        ({"type": "redis", "port": 70_000}, "port 70000"),
        ({"type": "redis", "port": True}, "port True"),
        ({"type": "redis", "port": "os.environ/CACHE_NUMBER"}, "port '60.5'"),
        ({"type": "redis", "host": 7}, "host 7"),
        ({"type": "redis", "host": ""}, "host ''"),
        ({"type": "redis", "host": "a..b"}, "host 'a..b'"),
        ({"type": "redis", "namespace": 5}, "namespace 5"),
        ({"type": "redis", "password": 1234}, "password must be text"),
        ({"type": "local", "shared": "yes"}, "shared 'yes'"),
    ],
)
def test_settings_that_are_wrong(given, named, monkeypatch):
    monkeypatch.setenv("CACHE_NUMBER", "60.5")
    with pytest.raises(ConfigurationError, match=named):
        read_settings(["openai/gpt-4o-mini"], cache=given)


def test_numbers_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("CACHE_SECONDS", "60.5")
    monkeypatch.setenv("CACHE_PORT", "6380")
    cache = {"type": "redis", "ttl": "os.environ/CACHE_SECONDS", "port": "os.environ/CACHE_PORT"}
    settings = read_settings(["openai/gpt-4o-mini"], cache=cache)
    assert settings.cache == CacheSettings("redis", ttl=60.5, port=6380)


def test_a_password_comes_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("REDIS_SECRET", "abcdefgh")
    cache = {"type": "redis", "password": "os.environ/REDIS_SECRET", "ttl": 5}
    settings = read_settings(["openai/gpt-4o-mini"], cache=cache)
    assert settings.cache == CacheSettings("redis", ttl=5, password="abcdefgh")
    assert "abcdefgh" not in repr(settings)


# Through the client


def test_a_hit_costs_nothing_and_is_recorded_as_such(server, sqlite_url):
    entries = model_entries(server.base_url)[:1]
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    with OptLLM(entries, budget="1 USD", store=sqlite_url, cache={"type": "local"}) as client:
        answers = [client.chat.completions.create(messages=messages, model="auto") for _ in "ab"]
        streamed = [
            list(client.chat.completions.create(messages=messages, model="auto", stream=True))
            for _ in "ab"
        ]
        paid, free = answers[0].optllm.cost_nano, answers[1].optllm.cost_nano
        assert paid > free == 0
        assert (answers[0].optllm.cached, answers[1].optllm.cached) == (False, True)
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
        assert answers[0].id != answers[1].id
        assert client.balance.spent_nano == 2 * paid
    texts = ["".join(c.choices[0].delta.content or "" for c in s if c.choices) for s in streamed]
    assert texts == [answers[0].choices[0].message.content] * 2
    assert server.requests == {SIMULATED_MODELS[0].name: 2}


@pytest.mark.parametrize(("shared", "asked"), [(False, 2), (True, 1)])
def test_what_one_tenant_asked_is_no_hit_for_another(server, sqlite_url, shared, asked):
    entries = model_entries(server.base_url)[:1]
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    cache = {"type": "local", "shared": shared}
    budget = "1 USD for tenant:*"
    with OptLLM(entries, budget=budget, store=sqlite_url, cache=cache) as client:
        for tenant in ("a", "b", "a", "b"):
            of_one = client.with_options(tenant=tenant)
            of_one.chat.completions.create(messages=messages, model="auto")
    assert server.requests == {SIMULATED_MODELS[0].name: asked}


def test_a_hit_of_the_async_client_costs_nothing(server, sqlite_url):
    entries = model_entries(server.base_url)[:1]
    entries[0]["router"] = {"transport": "httpx"}

    async def ask_twice() -> list[int]:
        client = AsyncOptLLM(entries, store=sqlite_url, cache={"type": "local"})
        async with client:
            messages = [{"role": "user", "content": "What is 2 + 3?"}]
            create = client.chat.completions.create
            return [
                (await create(model="auto", messages=messages)).optllm.cost_nano for _ in range(2)
            ]

    paid, free = asyncio.run(ask_twice())
    assert paid > free == 0
    assert json.dumps(server.requests) == json.dumps({SIMULATED_MODELS[0].name: 1})
