"""Group commit: one thread writes what is waiting, many writes to a transaction.

A durable commit costs a disk flush, whether it carries one write or two hundred. While one
transaction is flushed, the next group gathers.

A group can fail in three ways. A write of it fails: the transaction is rolled back, and the
group's halves are tried apart until the culprit stands alone. The connection breaks, or the
transaction loses against another one: nobody knows whether the commit arrived, or it did not, so
the group is written again after a pause. The database cannot be used (locked, full, gone): every
caller of the group is told.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from optllm_router.store.faults import concerns_all, explained, may_pass

_MOST_PER_COMMIT = 256
_LINGER_SECONDS = 0.05
"""So long a write that nobody waits for waits for company: a commit is as dear as 20 writes, and
the lock is left to other processes meanwhile."""
_PAUSES_SECONDS = (0.02, 0.1, 0.3)
"""How long to wait, at most, before a group is written again that met a passing fault."""

Kind: TypeAlias = Callable[[Connection, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Write:
    """Something to write.

    Attributes:
        kind: carries out all writes of its kind in a group, given their items.
        item: what this one is about.
        done: receives its result once it is on disk.
        urgent: whether somebody waits for it.
    """

    kind: Kind
    item: Any
    done: Future[Any]
    urgent: bool = True


class Writer:
    """The thread that writes.

    Args:
        engine: of the database.
        name: of the database, for error messages.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._waiting: deque[Write] = deque()
        self._changed = threading.Condition()
        self._hurried = False
        self._finishing = False
        self._put, self._finished = 0, 0
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="optllm-store", daemon=True)
        self._thread.start()

    def put(self, write: Write) -> None:
        """Write it soon."""
        with self._changed:
            self._put += 1
            self._waiting.append(write)
            self._hurried = self._hurried or write.urgent
            # Who lingers sleeps through: being woken for each write costs more than the write.
            if write.urgent or len(self._waiting) in (1, _MOST_PER_COMMIT):
                self._changed.notify()

    @property
    def unwritten(self) -> int:
        """How many writes are waiting or under way."""
        return self._put - self._finished

    def catch_up(self) -> None:
        """Wait until everything that was put so far is written, or has failed."""
        if threading.current_thread() is self._thread:
            return  # it would wait for itself
        with self._changed:
            goal = self._put
            self._hurried = bool(self._waiting)
            self._changed.notify()
        with self._progress:
            self._progress.wait_for(lambda: self._finished >= goal)

    def finish(self) -> None:
        """Write what is waiting, and end. Nothing may be :meth:`put` afterwards."""
        with self._changed:
            self._finishing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._gather():
            self._commit(group)
            with self._progress:
                self._finished += len(group)
                self._progress.notify_all()
            time.sleep(0)  # let who was answered run: a next write may share the next commit

    def _gather(self) -> list[Write]:
        """Wait for a write, and for company; empty when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._finishing)
            self._changed.wait_for(self._is_time, _LINGER_SECONDS)
            several = min(len(self._waiting), _MOST_PER_COMMIT)
            group = [self._waiting.popleft() for _ in range(several)]
            self._hurried = self._hurried and bool(self._waiting)
            return group

    def _is_time(self) -> bool:
        return self._hurried or self._finishing or len(self._waiting) >= _MOST_PER_COMMIT

    def _commit(self, group: list[Write]) -> None:
        try:
            with explained(self._name):
                done = self._transact_surely(group)
        except _WriteFailedError as failed:
            if len(group) == 1:
                group[0].done.set_exception(self._explained(failed.error))
            else:
                half = len(group) // 2
                self._commit(group[:half])
                self._commit(group[half:])
        except Exception as error:  # noqa: BLE001 - it is handed to the callers that wait
            for write in group:
                write.done.set_exception(error)
        else:
            for write, result in done:
                if isinstance(result, Exception):
                    write.done.set_exception(result)
                else:
                    write.done.set_result(result)

    def _explained(self, error: Exception) -> Exception:
        try:
            with explained(self._name):
                raise error
        except Exception as explanation:  # noqa: BLE001 - it is handed to the caller that waits
            return explanation

    def _transact_surely(self, group: list[Write]) -> list[tuple[Write, Any]]:
        for pause in _PAUSES_SECONDS:
            try:
                return self._transact(group)
            except DBAPIError as error:
                if not may_pass(error):
                    raise
            time.sleep(random.uniform(pause / 2, pause))
        return self._transact(group)

    def _transact(self, group: list[Write]) -> list[tuple[Write, Any]]:
        with self._engine.begin() as connection:
            try:
                return carry_out(connection, group)
            except Exception as error:
                if concerns_all(error):
                    raise
                raise _WriteFailedError(error) from error


class _WriteFailedError(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def carry_out(connection: Connection, group: Sequence[Write]) -> list[tuple[Write, Any]]:
    """Each write of a group with its result; the connection's transaction remains open."""
    kinds: dict[Kind, list[Write]] = {}
    for write in group:
        kinds.setdefault(write.kind, []).append(write)
    done: list[tuple[Write, Any]] = []
    for kind, writes in kinds.items():
        results = kind(connection, [write.item for write in writes])
        done.extend(zip(writes, results, strict=True))
    return done
