"""The flow is stepped by hand: no server, no database, no clock."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import (
    PROVIDER_QUOTA_CODE,
    AllCandidatesFailedError,
    BudgetExceededError,
    ConfigurationError,
    OptLLMError,
    ProviderAuthenticationError,
    ProviderConnectionError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StoreError,
)
from optllm_router._flow import advance, arun, request_flow, run, stream_flow
from optllm_router._health import Gate
from optllm_router._steps import (
    AbandonedError,
    Answer,
    Close,
    Count,
    Hand,
    HangUp,
    NotCarriedOutError,
    Open,
    Opened,
    Paid,
    Receive,
    Request,
    Reserve,
    Send,
    Wait,
)
from optllm_router._types import (
    Call,
    Candidate,
    Chunk,
    Completion,
    Decision,
    Price,
    RateLimits,
    Usage,
)
from optllm_router.ledger import Refusal, Soft
from optllm_router.pricing import worst_case_nano

PRICES = {"dear": 1000, "middle": 100, "cheap": 10}
CANDIDATES = {
    name: Candidate(name, f"x/{name}", Price(Decimal(price), Decimal(price), "test"), 50)
    for name, price in PRICES.items()
}
CALL = Call([{"role": "user", "content": "Hi"}], prompt_bytes=2, most_prompt_tokens=20)
USAGE = Usage(3, 7)
NO_LIMITS = RateLimits()
CANCELLATIONS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)


def request(*names: str, call: Call = CALL, clock=time.monotonic, limits=NO_LIMITS, **kw):
    chosen, *fallbacks = names or ("dear", "middle", "cheap")
    decision = Decision("d", chosen, tuple(fallbacks), 0.5, 0.1, 1, 1.0, 0.0, "a test")
    gates = kw.pop("gates", None) or {name: Gate(limits, clock) for name in CANDIDATES}
    return Request(decision, call, CANDIDATES, gates, ("tag:a",), clock=clock, **kw)


def flow(*names: str, **kw):
    return request_flow(request(*names, **kw))


def worst(name: str) -> int:
    return worst_case_nano(CANDIDATES[name], 20, 50)


def refusal(
    left: int = 5, reserved: int = 0, needed: int = 70_000, next_window: int | None = None
) -> Refusal:
    return Refusal("default", "everything", "day", left, needed, reserved, next_window)


def completion(usage: Usage | None = USAGE) -> Completion:
    return Completion({"choices": []}, usage)


def fault(kind=ProviderUnavailableError, name: str = "dear", **kw) -> ProviderError:
    return kind(f"{name} broke", candidate=name, **kw)


def text_of(chunk: Chunk) -> str:
    return "".join(c["delta"].get("content") or "" for c in chunk.body["choices"])


def thrown(result) -> bool:
    """Whether a result is raised: a provider's fault is an answer like others."""
    return isinstance(result, BaseException) and not isinstance(result, ProviderError)


