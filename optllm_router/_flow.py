"""One request's life, as a generator without I/O.

The generator yields a step and receives its result; a sync and an async driver carry the
steps out (:func:`run`, :func:`arun`) and unit tests play them by hand. Money is set aside
before every send, and closed exactly once after it, whatever happens in between::

    Reserve ─ refused ──────────────────────────► next candidate, at last BudgetExceededError
       │
      Send ─ fault, not billed ─── Close: release ─────────► next candidate, at last the fault
       │ ├── fault, maybe billed ─ Close: settle in full ──►
       │ └── cancelled ─────────── Close: settle in full ──► (the cancellation goes on)
     Close: settle ─► Answer

A stream is opened instead of sent, and lives until its last chunk was handed on or its reader
left. Up to the first token a fault is as above, and invisible; after it::

      Open ─► Hand ◄─┐
               │     │
            Receive ─┤
               ├── the end ──────────── Close: settle ─► Paid
               ├── fault, not billed ── Close: settle ─► (raised to the reader)
               ├── fault, maybe billed  Close: settle in full ─► (raised to the reader)
               └── the reader left ──── HangUp, Close: settle

A stream that ends without the provider's count is settled at ours, of what was delivered.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeAlias, TypeVar, cast

from optllm_router._errors import (
    AllCandidatesFailedError,
    BudgetExceededError,
    OptLLMError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRejectedError,
)
from optllm_router._health import Ticket
from optllm_router._money import format_usd
from optllm_router._sending import Sending, Tape
from optllm_router._steps import (
    AbandonedError,
    Answer,
    Chunks,
    Close,
    Count,
    Hand,
    HangUp,
    Open,
    Opened,
    Paid,
    Pause,
    Receive,
    Request,
    Reserve,
    Send,
    Step,
    Wait,
)
from optllm_router._types import Call, Candidate, Chunk, Completion, Usage
from optllm_router.ledger import Refusal, Reservation

_PATIENCE_SECONDS = 0.25
_LOOK_AROUND_SECONDS = 0.05
"""How long to wait for room at one candidate before the others are looked at again."""
_LONG_WAIT_SECONDS = 8.0
_BYTES_PER_TOKEN = 4
"""Of ordinary prompts, to know what a call takes of a limit before it has told."""

T = TypeVar("T")
P = TypeVar("P", bound=Paid)

Flow: TypeAlias = Generator[Step, Any, Answer]
StreamFlow: TypeAlias = Generator[Step | Hand, Any, Paid]


def request_flow(request: Request) -> Flow:
    """Answer a request: the chosen candidate first, then its fallbacks.

    Raises:
        BudgetExceededError: no candidate's reservation fits, and nothing was sent.
        ProviderError: the only candidate tried failed, or all refused the request itself.
        AllCandidatesFailedError: several candidates failed.
    """
    return (yield from _first_that_answers(request, _whole_answer))


def stream_flow(request: Request) -> StreamFlow:
    """As :func:`request_flow`, handing on the answer's chunks as they come.

    Raises:
        ProviderError: also when a stream breaks that has begun to answer.
    """
    resumed = False

    def answered(sending: Sending) -> Generator[Step | Hand, Any, Paid | ProviderError]:
        nonlocal resumed
        result = yield from _streamed_answer(sending, resumed=resumed)
        resumed = resumed or sending.handed
        return result

    return (yield from _first_that_answers(request, answered))


@dataclass(frozen=True)
class _Turn:
    """When a candidate is to be asked.

    Attributes:
        candidate: who.
        tries: how often it was asked before.
        not_before: on the request's clock.
        last_resort: all others failed or have no room: wait for it, and ask it even in a cooldown.
    """

    candidate: Candidate
    tries: int = 0
    not_before: float = -math.inf
    last_resort: bool = False


def _first_that_answers(
    request: Request,
    answered: Callable[[Sending], Generator[Any, Any, P | ProviderError]],
) -> Generator[Any, Any, P]:
    """Take turns, best candidate first, until one answers, all have failed or time is over."""
    deadline = request.clock() + request.call.timeout_seconds
    names = (request.decision.candidate, *request.decision.fallbacks)
    turns = deque(_Turn(request.candidates[name]) for name in names)
    causes: list[ProviderError] = []
    refusal: tuple[Reservation, Refusal] | None = None
    sends = 0
    while turns and not (causes and request.clock() >= deadline):
        turn = turns.popleft()
        sending = Sending(request, turn.candidate, sends)
        reservation = sending.reservation
        if refusal is not None and reservation.amount_nano >= refusal[0].amount_nano:
            continue
        ticket = yield from _enter(request, turn)
        if isinstance(ticket, float):
            if not turn.last_resort:
                turns.append(replace(turn, last_resort=True))
            elif request.clock() + ticket >= deadline:
                causes.append(_no_room(turn.candidate, request.call))
            else:
                yield Wait(min(ticket, _LOOK_AROUND_SECONDS) if turns else ticket)
                turns.append(turn)
            continue
        before = request.clock()
        refused = yield from _reserve(reservation, ticket, request.patient)
        if request.patient:  # money that comes back late is no fault of the call's
            deadline += request.clock() - before
        if refused is not None:
            refusal = (reservation, refused)
            continue
        sends += 1
        sending.begin(deadline)
        result = yield from _ticketed(answered(sending), ticket)
        if not isinstance(result, ProviderError):
            return result
        causes.append(result)
        _schedule_retry(request, turns, turn, result, deadline)
    raise _failure(causes, refusal)


def _enter(request: Request, turn: _Turn) -> Generator[Step, Any, Ticket | float]:
    """Get a ticket for a turn, or the seconds after which there may be one."""
    early = turn.not_before - request.clock()
    if early > 0:
        yield Wait(early)
    call = request.call
    bound = call.max_output_tokens or turn.candidate.max_output_tokens
    tokens = call.prompt_bytes // _BYTES_PER_TOKEN + bound * call.choices
    return request.gates[turn.candidate.name].enter(tokens, last_resort=turn.last_resort)


def _ticketed(
    answer: Generator[Any, Any, P | ProviderError], ticket: Ticket
) -> Generator[Any, Any, P | ProviderError]:
    try:
        result = yield from answer
    except BaseException as error:
        ticket.leave(error)
        raise
    if isinstance(result, ProviderError):
        ticket.leave(result)
    else:
        ticket.leave(None, result.usage.prompt_tokens + result.usage.completion_tokens)
    return result


def _schedule_retry(
    request: Request, turns: deque[_Turn], turn: _Turn, error: ProviderError, deadline: float
) -> None:
    """Give a candidate another turn after a fault that cost nothing, if there is time for it.

    It is the next one, unless the provider wants to be left alone for long: then others are
    asked first.
    """
    wait = request.retries.wait(error, turn.tries + 1, request.max_retries)
    if wait is None or request.clock() + wait >= deadline:
        return
    again = replace(turn, tries=turn.tries + 1, not_before=request.clock() + wait)
    if wait > _LONG_WAIT_SECONDS:
        turns.append(again)
    else:
        turns.appendleft(again)


def _reserve(
    reservation: Reservation, ticket: Ticket, patient: bool
) -> Generator[Step, Any, Refusal | None]:
    """Set money aside for who has a ticket; gives that back where there is none."""
    try:
        refused = yield from _reserve_patiently(reservation, patient)
    except BaseException:
        ticket.withdraw()
        raise
    if refused is not None:
        ticket.withdraw()
    return refused


def _reserve_patiently(
    reservation: Reservation, patient: bool
) -> Generator[Step, Any, Refusal | None]:
    while True:
        try:
            refused: Refusal | None = yield Reserve(reservation)
        except BaseException:
            # The write may be under way: writes are done in order, so this one comes after it.
            yield Close(reservation.id, "release")
            raise
        if refused is None or not patient:
            return refused
        if refused.needed_nano > refused.left_nano + refused.reserved_nano:
            return refused
        yield Pause(_PATIENCE_SECONDS)


def _whole_answer(sending: Sending) -> Generator[Step, Any, Answer | ProviderError]:
    try:
        result: Completion | ProviderError = yield Send(sending.candidate, sending.call)
    except BaseException as error:
        yield sending.failed(error)
        raise
    if isinstance(result, ProviderError):
        yield sending.failed(result)
        return result
    # A provider that did not count is taken to have charged the most it can have.
    paid = sending.paid(result.usage or sending.most)
    yield sending.settled(paid)
    return Answer(**vars(paid), completion=result)


def _streamed_answer(
    sending: Sending, *, resumed: bool
) -> Generator[Step | Hand, Any, Paid | ProviderError]:
    """Hand on a stream; of one that is ``resumed`` only from its first token on."""
    try:
        opened: Opened | ProviderError = yield Open(sending.candidate, sending.call)
    except BaseException as error:
        yield sending.failed(error)
        raise
    if isinstance(opened, ProviderError):
        yield sending.failed(opened)
        return opened
    tape = Tape()
    item: Chunk | ProviderError | None = opened.first
    try:
        while isinstance(item, Chunk):
            tape.record(item)
            if tape.answers and sending.first_token_seconds is None:
                sending.first_token_seconds = sending.seconds
            if tape.answers or not resumed:
                sending.handed = True
                yield Hand(sending.candidate, item)
            item = yield Receive(opened.rest)
    except BaseException as error:
        yield from _hung_up(sending, opened.rest, tape, error)
        raise
    if item is None:
        paid = sending.paid(tape.usage or (yield from _counted(sending, tape)))
        yield sending.settled(paid)
        return paid
    if not tape.answers:
        yield sending.failed(item)
        return item
    if item.maybe_billed and tape.usage is None:
        yield sending.failed(item)
    else:
        usage = tape.usage or (yield from _counted(sending, tape))
        yield sending.settled(sending.paid(usage), item)
    raise item


def _hung_up(
    sending: Sending, rest: Chunks, tape: Tape, error: BaseException
) -> Generator[Step, Any, None]:
    """Close a stream whose reader left: no fault of the candidate's, when it had begun."""
    try:
        yield HangUp(rest)
    finally:
        usage = tape.usage or (yield from _counted(sending, tape))
        yield sending.settled(sending.paid(usage), None if tape.answers else error)


