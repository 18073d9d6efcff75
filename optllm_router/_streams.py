"""Streams as their readers hold them: chunks as they come, money that is settled once.

A stream can end in many ways: it is exhausted, the provider breaks off, the reader closes it,
lets go of it or is cancelled, the client is closed, the interpreter exits. All of them advance
one generator, and whoever has the *turn* may: the reader while it waits for a chunk, else
whoever ends the stream. Who wants to end it out of turn leaves word, and the reader does so.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from optllm_router._conversations import Transcript
from optllm_router._errors import OptLLMError
from optllm_router._flow import StreamFlow, aadvance, advance
from optllm_router._steps import AbandonedError, Hand, Paid, Step
from optllm_router._types import Candidate, Chunk, Decision

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("optllm_router")

Ended: TypeAlias = "Callable[[Life, BaseException | None], None]"
"""Told that a stream is over, and the error that it ended with; none where its reader left."""


class Life:
    """A stream's flow, from its opening to its end; it survives its reader.

    Args:
        decision: who is to answer.
        flow: not begun yet.
        settle: carries out the last steps of a flow that another than its reader ends, without
            waiting for anything.
        ended: called once, when the flow is over, with what it failed with.

    Attributes:
        decision: who is to answer; from the first chunk on, as who answers carries it out.
        turn: who holds it may advance the flow.
        over: whether the flow has ended.
        candidate: who answers.
        paid: what the answer took, once it is whole.
        transcript: what was handed on.
    """

    def __init__(
        self,
        decision: Decision,
        flow: StreamFlow,
        settle: Callable[[Step], Any],
        ended: Ended,
    ) -> None:
        self.decision = decision
        self.turn = threading.Lock()
        self.over = False
        self.candidate: Candidate | None = None
        self.paid: Paid | None = None
        self.transcript = Transcript()
        self._flow = flow
        self._settle = settle
        self._ended = ended
        self._reason: Exception | None = None

    def end(self, reason: Exception) -> None:
        """End it, from any thread: now, or after the chunk that a reader is waiting for.

        What fails meanwhile is logged: who ends streams that are not its own ends others, too.

        Args:
            reason: what its reader is told; of an :class:`AbandonedError` it hears nothing.
        """
        self.doom(reason)
        try:
            self.end_if_doomed()
        except Exception as error:  # noqa: BLE001 - it is over, and logged
            _log.error("decision %s: its stream failed at being ended: %r", self.decision.id, error)

    def doom(self, reason: Exception) -> None:
        """Let whoever has the turn end it; for those who then look whether anybody has."""
        self._reason = self._reason or reason

    def end_if_doomed(self) -> None:
        """End it if somebody wants that, unless another has the turn and is going to."""
        if self._reason is not None and self.turn.acquire(blocking=False):
            try:
                self.finish(self._settle)
            finally:
                self.turn.release()

    def finish(self, perform: Callable[[Step], Any]) -> None:
        """Settle and end it for the reason that was given. The caller has the turn."""
        if not self.over:
            try:
                advance(self._flow, perform, self._reason)
            except BaseException as error:
                self._end(error)
                if error is not self._reason:
                    raise
            else:
                self._end()

    async def afinish(self, perform: Callable[[Step], Awaitable[Any]]) -> None:
        """As :meth:`finish`, without blocking the event loop."""
        if not self.over:
            try:
                await aadvance(self._flow, perform, self._settle, self._reason)
            except BaseException as error:
                self._end(error)
                if error is not self._reason:
                    raise
            else:
                self._end()

    def read(self, perform: Callable[[Step], Any]) -> Chunk | None:
        """The next chunk; ``None`` at the end. The caller has the turn."""
        if self.over:
            self._raise_reason()
            return None
        try:
            return self._read(advance(self._flow, perform))
        except BaseException as error:
            self._end(error)
            raise

    async def aread(self, perform: Callable[[Step], Awaitable[Any]]) -> Chunk | None:
        """As :meth:`read`, without blocking the event loop."""
        if self.over:
            self._raise_reason()
            return None
        try:
            return self._read(await aadvance(self._flow, perform, self._settle))
        except BaseException as error:
            self._end(error)
            raise

    def _raise_reason(self) -> None:
        if isinstance(self._reason, OptLLMError) and self.paid is None:
            raise self._reason

    def _read(self, step: Hand | Paid) -> Chunk | None:
        if isinstance(step, Hand):
            self.candidate, self.decision = step.candidate, step.decision
            self.transcript.record(step.chunk.body)
            return step.chunk
        self.paid = step
        self._end()
        return None

    def _end(self, error: BaseException | None = None) -> None:
        if not self.over:
            self.over = True
            self._ended(self, None if isinstance(error, AbandonedError) else error)


class Sweeper:
    """Ends the streams whose readers let go of them, on a thread of its own.

    A finalizer may run anywhere, also where a lock is held that settling needs: all it does is
    to put the stream's life into a queue. When the interpreter exits, finalizers run from the
    newest to the oldest: those of streams before this one's, and this one's before the store's.
    """

    def __init__(self) -> None:
        self._left: queue.SimpleQueue[Life | None] = queue.SimpleQueue()
        thread = threading.Thread(
            target=_sweep, args=(self._left,), name="optllm-sweeper", daemon=True
        )
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._left, thread)

    def watch(self, reader: object, life: Life) -> Callable[[], Any]:
        """End ``life`` once nobody has ``reader`` any more; returns how to stop watching."""
        return weakref.finalize(reader, self._left.put, life).detach

    def close(self) -> None:
        """End what was let go of, and stop. May be called twice."""
        self._finalizer()


def _sweep(left: queue.SimpleQueue[Life | None]) -> None:
    while (life := left.get()) is not None:
        life.end(AbandonedError())


def _stop(left: queue.SimpleQueue[Life | None], thread: threading.Thread) -> None:
    left.put(None)
    thread.join()


class _Reader:
    """What both kinds of stream are."""

    def __init__(self, life: Life, sweeper: Sweeper) -> None:
        self._life = life
        self._first: Chunk | None = None
        self._unwatch = sweeper.watch(self, life)

    @property
    def decision(self) -> Decision:
        """Who is to answer, and why; final from the first token on."""
        return self._life.decision

    @property
    def candidate(self) -> Candidate | None:
        """Who answers; final from the first token on."""
        return self._life.candidate

    @property
    def paid(self) -> Paid | None:
        """What the answer took; ``None`` until the last chunk was read."""
        return self._life.paid


class AnswerStream(_Reader):
    """An answer as it is made: an iterator of chunks, and a context manager that closes it.

    Args:
        life: of the stream, not begun yet.
        perform: carries out the steps of its flow.
        sweeper: ends it once nobody has it any more.
    """

    def __init__(self, life: Life, perform: Callable[[Step], Any], sweeper: Sweeper) -> None:
        super().__init__(life, sweeper)
        self._perform = perform

    def open(self) -> Self:
        """Wait for the first chunk; raises what a whole answer would raise."""
        self._first = self._read()
        return self

    def close(self) -> None:
        """End it at the provider and settle; afterwards there are no chunks any more.

        While another thread waits for a chunk, the stream ends once that has come.
        """
        self._first = None
        self._life.doom(AbandonedError())
        if self._life.turn.acquire(blocking=False):
            try:
                self._life.finish(self._perform)
            finally:
                self._life.turn.release()
            self._unwatch()

    def _read(self) -> Chunk | None:
        try:
            with self._life.turn:
                return self._life.read(self._perform)
        finally:
            self._life.end_if_doomed()
            if self._life.over:
                self._unwatch()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        chunk, self._first = self._first or self._read(), None
        if chunk is None:
            raise StopIteration
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncAnswerStream(_Reader):
    """As :class:`AnswerStream`, with ``async for``; belongs to the event loop that opened it."""

    def __init__(
        self, life: Life, perform: Callable[[Step], Awaitable[Any]], sweeper: Sweeper
    ) -> None:
        super().__init__(life, sweeper)
        self._perform = perform

    async def open(self) -> Self:
        """As :meth:`AnswerStream.open`."""
        self._first = await self._read()
        return self

    async def close(self) -> None:
        """As :meth:`AnswerStream.close`; while another task waits, once its chunk has come."""
        self._first = None
        self._life.doom(AbandonedError())
        if self._life.turn.acquire(blocking=False):
            try:
                await self._life.afinish(self._perform)
            finally:
                self._life.turn.release()
            self._unwatch()

    async def _read(self) -> Chunk | None:
        if not self._life.turn.acquire(blocking=False):
            raise RuntimeError("another task is waiting for a chunk of this stream")
        try:
            return await self._life.aread(self._perform)
        finally:
            self._life.turn.release()
            self._life.end_if_doomed()
            if self._life.over:
                self._unwatch()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        chunk, self._first = self._first or await self._read(), None
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