class Clock:
    """Stands still but for what is waited."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def play(steps, results, clock: Clock | None = None) -> tuple[list, Answer | BaseException]:
    """Answer the steps one by one (an exception is thrown in); what was asked, and the end.

    With a clock, waiting turns it, and takes no result.
    """
    asked = []
    answers = iter(results)
    try:
        step = next(steps)
        while True:
            asked.append(step)
            if clock is not None and isinstance(step, Wait):
                clock.now += step.seconds
                result = None
            else:
                result = next(answers)
            step = steps.throw(result) if thrown(result) else steps.send(result)
    except StopIteration as stop:
        assert next(answers, None) is None
        return asked, stop.value
    except BaseException as error:  # noqa: BLE001 - it is what the flow ended with
        assert next(answers, None) is None
        return asked, error


def summary(steps) -> list[str]:
    """The steps in the words of the drawing."""

    def words(step) -> str:
        match step:
            case Reserve(reservation):
                return f"reserve {reservation.candidate}"
            case Send(candidate, _) | Open(candidate, _):
                return f"{type(step).__name__.lower()} {candidate.name}"
            case Hand(_, chunk):
                return f"hand {text_of(chunk)!r}"
            case Close(how=how):
                return how
            case _:
                return type(step).__name__.lower()

    return [words(step) for step in steps]


# The edges of the drawing


def test_a_call_that_works():
    steps, answer = play(flow(), [None, completion(), None])
    assert summary(steps) == ["reserve dear", "send dear", "settle"]
    reserve, send, close = steps
    assert reserve.reservation.amount_nano == worst("dear") == 70_000
    assert reserve.reservation.scopes == ("tag:a",)
    assert reserve.reservation.lease_seconds > CALL.timeout_seconds
    assert send.call.max_output_tokens == 50
    assert close.reservation_id == reserve.reservation.id
    assert (close.cost_nano, close.estimated) == (10_000, False)
    assert close.attempt.outcome.status == "ok"
    assert close.attempt.outcome.usage == USAGE
    assert (answer.candidate.name, answer.cost_nano) == ("dear", 10_000)


def test_where_no_hard_budget_pays_an_answer_is_not_bounded():
    steps, _ = play(flow(), [Soft(), completion(), None])
    assert steps[1].call.max_output_tokens is None
    assert steps[0].reservation.amount_nano == worst("dear")
    bound = replace(CALL, max_output_tokens=5)
    steps, _ = play(flow(call=bound), [Soft(), completion(), None])
    assert steps[1].call.max_output_tokens == 5


def test_each_try_is_bounded_as_the_budgets_are_that_pay_for_it():
    busy = ProviderUnavailableError("503", candidate="dear")
    steps, _ = play(flow("dear", "cheap"), [Soft(), busy, None, None, completion(), None])
    assert summary(steps) == [
        *("reserve dear", "send dear", "release", "reserve cheap", "send cheap", "settle"),
    ]
    assert [steps[1].call.max_output_tokens, steps[4].call.max_output_tokens] == [None, 50]


@pytest.mark.parametrize("kind", [request_flow, stream_flow])
def test_a_send_that_was_not_carried_out_costs_nothing_and_counts_as_none(kind):
    gates = {name: Gate(RateLimits(requests_per_minute=1, concurrent=1)) for name in CANDIDATES}
    asked = request("dear", gates=gates)
    steps, error = play(kind(asked), [None, NotCarriedOutError(), None])
    assert summary(steps)[2:] == ["release"]
    assert steps[-1].attempt is None
    assert isinstance(error, NotCarriedOutError)
    steps, answer = play(request_flow(asked), [None, completion(), None])
    assert answer.candidate.name == "dear"


@pytest.mark.parametrize(("high", "soft"), [(30_000, 30_000), (10**9, 70_000)])
def test_soft_budgets_set_aside_what_a_call_rarely_costs_more_than(high, soft):
    steps, _ = play(flow(likely_nano={"dear": high}), [None, completion(), None])
    assert steps[0].reservation.soft_nano == soft
    assert steps[0].reservation.amount_nano == worst("dear") == 70_000


def test_the_caller_s_bound_is_reserved_and_sent():
    call = replace(CALL, max_output_tokens=5, choices=3)
    steps, _ = play(flow(call=call), [None, completion(), None])
    assert steps[0].reservation.amount_nano == (20 + 3 * 5) * 1000
    assert steps[1].call.max_output_tokens == 5


@pytest.mark.parametrize(
    ("bound", "tokens", "cut"), [(5, 15, True), (5, 14, False), (None, 150, True)]
)
def test_an_answer_that_took_all_it_might_is_known_to_be_cut_off(bound, tokens, cut):
    call = replace(CALL, max_output_tokens=bound, choices=3)
    answered = completion(usage=Usage(10, tokens))
    steps, answer = play(flow(call=call), [None, answered, None])
    assert steps[2].attempt.outcome.usage.cut is answer.usage.cut is cut


def test_a_provider_that_does_not_count_costs_the_most_it_can():
    steps, answer = play(flow(), [None, completion(usage=None), None])
    assert (steps[2].cost_nano, steps[2].estimated) == (worst("dear"), True)
    assert answer.usage == Usage(20, 50, estimated=True)
    assert answer.cost_nano == steps[0].reservation.amount_nano


def test_what_does_not_fit_goes_to_a_cheaper_candidate():
    results = [refusal(), refusal(), None, completion(), None]
    steps, answer = play(flow(), results)
    expected = ["reserve dear", "reserve middle", "reserve cheap", "send cheap", "settle"]
    assert summary(steps) == expected
    assert answer.candidate.name == "cheap"


def test_who_was_refused_the_money_was_not_tried():
    _, answer = play(
        flow(), [refusal(), None, fault(name="middle"), None, None, completion(), None]
    )
    assert answer.tried == ("middle", "cheap")
    why = "'dear' is too dear for a budget, 'middle' failed"
    assert answer.decision.reason == f"{why}; next best: a test"
    assert answer.decision.candidate == "cheap"


def test_what_costs_as_much_as_what_was_refused_is_not_tried():
    steps, answer = play(flow("middle", "dear", "cheap"), [refusal(), None, completion(), None])
    assert summary(steps) == ["reserve middle", "reserve cheap", "send cheap", "settle"]
    assert answer.candidate.name == "cheap"


def test_nothing_fits():
    steps, error = play(flow(), [refusal(690, needed=700)] * 3)
    assert summary(steps) == ["reserve dear", "reserve middle", "reserve cheap"]
    assert isinstance(error, BudgetExceededError)
    assert (error.budget, error.needed_nano, error.left_nano) == ("default", 700, 690)
    assert "'default' has 0.00000069 USD left" in str(error)
    assert "could cost 0.0000007 USD" in str(error)
    assert "nothing was sent" in str(error)
    assert error.next_window is None
    assert str(error).endswith("Raise the budget or lower max_tokens")


def test_a_refusal_tells_when_there_is_room_for_the_cheapest_that_was_tried():
    rooms = [1_800_000_000, 1_700_000_000, 1_699_999_200]
    results = [refusal(needed=700 - i, next_window=room) for i, room in enumerate(rooms)]
    _, error = play(flow(), results)
    assert isinstance(error, BudgetExceededError)
    assert (error.next_window, error.window) == (1_699_999_200, "day")
    assert "Raise the budget, wait for its next window (2023-11-14 22:00 UTC) or" in str(error)


@pytest.mark.parametrize("kind", [ProviderRateLimitedError, ProviderUnavailableError])
def test_a_fault_that_was_not_billed_gives_the_money_back(kind):
    steps, answer = play(flow(), [None, fault(kind), None, None, completion(), None])
    expected = ["reserve dear", "send dear", "release", "reserve middle", "send middle", "settle"]
    assert summary(steps) == expected
    outcome = steps[2].attempt.outcome
    assert (outcome.status, outcome.cost_nano, outcome.error) == ("error", 0, kind.__name__)
    assert answer.candidate.name == "middle"
    assert (steps[2].attempt.number, steps[5].attempt.number) == (0, 1)


@pytest.mark.parametrize("kind", [ProviderTimeoutError, ProviderConnectionError])
def test_a_fault_that_may_have_been_billed_is_paid_in_full(kind):
    steps, answer = play(flow(), [None, fault(kind), None, None, completion(), None])
    assert summary(steps)[:3] == ["reserve dear", "send dear", "settle_in_full"]
    assert (steps[2].cost_nano, steps[2].estimated) == (worst("dear"), True)
    assert steps[2].attempt.outcome.cost_nano == worst("dear")
    assert answer.candidate.name == "middle"


def test_a_connection_that_was_never_made_is_not_paid():
    not_billed = fault(ProviderConnectionError, maybe_billed=False)
    steps, _ = play(flow("dear"), [None, not_billed, None])
    assert summary(steps) == ["reserve dear", "send dear", "release"]


def test_the_only_fault_is_raised_as_it_came():
    broken = fault()
    _, error = play(flow("dear"), [None, broken, None])
    assert error is broken
    assert (error.causes, error.left_out) == ((broken,), {})


TOO_DEAR = "what is left of a budget does not pay for it"


def test_a_fault_tells_who_was_not_asked_for_money():
    broken = fault(ProviderRateLimitedError, status=429, retry_after_seconds=3.0)
    _, error = play(flow(), [None, broken, None, refusal(), refusal()])
    assert type(error) is ProviderRateLimitedError
    assert (error.status, error.retry_after_seconds, error.candidate) == (429, 3.0, "dear")
    assert error.causes == (broken,)
    assert error.left_out == {"middle": TOO_DEAR, "cheap": TOO_DEAR}
    assert str(error) == f"dear broke; not asked: 'middle' ({TOO_DEAR}), 'cheap' ({TOO_DEAR})"


def test_several_faults_tell_who_was_not_asked_for_money():
    faults = [fault(), fault(name="middle")]
    results = [step for one in faults for step in (None, one, None)]
    _, error = play(flow(), [*results, refusal()])
    assert isinstance(error, AllCandidatesFailedError)
    assert error.left_out == {"cheap": TOO_DEAR}
    assert str(error).endswith(f"dear broke; middle broke; not asked: 'cheap' ({TOO_DEAR})")


def test_faults_tell_who_cannot_serve_the_call_and_for_whom_there_was_no_time():
    clock = Clock()
    asked = request(clock=clock, call=replace(CALL, timeout_seconds=10.0))
    asked = replace(asked, decision=replace(asked.decision, left_out={"blind": "takes no images"}))
    steps = request_flow(asked)
    assert [type(next(steps)), type(steps.send(None))] == [Reserve, Send]
    clock.now += 10.0
    steps.send(fault(ProviderTimeoutError))
    with pytest.raises(ProviderTimeoutError) as caught:
        steps.send(None)
    over = dict.fromkeys(("middle", "cheap"), "time was over")
    assert caught.value.left_out == {"blind": "takes no images", **over}


def test_several_faults_are_raised_together():
    faults = [fault(), fault(ProviderTimeoutError, "middle"), fault(name="cheap")]
    _, error = play(flow(), [step for one in faults for step in (None, one, None)])
    assert isinstance(error, AllCandidatesFailedError)
    assert error.causes == tuple(faults)
    assert "all 3 candidates" in str(error)
    assert "middle broke" in str(error)


def test_a_request_that_all_refuse_is_the_caller_s_mistake():
    faults = [fault(ProviderRejectedError, name) for name in PRICES]
    _, error = play(flow(), [step for one in faults for step in (None, one, None)])
    assert type(error) is ProviderRejectedError
    assert (error.candidate, error.causes) == ("dear", tuple(faults))
    assert str(error) == "dear broke; 3 attempts were made"


# Patience


def test_a_patient_call_waits_for_money_that_may_come_back():
    results = [refusal(10, reserved=70_000), None, refusal(10, 69_990), None, None]
    steps, answer = play(flow(patient=True), [*results, completion(), None])
    waiting = ["reserve dear", "pause"] * 2
    assert summary(steps) == [*waiting, "reserve dear", "send dear", "settle"]
    assert len({s.reservation.id for s in steps if isinstance(s, Reserve)}) == 1
    assert answer.candidate.name == "dear"


def test_a_patient_call_does_not_wait_for_money_that_cannot_come_back():
    results = [refusal(10, reserved=69_989), None, completion(), None]
    steps, answer = play(flow(patient=True), results)
    assert summary(steps) == ["reserve dear", "reserve middle", "send middle", "settle"]
    assert answer.candidate.name == "middle"


def test_a_patient_call_that_is_cancelled_while_it_waits_owes_nothing():
    cancelled = asyncio.CancelledError()
    steps, error = play(flow(patient=True), [refusal(10, 70_000), cancelled])
    assert summary(steps) == ["reserve dear", "pause"]
    assert error is cancelled


# Retries

BUSY = ["reserve dear", "send dear", "release"]


def retried(*names: str, clock: Clock, max_retries: int = 2, **kw):
    return flow(*names, clock=clock, max_retries=max_retries, **kw)


@pytest.mark.parametrize("kind", [ProviderRateLimitedError, ProviderUnavailableError])
def test_a_fault_that_cost_nothing_is_tried_again(kind):
    clock = Clock()
    results = [*[None, fault(kind), None] * 2, None, completion(), None]
    steps, answer = play(retried(clock=clock), results, clock)
    again = ["wait", *BUSY, "wait", "reserve dear", "send dear", "settle"]
    assert summary(steps) == [*BUSY, *again]
    assert [s.attempt.number for s in steps if isinstance(s, Close)] == [0, 1, 2]
    assert len({s.reservation.id for s in steps if isinstance(s, Reserve)}) == 3
    first, second = [step.seconds for step in steps if isinstance(step, Wait)]
    assert 0.5 <= first <= 1.0 <= second <= 1.5
    assert answer.candidate.name == "dear"


def test_after_the_last_try_others_are_asked():
    clock = Clock()
    results = [*[None, fault(), None] * 2, None, completion(), None]
    steps, answer = play(retried(clock=clock, max_retries=1), results, clock)
    assert summary(steps) == [*BUSY, "wait", *BUSY, "reserve middle", "send middle", "settle"]
    assert answer.candidate.name == "middle"


def test_the_last_fault_of_the_only_candidate_is_raised_with_those_before_it():
    clock = Clock()
    faults = [fault(ProviderRateLimitedError), fault(), fault(ProviderRateLimitedError, status=429)]
    results = [step for one in faults for step in (None, one, None)]
    _, error = play(retried("dear", clock=clock), results, clock)
    assert type(error) is ProviderRateLimitedError
    assert error.status == 429
    assert error.causes == tuple(faults)
    assert str(error) == "dear broke; 3 attempts were made"


def test_all_that_failed_is_told_with_every_try():
    clock, faults = Clock(), [fault(), fault(), fault(name="middle"), fault(name="middle")]
    results = [step for one in faults for step in (None, one, None)]
    _, error = play(retried("dear", "middle", clock=clock, max_retries=1), results, clock)
    assert isinstance(error, AllCandidatesFailedError)
    assert error.causes == tuple(faults)
    assert str(error) == (
        "all 2 candidates that were tried failed in 4 attempts: dear broke; middle broke"
    )


@pytest.mark.parametrize(
    "broken",
    [
        fault(ProviderRejectedError),
        fault(ProviderTimeoutError),
        fault(ProviderConnectionError),
        fault(ProviderUnavailableError, maybe_billed=True),
        fault(ProviderRateLimitedError, code=PROVIDER_QUOTA_CODE),
    ],
)
def test_other_faults_are_not_tried_again(broken):
    clock = Clock()
    results = [None, broken, None, None, completion(), None]
    steps, answer = play(retried(clock=clock), results, clock)
    assert not any(isinstance(step, Wait) for step in steps)
    assert answer.candidate.name == "middle"


def test_a_provider_is_asked_again_when_it_said():
    clock = Clock()
    told = fault(ProviderRateLimitedError, retry_after_seconds=6.0)
    steps, _ = play(retried(clock=clock), [None, told, None, None, completion(), None], clock)
    assert summary(steps) == [*BUSY, "wait", "reserve dear", "send dear", "settle"]
    assert steps[3].seconds == 6.0


def test_others_are_asked_while_a_provider_wants_to_be_left_alone_for_long():
    clock = Clock()
    told = fault(ProviderRateLimitedError, retry_after_seconds=30.0)
    results = [None, told, None, None, fault(ProviderTimeoutError, "middle"), None]
    steps, answer = play(
        retried("dear", "middle", clock=clock), [*results, None, completion(), None], clock
    )
    middle = ["reserve middle", "send middle", "settle_in_full"]
    assert summary(steps) == [*BUSY, *middle, "wait", "reserve dear", "send dear", "settle"]
    assert answer.candidate.name == "dear"


@pytest.mark.parametrize(("patient", "waits"), [(False, []), (True, [540.0])])
def test_only_a_plan_is_held_for_more_than_a_minute(patient, waits):
    clock = Clock()
    told = fault(ProviderRateLimitedError, retry_after_seconds=540.0)
    again = [None, told, None] if patient else []
    asked = retried("dear", clock=clock, patient=patient)
    steps, error = play(asked, [None, told, None, *again], clock)
    assert [step.seconds for step in steps if isinstance(step, Wait)] == waits
    assert (type(error), error.retry_after_seconds) == (ProviderRateLimitedError, 540.0)


def test_all_tries_share_the_time_of_the_call():
    clock = Clock()
    call = replace(CALL, timeout_seconds=2.0)
    told = fault(ProviderRateLimitedError, retry_after_seconds=1.5)
    steps, error = play(
        retried("dear", call=call, clock=clock), [None, told, None, None, told, None], clock
    )
    assert [s.call.timeout_seconds for s in steps if isinstance(s, Send)] == [2.0, 0.5]
    assert error.causes == (told, told)
    assert clock.now == 1001.5


def test_there_is_no_fallback_once_the_time_is_over():
    clock = Clock()
    steps = flow(clock=clock, call=replace(CALL, timeout_seconds=2.0))
    late = fault(ProviderTimeoutError)
    next(steps), steps.send(None)
    clock.now += 2.0
    assert summary([steps.send(late)]) == ["settle_in_full"]
    with pytest.raises(ProviderTimeoutError):
        steps.send(None)


def test_a_stream_is_tried_again_before_its_first_token():
    clock = Clock()
    results = [None, opened(), None, fault(), None, None, opened(HI), None, COUNTED, None, None]
    steps, paid = play(stream(clock=clock, max_retries=1), [*results, None], clock)
    first = ["reserve dear", "open dear", "hand ''", "receive", "release", "wait"]
    assert summary(steps)[:9] == [*first, "reserve dear", "open dear", "hand 'Hi'"]
    assert paid.candidate.name == "dear"


# Candidates that rest or have no room


def test_who_has_no_room_is_left_out():
    clock = Clock()
    gates = {name: Gate(RateLimits(concurrent=1), clock) for name in CANDIDATES}
    gates["dear"].enter(1)
    steps, _ = play(flow(gates=gates, clock=clock), [None, completion(), None], clock)
    assert summary(steps) == ["reserve middle", "send middle", "settle"]


def test_who_is_the_only_one_is_waited_for():
    clock = Clock()
    gates = {"dear": Gate(RateLimits(requests_per_minute=1), clock)}
    gates["dear"].enter(1)
    clock.now += 20
    steps, answer = play(flow("dear", gates=gates, clock=clock), [None, completion(), None], clock)
    assert summary(steps) == ["wait", "reserve dear", "send dear", "settle"]
    assert steps[0].seconds == 40
    assert answer.candidate.name == "dear"


def test_the_first_to_have_room_is_asked_where_none_has():
    clock = Clock()
    gates = {name: Gate(RateLimits(requests_per_minute=1), clock) for name in CANDIDATES}
    for name in ("middle", "dear", "cheap"):
        gates[name].enter(1)
        clock.now += 1
    steps, answer = play(flow(gates=gates, clock=clock), [None, completion(), None], clock)
    assert set(summary(steps)[:-3]) == {"wait"}
    assert answer.candidate.name == "middle"
    assert clock.now == pytest.approx(1060, abs=0.2)


def test_nobody_is_waited_for_longer_than_the_call_may_take():
    clock = Clock()
    gates = {name: Gate(RateLimits(requests_per_minute=1), clock) for name in CANDIDATES}
    for gate in gates.values():
        gate.enter(1)
    call = replace(CALL, timeout_seconds=30.0)
    steps, error = play(flow("dear", "middle", gates=gates, call=call, clock=clock), [], clock)
    assert steps == []
    assert isinstance(error, AllCandidatesFailedError)
    assert "'dear' was not asked: its limits leave no room for this call within 30 s" in str(error)


def test_who_rests_is_asked_last():
    clock = Clock()
    gates = {name: Gate(clock=clock) for name in CANDIDATES}
    gates["dear"].enter(1).leave(fault(ProviderAuthenticationError))
    results = [None, fault(name="middle"), None, None, completion(), None]
    steps, answer = play(flow("dear", "middle", gates=gates, clock=clock), results, clock)
    middle = ["reserve middle", "send middle", "release"]
    assert summary(steps) == [*middle, "reserve dear", "send dear", "settle"]
    assert answer.candidate.name == "dear"


def told(clock: Clock, **seconds: float) -> dict[str, Gate]:
    """Gates of candidates that told other calls to leave them alone for some time."""
    gates = {name: Gate(clock=clock) for name in CANDIDATES}
    for name, wish in seconds.items():
        busy = fault(ProviderRateLimitedError, name, retry_after_seconds=wish)
        gates[name].enter(1).leave(busy)
    return gates


@pytest.mark.parametrize("wish", [0.1, 7.0, 60.0])
def test_the_only_one_is_left_alone_for_as_long_as_it_told_another_call(wish):
    clock = Clock()
    asked = retried("dear", gates=told(clock, dear=wish), clock=clock)
    steps, answer = play(asked, [None, completion(), None], clock)
    assert summary(steps) == ["wait", "reserve dear", "send dear", "settle"]
    assert wish <= steps[0].seconds <= wish + max(0.5, wish / 10)
    assert answer.candidate.name == "dear"


def test_those_who_wait_for_the_same_moment_come_one_by_one():
    """500 at once would be refused again, or break what has just come to itself."""
    clock = Clock()
    gates = told(clock, dear=30.0)
    waits = [next(retried("dear", gates=gates, clock=clock)).seconds for _ in range(500)]
    assert 30.0 <= min(waits) < max(waits) <= 33.0
    tenths = Counter(int(10 * (wait - 30.0)) for wait in waits)
    assert len(tenths) >= 20
    assert max(tenths.values()) < 50


def test_nobody_comes_later_than_it_has_time_for_the_sake_of_others():
    clock = Clock()
    call = replace(CALL, timeout_seconds=7.001)
    for _ in range(20):
        steps = retried("dear", gates=told(clock, dear=7.0), clock=clock, call=call)
        assert 7.0 <= next(steps).seconds < 7.001


def test_the_only_one_is_asked_at_once_where_another_call_was_told_more_than_a_minute():
    """A caller who hangs for minutes has no answer; who is refused knows when to come again."""
    clock = Clock()
    asked = retried("dear", gates=told(clock, dear=550.0), clock=clock)
    steps, answer = play(asked, [None, completion(), None], clock)
    assert summary(steps) == ["reserve dear", "send dear", "settle"]
    assert answer.candidate.name == "dear"


def test_a_plan_has_the_time_to_leave_a_provider_alone_for_long():
    clock = Clock()
    asked = retried("dear", gates=told(clock, dear=550.0), clock=clock, patient=True)
    steps, _ = play(asked, [None, completion(), None], clock)
    assert summary(steps) == ["wait", "reserve dear", "send dear", "settle"]
    assert steps[0].seconds >= 550.0


@pytest.mark.parametrize(
    ("max_retries", "timeout"),
    [(0, 600.0), (2, 5.0)],
    ids=["who wants no waiting", "who has no time for it"],
)
def test_the_only_one_is_asked_at_once_by(max_retries, timeout):
    """Nothing is lost: it may say no once more."""
    clock = Clock()
    asked = retried(
        "dear",
        gates=told(clock, dear=7.0),
        clock=clock,
        max_retries=max_retries,
        call=replace(CALL, timeout_seconds=timeout),
    )
    steps, answer = play(asked, [None, completion(), None], clock)
    assert summary(steps) == ["reserve dear", "send dear", "settle"]
    assert answer.candidate.name == "dear"


def test_the_only_one_is_asked_at_once_in_a_cooldown_of_ours():
    clock = Clock()
    gates = told(clock)
    for _ in range(3):
        gates["dear"].enter(1).leave(fault())
    steps, _ = play(retried("dear", gates=gates, clock=clock), [None, completion(), None], clock)
    assert summary(steps) == ["reserve dear", "send dear", "settle"]


def test_what_others_are_told_in_the_meantime_is_waited_for_once_only():
    """Else a storm of refusals would hold a call until its time is over."""
    clock = Clock()
    gates = told(clock, dear=7.0)
    steps = retried("dear", gates=gates, clock=clock)
    wait = next(steps).seconds
    clock.now += 6.5
    gates["dear"].enter(1, last_resort=True).leave(
        fault(ProviderRateLimitedError, retry_after_seconds=9.0)
    )
    clock.now += wait - 6.5
    assert isinstance(steps.send(None), Reserve)
    assert isinstance(steps.send(None), Send)
    steps.send(completion())
    with pytest.raises(StopIteration):
        steps.send(None)


def test_the_first_to_want_to_be_asked_is_where_others_want_to_be_left_alone_for_long():
    clock = Clock()
    gates = told(clock, dear=90.0, middle=20.0, cheap=40.0)
    steps, answer = play(retried(gates=gates, clock=clock), [None, completion(), None], clock)
    assert summary(steps) == ["wait", "reserve middle", "send middle", "settle"]
    assert 20.0 <= steps[0].seconds <= 22.0
    assert answer.candidate.name == "middle"


@pytest.mark.parametrize("end", ["answer", "fault", "cancelled", "refused", "no store"])
def test_every_end_makes_room_for_the_next_call(end):
    gates = {"dear": Gate(RateLimits(concurrent=1))}
    results = {
        "answer": [None, completion(), None],
        "fault": [None, fault(), None],
        "cancelled": [None, asyncio.CancelledError(), None],
        "refused": [refusal()],
        "no store": [StoreError("full"), None],
    }[end]
    for _ in range(3):
        steps, _ = play(flow("dear", gates=gates), results)
        assert len(steps) == len(results)


def test_a_stream_takes_room_until_its_end():
    gates = {"dear": Gate(RateLimits(concurrent=1))}
    steps = stream("dear", gates=gates)
    next(steps), steps.send(None), steps.send(opened(HI))
    assert gates["dear"].enter(1) > 0
    for result in (None, None, COUNT):
        steps.send(result)
    with pytest.raises(StopIteration):
        steps.send(None)
    gates["dear"].enter(1).leave(None)


# Cancellation at each step


@pytest.mark.parametrize("kind", CANCELLATIONS)
def test_cancelled_while_reserving(kind):
    """The write may be under way, so a release follows it; nothing was sent to record."""
    cancelled = kind()
    steps, error = play(flow(), [cancelled, None])
    assert summary(steps) == ["reserve dear", "release"]
    assert steps[1].reservation_id == steps[0].reservation.id
    assert steps[1].attempt is None
    assert error is cancelled


@pytest.mark.parametrize("kind", CANCELLATIONS)
def test_cancelled_while_sending(kind):
    """The provider may do the work and charge for it."""
    cancelled = kind()
    steps, error = play(flow(), [None, cancelled, None])
    assert summary(steps) == ["reserve dear", "send dear", "settle_in_full"]
    assert steps[2].attempt.outcome.error == kind.__name__
    assert error is cancelled


@pytest.mark.parametrize("kind", CANCELLATIONS)
@pytest.mark.parametrize("sent", [completion(), fault(), fault(ProviderTimeoutError)])
def test_cancelled_while_closing(kind, sent):
    """The close was handed to the store, which writes it whoever waits: it is not repeated."""
    cancelled = kind()
    steps, error = play(flow(), [None, sent, cancelled])
    assert len(steps) == 3
    assert isinstance(steps[2], Close)
    assert error is cancelled


def test_a_store_that_fails_sends_nothing():
    broken = StoreError("disk full")
    steps, error = play(flow(), [broken, None])
    assert summary(steps) == ["reserve dear", "release"]
    assert error is broken


def test_a_fault_of_ours_while_sending_is_paid_in_full_and_raised():
    ours = ZeroDivisionError()
    steps, error = play(flow(), [None, ours, None])
    assert summary(steps)[-1] == "settle_in_full"
    assert error is ours


# Streams

ROLE = Chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
HI = Chunk({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})
HO = Chunk({"choices": [{"index": 0, "delta": {"content": " ho"}}]})
STOP = Chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
COUNTED = Chunk({"choices": []}, USAGE)
REST: list = []
COUNT = Usage(4, 2, estimated=True)


def stream(*names: str, **kw):
    return stream_flow(request(*names, **kw))


def opened(chunk: Chunk = ROLE) -> Opened:
    return Opened(chunk, iter(REST))


def test_a_stream_that_works():
    chunks = [None, HI, None, STOP, None, COUNTED, None, None]
    steps, paid = play(stream(clock=itertools.count().__next__), [None, opened(), *chunks, None])
    handed = ["hand ''", "receive", "hand 'Hi'", "receive", "hand ''", "receive", "hand ''"]
    assert summary(steps) == ["reserve dear", "open dear", *handed, "receive", "settle"]
    assert steps[1].call.max_output_tokens == 50
    assert all(step.candidate.name == "dear" for step in steps if isinstance(step, Hand))
    close = steps[-1]
    assert (close.cost_nano, close.estimated) == (10_000, False)
    assert close.attempt.outcome.first_token_seconds == paid.first_token_seconds == 2
    assert close.attempt.outcome.latency_seconds == paid.latency_seconds == 9
    assert isinstance(paid, Paid)
    assert (paid.candidate.name, paid.cost_nano, paid.usage) == ("dear", 10_000, USAGE)


def test_a_stream_without_a_count_is_counted():
    steps, paid = play(stream(), [None, opened(HI), None, HO, None, None, COUNT, None])
    assert summary(steps)[-3:] == ["receive", "count", "settle"]
    assert steps[-2].answered == "Hi ho"
    assert (steps[-1].cost_nano, steps[-1].estimated) == (6_000, True)
    assert paid.usage == COUNT


def test_our_count_is_never_over_what_was_set_aside():
    steps, paid = play(stream(), [None, opened(HI), None, None, Usage(999, 999, True), None])
    assert steps[-1].cost_nano == worst("dear") == paid.cost_nano
    assert paid.usage == Usage(20, 50, estimated=True)


@pytest.mark.parametrize("kind", [ProviderUnavailableError, ProviderTimeoutError])
def test_a_fault_before_the_first_token_is_invisible(kind):
    """The second stream goes on where the first one broke off: with the first token."""
    broken = [None, opened(), None, fault(kind), None]
    steps, paid = play(stream(), [*broken, None, opened(), HI, None, COUNTED, None, None, None])
    how = "settle_in_full" if kind is ProviderTimeoutError else "release"
    first = ["reserve dear", "open dear", "hand ''", "receive", how]
    second = ["reserve middle", "open middle", "receive", "hand 'Hi'"]
    assert summary(steps)[:9] == first + second
    assert summary(steps)[-1] == "settle"
    assert steps[8].candidate.name == paid.candidate.name == "middle"


def test_a_stream_that_does_not_open_is_invisible_too():
    results = [None, fault(), None, None, opened(), None, None, COUNT, None]
    steps, paid = play(stream(), results)
    middle = ["reserve middle", "open middle", "hand ''", "receive", "count", "settle"]
    assert summary(steps) == ["reserve dear", "open dear", "release", *middle]
    assert paid.candidate.name == "middle"


def test_a_fault_after_the_first_token_is_raised_and_settled_at_what_was_delivered():
    broken = fault(maybe_billed=False)
    steps, error = play(stream(), [None, opened(HI), None, broken, COUNT, None])
    assert summary(steps)[-3:] == ["receive", "count", "settle"]
    assert (steps[-1].cost_nano, steps[-1].estimated) == (6_000, True)
    assert steps[-1].attempt.outcome.status == "error"
    assert error is broken


def test_a_stream_that_breaks_tells_the_attempts_before_it():
    clock, faults = Clock(), [fault(), fault(ProviderConnectionError)]
    results = [None, faults[0], None, None, opened(HI), None, faults[1], None]
    _, error = play(stream("dear", "middle", clock=clock, max_retries=1), results, clock)
    assert type(error) is ProviderConnectionError
    assert error.causes == tuple(faults)
    assert error.left_out == {}  # once it has begun there is no way back
    assert str(error) == "dear broke; 2 attempts were made"


def test_a_connection_that_breaks_after_the_first_token_is_paid_in_full():
    """The provider may have gone on to the end."""
    broken = fault(ProviderConnectionError)
    steps, error = play(stream(), [None, opened(HI), None, broken, None])
    assert summary(steps)[-2:] == ["receive", "settle_in_full"]
    assert error is broken


def test_a_fault_after_the_count_changes_nothing_about_it():
    steps, _ = play(
        stream(),
        [None, opened(HI), None, COUNTED, None, fault(ProviderConnectionError), None],
    )
    assert summary(steps)[-2:] == ["receive", "settle"]
    assert (steps[-1].cost_nano, steps[-1].estimated) == (10_000, False)


@pytest.mark.parametrize("kind", [AbandonedError, *CANCELLATIONS])
@pytest.mark.parametrize("where", ["hand", "receive"])
def test_a_reader_who_leaves_at_once_pays_for_all_that_may_have_been_made(kind, where):
    """How fast the model is, nobody knows yet."""
    left = kind()
    results = [None, opened(HI), *([None] if where == "receive" else []), left, None, None]
    steps, error = play(stream(clock=Clock()), results)
    before = {"hand": "hand 'Hi'"}.get(where, where)
    assert summary(steps)[-3:] == [before, "hangup", "settle"]
    assert (steps[-1].cost_nano, steps[-1].estimated) == (worst("dear"), True)
    assert steps[-1].attempt.outcome.status == "ok"
    assert error is left


@pytest.mark.parametrize(
    ("waited", "held", "tokens"),
    [(8, 0, 3), (8, 7, 4), (8, 15, 6), (1, 0, 4), (1, 100, 50), (0, 0, 50)],
)
def test_a_reader_who_leaves_pays_for_what_was_made_meanwhile(waited, held, tokens):
    """As many tokens per second as before, also in the second in which the provider notices."""
    clock = Clock()
    closed = []

    def perform(step):
        if isinstance(step, Receive):
            clock.now += waited
        if isinstance(step, Close):
            closed.append(step)
        return {Open: opened(HI), Receive: HO, Count: COUNT}.get(type(step))

    steps = stream(clock=clock)
    assert text_of(advance(steps, perform).chunk) == "Hi"
    assert text_of(advance(steps, perform).chunk) == " ho"
    clock.now += held
    with pytest.raises(AbandonedError):
        advance(steps, perform, AbandonedError())
    usage = closed[0].attempt.outcome.usage
    prompt = COUNT.prompt_tokens if waited else 20
    assert usage == Usage(prompt, tokens, estimated=True)


def test_a_reader_who_leaves_an_answer_that_is_whole_pays_for_what_was_delivered():
    """It leaves on the reason of the end, as many do, and never sees the provider's count."""
    results = [None, opened(HI), None, STOP, AbandonedError(), None, COUNT, None]
    steps, _ = play(stream(clock=Clock()), results)
    assert summary(steps)[-3:] == ["hangup", "count", "settle"]
    assert steps[-1].attempt.outcome.usage == COUNT


