"""Every way in which a call can end, on real databases and over HTTP: its money is closed once.

The provider keeps a bill of its own. What the books say is never less, and is the same to the
nano-dollar wherever the provider said what it counted.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from simulated_entries import model_entries, through_httpx
from sqlalchemy import create_engine, text

from optllm_router import (
    AllCandidatesFailedError,
    AsyncOptLLM,
    Budget,
    OptLLM,
    ProviderConnectionError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router.simulation import SIMULATED_MODELS, Faults, SimulationServer

TINY = SIMULATED_MODELS[-1]
HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
EXPECTED = TINY.reply("What is 12 + 30?")
PINNED = {"model": TINY.name, "messages": HELLO}


@pytest.fixture
def slow():
    """A provider that takes its time between the chunks of a stream."""
    with SimulationServer(chunk_tokens=1, chunk_seconds=0.05) as running:
        yield running


def entries(server) -> list[dict]:
    return through_httpx(model_entries(server.base_url))


def settings(server, store_url: str, **kw) -> dict:
    return {"models": entries(server), "budget": "1 USD", "store": store_url, "seed": 0, **kw}


def billed(server) -> int:
    """What the provider charges, in nano-dollars."""
    prices = {
        model.name: (
            Decimal(str(model.price_prompt_usd_per_mtok)) * 1000,
            Decimal(str(model.price_completion_usd_per_mtok)) * 1000,
        )
        for model in SIMULATED_MODELS
    }
    return int(
        sum(
            prices[name][0] * usage.prompt_tokens + prices[name][1] * usage.completion_tokens
            for name, usages in server.served.items()
            for usage in usages
        )
    )


def reservations(store_url: str) -> list[tuple[str, int]]:
    """State and estimate of each call's reservation, in the order of the tries."""
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    statement = "SELECT state, estimated FROM reservations WHERE decision_id <> '' ORDER BY id"
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]
    finally:
        engine.dispose()


def eventually(check, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def assert_closed(client, server, *, exact: bool) -> None:
    """Nothing is reserved any more, and the books say what the provider does, or more."""
    eventually(lambda: client.balance.reserved_nano == 0)
    assert client.verify() == []
    spent = client.balance.spent_nano
    assert spent == billed(server) if exact else spent >= billed(server)


def streamed(client, **kw):
    return client.chat.completions.create(**PINNED, stream=True, **kw)


# Whole answers


def test_an_answer(server, store_url):
    with OptLLM(**settings(server, store_url)) as client:
        client.chat.completions.create(**PINNED)
        assert_closed(client, server, exact=True)
        assert client.balance.spent_nano == billed(server) > 0
    assert reservations(store_url) == [("settled", 0)]


@pytest.mark.parametrize(
    ("fault", "kind", "ends"),
    [
        ("server_error", ProviderUnavailableError, ("released", 0)),
        ("cut", ProviderConnectionError, ("settled", 1)),
    ],
)
def test_a_fault_before_and_after_billing(server, store_url, fault, kind, ends):
    with OptLLM(**settings(server, store_url, max_retries=0)) as client:
        server.faults = Faults(script=(fault,))
        with pytest.raises(kind):
            client.chat.completions.create(**PINNED)
        assert_closed(client, server, exact=fault == "server_error")
    assert reservations(store_url) == [ends]


def test_a_timeout(server, store_url):
    with OptLLM(**settings(server, store_url)) as client:
        server.faults = Faults(script=("timeout",))
        with pytest.raises(ProviderTimeoutError):
            client.chat.completions.create(**PINNED, timeout=0.3)
        assert_closed(client, server, exact=False)
    assert reservations(store_url) == [("settled", 1)]


@pytest.mark.parametrize("hard", [True, False])
def test_only_a_hard_budget_bounds_an_answer(server, sqlite_url, hard):
    budget = Budget("1", hard=hard)
    models = [
        {**one, "litellm_params": {**one["litellm_params"], "max_tokens": 2}}
        for one in entries(server)
    ]
    changes = {"budget": budget, "models": models}
    with OptLLM(**settings(server, sqlite_url, **changes)) as client:
        answer = client.chat.completions.create(**PINNED)
        assert answer.choices[0].finish_reason == ("length" if hard else "stop")
        assert_closed(client, server, exact=True)


def test_tries_that_fail_and_one_that_works(server, store_url):
    with OptLLM(**settings(server, store_url)) as client:
        server.faults = Faults(script=("rate_limit", "server_error"), retry_after_seconds=0.1)
        client.chat.completions.create(**PINNED)
        assert_closed(client, server, exact=True)
    assert reservations(store_url) == [("released", 0), ("released", 0), ("settled", 0)]


def test_all_candidates_fail(server, store_url):
    with OptLLM(**settings(server, store_url, max_retries=0, explore=0)) as client:
        server.faults = Faults(rates={"server_error": 1.0})
        with pytest.raises(AllCandidatesFailedError) as caught:
            client.chat.completions.create(messages=HELLO)
        assert {one.candidate for one in caught.value.causes} == set(server.names)
        assert_closed(client, server, exact=True)
    assert set(reservations(store_url)) == {("released", 0)}


def test_a_cancelled_task(server, store_url):
    async def cancelled() -> None:
        async with AsyncOptLLM(**settings(server, store_url)) as client:
            server.faults = Faults(script=("timeout",))
            asking = asyncio.create_task(client.chat.completions.create(**PINNED))
            while not server.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert_closed(client, server, exact=False)

    asyncio.run(cancelled())
    assert reservations(store_url) == [("settled", 1)]


# Streams


def test_a_stream_that_is_read_to_its_end(server, store_url):
    with OptLLM(**settings(server, store_url)) as client:
        _ = list(streamed(client))
        assert_closed(client, server, exact=True)
    assert reservations(store_url) == [("settled", 0)]


def test_a_stream_that_its_reader_closes(slow, store_url):
    with OptLLM(**settings(slow, store_url)) as client:
        stream = streamed(client)
        next(stream), next(stream)
        stream.close()
        assert_closed(client, slow, exact=False)
        made = sum(one.completion_tokens for one in slow.served[TINY.name])
        assert made < EXPECTED.completion_tokens
    assert reservations(store_url) == [("settled", 1)]


def test_a_stream_that_the_provider_breaks_off(server, store_url):
    with OptLLM(**settings(server, store_url, max_retries=0)) as client:
        server.faults = Faults(script=("cut",))
        with pytest.raises(ProviderConnectionError):
            _ = list(streamed(client))
        assert_closed(client, server, exact=False)
    assert reservations(store_url) == [("settled", 1)]


def test_a_stream_that_breaks_before_its_first_token_goes_on_elsewhere(server, store_url):
    with OptLLM(**settings(server, store_url, max_retries=0, explore=0)) as client:
        server.faults = {"sim-frontier": Faults(script=("cut_early",))}
        stream = client.chat.completions.create(messages=HELLO, stream=True)
        assert "".join(c.delta.content or "" for one in stream for c in one.choices)
        assert_closed(client, server, exact=False)
    assert reservations(store_url) == [("settled", 1), ("settled", 0)]


def test_a_generator_around_a_stream_that_is_closed(slow, store_url):
    def texts(stream):
        for one in stream:
            yield one.choices[0].delta.content

    with OptLLM(**settings(slow, store_url)) as client:
        reading = texts(streamed(client))
        next(reading)
        reading.close()
        del reading
        gc.collect()
        assert_closed(client, slow, exact=False)
    assert reservations(store_url) == [("settled", 1)]


def test_a_stream_that_is_let_go_of_after_another_candidate_failed(slow, store_url):
    with OptLLM(**settings(slow, store_url, max_retries=0, explore=0)) as client:
        slow.faults = {"sim-frontier": Faults(script=("cut_early",))}
        stream = client.chat.completions.create(messages=HELLO, stream=True)
        next(stream)
        del stream
        gc.collect()
        assert_closed(client, slow, exact=False)
    assert reservations(store_url) == [("settled", 1), ("settled", 1)]


def test_a_task_that_is_cancelled_while_it_reads(slow, store_url):
    async def cancelled() -> None:
        async with AsyncOptLLM(**settings(slow, store_url)) as client:
            stream = await client.chat.completions.create(**PINNED, stream=True)

            async def read() -> None:
                async for _ in stream:
                    pass

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert_closed(client, slow, exact=False)

    asyncio.run(cancelled())
    assert reservations(store_url) == [("settled", 1)]


def test_a_client_that_is_closed_while_streams_are_read(slow, store_url):
    client = OptLLM(**settings(slow, store_url))
    begun = threading.Barrier(5)

    def read() -> None:
        stream = streamed(client)
        next(stream)
        begun.wait()
        with pytest.raises(Exception, match="the client is closed"):
            for _ in stream:
                pass

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read) for _ in range(4)]
        begun.wait()
        client.close()
        for one in reading:
            one.result()
    with OptLLM(**settings(slow, store_url)) as again:
        assert_closed(again, slow, exact=False)
    assert reservations(store_url) == [("settled", 1)] * 4


