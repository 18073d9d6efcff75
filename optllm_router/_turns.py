"""Whose turn it is: a request's candidates, best first, until one answers or all have failed.

One flow takes the turns. A second may take one beside it, when the first waits for an answer for
long (hedging): both share these turns, and only the first to come to an answer has it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeAlias, TypeVar

from optllm_router._bounds import BYTES_PER_TOKEN, bound_on_answer
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
from optllm_router._sending import Sending
from optllm_router._steps import (
    Close,
    NotCarriedOutError,
    Paid,
    Pause,
    Request,
    Reserve,
    Step,
    Wait,
)
from optllm_router._types import Call, Candidate
from optllm_router.ledger import Refusal, Reservation, Soft

_PATIENCE_SECONDS = 0.25
_LOOK_AROUND_SECONDS = 0.05
"""How long to wait for room at one candidate before the others are looked at again."""
_LONG_WAIT_SECONDS = 8.0
_LONGEST_TOLD_SECONDS = 60.0
"""How long a call is held by what a provider says, at most: as long as openai's client minds it."""
_TOO_DEAR = "what is left of a budget does not pay for it"
"""Without its name and amount: who reads an error may not be whom they are of interest to."""
_TOO_LATE = "time was over"

P = TypeVar("P", bound=Paid)
Answered: TypeAlias = Callable[[Sending], Generator[Any, Any, P | ProviderError]]
"""How a candidate is asked, once money is set aside for it."""


@dataclass(frozen=True)
class _Turn:
    """When a candidate is to be asked.

    Attributes:
        candidate: who.
        tries: how often it was asked before.
        not_before: on the request's clock.
        last_resort: all others failed or have no room: wait for it, and ask it even in a cooldown
            (once it wants to be asked, where it said when).
        told_another: ``not_before`` is what the provider told another call, not this one.
    """

    candidate: Candidate
    tries: int = 0
    not_before: float = -math.inf
    last_resort: bool = False
    told_another: bool = False