THOUGHT = Chunk({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}}]})


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("end", ["reads on", "leaves", "is told"])
def test_what_is_thought_unseen_is_paid_in_full(monkeypatch, shown, end):
    monkeypatch.setitem(CANDIDATES, "dear", replace(CANDIDATES["dear"], reasons=True))
    how = {
        "reads on": [None, None],
        "leaves": [AbandonedError(), None],
        "is told": [None, fault(maybe_billed=False)],
    }
    counted = [COUNT] if shown else []
    chunks = [None, STOP] if end == "leaves" else []
    begun = [None, opened(THOUGHT if shown else HI), *chunks]
    steps, _ = play(stream(clock=Clock()), [*begun, *how[end], *counted, None])
    assert steps[-1].cost_nano == (6_000 if shown else worst("dear"))
    assert steps[-1].estimated


@pytest.mark.parametrize("streamed", [False, True])
def test_a_usage_that_no_ledger_can_hold_is_settled_in_full(streamed, caplog):
    absurd = Usage(3, 10**14)
    if streamed:
        results = [None, opened(HI), None, Chunk({"choices": []}, absurd), None, None, None]
        steps, paid = play(stream(), results)
    else:
        steps, paid = play(flow(), [None, completion(absurd), None])
    assert (steps[-1].how, steps[-1].cost_nano, steps[-1].estimated) == (
        "settle",
        worst("dear"),
        True,
    )
    assert paid.cost_nano == worst("dear")
    assert "settled in full" in caplog.text


