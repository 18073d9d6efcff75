"""Work that is better done together: what arrives while a batch is computed forms the next.

A lone item never waits. Under load the batches grow by themselves, as in group commit.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from optllm_router._errors import InvalidRequestError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_PER_BATCH = 1024


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    done: Future[Result]


class Batcher(Generic[Item, Result]):
    """Hands items to ``work`` in batches, on one thread of its own; thread-safe.

    Args:
        work: n items in, n results out, in order; an exception goes to all n callers.
        window_seconds: how long to wait for company once an item has arrived; 0 for not at all.
        name: of the thread.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        window_seconds: float = 0.0,
        name: str = "optllm-batcher",
    ) -> None:
        self._waiting: queue.SimpleQueue[_Waiting[Item, Result] | None] = queue.SimpleQueue()
        thread = threading.Thread(
            target=_serve, args=(self._waiting, work, window_seconds), name=name, daemon=True
        )
        thread.start()
        self._closed = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop, self._waiting, thread)

    def submit(self, item: Item) -> Future[Result]:
        """Queue an item; the future holds its result.

        Raises:
            InvalidRequestError: the batcher was closed.
        """
        done: Future[Result] = Future()
        with self._lock:  # else an item could come after the one that ends the thread
            if self._closed:
                raise InvalidRequestError("the client is closed; create a new one")
            self._waiting.put(_Waiting(item, done))
        return done

    def close(self) -> None:
        """Finish what is queued and stop. May be called twice."""
        with self._lock:
            self._closed = True
        self._finalizer()


def _serve(
    waiting: queue.SimpleQueue[_Waiting[Any, Any] | None],
    work: Callable[[Sequence[Any]], Sequence[Any]],
    window_seconds: float,
) -> None:
    while True:
        first = waiting.get()
        if first is None:
            return
        batch, closing = _gather(waiting, first, window_seconds)
        wanted = [one for one in batch if one.done.set_running_or_notify_cancel()]
        if wanted:
            _work(work, wanted)
        if closing:
            return


def _gather(
    waiting: queue.SimpleQueue[_Waiting[Any, Any] | None],
    first: _Waiting[Any, Any],
    window_seconds: float,
) -> tuple[list[_Waiting[Any, Any]], bool]:
    batch = [first]
    deadline = time.monotonic() + window_seconds
    while len(batch) < _MOST_PER_BATCH:
        try:
            left = deadline - time.monotonic()
            one = waiting.get(timeout=left) if left > 0 else waiting.get_nowait()
        except queue.Empty:
            break
        if one is None:
            return batch, True
        batch.append(one)
    return batch, False


def _work(work: Callable[[Sequence[Any]], Sequence[Any]], batch: list[_Waiting[Any, Any]]) -> None:
    try:
        results = work([one.item for one in batch])
    except BaseException as error:  # noqa: BLE001 - it is handed to the callers that wait for it
        for one in batch:
            one.done.set_exception(error)
        return
    for one, result in zip(batch, results, strict=True):
        one.done.set_result(result)


def _stop(waiting: queue.SimpleQueue[_Waiting[Any, Any] | None], thread: threading.Thread) -> None:
    waiting.put(None)
    thread.join()