class Turns:
    """The turns of one request, and what became of them.

    Args:
        request: what is asked, and of whom.

    Attributes:
        are_over: whether one of the candidates has answered.
    """

    def __init__(self, request: Request) -> None:
        self.are_over = False
        self._request = request
        self._deadline = request.clock() + request.call.timeout_seconds
        names = (request.decision.candidate, *request.decision.fallbacks)
        self._waiting = deque(_Turn(request.candidates[name]) for name in names)
        self._causes: list[ProviderError] = []
        self._refusal: tuple[Reservation, Refusal] | None = None
        self._refused: list[str] = []
        self._sends = 0

    def take(self, answered: Answered[P]) -> Generator[Any, Any, P | None]:
        """Take turns until a candidate answers; ``None`` when all failed, or time is over."""
        clock = self._request.clock
        while self._waiting and not (self._causes and clock() >= self._deadline):
            turn = self._next()
            sending = self._sending(turn)
            reservation = sending.reservation
            if self._refusal and reservation.amount_nano >= self._refusal[0].amount_nano:
                self._refused.append(turn.candidate.name)
                continue
            ticket = yield from self._enter(turn)
            if isinstance(ticket, float):
                yield from self._wait_for_room(turn, ticket)
                continue
            before = clock()
            granted = yield from _reserve(reservation, ticket, self._request.patient)
            if self._request.patient:  # money that comes back late is no fault of the call's
                self._deadline += clock() - before
            if isinstance(granted, Refusal):
                self._refusal = (reservation, granted)
                self._refused.append(turn.candidate.name)
                continue
            sending.begin(self._deadline, bounded=granted is None)
            result = yield from self._ask(turn, sending, ticket, answered)
            if result is not None:
                return result
        return None

    def take_beside(self, answered: Answered[P]) -> Generator[Any, Any, P | None]:
        """Take one turn, if that candidate has room now and the money for it is there.

        Else the turn is left to :meth:`take`, whose own call may fail and give money back.
        """
        if not self._waiting:
            return None
        turn = self._waiting.popleft()
        sending = self._sending(turn)
        ticket = yield from self._enter(turn)
        if isinstance(ticket, float):
            self._waiting.appendleft(turn)
            return None
        granted = yield from _reserve(sending.reservation, ticket, patient=False)
        if isinstance(granted, Refusal):
            self._waiting.appendleft(turn)
            return None
        sending.begin(self._deadline, bounded=granted is None)
        return (yield from self._ask(turn, sending, ticket, answered))

    def failure(self) -> OptLLMError:
        """Why there is no answer: with the cause of each attempt, and who was not asked."""
        causes, left_out, attempts = self._causes, self._left_out(), len(self._request.tried)
        tried = {cause.candidate: cause for cause in causes}
        if not causes:
            if self._refusal is None:
                raise AssertionError("a decision names at least one candidate")
            return _too_dear(self._refusal[1])
        if all(isinstance(cause, ProviderRejectedError) for cause in causes):
            return self._as_the_end(causes[0], causes, left_out)
        if len(tried) == 1:
            return self._as_the_end(causes[-1], causes, left_out)
        each = "; ".join(map(str, tried.values()))
        made = f" in {attempts} attempts" if attempts > len(tried) else ""
        return AllCandidatesFailedError(
            f"all {len(tried)} candidates that were tried failed{made}: {each}{_told(left_out)}",
            causes=causes,
            left_out=left_out,
        )

    def _as_the_end(
        self, error: ProviderError, causes: Sequence[ProviderError], left_out: Mapping[str, str]
    ) -> ProviderError:
        """One attempt's error as the request's, whose kind says what to do about it."""
        if len(causes) == 1 and not left_out:
            return error
        attempts = len(self._request.tried)
        made = f"; {attempts} attempts were made" if attempts > 1 else ""
        return error.after(causes, left_out, f"{error}{made}{_told(left_out)}")

    def _left_out(self) -> dict[str, str]:
        """The candidates that were not asked, each with the reason."""
        found = dict(self._request.decision.left_out)
        found.update(dict.fromkeys(self._refused, _TOO_DEAR))
        found.update((turn.candidate.name, _TOO_LATE) for turn in self._waiting)
        told = {cause.candidate for cause in self._causes}
        return {name: reason for name, reason in found.items() if name not in told}

    def _next(self) -> _Turn:
        """The first in line; where its time is far off, whoever's comes first."""
        first = self._waiting.popleft()
        if not self._waiting or first.not_before - self._request.clock() <= _LONG_WAIT_SECONDS:
            return first
        soonest = min(self._waiting, key=lambda turn: turn.not_before)
        if soonest.not_before >= first.not_before:
            return first
        self._waiting.remove(soonest)
        self._waiting.append(first)
        return soonest

    def _sending(self, turn: _Turn) -> Sending:
        sending = Sending(self._request, turn.candidate, self._sends)
        self._sends += 1
        return sending

    def _enter(self, turn: _Turn) -> Generator[Step, Any, Ticket | float]:
        """Get a ticket for a turn, or the seconds after which there may be one."""
        early = self._early(turn)
        if early > 0:
            yield Wait(early)
        request, call = self._request, self._request.call
        bound = bound_on_answer(turn.candidate, call)
        tokens = call.prompt_bytes // BYTES_PER_TOKEN + bound * call.choices
        return request.gates[turn.candidate.name].enter(tokens, last_resort=turn.last_resort)

    def _early(self, turn: _Turn) -> float:
        """How long to wait before a turn; 0 or less for not at all.

        Many calls may wait for the moment that a provider told another one: each comes a little
        later than that, by a jitter of its own. A call that would wait for more than a minute asks
        at once. It may be answered, as what another call was told need not hold any more, nor for
        this one; and if it is refused, that is free, and its caller learns in a moment when to
        come again, instead of hanging for minutes that may end in the same.
        """
        request = self._request
        early = turn.not_before - request.clock()
        if early <= 0 or not turn.told_another:
            return early
        if early > self._longest_told():
            return 0.0
        late = request.retries.spread(early)
        return late if request.clock() + late < self._deadline else early

    def _longest_told(self) -> float:
        """For how many seconds what a provider says may hold the call; a plan's has the time."""
        return math.inf if self._request.patient else _LONGEST_TOLD_SECONDS

    def _wait_for_room(self, turn: _Turn, seconds: float) -> Generator[Step, Any, None]:
        request = self._request
        if not turn.last_resort:
            self._waiting.append(self._politely(replace(turn, last_resort=True)))
        elif request.clock() + seconds >= self._deadline:
            self._causes.append(_no_room(turn.candidate, request.call))
        else:
            yield Wait(min(seconds, _LOOK_AROUND_SECONDS) if self._waiting else seconds)
            self._waiting.append(turn)

    def _politely(self, turn: _Turn) -> _Turn:
        """A turn of a candidate that rests: once it wants to be asked, where there is time for it.

        A call that tries again waits as long as the provider told it; what the provider told
        another call, it waits for once. Where the time is too short, or the call wants no waiting,
        the candidate is asked at once: what it said then need not hold any more.
        """
        request = self._request
        moment = request.clock() + request.gates[turn.candidate.name].wish()
        if request.max_retries == 0 or moment >= self._deadline:
            return turn
        return replace(turn, not_before=moment, told_another=True)

    def _ask(
        self, turn: _Turn, sending: Sending, ticket: Ticket, answered: Answered[P]
    ) -> Generator[Any, Any, P | None]:
        name = turn.candidate.name
        self._request.tried.append(name)
        if name != sending.decision.candidate:
            sending.decision = sending.decision.turned_to(name, self._detour(name))
        try:
            result = yield from _ticketed(answered(sending), sending, ticket)
        except ProviderError as error:  # a stream that had begun to answer: this is its end
            if not self._causes:
                raise
            causes = [*self._causes, error.with_traceback(None)]
            raise self._as_the_end(error, causes, {}) from error.__cause__
        if not isinstance(result, ProviderError):
            return result
        self._causes.append(result)
        self._schedule_retry(turn, result)
        return None

    def _detour(self, name: str) -> str:
        """What became of those who were to be asked before a candidate."""
        decision = self._request.decision
        names = (decision.candidate, *decision.fallbacks)
        before = names[: names.index(name)]
        return ", ".join(f"{one!r} {self._fate(one)}" for one in before)

    def _fate(self, name: str) -> str:
        if name not in self._request.tried:
            return "is too dear for a budget" if name in self._refused else "had no room"
        failed = any(cause.candidate == name for cause in self._causes)
        return "failed" if failed else "was slow"

    def _schedule_retry(self, turn: _Turn, error: ProviderError) -> None:
        """Give a candidate another turn after a fault that cost nothing, if there is time for it.

        It is the next one, unless the provider wants to be left alone for long: then others are
        asked first. What is to be held for more than a minute ends with its error instead, which
        says when to come again.
        """
        request = self._request
        wait = request.retries.wait(error, turn.tries + 1, request.max_retries)
        if wait is None or wait > self._longest_told() or request.clock() + wait >= self._deadline:
            return
        moment = request.clock() + wait
        again = replace(turn, tries=turn.tries + 1, not_before=moment, told_another=False)
        if wait > _LONG_WAIT_SECONDS:
            self._waiting.append(again)
        else:
            self._waiting.appendleft(again)