def test_a_cost_over_what_was_set_aside_that_a_provider_reports_is_believed():
    reported = replace(USAGE, reported_nano=10 * worst("dear"))
    steps, _ = play(flow(), [None, completion(reported), None])
    assert (steps[-1].cost_nano, steps[-1].estimated) == (10 * worst("dear"), False)


def test_a_reader_who_leaves_after_the_count_pays_to_the_token():
    left = AbandonedError()
    steps, _ = play(stream(), [None, opened(HI), None, COUNTED, left, None, None])
    assert summary(steps)[-2:] == ["hangup", "settle"]
    assert (steps[-1].cost_nano, steps[-1].estimated) == (10_000, False)


def test_a_count_that_more_text_followed_is_not_the_whole_bill():
    """Some servers count the prompt in the first chunk, and the answer only in the last."""
    early = Chunk(ROLE.body, Usage(3, 1))
    left = AbandonedError()
    steps, _ = play(stream(), [None, opened(early), None, HI, left, None, None])
    assert summary(steps)[-2:] == ["hangup", "settle"]
    assert (steps[-1].cost_nano, steps[-1].estimated) == (worst("dear"), True)


@pytest.mark.parametrize("end", ["leaves", "reads on", "is told"])
@pytest.mark.parametrize("kind", CANCELLATIONS)
def test_who_is_cancelled_while_we_count_leaves_no_money_set_aside(kind, end):
    how = {
        "leaves": [None, STOP, AbandonedError(), None],
        "reads on": [None, None],
        "is told": [None, fault(maybe_billed=False)],
    }
    cancelled = kind()
    steps, error = play(stream(), [None, opened(HI), *how[end], cancelled, None])
    assert summary(steps)[-2:] == ["count", "settle_in_full"]
    assert error is cancelled


