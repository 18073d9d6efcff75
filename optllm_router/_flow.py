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

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, TypeVar, cast

from optllm_router._errors import (
    AllCandidatesFailedError,
    BudgetExceededError,
    OptLLMError,
    ProviderError,
    ProviderRejectedError,
)
from optllm_router._money import format_usd
from optllm_router._steps import (
    Answer,
    Attempt,
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
)
from optllm_router._types import Candidate, Chunk, Completion, Outcome, Usage
from optllm_router.ledger import Refusal, Reservation
from optllm_router.pricing import charge_nano, worst_case_nano, worst_usage

_GRACE_SECONDS = 120.0
"""How much longer than its time limit a call's reservation is held for a living process."""
_PATIENCE_SECONDS = 0.25

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

    def answered(attempt: _Attempt) -> Generator[Step | Hand, Any, Paid | ProviderError]:
        nonlocal resumed
        result = yield from _streamed_answer(attempt, resumed=resumed)
        resumed = resumed or attempt.handed
        return result

    return (yield from _first_that_answers(request, answered))


def _first_that_answers(
    request: Request,
    answered: Callable[[_Attempt], Generator[Any, Any, P | ProviderError]],
) -> Generator[Any, Any, P]:
    decision = request.decision
    causes: list[ProviderError] = []
    refusal: tuple[Reservation, Refusal] | None = None
    for number, name in enumerate((decision.candidate, *decision.fallbacks)):
        attempt = _Attempt(request, request.candidates[name], number)
        reservation = attempt.reservation
        if refusal is not None and reservation.amount_nano >= refusal[0].amount_nano:
            continue
        refused = yield from _reserve(reservation, request.patient)
        if refused is not None:
            refusal = (reservation, refused)
            continue
        result = yield from answered(attempt)
        if not isinstance(result, ProviderError):
            return result
        causes.append(result)
    raise _failure(causes, refusal)


def _reserve(reservation: Reservation, patient: bool) -> Generator[Step, Any, Refusal | None]:
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


class _Attempt:
    """One send to one candidate: its reservation, and the ways to close it."""

    def __init__(self, request: Request, candidate: Candidate, number: int) -> None:
        bound = request.call.max_output_tokens or candidate.max_output_tokens
        self.decision = request.decision
        self.candidate = candidate
        self.call = replace(request.call, max_output_tokens=bound)
        self.number = number
        self.reservation = _reservation(request, candidate, number)
        self.first_token_seconds: float | None = None
        self.handed = False
        self._clock = request.clock
        self._sent_at = request.clock()

    def sending(self) -> None:
        """Start the watch."""
        self._sent_at = self._clock()

    @property
    def seconds(self) -> float:
        """Since sending."""
        return self._clock() - self._sent_at

    @property
    def most(self) -> Usage:
        """The most that it can consume."""
        call = self.call
        bound = call.max_output_tokens
        return worst_usage(self.candidate, call.most_prompt_tokens, bound, call.choices)

    def paid(self, usage: Usage) -> Paid:
        """What it took, now that its usage is known."""
        cost = charge_nano(self.candidate.price, usage)
        return Paid(
            self.decision, self.candidate, usage, cost, self.seconds, self.first_token_seconds
        )

    def settled(self, paid: Paid, error: BaseException | None = None) -> Close:
        """Close at the price of what was consumed."""
        return self._closed("settle", paid.cost_nano, paid.latency_seconds, paid.usage, error)

    def failed(self, error: BaseException) -> Close:
        """Close at all that was set aside, or at nothing when it surely cost nothing."""
        if isinstance(error, ProviderError) and not error.maybe_billed:
            return self._closed("release", 0, self.seconds, None, error)
        most = self.reservation.amount_nano
        return self._closed("settle_in_full", most, self.seconds, None, error)

    def _closed(
        self,
        how: Literal["settle", "settle_in_full", "release"],
        cost_nano: int,
        seconds: float,
        usage: Usage | None,
        error: BaseException | None,
    ) -> Close:
        outcome = Outcome(
            decision_id=self.decision.id,
            candidate=self.candidate.name,
            status="error" if error else "ok",
            usage=usage,
            cost_nano=cost_nano,
            latency_seconds=seconds,
            error=type(error).__name__ if error else "",
            first_token_seconds=self.first_token_seconds,
        )
        attempt = Attempt(outcome, self.number, self.call.prompt_bytes, self.call.choices)
        estimated = how == "settle_in_full" or (usage is not None and usage.estimated)
        return Close(self.reservation.id, how, cost_nano, estimated, attempt)


def _whole_answer(attempt: _Attempt) -> Generator[Step, Any, Answer | ProviderError]:
    attempt.sending()
    try:
        result: Completion | ProviderError = yield Send(attempt.candidate, attempt.call)
    except BaseException as error:
        yield attempt.failed(error)
        raise
    if isinstance(result, ProviderError):
        yield attempt.failed(result)
        return result
    # A provider that did not count is taken to have charged the most it can have.
    paid = attempt.paid(result.usage or attempt.most)
    yield attempt.settled(paid)
    return Answer(**vars(paid), completion=result)


