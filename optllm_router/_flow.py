"""One request's life, as a generator without I/O.

The generator yields a step and receives its result; a sync and an async driver carry the
steps out (:func:`run`, :func:`arun`) and unit tests play them by hand. Money is set aside
before every send, and closed exactly once after it, whatever happens in between. ::

    Reserve ─ refused ──────────────────────────► next candidate, at last BudgetExceededError
       │
      Send ─ fault, not billed ─── Close: release ─────────► next candidate, at last the fault
       │ ├── fault, maybe billed ─ Close: settle in full ──►
       │ └── cancelled ─────────── Close: settle in full ──► (the cancellation goes on)
     Close: settle ─► Answer

A request may be hedged: when no answer has come after a while, the next candidate is asked beside
the first (:class:`Race`). Each send goes through the drawing above, and the slower one ends as if
cancelled, or late, with its cost; one that was not sent yet is released.

A stream is opened instead of sent, and lives until its last chunk was handed on or its reader
left. Up to the first token a fault is as above, and invisible; after it::

      Open ─► Hand ◄─┐
               │     │
            Receive ─┤
               ├── the end ──────────── Close: settle ─► Paid
               ├── fault, not billed ── Close: settle ─► (raised to the reader)
               ├── fault, maybe billed  Close: settle in full ─► (raised to the reader)
               └── the reader left ──── HangUp, Close: settle

A stream that ends without the provider's count is settled at ours, of what was delivered; of one
that its reader left, with what may have been made meanwhile. What a model may have thought unseen,
nobody can count: then, the stream is settled in full.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from optllm_router._errors import ProviderError
from optllm_router._sending import Sending, Tape
from optllm_router._steps import (
    AbandonedError,
    Answer,
    Chunks,
    Count,
    Hand,
    HangUp,
    Open,
    Opened,
    Paid,
    Race,
    Receive,
    Request,
    Send,
    Step,
)
from optllm_router._turns import Turns
from optllm_router._types import Chunk, Completion, Usage

T = TypeVar("T")

Flow: TypeAlias = Generator[Step, Any, Answer]
StreamFlow: TypeAlias = Generator[Step | Hand, Any, Paid]


def request_flow(request: Request) -> Flow:
    """Answer a request: the chosen candidate first, then its fallbacks.

    Raises:
        BudgetExceededError: no candidate's reservation fits, and nothing was sent.
        ProviderError: the only candidate tried failed, or all refused the request itself.
        AllCandidatesFailedError: several candidates failed. As the one above, it carries the cause
            of each attempt, and says who was not asked, and why.
    """
    turns = Turns(request)
    asked = partial(_whole_answer, turns)
    answer: Answer | None = None
    if request.hedge_after_seconds is not None and request.decision.fallbacks:
        seconds = request.hedge_after_seconds
        answer = yield Race(turns.take(asked), turns.take_beside(asked), seconds)
    if answer is None:
        answer = yield from turns.take(asked)
    if answer is None:
        raise turns.failure()
    return answer


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

    turns = Turns(request)
    paid = yield from turns.take(answered)
    if paid is None:
        raise turns.failure()
    return paid


def _whole_answer(turns: Turns, sending: Sending) -> Generator[Step, Any, Answer | ProviderError]:
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
    if turns.are_over:  # another was faster, and this answer is nobody's
        yield sending.settled(paid, AbandonedError())
        raise AbandonedError
    turns.are_over = True
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
    tape = Tape(sending.call.choices)
    item: Chunk | ProviderError | None = opened.first
    try:
        while isinstance(item, Chunk):
            tape.record(item)
            if tape.answers and sending.first_token_seconds is None:
                sending.first_token_seconds = sending.seconds
            if tape.answers or not resumed:
                sending.handed = True
                yield Hand(sending.candidate, item, sending.decision)
            asked = sending.seconds
            item = yield Receive(opened.rest)
            if tape.answers:
                tape.waited_seconds += sending.seconds - asked
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
        usage = tape.usage or (yield from _counted(sending, tape, left=True))
        yield sending.settled(sending.paid(usage), None if tape.answers else error)


def _counted(sending: Sending, tape: Tape, *, left: bool = False) -> Generator[Step, Any, Usage]:
    """Our count of what was made, never more than what was set aside.

    Who is cancelled meanwhile, maybe once more, is not counted for: all of it may be owed.

    Args:
        sending: of a stream without the provider's count.
        tape: what was delivered.
        left: whether its reader left, and the provider may have made more.
    """
    most = sending.most
    delivered = sending.delivered_share(tape) if left else 1.0
    if delivered == 0 or (sending.candidate.reasons and not tape.thinks_aloud):
        return most
    try:
        counted: Usage = yield Count(sending.candidate, sending.call, tape.text)
    except BaseException as error:
        yield sending.failed(error)
        raise
    return Usage(
        min(counted.prompt_tokens, most.prompt_tokens),
        min(math.ceil(counted.completion_tokens / delivered), most.completion_tokens),
        estimated=True,
    )


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
