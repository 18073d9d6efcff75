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
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, TypeVar

from optllm_router._errors import (
    AllCandidatesFailedError,
    BudgetExceededError,
    OptLLMError,
    ProviderError,
    ProviderRejectedError,
)
from optllm_router._money import format_usd
from optllm_router._types import Call, Candidate, Completion, Decision, Outcome, Usage
from optllm_router.ledger import Refusal, Reservation
from optllm_router.pricing import charge_nano, worst_case_nano, worst_usage

_GRACE_SECONDS = 120.0
"""How much longer than its time limit a call's reservation is held for a living process."""
_PATIENCE_SECONDS = 0.25


@dataclass(frozen=True)
class Reserve:
    """Set money aside; the result is a refusal or ``None``."""

    reservation: Reservation


@dataclass(frozen=True)
class Send:
    """Ask a candidate; the result is :class:`Sent`."""

    candidate: Candidate
    call: Call


@dataclass(frozen=True)
class Close:
    """Close a reservation, and record what its attempt came to.

    Attributes:
        reservation_id: the reservation.
        how: ``settle`` at ``cost_nano``; ``settle_in_full`` where the provider may have charged
            up to all of it; ``release`` where it charged nothing.
        cost_nano: what the attempt cost.
        estimated: True when the provider did not say.
        attempt: what to record; ``None`` when nothing was sent.
    """

    reservation_id: str
    how: Literal["settle", "settle_in_full", "release"]
    cost_nano: int = 0
    estimated: bool = False
    attempt: Attempt | None = None


@dataclass(frozen=True)
class Attempt:
    """One send of a request.

    Attributes:
        outcome: what came of it.
        number: from 0.
        prompt_bytes: size of the prompt.
        choices: how many answers were asked for.
    """

    outcome: Outcome
    number: int
    prompt_bytes: int
    choices: int


@dataclass(frozen=True)
class Pause:
    """Wait for other calls to give money back, or for their leases to end."""

    seconds: float


Step: TypeAlias = Reserve | Send | Close | Pause


@dataclass(frozen=True)
class Sent:
    """What came of a :class:`Send`, and how long it took."""

    result: Completion | ProviderError
    seconds: float


@dataclass(frozen=True)
class Answer:
    """A completion with what it took to get it."""

    decision: Decision
    candidate: Candidate
    completion: Completion
    usage: Usage
    cost_nano: int
    latency_seconds: float


@dataclass(frozen=True)
class Request:
    """What a flow needs to know.

    Attributes:
        decision: who is to answer.
        call: what to ask.
        candidates: every candidate by name.
        scopes: what the call belongs to; every budget on one of these or on everything pays.
        patient: wait when money that other calls have set aside may come back, instead of
            turning to a cheaper candidate. For planned batches.
    """

    decision: Decision
    call: Call
    candidates: Mapping[str, Candidate]
    scopes: tuple[str, ...]
    patient: bool = False


Flow: TypeAlias = Generator[Step, Any, Answer]


def request_flow(request: Request) -> Flow:
    """Answer a request: the chosen candidate first, then its fallbacks.

    Raises:
        BudgetExceededError: no candidate's reservation fits, and nothing was sent.
        ProviderError: the only candidate tried failed, or all refused the request itself.
        AllCandidatesFailedError: several candidates failed.
    """
    decision = request.decision
    causes: list[ProviderError] = []
    refusal: tuple[Reservation, Refusal] | None = None
    for attempt, name in enumerate((decision.candidate, *decision.fallbacks)):
        candidate = request.candidates[name]
        reservation = _reservation(request, candidate, attempt)
        if refusal is not None and reservation.amount_nano >= refusal[0].amount_nano:
            continue
        refused = yield from _reserve(reservation, request.patient)
        if refused is not None:
            refusal = (reservation, refused)
            continue
        result = yield from _attempt(request, candidate, reservation, attempt)
        if isinstance(result, Answer):
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


def _attempt(
    request: Request, candidate: Candidate, reservation: Reservation, number: int
) -> Generator[Step, Any, Answer | ProviderError]:
    bound = request.call.max_output_tokens or candidate.max_output_tokens
    call = replace(request.call, max_output_tokens=bound)

    def closed(
        how: Literal["settle", "settle_in_full", "release"],
        cost: int,
        seconds: float,
        usage: Usage | None = None,
        error: BaseException | None = None,
    ) -> Close:
        outcome = Outcome(
            decision_id=request.decision.id,
            candidate=candidate.name,
            status="error" if error else "ok",
            usage=usage,
            cost_nano=cost,
            latency_seconds=seconds,
            error=type(error).__name__ if error else "",
        )
        estimated = how == "settle_in_full" or (usage is not None and usage.estimated)
        attempt = Attempt(outcome, number, call.prompt_bytes, call.choices)
        return Close(reservation.id, how, cost, estimated, attempt)

    try:
        sent: Sent = yield Send(candidate, call)
    except BaseException as error:
        yield closed("settle_in_full", reservation.amount_nano, 0.0, error=error)
        raise
    if isinstance(sent.result, ProviderError):
        if sent.result.maybe_billed:
            full = reservation.amount_nano
            yield closed("settle_in_full", full, sent.seconds, error=sent.result)
        else:
            yield closed("release", 0, sent.seconds, error=sent.result)
        return sent.result
    # A provider that did not count is taken to have charged the most it can have.
    usage = sent.result.usage or worst_usage(
        candidate, call.most_prompt_tokens, bound, call.choices
    )
    cost = charge_nano(candidate.price, usage)
    yield closed("settle", cost, sent.seconds, usage)
    return Answer(request.decision, candidate, sent.result, usage, cost, sent.seconds)


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


T = TypeVar("T")


def run(flow: Generator[Step, Any, T], perform: Callable[[Step], Any]) -> T:
    """Drive a flow; ``perform`` carries a step out and returns its result."""
    try:
        step = next(flow)
        while True:
            try:
                result = perform(step)
            except BaseException as error:  # noqa: BLE001 - the flow closes its money, then raises
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def arun(flow: Generator[Step, Any, T], perform: Callable[[Step], Awaitable[Any]]) -> T:
    """As :func:`run`, for coroutines."""
    try:
        step = next(flow)
        while True:
            try:
                result = await perform(step)
            except BaseException as error:  # noqa: BLE001 - the flow closes its money, then raises
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
