"""Cooldowns, rate limits and calls at once, on a clock that is turned by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import (
    ProviderAuthenticationError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from optllm_router._health import Gate, Ticket
from optllm_router._types import RateLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fault(kind=ProviderUnavailableError, **kw):
    return kind("it broke", candidate="a", **kw)


def entered(gate: Gate, tokens: int = 10, **kw) -> Ticket:
    ticket = gate.enter(tokens, **kw)
    assert isinstance(ticket, Ticket), f"has to wait {ticket} s"
    return ticket


def fail(gate: Gate, times: int = 3, error=None) -> None:
    for _ in range(times):
        entered(gate, last_resort=True).leave(error or fault())


# Cooldowns


def test_two_faults_are_forgiven(clock):
    gate = Gate(clock=clock)
    fail(gate, 2)
    entered(gate).leave(None)
    fail(gate, 2)
    assert isinstance(gate.enter(10), Ticket)


def test_three_faults_in_a_row_rest_a_candidate(clock):
    gate = Gate(clock=clock)
    fail(gate)
    assert gate.enter(10) == 5.0
    clock.now += 4.5
    assert gate.enter(10) == 0.5


def test_a_bad_key_rests_it_at_once(clock):
    gate = Gate(clock=clock)
    fail(gate, 1, fault(ProviderAuthenticationError))
    assert gate.enter(10) == 5.0


def test_one_probe_decides_for_all(clock):
    gate = Gate(clock=clock)
    fail(gate)
    clock.now += 5.0
    probe = entered(gate)
    assert 0 < gate.enter(10) < 1
    probe.leave(None)
    tickets = [entered(gate) for _ in range(5)]
    assert len(tickets) == 5


def test_a_probe_that_fails_doubles_the_rest_up_to_a_minute(clock):
    gate = Gate(clock=clock)
    fail(gate)
    rests = []
    for _ in range(6):
        clock.now += gate.enter(10)
        entered(gate).leave(fault())
        rests.append(gate.enter(10))
    assert rests == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    clock.now += 60.0
    entered(gate).leave(None)
    fail(gate)
    assert gate.enter(10) == 5.0


def test_a_probe_that_is_cancelled_or_never_sent_leaves_the_question_open(clock):
    gate = Gate(clock=clock)
    fail(gate)
    clock.now += 5.0
    entered(gate).leave(asyncio.CancelledError())
    entered(gate).withdraw()
    entered(gate).leave(fault())
    assert gate.enter(10) == 10.0


def test_many_faults_at_once_are_one_reason_to_rest(clock):
    gate = Gate(clock=clock)
    for ticket in [entered(gate) for _ in range(50)]:
        ticket.leave(fault())
    assert gate.enter(10) == 5.0


def test_a_provider_is_left_alone_for_as_long_as_it_asks(clock):
    gate = Gate(clock=clock)
    fail(gate, 1, fault(ProviderRateLimitedError, retry_after_seconds=7.0))
    assert gate.enter(10) == 7.0
    clock.now += 7.0
    tickets = [entered(gate) for _ in range(3)]
    assert len(tickets) == 3


def test_a_request_that_is_refused_shows_that_the_candidate_works(clock):
    gate = Gate(clock=clock)
    for error in (fault(), fault(), fault(ProviderRejectedError), fault(), fault()):
        entered(gate).leave(error)
    assert isinstance(gate.enter(10), Ticket)


@pytest.mark.parametrize(("seconds", "rests"), [(4.9, False), (5.0, True)])
def test_only_long_time_limits_count(clock, seconds, rests):
    gate = Gate(clock=clock)
    for ticket in [entered(gate) for _ in range(3)]:
        clock.now += seconds
        ticket.leave(fault(ProviderTimeoutError))
        clock.now -= seconds
    clock.now += seconds
    assert isinstance(gate.enter(10), float) is rests


def test_the_last_resort_is_asked_though_it_rests(clock):
    gate = Gate(clock=clock)
    fail(gate)
    entered(gate, last_resort=True).leave(None)
    assert gate.enter(10) == 5.0
    clock.now += 5.0
    entered(gate).leave(None)


def test_a_wish_of_the_provider_s_is_no_cooldown_of_ours(clock):
    gate = Gate(clock=clock)
    fail(gate)
    assert (gate.enter(10), gate.wish()) == (5.0, 0.0)
    fail(gate, 1, fault(ProviderRateLimitedError, retry_after_seconds=7.0))
    fail(gate, 1, fault(ProviderRateLimitedError, retry_after_seconds=2.0))
    assert (gate.enter(10), gate.wish()) == (7.0, 7.0)
    clock.now += 6.0
    assert gate.wish() == 1.0
    clock.now += 6.0
    assert gate.wish() == 0.0


# Limits


def test_calls_at_once(clock):
    gate = Gate(RateLimits(concurrent=2), clock)
    first, second = entered(gate), entered(gate)
    assert gate.enter(10) > 0
    assert gate.enter(10, last_resort=True) > 0
    first.leave(None)
    entered(gate).leave(fault())
    second.withdraw()
    entered(gate), entered(gate)
    assert gate.enter(10) > 0


def test_calls_per_minute(clock):
    gate = Gate(RateLimits(requests_per_minute=2), clock)
    entered(gate).leave(None)
    clock.now += 20
    entered(gate).leave(None)
    assert gate.enter(10) == 40
    clock.now += 40
    entered(gate)
    assert gate.enter(10) == 20


def test_tokens_per_minute_are_the_true_ones_once_they_are_known(clock):
    gate = Gate(RateLimits(tokens_per_minute=100), clock)
    long = entered(gate, 90)
    assert gate.enter(20) == 60
    long.leave(None, 30)
    entered(gate, 60)
    clock.now += 1
    assert gate.enter(20) == 59


def test_a_call_over_the_limit_waits_until_it_is_alone(clock):
    gate = Gate(RateLimits(tokens_per_minute=100), clock)
    entered(gate, 1)
    assert gate.enter(1000) == 60
    clock.now += 60
    entered(gate, 1000)
    assert gate.enter(1) == 60


def test_what_was_not_sent_does_not_count(clock):
    gate = Gate(RateLimits(requests_per_minute=1, tokens_per_minute=100), clock)
    entered(gate, 100).withdraw()
    entered(gate, 100)
    assert gate.enter(1) == 60


def test_a_call_that_ends_after_its_minute_changes_nothing(clock):
    gate = Gate(RateLimits(requests_per_minute=1, tokens_per_minute=100), clock)
    slow, unsent = entered(gate, 100), None
    clock.now += 60
    unsent = entered(gate, 50)
    slow.leave(None, 999)
    clock.now += 60
    entered(gate, 100)
    unsent.withdraw()
    assert gate.enter(1) == 60


@given(
    calls=st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 120), st.integers(0, 120)), max_size=40
    )
)
def test_no_minute_has_more_than_its_limits(calls):
    """Against a model that keeps every call; who has to wait, waits exactly as long as needed."""
    clock, admitted = Clock(), deque()
    gate = Gate(RateLimits(requests_per_minute=5, tokens_per_minute=100), clock)

    def recent() -> tuple[int, int]:
        tokens = [n for at, n in admitted if at + 60 > clock.now]
        return len(tokens), sum(tokens)

    for pause, expected, used in calls:
        clock.now += pause
        ticket = gate.enter(expected)
        while not isinstance(ticket, Ticket):
            count, tokens = recent()
            assert count >= 5 or tokens + expected > 100
            clock.now += ticket
            ticket = gate.enter(expected)
        count, tokens = recent()
        assert count < 5
        assert tokens + min(expected, 100) <= 100
        ticket.leave(None, used)
        admitted.append((clock.now, used))


def test_many_threads_stay_within_the_limits():
    gate, most = Gate(RateLimits(concurrent=3)), []
    inside: list[int] = []

    def call(number: int) -> None:
        while not isinstance(ticket := gate.enter(1), Ticket):
            pass
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)
        ticket.leave(None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(300)))
    assert len(most) == 300
    assert max(most) <= 3
