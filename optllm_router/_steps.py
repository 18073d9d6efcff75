"""What a request's flow asks for, step by step, and what it ends with; see :mod:`._flow`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from optllm_router._health import Gate
from optllm_router._retries import Retries
from optllm_router._types import Call, Candidate, Chunk, Completion, Decision, Outcome, Usage
from optllm_router.ledger import Reservation

Chunks: TypeAlias = Iterator[Chunk] | AsyncIterator[Chunk]
"""A provider's stream; a flow only hands it back to those who opened it."""


@dataclass(frozen=True)
class Reserve:
    """Set money aside; the result is a refusal, ``Soft``, or ``None``: a hard budget applies."""

    reservation: Reservation


@dataclass(frozen=True)
class Send:
    """Ask a candidate; the result is a completion or a ``ProviderError``."""

    candidate: Candidate
    call: Call


@dataclass(frozen=True)
class Open:
    """Ask a candidate for a stream; the result is :class:`Opened` or a ``ProviderError``."""

    candidate: Candidate
    call: Call


@dataclass(frozen=True)
class Opened:
    """A stream whose first chunk is there.

    Attributes:
        first: the first chunk.
        rest: the others, as they come.
    """

    first: Chunk
    rest: Chunks


@dataclass(frozen=True)
class Receive:
    """Wait for a chunk; the result is the chunk, a ``ProviderError``, or ``None`` at the end."""

    rest: Chunks


@dataclass(frozen=True)
class HangUp:
    """Close a provider's stream before its end."""

    rest: Chunks


@dataclass(frozen=True)
class Count:
    """Count the tokens of a prompt and of what was answered; the result is an estimated usage."""

    candidate: Candidate
    call: Call
    answered: str


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


@dataclass(frozen=True)
class Wait:
    """Let time pass: a candidate asked to be left alone, or has no room."""

    seconds: float


@dataclass(frozen=True)
class Race:
    """Carry out a flow, and another beside it if the first takes long.

    Only one of them is advanced at any time. The result is the first result that is not ``None``;
    the slower flow is then cancelled, or abandoned at its next step where it cannot be.

    Attributes:
        first: to carry out.
        second: to carry out when the first has not ended after some time.
        after_seconds: that time.
    """

    first: Generator[Step, Any, Answer | None]
    second: Generator[Step, Any, Answer | None]
    after_seconds: float


Step: TypeAlias = Reserve | Send | Open | Receive | HangUp | Count | Close | Pause | Wait | Race


@dataclass(frozen=True)
class Hand:
    """Not a step to carry out: a chunk for the reader, who may leave the flow here.

    Attributes:
        candidate: who answers.
        chunk: the next piece of the answer.
        decision: the request's, as this candidate carries it out.
    """

    candidate: Candidate
    chunk: Chunk
    decision: Decision


class AbandonedError(Exception):
    """Thrown into a flow whose reader reads no further; the flow settles, and raises it again."""


class NotCarriedOutError(AbandonedError):
    """The same, thrown in the place of a step that was not carried out: nothing was sent."""


@dataclass(frozen=True)
class Paid:
    """What an answer took.

    Attributes:
        decision: the request's, as who answered carried it out: see ``Decision.turned_to``.
        candidate: who answered.
        tried: the names of those who were asked until then, one per attempt.
        usage: tokens, of the provider's counting or estimated.
        cost_nano: what was settled, in nano-dollars.
        latency_seconds: from sending to the whole answer.
        first_token_seconds: from sending to the first token, of a stream.
    """

    decision: Decision
    candidate: Candidate
    tried: tuple[str, ...]
    usage: Usage
    cost_nano: int
    latency_seconds: float
    first_token_seconds: float | None


@dataclass(frozen=True)
class Answer(Paid):
    """A completion with what it took to get it."""

    completion: Completion


@dataclass(frozen=True)
class Request:
    """What a flow needs to know.

    Attributes:
        decision: who is to answer.
        call: what to ask.
        candidates: every candidate by name.
        gates: by the same names, whether each may be asked now.
        scopes: what the call belongs to; every budget on one of these or on everything pays.
        patient: wait when money that other calls have set aside may come back, instead of
            turning to a cheaper candidate. For planned batches.
        likely_nano: what soft budgets set aside, by candidate; those that are missing set aside
            the most that the call can cost.
        max_retries: how often a candidate is asked again after a fault that cost nothing.
        retries: after how long.
        hedge_after_seconds: without an answer, after which the next candidate is asked, too;
            ``None`` for never.
        clock: seconds, from any start, that never go back.
        tried: the names of those whom its flow has asked so far, one per attempt; the flow adds
            to them.
    """

    decision: Decision
    call: Call
    candidates: Mapping[str, Candidate]
    gates: Mapping[str, Gate]
    scopes: tuple[str, ...]
    patient: bool = False
    likely_nano: Mapping[str, int] = field(default_factory=dict)
    max_retries: int = 0
    retries: Retries = field(default_factory=Retries)
    hedge_after_seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    tried: list[str] = field(default_factory=list)