def test_money_is_settled_though_hanging_up_fails():
    stuck = OSError("stuck")
    steps, error = play(stream(), [None, opened(HI), AbandonedError(), stuck, None])
    assert summary(steps)[-2:] == ["hangup", "settle"]
    assert error is stuck


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"reasoning": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]},
        {"function_call": {"name": "x"}},
    ],
)
def test_all_that_is_generated_is_a_token(delta):
    token = Chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    steps, error = play(stream(), [None, opened(token), None, fault(), COUNT, None])
    assert isinstance(error, ProviderUnavailableError)
    assert steps[-2].answered == "x"


# Properties over any course of events

reserve_results = st.one_of(
    st.none(),
    st.just(Soft()),
    st.builds(refusal, st.integers(0, 100_000), st.just(0)),
    st.sampled_from([StoreError("full"), ConfigurationError("gone")]),
    st.sampled_from([kind() for kind in CANCELLATIONS]),
)
send_results = st.one_of(
    st.builds(completion, st.none() | st.builds(Usage, st.integers(0, 20), st.integers(0, 50))),
    st.builds(
        fault,
        st.sampled_from([ProviderRateLimitedError, ProviderTimeoutError, ProviderRejectedError]),
        maybe_billed=st.sampled_from([None, True, False]),
    ),
    st.sampled_from([kind() for kind in (*CANCELLATIONS, ZeroDivisionError)]),
)
close_results = st.one_of(*[st.none()] * 5, st.just(asyncio.CancelledError()))


