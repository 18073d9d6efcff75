"""Streams whose ends fail: at the provider, or where they are told of."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import closing

import pytest
from test_streams import MODELS, QUERY, WHOLE, decision, eventually

from optllm_router._runtime import Runtime
from optllm_router._streams import AbandonedError, Life
from optllm_router.config import read_settings


class Provider:
    """Its streams fail when they are closed before their end.

    Attributes:
        closed: how many were.
    """

    def __init__(self) -> None:
        self.closed = 0

    def check(self, candidates) -> None:
        pass

    def stream(self, candidate, call):
        try:
            yield from WHOLE
        except GeneratorExit:
            self.closed += 1
            raise OSError("connection reset while closing") from None

    async def astream(self, candidate, call):
        try:
            for chunk in WHOLE:
                yield chunk
        except GeneratorExit:
            self.closed += 1
            raise OSError("connection reset while closing") from None


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def runtime(store_url, provider):
    with closing(Runtime(read_settings(MODELS, budget="1 USD", store=store_url), provider)) as one:
        yield one


def begun(runtime: Runtime, id: str):
    stream = runtime.stream(decision(id), QUERY)
    next(stream), next(stream)
    return stream


def test_a_reader_leaves_a_stream_that_cannot_be_closed_in_peace(runtime, provider, caplog):
    async def left() -> None:
        stream = await runtime.astream(decision("async"), QUERY)
        await anext(stream), await anext(stream)
        await stream.close()

    begun(runtime, "sync").close()
    asyncio.run(left())
    assert provider.closed == 2
    assert caplog.text.count("connection reset while closing") == 2
    (balance,) = runtime.ledger.balances()
    assert balance.reserved_nano == 0 < balance.spent_nano


def test_streams_that_cannot_be_closed_are_all_swept(runtime, provider):
    for number in range(3):
        begun(runtime, f"d{number}")
        gc.collect()
        eventually(lambda number=number: provider.closed == number + 1)
    eventually(lambda: runtime.ledger.balances()[0].reserved_nano == 0)
    assert runtime.ledger.verify() == []


def test_a_client_closes_whatever_its_streams_do_meanwhile(runtime, provider):
    streams = [begun(runtime, f"d{number}") for number in range(3)]
    runtime.close()
    assert provider.closed == len(streams)
    with closing(Runtime(runtime.settings, Provider())) as again:
        assert again.ledger.balances()[0].reserved_nano == 0
        assert again.ledger.verify() == []


def test_who_fails_at_being_told_of_an_end_stops_neither_sweeping_nor_closing(runtime, caplog):
    told = []

    def fail(life: Life, error: BaseException | None) -> None:
        told.append(error)
        raise LookupError("nobody listens")

    def begin(id: str):
        stream = runtime.stream(decision(id), QUERY, fail)
        next(stream)
        return stream

    for number in range(2):
        begin(f"left{number}")
        gc.collect()
        eventually(lambda number=number: len(told) == number + 1)
    kept = [begin(f"kept{number}") for number in range(2)]
    closing_it = threading.Thread(target=runtime.close, daemon=True)
    closing_it.start()
    closing_it.join(30)
    assert not closing_it.is_alive()
    assert len(told) == 2 + len(kept)
    assert caplog.text.count("nobody listens") == len(told)


def test_who_is_told_of_an_end_is_told_once(runtime):
    told = []

    def fail(life: Life, error: BaseException | None) -> None:
        told.append(error)
        raise LookupError("nobody listens")

    stream = runtime.stream(decision(), QUERY, fail)
    with pytest.raises(LookupError):
        list(stream)
    assert list(stream) == []
    assert told == [None]
    assert not runtime._streams


def test_an_end_that_cannot_be_settled_is_logged(caplog):
    def flow():
        try:
            yield
        except AbandonedError as error:
            raise LookupError("no ledger") from error

    waiting, told = flow(), []
    next(waiting)
    life = Life(decision("lost"), waiting, lambda step: None, lambda _, error: told.append(error))
    life.end(AbandonedError())
    assert life.over
    assert "decision lost" in caplog.text
    assert "no ledger" in caplog.text
    assert [str(error) for error in told] == ["no ledger"]
