"""What a client is made of: the rooms wired together.

Sync and async clients share this; they only differ in who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from optllm_router._batching import Batcher
from optllm_router._conversations import Conversations
from optllm_router._decision_log import Line, decision_line
from optllm_router._errors import (
    InvalidRequestError,
    OptLLMError,
)
from optllm_router._flow import arun, request_flow, run, stream_flow
from optllm_router._health import Gate
from optllm_router._money import Budget, usd_from_nano
from optllm_router._performing import Performer, log_if_lost
from optllm_router._query import Query
from optllm_router._steps import (
    AbandonedError,
    Answer,
    Paid,
    Request,
)
from optllm_router._streams import AnswerStream, AsyncAnswerStream, Ended, Life, Sweeper
from optllm_router._types import (
    Decision,
    Message,
    Transport,
)
from optllm_router.config import Settings
from optllm_router.ledger import Balance, LeasingLedger
from optllm_router.policy import Policy
from optllm_router.router import Router
from optllm_router.scores import Scores
from optllm_router.store import Database, LabelledAnswer, Partner, Partners, Records
from optllm_router.traffic import Means, Pot
from optllm_router.transports import (
    TracedTransport,
    all_transports,
    keys_in_sight,
    refused_arguments,
)

if TYPE_CHECKING:
    from optllm_router.receipts import Moment, Receipt

_log = logging.getLogger("optllm_router")

_REMEMBERED_USAGES = 5_000
_REMEMBERED_LABELS = 100_000
_REMEMBERED_SECONDS = 28 * 86_400.0


def _nothing(_: Life, __: BaseException | None) -> None:
    pass


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
        self.router = Router(
            [candidate for candidate in settings.candidates if candidate.operation == "chat"],
            settings.policy,
            predictor=settings.predictor,
            expected_queries=settings.expected_queries,
            explore=settings.explore,
            seed=settings.seed,
        )
        if transport is None and not keys_in_sight(settings.candidates):
            self.check()  # before the store is opened: a missing key leaves nothing behind
        self._database = Database(settings.store)
        self.ledger = LeasingLedger(self._database, on_threshold=settings.on_threshold)
        self._records = Records(self._database)
        self.scores = Scores(self._records, self._learn)
        secret = settings.conversation_secret
        shared = None if secret is None else Partners(self._database)
        self._conversations = Conversations(shared, secret or "")
        try:
            for budget in settings.budgets:
                self.ledger.configure(budget)
            self.ledger.recover()
            self._remember()
        except OptLLMError:
            self._database.close()
            raise
        self._requests = 0
        self._streams: set[Life] = set()
        self._sweeper = Sweeper()
        self._closing = False
        self._idle = threading.Condition()
        self._performer = Performer(
            self.ledger, self._records, self._transport, self.router, self._start
        )
        self._batcher = Batcher(self._decide, window_seconds=settings.batch_window_ms / 1000)

    @property
    def is_closing(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

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
        self._performer.close()
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
            self._one_less()

    def _one_less(self) -> None:
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
                self._one_less()

        context = contextvars.copy_context()
        try:
            threading.Thread(target=context.run, args=(counted,), name="optllm-hedge").start()
        except BaseException:  # there is no room for another thread
            self._one_less()
            raise

    def check(self) -> None:
        """Find out, once and before anything is sent, whether all candidates can be called."""
        with self._check_lock:
            if not self._checked:
                self._transport.check(self.settings.candidates)
                if self._owns_transport:  # another's takes what it takes
                    self._know_refusals(refused_arguments(self.settings.candidates))
                self._checked = True

    def _know_refusals(self, refused: Mapping[str, frozenset[str]]) -> None:
        self.router.know_refusals(refused)
        self.candidates = {
            name: replace(one, refuses=refused.get(name, one.refuses))
            for name, one in self.candidates.items()
        }

    async def acheck(self) -> None:
        """As :meth:`check`; the first time it loads the transport in a thread."""
        if not self._checked:
            await asyncio.to_thread(self.check)

    def decide(self, query: Query, model: str, policy: Policy | None) -> Future[Decision]:
        """Decide, together with what else is waiting; a named model is pinned.

        Args:
            query: what is asked.
            model: a candidate's name, or ``auto``.
            policy: instead of the client's own.

        Raises:
            StoreError: this process is a forked copy.
        """
        self._database.check_process()
        if self._is_settled(model):
            return self._pinned(query, model)
        said = query.call.messages, query.conversation, query.scopes
        query = replace(query, partner=self._conversations.partner(*said))
        return self._pinned(query, model) if model != "auto" else self._deciding(query, policy)

    async def adecide(self, query: Query, model: str, policy: Policy | None) -> Decision:
        """As :meth:`decide`: here if it is done in no time, else without blocking the event loop.

        Those that ask in the same round of the event loop are decided together.
        """
        self._database.check_process()
        if self._is_settled(model):
            return self._pinned(query, model).result()
        said = query.call.messages, query.conversation, query.scopes
        query = replace(query, partner=await self._conversations.apartner(*said))
        if model != "auto":
            return self._pinned(query, model).result()
        wake = not self.ledger.can_glance(query.scopes)
        deciding = self._deciding(query, policy, wake=wake)
        try:
            if not (wake or deciding.done()):
                await asyncio.sleep(0)
                self._batcher.help()
        except asyncio.CancelledError:
            deciding.cancel()
            raise
        return deciding.result() if deciding.done() else await asyncio.wrap_future(deciding)

    def _deciding(
        self, query: Query, policy: Policy | None, *, wake: bool = True
    ) -> Future[Decision]:
        """Have it decided; ``wake`` is as for :meth:`Batcher.submit`."""
        self.router.check(query)  # here, as an error in a batch goes to all who are in it
        line = query.scopes[:1]  # a tenant's, whatever else its calls belong to
        return self._batcher.submit(_Undecided(query, policy), line=line, wake=wake)

    def _is_settled(self, model: str) -> bool:
        """Whether a name leaves nothing to decide."""
        return model != "auto" and model not in self.router.groups

    def _pinned(self, query: Query, model: str) -> Future[Decision]:
        done: Future[Decision] = Future()
        done.set_result(self.router.pin(query, model))
        return done

    def means(self, scopes: tuple[str, ...] = ()) -> Means:
        """What there is to spend now on calls of these scopes."""
        pots = tuple(
            Pot(
                left_usd=usd_from_nano(balance.left_nano),
                start=balance.window_start,
                end=None if balance.rolling else balance.next_window,
                seen=balance.calls,
                paced=balance.pace,
                rolling=balance.rolling,
                limit_usd=usd_from_nano(balance.limit_nano),
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
        with decision_line(decision) as line:
            budgets = self.ledger.glance(_scopes(query, cap))
            flow = request_flow(self._request(decision, query, budgets, line, patient, cap))
            answer = run(flow, partial(self._performer.perform, query.text))
            messages = _messages_of(answer)
            line.answered(answer, messages)
        self._remember_partner(query, answer, messages)
        return answer

    async def aanswer(
        self, decision: Decision, query: Query, *, patient: bool = False, cap: Budget | None = None
    ) -> Answer:
        """As :meth:`answer`, without blocking the event loop."""
        perform, settle = (
            partial(self._performer.aperform, query.text),
            partial(self._performer.settle, query.text),
        )
        with decision_line(decision) as line:
            budgets = await self._aglance(_scopes(query, cap))
            flow = request_flow(self._request(decision, query, budgets, line, patient, cap))
            answer = await arun(flow, perform, settle)
            messages = _messages_of(answer)
            line.answered(answer, messages)
        self._remember_partner(query, answer, messages)
        return answer

    def stream(self, decision: Decision, query: Query, ended: Ended = _nothing) -> AnswerStream:
        """Carry a decision out, handing the answer on as it comes.

        Returns once the first chunk is there. A fault before the first token turns to the next
        candidate, whether or not a chunk without one was handed on; a later fault is raised
        to the reader.

        Args:
            decision: who is to answer.
            query: what was asked.
            ended: called once, when it is settled however it ended.
        """
        context = contextvars.copy_context()
        perform = partial(self._performer.perform, query.text, context=context)
        with decision_line(decision) as line:
            budgets = self.ledger.glance(query.scopes)
            life = self._life(decision, query, budgets, line, ended)
            return AnswerStream(life, perform, self._sweeper).open()

    async def astream(
        self, decision: Decision, query: Query, ended: Ended = _nothing
    ) -> AsyncAnswerStream:
        """As :meth:`stream`, without blocking the event loop."""
        context = contextvars.copy_context()
        perform = partial(self._performer.aperform, query.text, context=context)
        with decision_line(decision) as line:
            budgets, loop = await self._aglance(query.scopes), asyncio.get_running_loop()
            life = self._life(decision, query, budgets, line, ended, loop)
            return await AsyncAnswerStream(life, perform, self._sweeper).open()

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
            (one.query, one.candidate, one.prompt_bytes, one.usage.per_choice(one.choices))
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

    async def _aglance(self, scopes: tuple[str, ...]) -> Sequence[Balance]:
        """The balances that a call of these scopes must fit into; read in a thread if need be."""
        known = self.ledger.remembered(scopes)
        return await asyncio.to_thread(self.ledger.glance, scopes) if known is None else known

    def _life(
        self,
        decision: Decision,
        query: Query,
        budgets: Sequence[Balance],
        line: Line,
        ended: Ended,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Life:
        """The life of a stream; ``loop`` is that of an asynchronous one."""
        flow = stream_flow(self._request(decision, query, budgets, line))
        settle = partial(self._performer.settle, query.text, loop=loop)
        life = Life(decision, flow, settle, partial(self._ended, query, line, ended))
        with self._idle:
            self._streams.add(life)
            if self._closing:
                life.doom(_closed())
        return life

    def _ended(
        self, query: Query, line: Line, ended: Ended, life: Life, error: BaseException | None
    ) -> None:
        try:
            if life.paid is None:
                line.failed(error or AbandonedError(), life.decision)
            else:
                messages = life.transcript.messages
                line.answered(life.paid, messages)
                self._remember_partner(query, life.paid, messages)
            ended(life, error)
        finally:  # closing waits for it
            with self._idle:
                self._streams.discard(life)
                self._idle.notify_all()

    def _request(
        self,
        decision: Decision,
        query: Query,
        budgets: Sequence[Balance],
        line: Line,
        patient: bool = False,
        cap: Budget | None = None,
    ) -> Request:
        kept = self._records.add_decision(decision, query.text, query.scopes)
        kept.add_done_callback(partial(log_if_lost, decision.id))
        scopes = _scopes(query, cap)
        retries = query.call.max_retries
        soft = any(not balance.hard for balance in budgets)
        return Request(
            decision,
            query.call,
            self.candidates,
            self._gates,
            scopes,
            patient,
            likely_nano=self.router.likely_nano(query) if soft else {},
            max_retries=self.settings.max_retries if retries is None else retries,
            hedge_after_seconds=None if patient else self.settings.hedge_after_seconds,
            tried=line.tried,
        )


def _scopes(query: Query, cap: Budget | None) -> tuple[str, ...]:
    """What a call belongs to, also where a plan's cap must have room for it."""
    return query.scopes if cap is None else (*query.scopes, cap.scope)


def _messages_of(answer: Answer) -> list[Message]:
    return [choice["message"] for choice in answer.completion.body.get("choices", ())]


def _closed() -> InvalidRequestError:
    return InvalidRequestError("the client is closed; create a new one")