def _counted(sending: Sending, tape: Tape) -> Generator[Step, Any, Usage]:
    """Our count of what was delivered, never more than what was set aside.

    Who is cancelled meanwhile, maybe once more, is not counted for: all of it may be owed.
    """
    try:
        counted: Usage = yield Count(sending.candidate, sending.call, tape.text)
    except BaseException as error:
        yield sending.failed(error)
        raise
    most = sending.most
    return Usage(
        min(counted.prompt_tokens, most.prompt_tokens),
        min(counted.completion_tokens, most.completion_tokens),
        estimated=True,
    )


def _no_room(candidate: Candidate, call: Call) -> ProviderRateLimitedError:
    return ProviderRateLimitedError(
        f"model {candidate.name!r} was not asked: its limits leave no room for this call within "
        f"{call.timeout_seconds:g} s; raise them, or the timeout",
        candidate=candidate.name,
    )


def _failure(
    causes: Sequence[ProviderError], refusal: tuple[Reservation, Refusal] | None
) -> OptLLMError:
    tried = {cause.candidate: cause for cause in causes}
    if causes and all(isinstance(cause, ProviderRejectedError) for cause in causes):
        return causes[0]
    if len(tried) == 1:
        return causes[-1]
    if tried:
        each = "; ".join(map(str, tried.values()))
        return AllCandidatesFailedError(
            f"all {len(tried)} candidates that were tried failed: {each}", causes=causes
        )
    if refusal is None:
        raise AssertionError("a decision names at least one candidate")
    _, refused = refusal
    return BudgetExceededError(
        f"budget {refused.budget!r} has {format_usd(refused.left_nano)} left, and the call could "
        f"cost {format_usd(refused.needed_nano)}; nothing was sent. Raise the budget"
        f"{_next_window(refused)} or lower max_tokens",
        budget=refused.budget,
        needed_nano=refused.needed_nano,
        left_nano=refused.left_nano,
        scope=refused.scope,
        window=refused.window,
        next_window=refused.next_window,
    )


