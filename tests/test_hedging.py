"""Hedged requests: who answers first wins, and every call is settled exactly once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from decimal import Decimal

import litellm_clients
import pytest
from simulated_entries import model_entries
from sqlalchemy import create_engine, text

from optllm_router import (
    AllCandidatesFailedError,
    AsyncOptLLM,
    Candidate,
    OptLLM,
    Price,
    ProviderConnectionError,
    ProviderUnavailableError,
)
from optllm_router._decision_log import decision_line
from optllm_router._query import Query
from optllm_router._runtime import Runtime
from optllm_router._steps import Race
from optllm_router._types import Completion, Decision, Usage
from optllm_router.config import read_settings
from optllm_router.simulation import Faults, SimulationServer

NANO = 1000
USAGE = Usage(5, 3)
PAID = 8 * NANO
NAMES = ("first", "second", "third")
MODELS = [
    Candidate(name, f"x/{name}", Price(Decimal(NANO), Decimal(NANO), "test"), 50) for name in NAMES
]
QUERY = Query.from_messages([{"role": "user", "content": "Count"}])
MOST = (QUERY.call.most_prompt_tokens + 50) * NANO


class Script:
    """A provider whose models answer, fail, or wait for an event that is theirs.

    Attributes:
        plays: what each model does, call by call; after that it answers.
        asked: who was asked.
    """

    def __init__(self, **plays) -> None:
        self.plays = {name: iter(play) for name, play in plays.items()}
        self.asked: list[str] = []

    def check(self, candidates) -> None:
        pass

    def close(self) -> None:
        pass

    def send(self, candidate, call) -> Completion:
        self.asked.append(candidate.name)
        for one in self.plays.get(candidate.name, ()):
            if isinstance(one, threading.Event):
                assert one.wait(20)
            else:
                return self._played(one, candidate)
        return self._played("answer", candidate)

    async def asend(self, candidate, call) -> Completion:
        self.asked.append(candidate.name)
        for one in self.plays.get(candidate.name, ()):
            if isinstance(one, threading.Event):
                while not one.is_set():
                    await asyncio.sleep(0.001)
            else:
                return self._played(one, candidate)
        return self._played("answer", candidate)

    def _played(self, one, candidate) -> Completion:
        if isinstance(one, type):
            raise one(f"{candidate.name} broke", candidate=candidate.name)
        message = {"role": "assistant", "content": candidate.name}
        return Completion({"choices": [{"index": 0, "message": message}]}, USAGE)


@pytest.fixture
def make(sqlite_url):
    made = []

    def make(provider, *, hedge_after_seconds=0.02, budget="1 USD", max_retries=0) -> Runtime:
        settings = read_settings(
            MODELS,
            budget=budget,
            store=sqlite_url,
            hedge_after_seconds=hedge_after_seconds,
            max_retries=max_retries,
        )
        made.append(Runtime(settings, provider))
        return made[-1]

    yield make
    for one in made:
        one.close()


def decided(*names: str) -> Decision:
    """To ask the first of some, by default of all, and then the others."""
    first, *others = names or NAMES
    return Decision("d", first, tuple(others), 0.5, 0.1, 1, 1.0, 0.0, "a test")


@pytest.fixture(params=["threads", "tasks"])
def answer(request):
    """Answer a query as ``first``, then the others, would; on either driver."""

    def with_threads(runtime, *names):
        return runtime.answer(decided(*names), QUERY)

    def with_tasks(runtime, *names):
        async def main():
            try:
                return await runtime.aanswer(decided(*names), QUERY)
            finally:
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return asyncio.run(main())

    return {"threads": with_threads, "tasks": with_tasks}[request.param]


def outcomes(runtime: Runtime) -> Counter:
    """What is recorded of each attempt, once all of them are over."""
    runtime.close()
    engine = create_engine(runtime.settings.store)
    statement = "SELECT candidate, status, error, cost_nano FROM outcomes"
    try:
        with engine.connect() as connection:
            found = Counter(tuple(row) for row in connection.execute(text(statement)))
            states = connection.execute(text("SELECT state FROM reservations")).scalars().all()
    finally:
        engine.dispose()
    assert "open" not in states
    with OptLLM(MODELS, budget="1 USD", store=runtime.settings.store, transport=Script()) as client:
        assert client.verify() == []
        assert client.balance.spent_nano == sum(cost * n for (*_, cost), n in found.items())
        assert client.balance.reserved_nano == 0
    return found


def test_an_answer_in_time_is_the_only_one(make, answer):
    provider = Script()
    runtime = make(provider, hedge_after_seconds=20)
    assert answer(runtime).candidate.name == "first"
    assert provider.asked == ["first"]
    assert outcomes(runtime) == {("first", "ok", "", PAID): 1}


def test_a_slow_candidate_is_overtaken_and_settled(make, answer, request):
    stuck = threading.Event()
    provider = Script(first=[stuck])
    runtime = make(provider)
    given = answer(runtime)
    assert (given.candidate.name, given.cost_nano) == ("second", PAID)
    assert provider.asked == ["first", "second"]
    stuck.set()
    # A task is cancelled, and may owe all of it; a thread goes on, and knows what it owes.
    late = ("AbandonedError", PAID) if "threads" in request.node.name else ("CancelledError", MOST)
    assert outcomes(runtime) == {("second", "ok", "", PAID): 1, ("first", "error", *late): 1}


def test_the_first_may_still_win(make, answer):
    stuck, slow = threading.Event(), threading.Event()
    provider = Script(first=[slow], second=[stuck])
    runtime = make(provider)
    threading.Timer(0.3, slow.set).start()
    threading.Timer(0.6, stuck.set).start()
    assert answer(runtime).candidate.name == "first"
    assert provider.asked == ["first", "second"]
    assert {key[:2]: n for key, n in outcomes(runtime).items()} == {
        ("first", "ok"): 1,
        ("second", "error"): 1,
    }


def test_a_fault_before_the_hedge_falls_back_as_ever(make, answer):
    provider = Script(first=[ProviderUnavailableError])
    runtime = make(provider, hedge_after_seconds=20)
    assert answer(runtime).candidate.name == "second"
    assert outcomes(runtime) == {
        ("first", "error", "ProviderUnavailableError", 0): 1,
        ("second", "ok", "", PAID): 1,
    }


def test_a_hedge_that_fails_leaves_the_first_to_answer(make, answer):
    slow = threading.Event()
    provider = Script(first=[slow], second=[ProviderConnectionError])
    runtime = make(provider)
    threading.Timer(0.3, slow.set).start()
    assert answer(runtime).candidate.name == "first"
    assert outcomes(runtime)["second", "error", "ProviderConnectionError", MOST] == 1


def test_when_both_fail_the_others_are_asked(make, answer):
    slow, slower = threading.Event(), threading.Event()
    provider = Script(
        first=[slow, ProviderUnavailableError], second=[slower, ProviderUnavailableError]
    )
    runtime = make(provider)
    threading.Timer(0.2, slow.set).start()
    threading.Timer(0.4, slower.set).start()
    assert answer(runtime).candidate.name == "third"


def test_a_hedge_that_fails_last_is_tried_again(make, answer):
    """The first flow has run out of turns by then; the fault of the second gives it one more."""
    slow, slower = threading.Event(), threading.Event()
    provider = Script(
        first=[slow, ProviderConnectionError], second=[slower, ProviderUnavailableError]
    )
    runtime = make(provider, max_retries=1)
    threading.Timer(0.2, slow.set).start()
    threading.Timer(0.4, slower.set).start()
    assert answer(runtime, "first", "second").candidate.name == "second"
    assert provider.asked == ["first", "second", "second"]


def test_all_that_failed_is_told(make, answer):
    slow = threading.Event()
    provider = Script(
        first=[slow, ProviderConnectionError],
        second=[ProviderConnectionError],
        third=[ProviderConnectionError],
    )
    runtime = make(provider)
    threading.Timer(0.2, slow.set).start()
    with pytest.raises(AllCandidatesFailedError, match="all 3 candidates"):
        answer(runtime)


def test_a_hedge_needs_money_of_its_own(make, answer, monkeypatch):
    """What is left for one call pays for the first, and for the next once that has failed."""
    slow = threading.Event()
    provider = Script(first=[slow, ProviderUnavailableError])
    runtime = make(provider, budget=f"{MOST * 1.5 / 10**9:.9f} USD")
    reserve = runtime.ledger.reserve

    def reserved(reservation):
        result = reserve(reservation)
        if reservation.candidate == "second":  # in vain; then its turn is left to the first flow
            result.add_done_callback(lambda _: threading.Timer(0.3, slow.set).start())
        return result

    monkeypatch.setattr(runtime.ledger, "reserve", reserved)
    assert answer(runtime).candidate.name == "second"
    assert provider.asked == ["first", "second"]


def test_who_is_alone_is_not_hedged(make, answer):
    provider = Script()
    runtime = make(provider, hedge_after_seconds=0)
    assert answer(runtime, "first").candidate.name == "first"
    assert provider.asked == ["first"]


def test_a_plan_is_not_hedged(make):
    runtime = make(Script(), hedge_after_seconds=0)
    decision = decided("first", "second")
    asked = decision, QUERY, runtime.ledger.glance(), decision_line(decision)
    assert runtime._request(*asked, patient=True).hedge_after_seconds is None
    assert runtime._request(*asked).hedge_after_seconds == 0


def test_a_hedge_that_comes_too_late_to_be_sent_costs_nothing(make, monkeypatch):
    """Its money is being set aside when the first answers: the thread ends before it asks."""
    setting_aside, answered = threading.Event(), threading.Event()
    provider = Script(first=[setting_aside])
    runtime = make(provider)
    reserve = runtime.ledger.reserve

    def slowly(reservation):
        if reservation.candidate == "second":
            setting_aside.set()
            assert answered.wait(20)
        return reserve(reservation)

    monkeypatch.setattr(runtime.ledger, "reserve", slowly)
    assert runtime.answer(decided("first", "second"), QUERY).candidate.name == "first"
    answered.set()
    assert outcomes(runtime) == {("first", "ok", "", PAID): 1}
    assert provider.asked == ["first"]


@pytest.mark.parametrize("fails", ["the first", "the second"])
def test_without_room_for_another_thread(make, monkeypatch, caplog, fails):
    """A client that could not start one is closed at once, and waits for nobody."""
    slow = threading.Event()
    provider = Script(first=[slow])
    runtime = make(provider)
    start, started = threading.Thread.start, []

    def start_if_there_is_room(thread):
        if thread.name == "optllm-hedge":
            started.append(thread)
            if len(started) == ("the first", "the second").index(fails) + 1:
                slow.set()
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    if fails == "the first":
        with pytest.raises(RuntimeError, match="can't start"):
            runtime.answer(decided(), QUERY)
    else:
        assert runtime.answer(decided(), QUERY).candidate.name == "first"
        assert "can't start" in caplog.text
    asked = ["first"] if fails == "the second" else []
    assert provider.asked == asked
    closing = threading.Thread(target=runtime.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def never_answered(make) -> tuple[Script, Runtime]:
    never = threading.Event()
    provider = Script(first=[never], second=[never])
    return provider, make(provider)


def test_who_is_cancelled_cancels_both(make):
    provider, runtime = never_answered(make)

    async def main():
        task = asyncio.create_task(runtime.aanswer(decided(), QUERY))
        while len(provider.asked) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    cancelled = {(name, "error", "CancelledError", MOST): 1 for name in NAMES[:2]}
    assert outcomes(runtime) == cancelled


def test_who_is_closed_cancels_both(make):
    """As a coroutine is that nobody awaits any more."""
    provider, runtime = never_answered(make)

    async def main():
        asking = runtime.aanswer(decided(), QUERY)
        waits_for = asking.send(None)
        while len(provider.asked) < 2:
            await asyncio.sleep(0.001)
            if waits_for.done() and len(provider.asked) < 2:
                waits_for = asking.send(None)
        asking.close()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert len(outcomes(runtime)) == 2


def test_only_one_thread_advances_the_flows(make):
    """Both flows share the turns: their code never runs at the same time."""
    runtime = make(Script(first=[threading.Event()]))
    inside, most = [], []

    def perform(step):
        return None

    def flow():
        for _ in range(200):
            inside.append(1)
            time.sleep(0.0001)  # lets the other thread run, if it may
            most.append(len(inside))
            inside.pop()
            yield Race(iter(()), iter(()), 0)

    from optllm_router._racing import race

    race(Race(flow(), flow(), 0), perform, runtime._start)
    assert set(most) == {1}


# Over HTTP


def slow_and_fast(base_urls) -> list[dict]:
    slow, fast = (model_entries(url)[-1:] for url in base_urls)
    return [{**slow[0], "model_name": "slow"}, {**fast[0], "model_name": "fast"}]


@pytest.fixture
def pair():
    hangs = Faults({"timeout": 1.0})
    with SimulationServer(faults=hangs) as slow, SimulationServer() as fast:
        yield slow_and_fast([slow.base_url, fast.base_url])


HELLO = [{"role": "user", "content": "What is 12 + 30?"}]


def test_a_provider_that_hangs_is_not_waited_for(pair, sqlite_url):
    settings = {"store": sqlite_url, "budget": "1 USD", "hedge_after_seconds": 0.05, "seed": 0}
    settings["timeout_seconds"] = 1.5
    with OptLLM(pair, **settings) as client:
        answers = [client.chat.completions.create(model="auto", messages=HELLO) for _ in range(6)]
        assert {one.optllm.candidate for one in answers} == {"fast"}
    with OptLLM(pair, **settings) as client:
        assert client.balance.reserved_nano == 0
        assert client.verify() == []


def test_without_blocking_the_event_loop(pair, sqlite_url):
    async def main():
        async with AsyncOptLLM(
            pair, store=sqlite_url, budget="1 USD", hedge_after_seconds=0.05
        ) as client:
            create = client.chat.completions.create
            calls = [create(model="auto", messages=HELLO) for _ in range(6)]
            answers = await asyncio.gather(*calls)
            assert {one.optllm.candidate for one in answers} == {"fast"}

    litellm_clients.run(main())
