"""The steps of a request's flow, carried out: money, sends, waits and records.

Sync and async drivers do the same here; they only differ in who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optllm_router._errors import ProviderError, ProviderResponseError, StoreError
from optllm_router._racing import arace, race
from optllm_router._steps import (
    Close,
    Count,
    HangUp,
    Open,
    Opened,
    Pause,
    Race,
    Receive,
    Reserve,
    Send,
    Step,
    Wait,
)
from optllm_router._types import Candidate, Chunk
from optllm_router.transports import count_usage

if TYPE_CHECKING:
    from optllm_router.ledger import Ledger
    from optllm_router.router import Router
    from optllm_router.store import Records
    from optllm_router.transports import TracedTransport

T = TypeVar("T")

_log = logging.getLogger("optllm_router")

_RECOVERY_SECONDS = 1.0
"""Calls that wait for money look at most this often for what dead processes reserved."""
_MOST_HANGING_UP_SECONDS = 2.0
"""How long a client that closes waits for event loops to close its streams."""


class Performer:
    """Carries out the steps of all flows of one client; thread-safe.

    Args:
        ledger: where money is set aside and settled.
        records: where outcomes are kept.
        transport: to the providers.
        router: learns what calls consume.
        start: begins work on another thread, which the client waits for when it is closed.
    """

    def __init__(
        self,
        ledger: Ledger,
        records: Records,
        transport: TracedTransport,
        router: Router,
        start: Callable[[Callable[[], None]], None],
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._transport = transport
        self._router = router
        self._start = start
        self._hanging_up: set[Future[None]] = set()
        self._next_recovery = 0.0
        self._recovery_lock = threading.Lock()

    def close(self) -> None:
        """Wait, for a moment, until event loops have closed their streams."""
        wait(list(self._hanging_up), _MOST_HANGING_UP_SECONDS)

    def perform(self, text: str, step: Step, context: Context | None = None) -> Any:
        """Carry out a step; returns what the flow is to receive.

        Args:
            text: of the query, to learn what its answer consumed.
            step: what is to be done.
            context: where streams are opened: that of their request, whoever reads on.
        """
        match step:
            case Receive(rest):
                return _next(cast(Iterator[Chunk], rest))
            case Reserve(reservation):
                return self._ledger.reserve(reservation).result()
            case Send(candidate, call):
                try:
                    return self._transport.send(candidate, call)
                except ProviderError as error:
                    return _without_frames(error)
            case Open(candidate, call):
                chunks = (context or copy_context()).run(self._transport.stream, candidate, call)
                return _opened(candidate, _next(chunks), chunks)
            case Close():
                with _paid_answers_survive(step):
                    for write in self._close(text, step):
                        write.result()
            case Pause(seconds):
                if self._recovery_is_due():
                    self._ledger.recover()
                time.sleep(seconds)
            case Wait(seconds):
                time.sleep(seconds)
            case Race():
                return race(step, partial(self.perform, text), self._start)
            case _:
                return self.settle(text, step)

    async def aperform(self, text: str, step: Step, context: Context | None = None) -> Any:
        """As :meth:`perform`, without blocking the event loop."""
        match step:
            case Receive(rest):
                return await _anext(cast(AsyncIterator[Chunk], rest))
            case Reserve(reservation):
                return await _done(self._ledger.reserve(reservation))
            case Send(candidate, call):
                try:
                    return await self._transport.asend(candidate, call)
                except ProviderError as error:
                    return _without_frames(error)
            case Open(candidate, call):
                chunks = (context or copy_context()).run(self._transport.astream, candidate, call)
                return _opened(candidate, await _anext(chunks), chunks)
            case HangUp(rest):
                await _aclose(rest)
            case Count(candidate, call, answered):
                return await asyncio.to_thread(count_usage, candidate, call, answered)
            case Close():
                with _paid_answers_survive(step):
                    for write in self._close(text, step):
                        await _done(write)
            case Pause(seconds):
                if self._recovery_is_due():
                    await asyncio.to_thread(self._ledger.recover)
                await asyncio.sleep(seconds)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Race():
                perform, settle = partial(self.aperform, text), partial(self.settle, text)
                return await arace(step, perform, settle)

    def settle(self, text: str, step: Step, loop: asyncio.AbstractEventLoop | None = None) -> Any:
        """Carry out a last step of a stream, from any thread, waiting for nothing."""
        match step:
            case HangUp(rest):
                if isinstance(rest, Generator):
                    with _whatever_closing_raises():
                        rest.close()
                elif loop is not None and loop.is_running():
                    # Left to the collector, the generators inside of it would be closed, too,
                    # each in a task of its own, and all at once.
                    closed = asyncio.run_coroutine_threadsafe(_aclose(rest), loop)
                    self._hanging_up.add(closed)
                    closed.add_done_callback(self._hanging_up.discard)
            case Count(candidate, call, answered):
                return count_usage(candidate, call, answered)
            case Close():
                for write in self._close(text, step):
                    write.add_done_callback(partial(_log_if_open, step))
            case _:
                raise AssertionError(f"{type(step).__name__} is no last step")

    def _recovery_is_due(self) -> bool:
        with self._recovery_lock:
            now = time.monotonic()
            due = now >= self._next_recovery
            if due:
                self._next_recovery = now + _RECOVERY_SECONDS
            return due

    def _close(self, text: str, step: Close) -> list[Future[Any]]:
        """Submit all writes at once: they share a commit."""
        writes: list[Future[Any]] = []
        if step.how == "release":
            writes.append(self._ledger.release(step.reservation_id))
        elif step.how == "settle_in_full":
            writes.append(self._ledger.settle_in_full(step.reservation_id))
        else:
            settled = self._ledger.settle(
                step.reservation_id, step.cost_nano, estimated=step.estimated
            )
            writes.append(settled)
        if step.attempt is not None:
            outcome, size = step.attempt.outcome, step.attempt.prompt_bytes
            choices = step.attempt.choices
            kept = self._records.add_outcome(
                outcome, attempt=step.attempt.number, prompt_bytes=size, choices=choices
            )
            kept.add_done_callback(partial(log_if_lost, outcome.decision_id))
            learnt = outcome.candidate in self._router.names  # those for embeddings are not
            if learnt and outcome.usage is not None and not outcome.usage.estimated:
                usage = outcome.usage.per_choice(choices)
                self._router.observe(text, outcome.candidate, size, usage)
        return writes


def log_if_lost(decision_id: str, kept: Future[None]) -> None:
    error = kept.exception()
    if error is not None:
        _log.error("decision %s could not be recorded: %s", decision_id, error)


def _log_if_open(step: Close, done: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        _log.error(
            "reservation %s stays open: it could not be closed (%s)", step.reservation_id, error
        )


@contextlib.contextmanager
def _paid_answers_survive(step: Close) -> Iterator[None]:
    """An answer is not withheld because its cost cannot be recorded; it stays reserved in full."""
    try:
        yield
    except StoreError as error:
        if step.how != "settle":
            raise
        _log.error(
            "reservation %s stays open: its cost of %d nano-dollars could not be recorded (%s)",
            step.reservation_id,
            step.cost_nano,
            error,
        )


@contextlib.contextmanager
def _whatever_closing_raises() -> Iterator[None]:
    """Who leaves a stream is not told how its provider took it; what it made is settled anyway."""
    try:
        yield
    except ProviderError:
        pass  # it ended by itself
    except Exception as error:  # noqa: BLE001 - the flow goes on to settle its money
        _log.warning("a provider's stream failed at being closed: %r", error)


def _next(chunks: Iterator[Chunk]) -> Chunk | ProviderError | None:
    try:
        return next(chunks, None)
    except ProviderError as error:
        return _without_frames(error)


async def _aclose(chunks: Iterator[Chunk] | AsyncIterator[Chunk]) -> None:
    with _whatever_closing_raises():
        await cast(AsyncGenerator[Chunk, None], chunks).aclose()


async def _anext(chunks: AsyncIterator[Chunk]) -> Chunk | ProviderError | None:
    try:
        return await anext(chunks, None)
    except ProviderError as error:
        return _without_frames(error)


def _without_frames(error: ProviderError) -> ProviderError:
    """The error without where it was raised and in handling what.

    A flow keeps it while it goes on elsewhere. Those frames know the stream's reader, who would
    never be seen to let go of the stream.
    """
    error.__context__ = None
    return error.with_traceback(None)


def _opened(
    candidate: Candidate,
    first: Chunk | ProviderError | None,
    chunks: Iterator[Chunk] | AsyncIterator[Chunk],
) -> Opened | ProviderError:
    if first is None:
        return ProviderResponseError(
            f"model {candidate.name!r} sent a stream without a chunk; check its api_base",
            candidate=candidate.name,
        )
    return first if isinstance(first, ProviderError) else Opened(first, chunks)


async def _done(future: Future[T]) -> T:
    if future.done():
        return future.result()
    return await asyncio.shield(asyncio.wrap_future(future))
