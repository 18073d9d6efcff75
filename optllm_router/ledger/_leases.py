"""Block leases: calls that need not wait for a commit.

A process that is busy holds a *block*: one reservation with money for calls to come. A call draws
from it in memory, in microseconds, and is sent at once; the database is told behind its back, in
order. Nothing that was promised depends on that: until the drawing is written, the money is set
aside in the block, and a process that is killed leaves the block, which then expires like any
reservation, at the full amount.

Blocks are small, so that a process that dies takes little along: one holds money for half a second
of the traffic that was seen, and all of a process together hold a sixty-fourth of what a budget has
left at most. They are short-lived: after a second and a half they are given back, so that a lowered
limit stops calls soon and processes do not starve each other. What an expired one held is freed by
a provider's report, see :mod:`._remains`.

A block is of the budgets as they were when it was leased. One that was made since does not count
the calls that are drawn from it. One that was soft and became hard has less set aside for them than
they can cost, and their answers have no bound: the first of them that is written finds that out,
and all blocks are given back. So a budget that another process makes hard can be exceeded by calls
that are drawn within a commit of that, and within a second and a half at the very most.

A block belongs to one window of each budget. A call that it does not cover gives all blocks of its
scopes back, and is reserved by itself: one process can use a budget to its last nano-dollar.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from optllm_router._errors import OptLLMError, StoreError
from optllm_router._money import Budget
from optllm_router.ledger._balances import Balance
from optllm_router.ledger._blocks import LIFE_SECONDS, Block, Holdings, calls_to_hold_for
from optllm_router.ledger._books import State
from optllm_router.ledger._ledger import Ledger, checked, closing_of
from optllm_router.ledger._limits import MANNERS
from optllm_router.ledger._operations import (
    Drawing,
    Held,
    Leasing,
    Operation,
    Refusal,
    Reservation,
    Reserving,
    Returning,
    Soft,
    granted,
    used_before,
)
from optllm_router.ledger._thresholds import Crossing
from optllm_router.store import Database

T = TypeVar("T")
_Key: TypeAlias = tuple[str, type[Operation]]

_log = logging.getLogger("optllm_router")

_MOST_UNWRITTEN = 1_024
"""With so many writes waiting, callers wait for theirs."""
_MOST_LOST, _MOST_FAILURES = 65_536, 100
"""So many writes that failed are kept, to be tried again, until they have failed so often."""
_RECOVERY_SECONDS = 5.0
"""A busy process looks this often for what dead ones reserved."""
_UNRECOVERED = "what dead processes reserved could not be recovered: %s"


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


_GRANTED: Mapping[bool, Future[Refusal | Soft | None]] = {
    hard: _done(granted(hard=hard)) for hard in (False, True)
}
_CLOSED: Future[bool] = _done(True)


class LeasingLedger(Ledger):
    """A ledger for a busy process: most calls are granted, and all are closed, without waiting.

    A write that fails is logged, raised by the next :meth:`reserve`, and tried again once another
    one succeeds, and by :meth:`close`: what a call cost is known, and is not to be forgotten. A
    block is given back once all calls that drew from it are written.

    While there are writes, it recovers now and then what other processes left when they died.

    Args:
        database: where the books are.
        clock: gives Unix seconds.
        on_threshold: as for :class:`Ledger`.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        *,
        on_threshold: Callable[[Crossing], object] | None = None,
    ) -> None:
        super().__init__(database, clock, on_threshold=on_threshold)
        self._changed = threading.Condition()
        self._blocks: dict[tuple[str, ...], list[Block]] = {}
        self._holdings = Holdings()
        self._asked: set[tuple[str, ...]] = set()
        self._under_way: dict[str, Drawing | None] = {}
        self._fault: Exception | None = None
        self._lost: dict[_Key, tuple[Operation, Exception]] = {}
        self._tried_again: dict[_Key, Operation] = {}
        self._next_recovery = time.monotonic() + _RECOVERY_SECONDS
        self._tended = False
        self._closing = False
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    def close(self) -> None:
        """Give all blocks back; from here on, calls wait for their commits.

        In a forked copy it does nothing: the blocks are the original's.

        Raises:
            StoreError: an earlier write failed, and still does.
        """
        atexit.unregister(self._at_exit)
        if self._database.forked:
            return
        with self._changed:
            self._closing = True
            self._try_again()
            self._give_all_back()
            self._changed.notify_all()
        self._database.catch_up()  # a block that was asked for comes, and what was lost is written
        self._database.catch_up()  # blocks are given back that waited for this
        with self._changed:
            calls = (error for (_, kind), (_, error) in self._lost.items() if kind is not Returning)
            lost = next(calls, None)
            if lost is not None or isinstance(self._fault, StoreError):  # else it was written since
                self._fault = lost
        self._raise_fault()

    def set_budget(self, budget: Budget, *, only: Collection[str] = MANNERS) -> None:
        """As that of :class:`Ledger`, for the next call already."""
        super().set_budget(budget, only=only)
        self._start_afresh()

    def set_limit(self, name: str, usd: Decimal | float | int | str) -> None:
        """As that of :class:`Ledger`, for the next call already."""
        super().set_limit(name, usd)
        self._start_afresh()

    def remove_budget(self, name: str) -> None:
        """As that of :class:`Ledger`, for the next call already."""
        super().remove_budget(name)
        self._start_afresh()

    def balances(self) -> list[Balance]:
        """As that of :class:`Ledger`; what is held for calls to come is given back before."""
        self._hold_nothing()
        return super().balances()

    def verify(self) -> list[str]:
        """As that of :class:`Ledger`; what is held for calls to come is given back before."""
        self._hold_nothing()
        return super().verify()

    def recover(self) -> int:
        """As that of :class:`Ledger`; what this process holds for calls to come is given back."""
        self._hold_nothing()
        return super().recover()

    def reserve(self, reservation: Reservation) -> Future[Refusal | Soft | None]:
        """As that of :class:`Ledger`: at once, where a block covers the call.

        Raises:
            ConfigurationError: a scope is none, or an amount is out of range.
            StoreError: an earlier write failed, or this process is a forked copy.
        """
        self._database.check_process()
        self._raise_fault()
        reservation = checked(reservation)
        with self._changed:
            if reservation.id in self._under_way:
                raise used_before(reservation.id)
            block = self._covering(reservation)
            if block is None:
                return self._reserve_directly(reservation)
            block.draw(reservation)
            self._holdings.add(block.held, -reservation.amount(True), -reservation.amount(False))
            drawing = Drawing(reservation.id, reservation, block.held)
            self._under_way[reservation.id] = drawing
            promised = self._write_behind(drawing, _GRANTED[block.held.is_hard])
            if block.is_low() and block in self._blocks.get(reservation.scopes, ())[-1:]:
                self._ask_for_block(reservation, block)
            return promised

    def _close(
        self, reservation_id: str, state: State, cost_nano: int | None, estimated: bool
    ) -> Future[bool]:
        self._database.check_process()
        if state == "expired" or reservation_id not in self._under_way:
            return super()._close(reservation_id, state, cost_nano, estimated)
        closing = closing_of(reservation_id, state, cost_nano, estimated)
        with self._changed:
            if reservation_id not in self._under_way:  # another caller was faster
                return self._submit(closing)
            closing.drawing = self._under_way.pop(reservation_id)
            return self._write_behind(closing, _CLOSED)

    def _announce(self, operation: Operation, done: Future[Any]) -> None:
        super()._announce(operation, done)
        if done.exception() is not None:
            return
        if self._lost:
            with self._changed:
                self._try_again()
        now = time.monotonic()
        if now >= self._next_recovery and not self._closing:
            self._next_recovery = now + _RECOVERY_SECONDS
            self._recover_behind()

    def _recover_behind(self) -> None:
        """Recover without waiting, whoever calls: the thread that writes looks what is overdue."""
        try:
            found = self._database.submit(self._overdue, urgent=False)
        except StoreError as error:  # the database was closed
            _log.warning(_UNRECOVERED, error)
        else:
            found.add_done_callback(self._expire_found)

    def _expire_found(self, found: Future[list[str]]) -> None:
        try:
            self._expire(found.result())
        except OptLLMError as error:
            _log.warning(_UNRECOVERED, error)

    # What follows is called with the lock held.

    def _covering(self, reservation: Reservation) -> Block | None:
        now = self._clock()
        blocks = self._blocks.get(reservation.scopes, ())
        return next((block for block in blocks if block.covers(reservation, now)), None)

    def _reserve_directly(self, reservation: Reservation) -> Future[Refusal | Soft | None]:
        used_up = self._blocks.get(reservation.scopes, [])
        latest = used_up[-1] if used_up else None
        self._give_back(reservation.scopes)
        self._under_way[reservation.id] = None
        result: Future[Refusal | Soft | None] = Future()
        result.set_running_or_notify_cancel()
        first = self._submit(Reserving(reservation.id, reservation))
        first.add_done_callback(
            functools.partial(self._arrived, reservation, result, try_again=True)
        )
        self._ask_for_block(reservation, latest)
        return result

    def _ask_for_block(self, like: Reservation, before: Block | None) -> None:
        if like.scopes in self._asked or self._closing:
            return
        now = self._clock()
        self._asked.add(like.scopes)
        id = f"block-{os.getpid()}-{secrets.token_hex(8)}"
        leasing = Leasing(id, like, calls_to_hold_for(before, now), self._holdings.of)
        asked = self._submit(leasing, urgent=False)
        asked.add_done_callback(functools.partial(self._leased, like.scopes, now))

    def _give_all_back(self) -> None:
        for scopes in list(self._blocks):
            self._give_back(scopes)

    def _give_back(self, scopes: tuple[str, ...]) -> None:
        for block in self._blocks.pop(scopes, ()):
            self._return(block)

    def _return(self, block: Block) -> None:
        self._holdings.add(block.held, -block.left, -block.soft_left)
        self._write_behind(Returning(block.held.block_id, left_nano=block.left), _CLOSED)

    def _write_behind(self, operation: Operation, promised: Future[T]) -> Future[T]:
        """Submit it, and promise its result; with too many waiting, let the caller wait."""
        written = self._submit(operation, urgent=False)
        written.add_done_callback(functools.partial(self._note_end, operation))
        return written if self._database.unwritten > _MOST_UNWRITTEN else promised

    def _try_again(self) -> None:
        """Write what could not be written: blocks are given back once their calls are there."""
        waiting = sorted(self._lost.items(), key=lambda lost: lost[0][1] is Returning)
        for key, (operation, error) in waiting:
            del self._lost[key]  # if it fails again, it comes back
            self._tried_again[key] = operation
            try:
                self._write_behind(operation, _CLOSED)
            except StoreError:  # the database was closed
                del self._tried_again[key]
                self._lost[key] = operation, error
                return

    def _waits_for_calls(self, block_id: str) -> bool:
        """Whether something about calls that drew from a block is still to be written."""
        lost = [operation for operation, _ in self._lost.values()]
        return any(
            block_id in operation.ids() for operation in (*lost, *self._tried_again.values())
        )

    # What follows takes the lock itself.

    def _start_afresh(self) -> None:
        with self._changed:
            self._give_all_back()

    def _hold_nothing(self) -> None:
        self._database.catch_up()  # a block that was asked for comes
        self._start_afresh()

    def _raise_fault(self) -> None:
        if self._fault is None:
            return
        with self._changed:
            fault, self._fault = self._fault, None
        if fault is not None:
            raise StoreError(
                f"an earlier call could not be recorded, its money stays set aside: {fault}"
            ) from fault

    def _note_end(self, operation: Operation, written: Future[Any]) -> None:
        """Something was written behind a caller's back, or was not."""
        error = written.exception()
        if error is not None:
            self._note_fault(operation, error)
            return
        if self._tried_again:
            with self._changed:
                self._tried_again.pop(_key(operation), None)
        if isinstance(operation, Returning) and not written.result():
            self._note_kept(operation)
        if isinstance(operation, Drawing) and operation.is_outdated:
            self._start_afresh()

    def _note_fault(self, operation: Operation, error: BaseException) -> None:
        what = operation.describe()
        _log.error("reservation %s: %s could not be recorded: %s", operation.id, what, error)
        fault = error if isinstance(error, Exception) else OptLLMError(str(error))
        with self._changed:
            if not isinstance(operation, Returning):  # it concerns no call
                self._fault = fault
            self._tried_again.pop(_key(operation), None)
            operation.failures += 1
            hopeless = operation.failures > _MOST_FAILURES or not isinstance(error, StoreError)
            if not hopeless and len(self._lost) < _MOST_LOST:
                self._lost[_key(operation)] = operation, fault

    def _note_kept(self, returning: Returning) -> None:
        """The books hold something else in a block than we do."""
        with self._changed:
            if self._waits_for_calls(returning.id) and len(self._lost) < _MOST_LOST:
                unknown = StoreError(f"calls that drew from {returning.id} are not recorded yet")
                self._lost[_key(returning)] = returning, unknown
                return
        _log.warning(
            "block %s with %d nano-dollars could not be given back: the books hold another amount "
            "in it, which stays set aside until its lease is over",
            returning.id,
            returning.left_nano,
        )

    def _arrived(
        self,
        reservation: Reservation,
        result: Future[Refusal | Soft | None],
        reserved: Future[Refusal | Soft | None],
        *,
        try_again: bool,
    ) -> None:
        """A reservation of its own was made, refused or failed."""
        error = reserved.exception()
        granted_as = None if error else reserved.result()
        if error is None and not isinstance(granted_as, Refusal):
            result.set_result(granted_as)
            return
        with self._changed:
            wanted = reservation.id in self._under_way  # else it was given up meanwhile
            if (
                granted_as is not None
                and try_again
                and wanted
                and self._blocks
                and not self._closing
            ):
                self._give_all_back()  # they may hold what it needs
                again = self._submit(Reserving(reservation.id, reservation))
                again.add_done_callback(
                    functools.partial(self._arrived, reservation, result, try_again=False)
                )
                return
            self._under_way.pop(reservation.id, None)
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(granted_as)

    def _leased(self, scopes: tuple[str, ...], since: float, leased: Future[Held | None]) -> None:
        """A block arrived, or none: there is too little left, or the database is in trouble."""
        with self._changed:
            self._asked.discard(scopes)
            held = None if leased.exception() else leased.result()
            if held is None:
                return
            block = Block(held, held.amount_nano, held.soft_nano, since)
            self._holdings.add(held, block.left, block.soft_left)
            if self._closing:
                self._return(block)
                return
            self._blocks.setdefault(scopes, []).append(block)
            if not self._tended:
                self._tended = True
                threading.Thread(target=self._tend, name="optllm-leases", daemon=True).start()

    def _tend(self) -> None:
        """Give back what is over, as long as there are blocks."""
        with self._changed:
            while self._blocks:
                now = self._clock()
                for scopes, blocks in list(self._blocks.items()):
                    for block in [
                        block for block in blocks if not block.since <= now < block.until
                    ]:
                        blocks.remove(block)
                        self._return(block)
                    if not blocks:
                        del self._blocks[scopes]
                self._changed.wait(LIFE_SECONDS / 4)
            self._tended = False


def _key(operation: Operation) -> _Key:
    """What tells writes apart: a call's drawing and its closing have the same id."""
    return operation.id, type(operation)


def _close_if_alive(ledger: weakref.ref[LeasingLedger]) -> None:
    alive = ledger()
    if alive is not None:
        try:
            alive.close()
        except OptLLMError as error:
            _log.error("at exit: %s", error)
