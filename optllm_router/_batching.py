"""Work that is better done together: what arrives while a batch is computed forms the next.

A lone item never waits. Under load the batches grow by themselves, as in group commit. When more
waits than a batch takes, the lines (of tenants, say) are served in turn, one item of each, so that
one caller's thousands do not hold up another's few. What waits is bounded.

The work is done by a thread of its own, or for a few items by a caller who is going to wait for
them anyhow: to wake a thread, and to be woken by it, can take longer than the work.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from optllm_router._errors import InvalidRequestError, OverloadedError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_PER_BATCH = 1024
_MOST_WAITING = 10_000
_FEW = 8
"""So many items are worked on by a caller, who may be an event loop, in a few milliseconds."""


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    done: Future[Result]


class Batcher(Generic[Item, Result]):
    """Hands items to ``work`` in batches, one batch at a time; thread-safe.

    Args:
        work: n items in, n results out, in order; an exception goes to all n callers.
        window_seconds: how long to wait for company once an item has arrived; 0 for not at all.
        most_per_batch: items in a batch, at most.
        most_waiting: items that wait for their batch, at most.
        name: of its thread.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        window_seconds: float = 0.0,
        most_per_batch: int = _MOST_PER_BATCH,
        most_waiting: int = _MOST_WAITING,
        name: str = "optllm-batcher",
    ) -> None:
        self._work = work
        self._queue = _Queue(window_seconds, most_per_batch, most_waiting)
        thread = threading.Thread(target=_run, args=(self._queue, work), name=name, daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._queue, thread)

    def submit(self, item: Item, line: Hashable = None, *, wake: bool = True) -> Future[Result]:
        """Queue an item; the future holds its result.

        Args:
            item: what to work on.
            line: where it queues; lines are served in turn.
            wake: False lets the thread sleep: the caller is going to :meth:`help`.

        Raises:
            InvalidRequestError: the batcher was closed.
            OverloadedError: too many items wait already.
        """
        done: Future[Result] = Future()
        self._queue.put(_Waiting(item, done), line, wake)
        return done

    def help(self) -> None:
        """Work here on what waits, if it is little and nobody else is or will be at it."""
        batch = self._queue.take_few()
        if batch:
            try:
                _serve(self._work, batch)
            finally:
                self._queue.done()

    def close(self) -> None:
        """Finish what is queued and stop. May be called twice."""
        self._finalizer()


class _Queue:
    """Lines that are served in turn."""

    def __init__(self, window_seconds: float, most_per_batch: int, most_waiting: int) -> None:
        self._window_seconds = window_seconds
        self._most_per_batch = most_per_batch
        self._most_waiting = most_waiting
        self._lines: OrderedDict[Hashable, deque[_Waiting[Any, Any]]] = OrderedDict()
        self._waiting = 0
        self._awake = False
        self._worked_on = False
        self._closed = False
        self._changed = threading.Condition()

    def put(self, one: _Waiting[Any, Any], line: Hashable, wake: bool) -> None:
        with self._changed:
            if self._closed:
                raise InvalidRequestError("the client is closed; create a new one")
            if self._waiting >= self._most_waiting:
                raise OverloadedError(
                    f"{self._waiting} calls wait for a decision already, and more are not taken; "
                    "try again later"
                )
            self._lines.setdefault(line, deque()).append(one)
            self._waiting += 1
            if wake or self._window_seconds:
                self._wake()

    def take(self) -> list[_Waiting[Any, Any]]:
        """The next batch, for the thread; empty when the queue is closed and done."""
        with self._changed:
            self._changed.wait_for(self._is_due)
            if self._window_seconds and not self._closed:
                self._wait_for_company()
            return self._next_batch()

    def take_few(self) -> list[_Waiting[Any, Any]]:
        """The next batch, for a caller; empty when it is for the thread, or is worked on."""
        with self._changed:
            if self._awake or self._worked_on:
                return []
            if self._waiting > _FEW:
                self._wake()
                return []
            return self._next_batch()

    def done(self) -> None:
        """A batch was worked on; what came meanwhile is the next, for the thread."""
        with self._changed:
            self._worked_on = False
            if self._waiting or self._closed:
                self._wake()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        self._awake = True
        self._changed.notify()

    def _is_due(self) -> bool:
        return self._awake and not self._worked_on

    def _wait_for_company(self) -> None:
        deadline = time.monotonic() + self._window_seconds
        while self._waiting < self._most_per_batch and not self._closed:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _next_batch(self) -> list[_Waiting[Any, Any]]:
        batch = [self._next() for _ in range(min(self._waiting, self._most_per_batch))]
        self._worked_on = bool(batch)
        self._awake = False
        return batch

    def _next(self) -> _Waiting[Any, Any]:
        """One item of the line whose turn it is; the line goes to the back."""
        name, line = self._lines.popitem(last=False)
        one = line.popleft()
        if line:
            self._lines[name] = line
        self._waiting -= 1
        return one


def _run(queue: _Queue, work: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    while batch := queue.take():
        _serve(work, batch)
        queue.done()


def _serve(work: Callable[[Sequence[Any]], Sequence[Any]], batch: list[_Waiting[Any, Any]]) -> None:
    wanted = [one for one in batch if one.done.set_running_or_notify_cancel()]
    if not wanted:
        return
    try:
        results = work([one.item for one in wanted])
    except BaseException as error:  # noqa: BLE001 - it is handed to the callers that wait for it
        for one in wanted:
            one.done.set_exception(error)
        return
    for one, result in zip(wanted, results, strict=True):
        one.done.set_result(result)


def _stop(queue: _Queue, thread: threading.Thread) -> None:
    queue.close()
    thread.join()