# The end of everything

EXITING = """
    import sys, threading, time
    from optllm_router import OptLLM
    client = OptLLM({models!r}, budget="1 USD", store={store!r}, seed=0)
    ask = lambda **kw: client.chat.completions.create(**{pinned!r}, **kw)
    {program}
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("stream = ask(stream=True); next(stream)", "settled"),
        ("threading.Thread(target=ask, daemon=True).start(); time.sleep(1)", "open"),
    ],
    ids=["a stream", "a call in a thread"],
)
def test_an_interpreter_that_exits_in_the_middle(store_url, program, state):
    """A stream is settled on the way out.

    Of a call that a daemon thread waits for nobody knows how it ended: it stays reserved in full
    until its lease is over.
    """
    latency = 3.0 if state == "open" else 0.0
    with SimulationServer(latency_seconds=latency, chunk_seconds=0.05) as server:
        source = textwrap.dedent(EXITING).format(
            models=entries(server), store=store_url, pinned=PINNED, program=program
        )
        ran = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 3, ran.stderr
        assert [state for state, _ in reservations(store_url)] == [state]
        with OptLLM(**settings(server, store_url)) as client:
            assert client.verify() == []
            assert client.balance.spent_nano + client.balance.reserved_nano >= billed(server)


def test_two_who_settle_the_same_call(server, store_url):
    """A race of all ways to close a reservation has one winner, and the books are its."""
    with OptLLM(**settings(server, store_url)) as client:
        client.chat.completions.create(**PINNED)
        spent, ledger = client.balance.spent_nano, client._runtime.ledger
        engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            (id,) = connection.scalars(
                text("SELECT id FROM reservations WHERE decision_id <> ''")
            ).all()
        engine.dispose()
        with ThreadPoolExecutor(8) as pool:
            again = pool.map(
                lambda n: [ledger.settle(id, n), ledger.release(id), ledger.settle_in_full(id)][
                    n % 3
                ].result(),
                range(24),
            )
            assert not any(again)
        assert client.balance.spent_nano == spent
        assert client.verify() == []