def _streamed_answer(
    attempt: _Attempt, *, resumed: bool
) -> Generator[Step | Hand, Any, Paid | ProviderError]:
    """Hand on a stream; of one that is ``resumed`` only from its first token on."""
    attempt.sending()
    try:
        opened: Opened | ProviderError = yield Open(attempt.candidate, attempt.call)
    except BaseException as error:
        yield attempt.failed(error)
        raise
    if isinstance(opened, ProviderError):
        yield attempt.failed(opened)
        return opened
    tape = _Tape()
    item: Chunk | ProviderError | None = opened.first
    try:
        while isinstance(item, Chunk):
            tape.record(item)
            if tape.answers and attempt.first_token_seconds is None:
                attempt.first_token_seconds = attempt.seconds
            if tape.answers or not resumed:
                attempt.handed = True
                yield Hand(attempt.candidate, item)
            item = yield Receive(opened.rest)
    except BaseException as error:
        yield from _hung_up(attempt, opened.rest, tape, error)
        raise
    if item is None:
        paid = attempt.paid(tape.usage or (yield from _counted(attempt, tape)))
        yield attempt.settled(paid)
        return paid
    if not tape.answers:
        yield attempt.failed(item)
        return item
    if item.maybe_billed and tape.usage is None:
        yield attempt.failed(item)
    else:
        usage = tape.usage or (yield from _counted(attempt, tape))
        yield attempt.settled(attempt.paid(usage), item)
    raise item


def _hung_up(
    attempt: _Attempt, rest: Chunks, tape: _Tape, error: BaseException
) -> Generator[Step, Any, None]:
    """Close a stream whose reader left: no fault of the candidate's, when it had begun."""
    try:
        yield HangUp(rest)
    finally:
        usage = tape.usage or (yield from _counted(attempt, tape))
        yield attempt.settled(attempt.paid(usage), None if tape.answers else error)


def _counted(attempt: _Attempt, tape: _Tape) -> Generator[Step, Any, Usage]:
    """Our count of what was delivered, never more than what was set aside."""
    counted: Usage = yield Count(attempt.candidate, attempt.call, tape.text)
    most = attempt.most
    return Usage(
        min(counted.prompt_tokens, most.prompt_tokens),
        min(counted.completion_tokens, most.completion_tokens),
        estimated=True,
    )


class _Tape:
    """What a stream has delivered.

    Attributes:
        answers: True from the first token on: from here on there is no way back.
        usage: what the provider counted, once it has said so.
    """

    def __init__(self) -> None:
        self.answers = False
        self.usage: Usage | None = None
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was generated: content, reasoning, tool calls."""
        return "".join(self._pieces)

    def record(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        self.usage = chunk.usage or self.usage
        for choice in chunk.body.get("choices") or ():
            pieces = list(_generated(choice.get("delta") or {}))
            self._pieces += pieces
            if pieces or choice.get("finish_reason"):
                self.answers = True


def _generated(delta: Mapping[str, Any]) -> Iterator[str]:
    """The texts in a delta that a model made, which are what it is paid for."""
    calls = [*(delta.get("tool_calls") or ()), {"function": delta.get("function_call")}]
    made = [call.get("function") or call.get("custom") or {} for call in calls]
    texts = [delta.get("content"), delta.get("reasoning_content"), delta.get("refusal")]
    texts += [call.get(part) for call in made for part in ("name", "arguments", "input")]
    return (text for text in texts if text)


def _reservation(request: Request, candidate: Candidate, attempt: int) -> Reservation:
    call = request.call
    return Reservation(
        id=f"{request.decision.id}-{attempt}",
        decision_id=request.decision.id,
        candidate=candidate.name,
        amount_nano=worst_case_nano(
            candidate, call.most_prompt_tokens, call.max_output_tokens, call.choices
        ),
        scopes=request.scopes,
        price_source=candidate.price.source,
        lease_seconds=call.timeout_seconds + _GRACE_SECONDS,
    )


def _failure(
    causes: Sequence[ProviderError], refusal: tuple[Reservation, Refusal] | None
) -> OptLLMError:
    if len(causes) == 1 or (causes and all(isinstance(c, ProviderRejectedError) for c in causes)):
        return causes[0]
    if causes:
        each = "; ".join(str(cause) for cause in causes)
        return AllCandidatesFailedError(
            f"all {len(causes)} candidates that were tried failed: {each}", causes=causes
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


async def arun(flow: Generator[Step, Any, T], perform: Callable[[Step], Awaitable[Any]]) -> T:
    """As :func:`run`, for coroutines."""
    return cast(T, await aadvance(flow, perform))


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
    thrown: BaseException | None = None,
) -> Hand | T:
    """As :func:`advance`, for coroutines."""
    try:
        step = flow.send(None) if thrown is None else flow.throw(thrown)
        while not isinstance(step, Hand):
            try:
                result = await perform(step)
            except BaseException as error:  # noqa: BLE001 - the flow closes its money, then raises
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    return step