open_results = st.one_of(
    st.builds(opened, st.sampled_from([ROLE, HI, COUNTED])),
    send_results.filter(lambda result: not isinstance(result, Completion)),
)
receive_results = st.one_of(
    st.sampled_from([ROLE, HI, STOP, COUNTED]),
    st.none(),
    send_results.filter(lambda result: not isinstance(result, Completion)),
)


def read(steps, perform, leaving: int | None) -> None:
    """Read a stream to its end, or leave it after some chunks."""
    for number in itertools.count():
        left = number == leaving
        with contextlib.suppress(AbandonedError):
            handed = advance(steps, perform, AbandonedError() if left else None)
        if left or not isinstance(handed, Hand):
            return


@given(
    order=st.permutations(list(PRICES)),
    streamed=st.booleans(),
    leaving=st.none() | st.integers(0, 5),
    reserving=st.lists(reserve_results, min_size=3, max_size=3),
    sending=st.lists(send_results, min_size=3, max_size=3),
    closing=st.lists(close_results, min_size=4, max_size=4),
    opening=st.lists(open_results, min_size=3, max_size=3),
    receiving=st.lists(receive_results, max_size=8),
)
def test_each_reservation_is_closed_exactly_once(
    order, streamed, leaving, reserving, sending, closing, opening, receiving
):
    results = {
        **{Reserve: iter(reserving), Send: iter(sending), Close: iter(closing)},
        **{Open: iter(opening), Receive: itertools.chain(receiving, itertools.repeat(None))},
        **{Count: itertools.repeat(COUNT), HangUp: itertools.repeat(None)},
    }
    reserved, closed, sent = Counter(), Counter(), []

    def perform(step):
        result = next(results[type(step)])
        match step:
            case Reserve(reservation):
                # After an error the money may be set aside or not: it is released as well.
                reserved[reservation.id] += not isinstance(result, Refusal)
            case Send(candidate, _) | Open(candidate, _):
                sent.append(candidate.name)
                assert reserved.total() == closed.total() + 1
            case Close(id, cost_nano=cost):
                closed[id] += 1
                assert cost <= max(map(worst, PRICES))
        if thrown(result):
            raise result
        return result

    with contextlib.suppress(OptLLMError, ZeroDivisionError, *CANCELLATIONS):
        if streamed:
            read(stream(*order), perform, leaving)
        else:
            answer = run(flow(*order), perform)
            assert answer.candidate.name == sent[-1]
    assert closed == +reserved
    assert set(closed.values()) <= {1}


