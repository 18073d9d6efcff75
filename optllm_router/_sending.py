"""One send of a request: what is set aside for it, what it delivers, how it is closed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

from optllm_router._bounds import bound_on_answer
from optllm_router._errors import ProviderError
from optllm_router._money import MAX_NANO
from optllm_router._steps import Attempt, Close, NotCarriedOutError, Paid, Request
from optllm_router._types import Call, Candidate, Chunk, Outcome, Usage
from optllm_router.ledger import Reservation
from optllm_router.pricing import charge_nano, worst_usage
from optllm_router.transports import reasoning_in, texts_in

_log = logging.getLogger("optllm_router")

_GRACE_SECONDS = 120.0
"""How much longer than its time limit a call's reservation is held for a living process."""
_INSTANT = 0.001
_NOTICE_SECONDS = 1.0
"""Until a provider is taken to have noticed that the reader of a stream has gone."""


class Sending:
    """One send to one candidate: its reservation, and the ways to close it.

    Args:
        request: what is asked.
        candidate: who is asked.
        number: of sends before this one.

    Attributes:
        decision: the request's, as this candidate carries it out.
        first_token_seconds: from sending to the first token, once a stream has come to it.
        handed: whether a chunk of it was handed on.
    """

    def __init__(self, request: Request, candidate: Candidate, number: int) -> None:
        self.decision = request.decision
        self.candidate = candidate
        self.call = request.call
        self.number = number
        self.reservation = _reservation(request, candidate, number)
        self.first_token_seconds: float | None = None
        self.handed = False
        self._tried = request.tried
        self._clock = request.clock
        self._sent_at = 0.0
        self._own_limit: float | None = None

    def begin(self, deadline: float, *, bounded: bool) -> None:
        """Start the watch.

        Args:
            deadline: until when there is time for the answer.
            bounded: whether the answer must have a bound.
        """
        self._sent_at = self._clock()
        left = max(deadline - self._sent_at, _INSTANT)
        streamed, to = "streaming" in self.call.needs, self.candidate
        own = to.first_token_seconds if streamed else to.timeout_seconds
        self._own_limit = own
        bound = bound_on_answer(to, self.call) if bounded else self.call.max_output_tokens
        self.call = replace(
            self.call,
            max_output_tokens=bound,
            timeout_seconds=left if own is None or streamed else min(left, own),
            first_token_seconds=own if streamed else None,
        )

    @property
    def seconds(self) -> float:
        """Since sending."""
        return self._clock() - self._sent_at

    @property
    def met_own_limit(self) -> bool:
        """Whether it has taken as long as its candidate may, whatever time the call has."""
        own, began = self._own_limit, self.first_token_seconds is not None
        return own is not None and not began and self.seconds >= own

    def delivered_share(self, tape: Tape) -> float:
        """The part of what was made that its reader, who leaves now, was handed: 0..1.

        A model goes on while its reader does something else, and until it hears that nobody
        listens any more: as fast as its tokens came while they were waited for. 0 is unknown.
        """
        if tape.is_whole:
            return 1.0
        if self.first_token_seconds is None:
            return 0.0
        making = self.seconds - self.first_token_seconds + _NOTICE_SECONDS
        return tape.waited_seconds / making

    @property
    def most(self) -> Usage:
        """The most that it can consume."""
        return _most(self.candidate, self.call, self.call.max_output_tokens)

    def paid(self, usage: Usage) -> Paid:
        """What it took, now that its usage is known.

        A usage whose cost no ledger can hold is not believed: then it took all that it can have.
        """
        cost = charge_nano(self.candidate.price, usage)
        if not 0 <= cost <= MAX_NANO:
            _log.error("model %r was settled in full: it counted %s", self.candidate.name, usage)
            usage = self.most
            cost = charge_nano(self.candidate.price, usage)
        most = (self.call.max_output_tokens or 0) * self.call.choices  # 0 for embeddings, too
        if most and usage.completion_tokens >= most and not usage.estimated:
            usage = replace(usage, cut=True)
        return Paid(
            decision=self.decision,
            candidate=self.candidate,
            tried=tuple(self._tried),
            usage=usage,
            cost_nano=cost,
            latency_seconds=self.seconds,
            first_token_seconds=self.first_token_seconds,
        )

    def settled(self, paid: Paid, error: BaseException | None = None) -> Close:
        """Close at the price of what was consumed."""
        return self._closed("settle", paid.cost_nano, paid.latency_seconds, paid.usage, error)

    def failed(self, error: BaseException) -> Close:
        """Close at all that was set aside, or at nothing when it surely cost nothing."""
        if isinstance(error, NotCarriedOutError):
            return Close(self.reservation.id, "release")
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


class Tape:
    """What a stream has delivered.

    Args:
        choices: how many answers it has.

    Attributes:
        answers: True from the first token on: from here on there is no way back.
        thinks_aloud: whether there was reasoning in it.
        waited_seconds: for chunks, from the first token on.
        usage: what the provider counted, once it has said so; ``None`` again when more of the
            answer came after that, of which it said nothing.
    """

    def __init__(self, choices: int) -> None:
        self.answers = False
        self.thinks_aloud = False
        self.waited_seconds = 0.0
        self.usage: Usage | None = None
        self._choices = choices
        self._finished: set[Any] = set()
        self._pieces: list[str] = []

    @property
    def is_whole(self) -> bool:
        """Whether every choice has come to its end."""
        return len(self._finished) >= self._choices

    @property
    def text(self) -> str:
        """All that was generated: content, reasoning, tool calls."""
        return "".join(self._pieces)

    def record(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        self.usage = chunk.usage or self.usage
        for choice in chunk.body.get("choices") or ():
            delta = choice.get("delta") or {}
            pieces = list(texts_in(delta))
            self._pieces += pieces
            self.thinks_aloud = self.thinks_aloud or bool(reasoning_in(delta))
            if pieces:
                self.usage = chunk.usage
            if choice.get("finish_reason"):
                self._finished.add(choice.get("index", 0))
            if pieces or choice.get("finish_reason"):
                self.answers = True


def _reservation(request: Request, candidate: Candidate, attempt: int) -> Reservation:
    call = request.call
    most = charge_nano(candidate.price, _most(candidate, call, bound_on_answer(candidate, call)))
    likely = request.likely_nano.get(candidate.name)
    return Reservation(
        id=f"{request.decision.id}-{attempt}",
        decision_id=request.decision.id,
        candidate=candidate.name,
        amount_nano=most,
        scopes=request.scopes,
        price_source=candidate.price.source,
        lease_seconds=call.timeout_seconds + _GRACE_SECONDS,
        soft_nano=None if likely is None else min(likely, most),
    )


def _most(candidate: Candidate, call: Call, bound: int | None) -> Usage:
    return worst_usage(
        candidate,
        call.most_prompt_tokens,
        bound,
        call.choices,
        audio_tokens=call.most_audio_tokens,
    )
