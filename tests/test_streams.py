"""Streams in every way they can end: on real databases, with a provider in this process."""

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

from optllm_router import Candidate, InvalidRequestError, Price, ProviderConnectionError
from optllm_router._query import Query
from optllm_router._runtime import Runtime
from optllm_router._types import Chunk, Completion, Decision, Usage
from optllm_router.config import read_settings

NANO = 1000
WORDS = ["One", " two", " three"]
USAGE = Usage(5, 3)
MODELS = [
    Candidate(name, f"x/{name}", Price(Decimal(NANO), Decimal(NANO), "test"), 50)
    for name in ("first", "second")
]
QUERY = Query.from_messages([{"role": "user", "content": "Count"}])
MOST = (QUERY.call.most_prompt_tokens + 50) * NANO
COUNTED = (QUERY.call.most_prompt_tokens + len("One")) * NANO


def chunk(text: str | None = None, usage: Usage | None = None) -> Chunk:
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    return Chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}, usage)


class Script:
    """A provider that streams a script: chunks, faults to raise, and events to wait for.

    Attributes:
        closed: how many streams of it were closed, at the end or before.
        waiting: set while a stream waits for an event.
    """

    def __init__(self, **scripts) -> None:
        self.scripts = scripts
        self.closed = 0
        self.waiting = threading.Event()

    def check(self, candidates) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        raise AssertionError("only streams are asked for")

    asend = send

    def stream(self, candidate, call):
        try:
            for one in self.scripts[candidate.name]:
                if isinstance(one, threading.Event):
                    self.waiting.set()
                    assert one.wait(10)
                else:
                    yield self._played(one, candidate)
        finally:
            self.closed += 1

    async def astream(self, candidate, call):
        try:
            for one in self.scripts[candidate.name]:
                if isinstance(one, threading.Event):
                    self.waiting.set()
                    while not one.is_set():
                        await asyncio.sleep(0.001)
                else:
                    yield self._played(one, candidate)
        finally:
            self.closed += 1

    def _played(self, one, candidate) -> Chunk:
        if isinstance(one, Chunk):
            return one
        raise one("it broke", candidate=candidate.name)


WHOLE = [chunk(), *map(chunk, WORDS), Chunk({"choices": []}, USAGE)]


@pytest.fixture
def start(store_url):
    """Makes runtimes with a scripted provider, and checks their books at the end."""
    started = []

    def make(script: Script) -> Runtime:
        settings = read_settings(MODELS, budget="1 USD", store=store_url)
        started.append(Runtime(settings, script))
        return started[-1]

    yield make
    for runtime in started:
        runtime.close()
        runtime.close()
        again = Runtime(runtime.settings, Script())
        assert again.ledger.verify() == []
        again.close()


def decision(id: str = "d") -> Decision:
    return Decision(id, "first", ("second",), 0.5, 0.1, 1, 1.0, 0.0, "a test")


def spent(runtime: Runtime) -> int:
    """What was spent, once nothing is reserved: who ends a stream from elsewhere does not wait."""
    eventually(lambda: runtime.ledger.balances()[0].reserved_nano == 0)
    return runtime.ledger.balances()[0].spent_nano