def _ticketed(
    answer: Generator[Any, Any, P | ProviderError], sending: Sending, ticket: Ticket
) -> Generator[Any, Any, P | ProviderError]:
    try:
        result = yield from answer
    except NotCarriedOutError:
        ticket.withdraw()
        raise
    except BaseException as error:
        ticket.leave(error)
        raise
    if isinstance(result, ProviderError):
        ticket.leave(result, own_limit=sending.met_own_limit)
    else:
        ticket.leave(None, result.usage.prompt_tokens + result.usage.completion_tokens)
    return result


def _reserve(
    reservation: Reservation, ticket: Ticket, patient: bool
) -> Generator[Step, Any, Refusal | Soft | None]:
    """Set money aside for who has a ticket; gives that back where there is none."""
    try:
        granted = yield from _reserve_patiently(reservation, patient)
    except BaseException:
        ticket.withdraw()
        raise
    if isinstance(granted, Refusal):
        ticket.withdraw()
    return granted


def _reserve_patiently(
    reservation: Reservation, patient: bool
) -> Generator[Step, Any, Refusal | Soft | None]:
    while True:
        try:
            granted: Refusal | Soft | None = yield Reserve(reservation)
        except BaseException:
            # The write may be under way: writes are done in order, so this one comes after it.
            yield Close(reservation.id, "release")
            raise
        if not patient or not isinstance(granted, Refusal):
            return granted
        if granted.needed_nano > granted.left_nano + granted.reserved_nano:
            return granted
        yield Pause(_PATIENCE_SECONDS)


def _no_room(candidate: Candidate, call: Call) -> ProviderRateLimitedError:
    return ProviderRateLimitedError(
        f"model {candidate.name!r} was not asked: its limits leave no room for this call within "
        f"{call.timeout_seconds:g} s; raise them, or the timeout",
        candidate=candidate.name,
    )


def _told(left_out: Mapping[str, str]) -> str:
    """Who was not asked, as the end of a sentence."""
    each = ", ".join(f"{name!r} ({reason})" for name, reason in left_out.items())
    return f"; not asked: {each}" if each else ""


def _too_dear(refused: Refusal) -> BudgetExceededError:
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