# The drivers


def performer(results):
    """Carries steps out from a list; an exception among the results is raised."""
    performed = []
    answers = iter(results)

    def perform(step):
        performed.append(step)
        result = next(answers)
        if thrown(result):
            raise result
        return result

    return performed, perform


async def drive(kind: str, perform):
    """Run a flow with either driver."""
    if kind == "sync":
        return run(flow(), perform)

    async def aperform(step):
        await asyncio.sleep(0)
        return perform(step)

    return await arun(flow(), aperform, perform)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_drivers_return_the_answer(kind):
    performed, perform = performer([refusal(), None, completion(), None])
    answer = asyncio.run(drive(kind, perform))
    assert answer.candidate.name == "middle"
    assert summary(performed) == ["reserve dear", "reserve middle", "send middle", "settle"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_drivers_tell_the_flow_what_was_raised_and_carry_out_its_last_wish(kind):
    performed, perform = performer([None, ZeroDivisionError(), None])
    with pytest.raises(ZeroDivisionError):
        asyncio.run(drive(kind, perform))
    assert summary(performed) == ["reserve dear", "send dear", "settle_in_full"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_drivers_raise_what_the_flow_raises(kind):
    _, perform = performer([refusal(), refusal(), refusal()])
    with pytest.raises(BudgetExceededError):
        asyncio.run(drive(kind, perform))


def test_a_cancelled_task_closes_its_reservation_before_it_ends():
    performed = []

    async def aperform(step):
        performed.append(step)
        if isinstance(step, Send):
            await asyncio.sleep(60)

    async def cancel_while_sending():
        task = asyncio.create_task(arun(flow(), aperform, performed.append))
        while len(performed) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_while_sending())
    assert summary(performed) == ["reserve dear", "send dear", "settle_in_full"]


def test_a_coroutine_that_is_closed_settles_without_waiting():
    settled = []

    class Never:
        def __await__(self):
            yield

    async def aperform(step):
        if isinstance(step, Send):
            await Never()

    coroutine = arun(flow(), aperform, settled.append)
    coroutine.send(None)
    coroutine.close()
    assert summary(settled) == ["settle_in_full"]