def eventually(check, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def text_of(chunks) -> str:
    return "".join(c["delta"].get("content", "") for one in chunks for c in one.body["choices"])


class Twin:
    """Reads streams of either kind, so that each test holds for both."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def run(self, body, runtime: Runtime, *arguments) -> None:
        """Open a stream, and hand it to ``body`` (a coroutine function of stream and arguments)."""

        async def opened() -> None:
            await body(await self.open(runtime), *arguments)

        asyncio.run(opened())

    async def open(self, runtime: Runtime, id: str = "d"):
        if self.kind == "async":
            return await runtime.astream(decision(id), QUERY)
        return Awaitable(runtime.stream(decision(id), QUERY))


class Awaitable:
    """A synchronous stream that can be awaited."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return next(self.stream)
        except StopIteration:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        self.stream.close()


@pytest.fixture(params=["sync", "async"])
def twin(request) -> Twin:
    return Twin(request.param)


def test_a_stream_is_read_to_its_end(start, twin):
    script = Script(first=WHOLE)
    runtime = start(script)

    async def read(stream) -> None:
        assert (stream.candidate.name, stream.paid) == ("first", None)
        assert [one async for one in stream] == WHOLE
        assert [one async for one in stream] == []
        assert stream.paid.usage == USAGE
        await stream.close()
        assert 0 <= stream.paid.first_token_seconds <= stream.paid.latency_seconds

    twin.run(read, runtime)
    assert spent(runtime) == 8 * NANO
    assert script.closed == 1


def test_a_fault_before_the_first_token_is_not_seen(start, twin):
    script = Script(first=[chunk(), ProviderConnectionError], second=WHOLE)
    runtime = start(script)

    async def read(stream) -> None:
        assert text_of([one async for one in stream]) == "".join(WORDS)
        assert stream.candidate.name == "second"

    twin.run(read, runtime)
    assert spent(runtime) == MOST + 8 * NANO


def test_a_fault_after_the_first_token_is_raised(start, twin):
    runtime = start(Script(first=[*WHOLE[:2], ProviderConnectionError]))

    async def read(stream) -> None:
        with pytest.raises(ProviderConnectionError, match="it broke"):
            _ = [one async for one in stream]
        assert [one async for one in stream] == []

    twin.run(read, runtime)
    assert spent(runtime) == MOST


def test_a_stream_without_a_chunk_is_a_fault(start, twin):
    runtime = start(Script(first=[], second=WHOLE))

    async def read(stream) -> None:
        assert stream.candidate.name == "second"
        assert [one async for one in stream] == WHOLE

    twin.run(read, runtime)
    assert spent(runtime) == MOST + 8 * NANO


def test_a_stream_without_a_count_is_counted(start, twin):
    runtime = start(Script(first=WHOLE[:-1]))

    async def read(stream) -> None:
        _ = [one async for one in stream]
        assert stream.paid.usage.estimated

    twin.run(read, runtime)
    assert spent(runtime) == (QUERY.call.most_prompt_tokens + len("".join(WORDS))) * NANO


def test_a_closed_stream_is_closed_at_the_provider_and_settled(start, twin):
    script = Script(first=WHOLE)
    runtime = start(script)

    async def read(stream) -> None:
        assert await anext(stream) == WHOLE[0]
        assert await anext(stream) == WHOLE[1]
        await stream.close()
        assert script.closed == 1
        await stream.close()
        assert [one async for one in stream] == []
        assert stream.paid is None

    twin.run(read, runtime)
    assert COUNTED < spent(runtime) <= MOST


def test_a_stream_that_is_left_unread_is_settled(start, twin):
    runtime = start(Script(first=WHOLE))

    async def read(stream) -> None:
        await stream.close()
        assert [one async for one in stream] == []

    twin.run(read, runtime)
    assert spent(runtime) == MOST


def test_a_stream_that_nobody_has_any_more_is_ended(start, twin):
    script = Script(first=WHOLE)
    runtime = start(script)

    async def read(stream) -> None:
        for _ in range(2):
            await anext(stream)

    twin.run(read, runtime)
    gc.collect()
    eventually(lambda: not runtime._streams)
    assert COUNTED < spent(runtime) <= MOST
    eventually(lambda: script.closed == 1)


def test_a_stream_in_a_cycle_is_ended_by_the_collector(start):
    runtime = start(Script(first=WHOLE))
    stream = runtime.stream(decision(), QUERY)
    next(stream), next(stream)
    stream.itself = stream
    del stream
    gc.collect()
    eventually(lambda: not runtime._streams)
    assert COUNTED < spent(runtime) <= MOST


def test_a_cancelled_reader_has_its_stream_settled(start):
    never = threading.Event()
    script = Script(first=[*WHOLE[:2], never])
    runtime = start(script)

    async def read_for_ever(stream) -> None:
        async for _ in stream:
            pass

    async def cancelled() -> None:
        stream = await runtime.astream(decision(), QUERY)
        reading = asyncio.create_task(read_for_ever(stream))
        while not script.waiting.is_set():
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert script.closed == 1
        assert [one async for one in stream] == []

    asyncio.run(cancelled())
    assert COUNTED < spent(runtime) <= MOST


def test_a_reader_who_is_cancelled_before_the_first_chunk_pays_in_full(start):
    script = Script(first=[threading.Event()])
    runtime = start(script)

    async def cancelled() -> None:
        opening = asyncio.create_task(runtime.astream(decision(), QUERY))
        while not script.waiting.is_set():
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(cancelled())
    assert spent(runtime) == MOST


# Ends from elsewhere


def test_a_stream_closed_by_another_thread_ends_after_the_chunk_it_waits_for(start):
    come = threading.Event()
    script = Script(first=[*WHOLE[:2], come, *WHOLE[2:]])
    runtime = start(script)
    stream = runtime.stream(decision(), QUERY)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, stream)
        assert script.waiting.wait(10)
        stream.close()
        assert script.closed == 0
        come.set()
        assert text_of(reading.result(10)) == "One two"
    assert script.closed == 1
    assert COUNTED + len(" two") * NANO < spent(runtime) <= MOST


