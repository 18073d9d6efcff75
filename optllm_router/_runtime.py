"""What a client is made of: the rooms wired together, and the drivers of a request's flow.

Sync and async clients share this; they only differ in who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optllm_router._batching import Batcher
from optllm_router._conversations import Conversations, Partner
from optllm_router._errors import (
    InvalidRequestError,
    OptLLMError,
    ProviderError,
    ProviderResponseError,
    StoreError,
)
from optllm_router._flow import arun, request_flow, run, stream_flow
from optllm_router._health import Gate
from optllm_router._money import Budget, usd_from_nano
from optllm_router._racing import arace, race
from optllm_router._steps import (
    Answer,
    Close,
    Count,
    HangUp,
    Open,
    Opened,
    Paid,
    Pause,
    Race,
    Receive,
    Request,
    Reserve,
    Send,
    Step,
    Wait,
)
from optllm_router._streams import AnswerStream, AsyncAnswerStream, Life, Sweeper
from optllm_router._types import (
    Candidate,
    Chunk,
    Decision,
    Message,
    Transport,
    Usage,
)
from optllm_router.config import Settings
from optllm_router.ledger import LeasingLedger
from optllm_router.policy import Policy
from optllm_router.router import Query, Router
from optllm_router.scores import Scores
from optllm_router.store import Database, LabelledAnswer, Records
from optllm_router.traffic import Means, Pot
from optllm_router.transports import (
    TracedTransport,
    all_transports,
    count_usage,
    keys_in_sight,
)

if TYPE_CHECKING:
    from optllm_router.receipts import Moment, Receipt

T = TypeVar("T")

_log = logging.getLogger("optllm_router")

_REMEMBERED_USAGES = 5_000
_REMEMBERED_LABELS = 100_000
_REMEMBERED_SECONDS = 28 * 86_400.0
_RECOVERY_SECONDS = 1.0
"""Calls that wait for money look at most this often for what dead processes reserved."""
_MOST_HANGING_UP_SECONDS = 2.0
"""How long a client that closes waits for event loops to close its streams."""


@dataclass(frozen=True)
class _Undecided:
    query: Query
    policy: Policy | None

    @property
    def company(self) -> tuple[int, tuple[str, ...]]:
        """Equal for those that are decided together: by one policy, with the same money."""
        return id(self.policy), self.query.scopes


class Runtime:
    """Decides, pays, sends and learns for one client; thread-safe."""

    def __init__(self, settings: Settings, transport: Transport | None = None) -> None:
        self.settings = settings
        self.candidates = {candidate.name: candidate for candidate in settings.candidates}
        self._owns_transport = transport is None
        self._transport = TracedTransport(transport or all_transports(settings.cache))
        self._gates = {name: Gate(one.limits) for name, one in self.candidates.items()}
        self._checked = False
        self._check_lock = threading.Lock()
        if transport is None and not keys_in_sight(settings.candidates):
            self.check()  # before the store is opened: a missing key leaves nothing behind
        self.router = Router(
            [candidate for candidate in settings.candidates if candidate.operation == "chat"],
            settings.policy,
            predictor=settings.predictor,
            expected_queries=settings.expected_queries,
            explore=settings.explore,
            seed=settings.seed,
        )
        self._database = Database(settings.store)
        self.ledger = LeasingLedger(self._database, on_threshold=settings.on_threshold)
        self._records = Records(self._database)
        self.scores = Scores(self._records, self._learn)
        self._conversations = Conversations()
        try:
            for budget in settings.budgets:
                self.ledger.set_budget(budget)
            self.ledger.recover()
            self._remember()
        except OptLLMError:
            self._database.close()
            raise
        self._requests = 0
        self._streams: set[Life] = set()
        self._hanging_up: set[Future[None]] = set()
        self._sweeper = Sweeper()
        self._closing = False
        self._idle = threading.Condition()
        self._next_recovery = 0.0
        self._recovery_lock = threading.Lock()
        self._batcher = Batcher(self._decide, window_seconds=settings.batch_window_ms / 1000)

    def close(self) -> None:
        """Finish the requests under way, refuse others, close the database. May be called twice.

        Streams are ended and settled where they are; one whose reader is waiting for a chunk in
        another thread or task, after that chunk. Their readers are told.
        """
        with self._idle:
            self._closing = True
            streams = list(self._streams)
        for life in streams:
            life.end(_closed())
        with self._idle:
            self._idle.wait_for(lambda: self._requests == 0 and not self._streams)
        self._sweeper.close()
        wait(list(self._hanging_up), _MOST_HANGING_UP_SECONDS)
        self._batcher.close()
        try:
            self.router.wait()
        except Exception:  # noqa: BLE001 - a failed refit must not keep the database open
            _log.warning("the last refit failed, as logged; nothing that was recorded is lost")
        try:
            self.ledger.close()
        finally:
            self._database.close()
            if self._owns_transport:
                self._transport.close()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """A request, from its decision to its answer: :meth:`close` waits for it.

        Raises:
            InvalidRequestError: the client was closed.
        """
        with self._idle:
            if self._closing:
                raise _closed()
            self._requests += 1
        try:
            yield
        finally:
            with self._idle:
                self._requests -= 1
                self._idle.notify_all()

    def _start(self, work: Callable[[], None]) -> None:
        """Begin a part of a request on a thread of its own: :meth:`close` waits for it, too."""
        with self._idle:
            self._requests += 1

        def counted() -> None:
            try:
                work()
            finally:
                with self._idle:
                    self._requests -= 1
                    self._idle.notify_all()

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(counted,), name="optllm-hedge").start()

    def check(self) -> None:
        """Find out, once and before anything is sent, whether all candidates can be called."""
        with self._check_lock:
            if not self._checked:
                self._transport.check(self.settings.candidates)
                self._checked = True

    async def acheck(self) -> None:
        """As :meth:`check`; the first time it loads the transport in a thread."""
        if not self._checked:
            await asyncio.to_thread(self.check)

    def decide(
        self, query: Query, model: str, policy: Policy | None, *, wake: bool = True
    ) -> Future[Decision]:
        """Decide, together with what else is waiting; a named model is pinned.

        Args:
            query: what is asked.
            model: a candidate's name, or ``auto``.
            policy: instead of the client's own.
            wake: as for :meth:`Batcher.submit`.

        Raises:
            StoreError: this process is a forked copy.
        """
        self._database.check_process()
        if model == "auto":
            self.router.check(query)  # here, as an error in a batch goes to all who are in it
            partner = self._conversations.partner(
                query.call.messages, query.conversation, query.scopes
            )
            undecided = _Undecided(replace(query, partner=partner), policy)
            return self._batcher.submit(undecided, line=query.scopes, wake=wake)
        done: Future[Decision] = Future()
        done.set_result(self.router.pin(query, model))
        return done

    async def adecide(self, query: Query, model: str, policy: Policy | None) -> Decision:
        """As :meth:`decide`: here if it is done in no time, else without blocking the event loop.

        Those that ask in the same round of the event loop are decided together.
        """
        wake = not self.ledger.can_glance(query.scopes)
        deciding = self.decide(query, model, policy, wake=wake)
        try:
            if not (wake or deciding.done()):
                await asyncio.sleep(0)
                self._batcher.help()
        except asyncio.CancelledError:
            deciding.cancel()
            raise
        return deciding.result() if deciding.done() else await asyncio.wrap_future(deciding)

    def means(self, scopes: tuple[str, ...] = ()) -> Means:
        """What there is to spend now on calls of these scopes."""
        pots = tuple(
            Pot(
                left_usd=usd_from_nano(balance.left_nano),
                start=balance.window_start,
                end=None if balance.rolling else balance.next_window,
                seen=balance.calls,
                paced=balance.pace,
                name=balance.budget,
            )
            for balance in self.ledger.glance(scopes)
        )
        return Means(pots, time.time())

    def answer(
        self, decision: Decision, query: Query, *, patient: bool = False, cap: Budget | None = None
    ) -> Answer:
        """Carry a decision out.

        Args:
            decision: who is to answer.
            query: what was asked.
            patient: as that of a request's flow.
            cap: a budget in the ledger that must have room, too: the call is of its scope.
        """
        flow = request_flow(self._request(decision, query, patient, cap))
        answer = run(flow, partial(self._perform, query.text))
        self._remember_partner(query, answer, _messages_of(answer))
        return answer

    async def aanswer(
        self, decision: Decision, query: Query, *, patient: bool = False, cap: Budget | None = None
    ) -> Answer:
        """As :meth:`answer`, without blocking the event loop."""
        flow = request_flow(self._request(decision, query, patient, cap))
        perform, settle = partial(self._aperform, query.text), partial(self._settle, query.text)
        answer = await arun(flow, perform, settle)
        self._remember_partner(query, answer, _messages_of(answer))
        return answer

    def stream(self, decision: Decision, query: Query) -> AnswerStream:
        """Carry a decision out, handing the answer on as it comes.

        Returns once the first chunk is there. A fault before the first token turns to the next
        candidate, whether or not a chunk without one was handed on; a later fault is raised
        to the reader.
        """
        life = self._life(decision, query)
        return AnswerStream(life, partial(self._perform, query.text), self._sweeper).open()

    async def astream(self, decision: Decision, query: Query) -> AsyncAnswerStream:
        """As :meth:`stream`, without blocking the event loop."""
        life = self._life(decision, query, asyncio.get_running_loop())
        stream = AsyncAnswerStream(life, partial(self._aperform, query.text), self._sweeper)
        return await stream.open()

    def keep_score(
        self, decision_id: str, score: float, scopes: Sequence[str] = ()
    ) -> Future[LabelledAnswer]:
        """Store how good an answer was; hand the result to ``scores.learn``.

        The answer must belong to all of ``scopes``.
        """
        return self._records.add_feedback(decision_id, score, scopes)

    def _learn(self, answer: LabelledAnswer) -> None:
        """Learn from a score; one of a model that is no longer a candidate teaches nothing."""
        if answer.candidate in self.router.names:
            self.router.learn(
                answer.query, answer.candidate, answer.score, replaces=answer.replaces
            )

    def receipt(self, *, since: Moment, until: Moment, baseline: str | None) -> Receipt:
        """What the store says was spent; see :func:`optllm_router.receipts.make_receipt`."""
        from optllm_router.receipts import make_receipt  # loads the predictors

        return make_receipt(
            self._database,
            since=since,
            until=until,
            baseline=baseline,
            candidates=self.settings.candidates,
        )

    def _remember_partner(self, query: Query, paid: Paid, messages: Sequence[Message]) -> None:
        if query.call.operation == "chat":
            partner = Partner(paid.candidate.name, paid.usage.prompt_tokens, time.time())
            self._conversations.answered(
                query.call.messages, messages, partner, query.conversation, query.scopes
            )

    def _remember(self) -> None:
        self.router.remember_arrivals(self._records.arrivals(time.time() - _REMEMBERED_SECONDS))
        self.router.observe_many(
            (one.query, one.candidate, one.prompt_bytes, _per_choice(one.usage, one.choices))
            for one in self._records.usages(_REMEMBERED_USAGES)
            if one.candidate in self.router.names
        )
        labelled = self._records.labelled(_REMEMBERED_LABELS)
        self.scores.remember(labelled)
        self.router.learn_many(
            (one.query, one.candidate, one.score)
            for one in labelled
            if one.candidate in self.router.names
        )

    def _decide(self, waiting: Sequence[_Undecided]) -> list[Decision]:
        decisions: dict[int, Decision] = {}
        for company in dict.fromkeys(one.company for one in waiting):
            chosen = [i for i, one in enumerate(waiting) if one.company == company]
            first, queries = waiting[chosen[0]], [waiting[i].query for i in chosen]
            part = self.means(first.query.scopes).part(len(chosen) / len(waiting))
            decided = self.router.decide(queries, part, first.policy)
            decisions.update(zip(chosen, decided, strict=True))
        return [decisions[i] for i in range(len(waiting))]

    def _life(
        self, decision: Decision, query: Query, loop: asyncio.AbstractEventLoop | None = None
    ) -> Life:
        """The life of a stream; ``loop`` is that of an asynchronous one."""
        flow = stream_flow(self._request(decision, query))
        settle = partial(self._settle, query.text, loop=loop)
        life = Life(decision, flow, settle, partial(self._ended, query))
        with self._idle:
            self._streams.add(life)
            if self._closing:
                life.doom(_closed())
        return life

    def _ended(self, query: Query, life: Life) -> None:
        if life.paid is not None:
            self._remember_partner(query, life.paid, life.transcript.messages)
        with self._idle:
            self._streams.discard(life)
            self._idle.notify_all()

    def _request(
        self, decision: Decision, query: Query, patient: bool = False, cap: Budget | None = None
    ) -> Request:
        kept = self._records.add_decision(decision, query.text, query.scopes)
        kept.add_done_callback(partial(_log_if_lost, decision.id))
        scopes = query.scopes if cap is None else (*query.scopes, cap.scope)
        retries = query.call.max_retries
        soft = any(not balance.hard for balance in self.ledger.glance(scopes))
        return Request(
            decision,
            query.call,
            self.candidates,
            self._gates,
            scopes,
            patient,
            bounded=lambda: any(balance.hard for balance in self.ledger.glance(scopes)),
            likely_nano=self.router.likely_nano(query) if soft else {},
            max_retries=self.settings.max_retries if retries is None else retries,
            hedge_after_seconds=None if patient else self.settings.hedge_after_seconds,
        )

    def _recovery_is_due(self) -> bool:
        with self._recovery_lock:
            now = time.monotonic()
            due = now >= self._next_recovery
            if due:
                self._next_recovery = now + _RECOVERY_SECONDS
            return due

    def _perform(self, text: str, step: Step) -> Any:
        match step:
            case Receive(rest):
                return _next(cast(Iterator[Chunk], rest))
            case Reserve(reservation):
                return self.ledger.reserve(reservation).result()
            case Send(candidate, call):
                try:
                    return self._transport.send(candidate, call)
                except ProviderError as error:
                    return _without_frames(error)
            case Open(candidate, call):
                chunks = self._transport.stream(candidate, call)
                return _opened(candidate, _next(chunks), chunks)
            case Close():
                with _paid_answers_survive(step):
                    for write in self._close(text, step):
                        write.result()
            case Pause(seconds):
                if self._recovery_is_due():
                    self.ledger.recover()
                time.sleep(seconds)
            case Wait(seconds):
                time.sleep(seconds)
            case Race():
                return race(step, partial(self._perform, text), self._start)
            case _:
                return self._settle(text, step)

    async def _aperform(self, text: str, step: Step) -> Any:
        match step:
            case Receive(rest):
                return await _anext(cast(AsyncIterator[Chunk], rest))
            case Reserve(reservation):
                return await _done(self.ledger.reserve(reservation))
            case Send(candidate, call):
                try:
                    return await self._transport.asend(candidate, call)
                except ProviderError as error:
                    return _without_frames(error)
            case Open(candidate, call):
                chunks = self._transport.astream(candidate, call)
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
                    await asyncio.to_thread(self.ledger.recover)
                await asyncio.sleep(seconds)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Race():
                perform, settle = partial(self._aperform, text), partial(self._settle, text)
                return await arace(step, perform, settle)

    def _settle(self, text: str, step: Step, loop: asyncio.AbstractEventLoop | None = None) -> Any:
        """Carry out a last step of a stream, from any thread, waiting for nothing."""
        match step:
            case HangUp(rest):
                if isinstance(rest, Generator):
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

    def _close(self, text: str, step: Close) -> list[Future[Any]]:
        """Submit all writes at once: they share a commit."""
        writes: list[Future[Any]] = []
        if step.how == "release":
            writes.append(self.ledger.release(step.reservation_id))
        elif step.how == "settle_in_full":
            writes.append(self.ledger.settle_in_full(step.reservation_id))
        else:
            settled = self.ledger.settle(
                step.reservation_id, step.cost_nano, estimated=step.estimated
            )
            writes.append(settled)
        if step.attempt is not None:
            outcome, size = step.attempt.outcome, step.attempt.prompt_bytes
            choices = step.attempt.choices
            kept = self._records.add_outcome(
                outcome, attempt=step.attempt.number, prompt_bytes=size, choices=choices
            )
            kept.add_done_callback(partial(_log_if_lost, outcome.decision_id))
            learnt = outcome.candidate in self.router.names  # those for embeddings are not
            if learnt and outcome.usage is not None and not outcome.usage.estimated:
                usage = _per_choice(outcome.usage, choices)
                self.router.observe(text, outcome.candidate, size, usage)
        return writes


def _messages_of(answer: Answer) -> list[Message]:
    return [choice["message"] for choice in answer.completion.body.get("choices", ())]


def _per_choice(usage: Usage, choices: int) -> Usage:
    """Usage of a call as it would be with one choice: forecasts are of one answer."""
    if choices == 1:
        return usage
    return replace(
        usage,
        completion_tokens=round(usage.completion_tokens / choices),
        reasoning_tokens=round(usage.reasoning_tokens / choices),
    )


def _log_if_lost(decision_id: str, kept: Future[None]) -> None:
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


def _closed() -> InvalidRequestError:
    return InvalidRequestError("the client is closed; create a new one")


def _next(chunks: Iterator[Chunk]) -> Chunk | ProviderError | None:
    try:
        return next(chunks, None)
    except ProviderError as error:
        return _without_frames(error)


async def _aclose(chunks: Iterator[Chunk] | AsyncIterator[Chunk]) -> None:
    with contextlib.suppress(ProviderError):
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