def _next_window(refused: Refusal) -> str:
    if refused.next_window is None:
        return ""
    start = datetime.fromtimestamp(refused.next_window, tz=timezone.utc)
    return f", wait for its next window ({start:%Y-%m-%d %H:%M} UTC)"


def run(flow: Generator[Step, Any, T], perform: Callable[[Step], Any]) -> T:
    """Drive a flow; ``perform`` carries a step out and returns its result."""
    return cast(T, advance(flow, perform))


async def arun(
    flow: Generator[Step, Any, T],
    perform: Callable[[Step], Awaitable[Any]],
    settle: Callable[[Step], Any],
) -> T:
    """As :func:`run`, for coroutines; ``settle`` as for :func:`aadvance`."""
    return cast(T, await aadvance(flow, perform, settle))


def advance(
    flow: Generator[Step | Hand, Any, T],
    perform: Callable[[Step], Any],
    thrown: BaseException | None = None,
) -> Hand | T:
    """Drive a flow to the next chunk that it hands on, or to its end.

    Args:
        flow: new, or where it handed a chunk on.
        perform: carries a step out and returns its result.
        thrown: raised in the flow, if any, where it is now.
    """
    try:
        step = flow.send(None) if thrown is None else flow.throw(thrown)
        while not isinstance(step, Hand):
            try:
                result = perform(step)
            except BaseException as error:  # noqa: BLE001 - the flow closes its money, then raises
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    return step


async def aadvance(
    flow: Generator[Step | Hand, Any, T],
    perform: Callable[[Step], Awaitable[Any]],
    settle: Callable[[Step], Any],
    thrown: BaseException | None = None,
) -> Hand | T:
    """As :func:`advance`, for coroutines.

    Args:
        flow: as there.
        perform: as there.
        settle: carries out the last steps of a flow whose coroutine is closed, without waiting
            for anything.
        thrown: as there.
    """
    try:
        step = flow.send(None) if thrown is None else flow.throw(thrown)
        while not isinstance(step, Hand):
            try:
                result = await perform(step)
            except GeneratorExit:
                with contextlib.suppress(AbandonedError):
                    advance(flow, settle, AbandonedError())
                raise
            except BaseException as error:  # noqa: BLE001 - the flow closes its money, then raises
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    return step