def test_a_task_that_closes_a_stream_another_one_reads(start):
    come = threading.Event()
    script = Script(first=[*WHOLE[:2], come, *WHOLE[2:]])
    runtime = start(script)

    async def both() -> None:
        stream = await runtime.astream(decision(), QUERY)
        await anext(stream), await anext(stream)
        reading = asyncio.create_task(anext(stream))
        while not script.waiting.is_set():
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        await stream.close()
        come.set()
        assert await reading == WHOLE[2]
        assert [one async for one in stream] == []

    asyncio.run(both())
    assert COUNTED + len(" two") * NANO < spent(runtime) <= MOST


def test_closing_a_client_ends_its_streams_and_tells_their_readers(start, twin):
    script = Script(first=WHOLE)
    runtime = start(script)

    async def read(stream) -> None:
        for _ in range(2):
            await anext(stream)
        await asyncio.to_thread(runtime.close)
        with pytest.raises(InvalidRequestError, match="the client is closed"):
            await anext(stream)

    twin.run(read, runtime)
    again = Runtime(runtime.settings, Script())
    assert COUNTED < spent(again) <= MOST
    again.close()
    assert script.closed == 1


def test_closing_a_client_waits_for_the_chunk_that_a_reader_waits_for(start):
    come = threading.Event()
    script = Script(first=[*WHOLE[:2], come, *WHOLE[2:]])
    runtime = start(script)
    stream = runtime.stream(decision(), QUERY)

    def read() -> list:
        chunks = []
        with pytest.raises(InvalidRequestError, match="the client is closed"):
            chunks.extend(map(chunks.append, stream))
        return [one for one in chunks if one]

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        assert script.waiting.wait(10)
        closing = pool.submit(runtime.close)
        time.sleep(0.02)
        assert not closing.done()
        come.set()
        closing.result(10)
        assert text_of(reading.result(10)) == "One two"


def test_many_who_end_one_stream_settle_it_once(start):
    runtime = start(Script(first=WHOLE * 50))
    for number in range(20):
        stream = runtime.stream(decision(f"d{number}"), QUERY)
        together = threading.Barrier(5)

        def ended(stream=stream, together=together) -> None:
            together.wait()
            stream.close()

        def read(stream=stream, together=together) -> None:
            together.wait()
            for _ in stream:
                pass

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda one: one(), [ended, read, ended, read, ended]))
        assert not runtime._streams
    (balance,) = runtime.ledger.balances()
    assert balance.reserved_nano == 0
    assert 0 < balance.spent_nano <= 20 * MOST


EXITING = """
    import sys
    sys.path[:0] = sys.argv[2:]
    from test_streams import *

    runtime = Runtime(read_settings(MODELS, budget="1 USD", store=sys.argv[1]), Script(first=WHOLE))
    stream = runtime.stream(decision(), QUERY)
    next(stream), next(stream)
    {end}
"""


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_stream_that_is_open_when_the_interpreter_exits_is_settled(start, store_url, end):
    program = textwrap.dedent(EXITING).format(end=end)
    here = str(__file__).rpartition("/")[0]
    subprocess.run(
        [sys.executable, "-c", program, store_url, here], capture_output=True, timeout=60
    )
    runtime = start(Script())
    assert COUNTED < spent(runtime) <= MOST


def test_a_first_chunk_is_handed_on_at_once(start, twin):
    """Before there is another; what we add is well under the millisecond that we promise.

    Counted is what this thread works, not what it waits for others on a busy machine.
    """
    arrived, added = [], []

    class Watched(Script):
        def stream(self, candidate, call):
            for one in WHOLE:
                arrived.append(time.thread_time())
                yield one

        async def astream(self, candidate, call):
            for one in self.stream(candidate, call):
                yield one

    async def read(runtime: Runtime) -> None:
        for number in range(50):
            arrived.clear()
            stream = await twin.open(runtime, f"d{number}")
            assert await anext(stream) == WHOLE[0]
            added.append(time.thread_time() - arrived[0])
            assert len(arrived) == 1
            await stream.close()

    asyncio.run(read(start(Watched())))
    assert sorted(added)[len(added) // 2] < 0.001
