"""Looking into the books: never on the event loop, and at the expense of nobody's money."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal

import pytest

from optllm_router import (
    AsyncOptLLM,
    Candidate,
    OptLLM,
    Price,
    ProviderUnavailableError,
    StoreError,
)
from optllm_router._types import Chunk, Completion, RateLimits, Usage
from optllm_router.ledger import _balances

HELLO = [{"role": "user", "content": "Hi"}]
PRICE = Price(Decimal(1000), Decimal(1000), "test")
CHAT = Candidate("m", "x/m", PRICE, 100, limits=RateLimits(concurrent=1))
VECTORS = Candidate("v", "x/v", PRICE, 0, operation="embedding")


@pytest.fixture(autouse=True)
def _out_of_date_only_where_a_test_says_so(monkeypatch):
    monkeypatch.setattr(_balances, "_FRESH_SECONDS", 3600.0)


class Provider:
    """Answers; before that, it is busy as often as it is told, and then calls ``busy``."""

    def __init__(self) -> None:
        self.faults = 0
        self.busy = lambda: None
        self.asked = 0

    def check(self, candidates) -> None:
        pass

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        self.asked += 1
        if self.faults:
            self.faults -= 1
            self.busy()
            raise ProviderUnavailableError("503", candidate=candidate.name)
        if candidate.operation == "embedding":
            body = {"data": [{"index": 0, "embedding": [0.5]}]}
        else:
            message = {"role": "assistant", "content": "4"}
            body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return Completion(body, Usage(5, 3))

    async def asend(self, candidate, call) -> Completion:
        return self.send(candidate, call)

    async def astream(self, candidate, call):
        self.send(candidate, call)
        delta = {"role": "assistant", "content": "4"}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop"}
        yield Chunk({"choices": [choice]}, Usage(5, 3))


def settings(sqlite_url: str, provider: Provider, **more) -> dict:
    return {
        "models": [CHAT, VECTORS],
        "budget": "1 USD",
        "store": sqlite_url,
        "transport": provider,
        "seed": 0,
        "timeout_seconds": 20,
        **more,
    }


def asks(client: AsyncOptLLM) -> dict:
    chat = client.chat.completions.create

    async def streamed():
        async for _ in await chat(model="m", messages=HELLO, stream=True):
            pass

    return {
        "a named model": lambda: chat(model="m", messages=HELLO),
        "auto": lambda: chat(model="auto", messages=HELLO),
        "a stream": streamed,
        "an embedding": lambda: client.embeddings.create(model="v", input="Hi"),
    }


@pytest.mark.parametrize("what", ["a named model", "auto", "a stream", "an embedding"])
@pytest.mark.parametrize("faults", [0, 1])
def test_the_event_loop_reads_no_database(sqlite_url, what, faults):
    """Nor when a call has waited so long that what is remembered is out of date again."""
    provider = Provider()
    readers = []

    async def main():
        async with AsyncOptLLM(**settings(sqlite_url, provider)) as client:
            glances = client._runtime.ledger._glances
            find = glances._find

            def found(scopes):
                readers.append(threading.get_ident())
                return find(scopes)

            glances._find = found
            provider.busy, provider.faults = glances.forget, faults
            await asks(client)[what]()
            assert len(readers) == 1
            assert threading.get_ident() not in readers
            provider.busy()
            await asks(client)[what]()
            assert client.verify() == []
            assert client.balance.reserved_nano == 0

    asyncio.run(main())
    assert provider.asked == 2 + faults


def test_what_is_remembered_takes_no_thread(sqlite_url, monkeypatch):
    provider = Provider()

    async def main():
        async with AsyncOptLLM(**settings(sqlite_url, provider)) as client:
            await asks(client)["a named model"]()
            client._runtime.ledger.glance()

            def never(*_):
                raise AssertionError("a thread is asked for what is known")

            with monkeypatch.context() as patched:
                patched.setattr(asyncio, "to_thread", never)
                await asks(client)["a named model"]()

    asyncio.run(main())
    assert provider.asked == 2


def test_a_call_that_is_tried_again_takes_no_second_look(sqlite_url):
    provider = Provider()
    provider.faults = 1
    with OptLLM(**settings(sqlite_url, provider)) as client:
        glances = client._runtime.ledger._glances

        def unreadable(scopes):
            raise StoreError("the server closed the connection")

        def break_down():
            glances.forget()
            glances._find = unreadable

        provider.busy = break_down
        client.chat.completions.create(model="m", messages=HELLO)
    assert provider.asked == 2
