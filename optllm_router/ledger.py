"""The ledger: money is set aside before a call and settled at its true cost after it.

The invariant, at every instant and for every budget and window::

    spent + reserved <= limit

It holds because a reservation is the most that its call can cost, and because only
:func:`_reserve` raises ``spent + reserved`` before a call: it compares with the limit while
the balance is locked, see :mod:`._books`. A reservation leaves the state ``open`` exactly
once; whatever comes second finds it closed and changes nothing. :meth:`Ledger.verify`
recomputes every balance from the reservations and names each difference.

When a connection breaks, nobody knows whether the last commit arrived; the store then runs its
operations again, and each recognises what it wrote the first time.

A process that dies leaves its reservations open. Once their lease is over,
:meth:`Ledger.recover` closes them at their full amount (state ``expired``): the provider may
have charged for them. Should the true cost become known after all, settling corrects it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, case, func, select, update

from optllm_router._books import Books, Entry, State
from optllm_router._errors import ConfigurationError
from optllm_router._money import MAX_NANO, Budget, window_bounds
from optllm_router.store import Database
from optllm_router.store.schema import balances, budgets, reservation_budgets, reservations


@dataclass(frozen=True)
class Reservation:
    """Money to set aside for one call.

    Attributes:
        id: identifies the reservation; settling and releasing name it.
        decision_id: the decision that the call carries out.
        candidate: who is going to be paid.
        amount_nano: the most that the call can cost, in nano-dollars.
        budgets: names of all budgets that must have room.
        price_source: where the price came from.
        lease_seconds: how long the call may take before its process counts as dead.
    """

    id: str
    decision_id: str
    candidate: str
    amount_nano: int
    budgets: tuple[str, ...]
    price_source: str
    lease_seconds: float


@dataclass(frozen=True)
class Refusal:
    """Why a reservation was not made.

    Attributes:
        budget: the budget that had no room.
        left_nano: what it had left, in nano-dollars.
        reserved_nano: what other calls have set aside, part of which may come back.
        next_window: Unix seconds at which it starts afresh; ``None`` when it never does.
    """

    budget: str
    left_nano: int
    reserved_nano: int
    next_window: int | None


@dataclass(frozen=True)
class Balance:
    """A budget in its current window; amounts in nano-dollars."""

    budget: str
    window: str
    window_start: int
    next_window: int | None
    limit_nano: int
    spent_nano: int
    reserved_nano: int

    @property
    def left_nano(self) -> int:
        """What can still be set aside; 0 when the limit was lowered below what is spent."""
        return max(0, self.limit_nano - self.spent_nano - self.reserved_nano)


class Ledger:
    """Reserve, settle, release; thread-safe, and safe between processes that share a database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def set_budget(self, budget: Budget) -> None:
        """Create a budget, or change its limit from now on.

        Raises:
            ConfigurationError: the budget has another window. Its books are kept by that window:
                what was spent in another one is not in them.
        """
        same = budgets.c.name == budget.name
        values = {"window": budget.window, "limit_nano": budget.limit_nano}

        def work(connection: Connection) -> None:
            before = connection.scalar(select(budgets.c.window).where(same))
            if before is None:
                connection.execute(budgets.insert().values(name=budget.name, **values))
            elif before != budget.window:
                raise ConfigurationError(
                    f"budget {budget.name!r} of this store has the window {before!r}, which "
                    f"cannot become {budget.window!r}; give the new budget another name, like "
                    f"Budget({str(budget.limit_usd)!r}, {budget.window!r}, name='other'), "
                    "or use another store"
                )
            else:
                connection.execute(update(budgets).where(same).values(values))

        self._database.submit(work).result()

    def reserve(self, reservation: Reservation) -> Future[Refusal | None]:
        """Set money aside in all of its budgets, or in none.

        The future holds ``None`` when the money is set aside, else the first refusal. It
        raises ``ConfigurationError`` when a budget is not known or the id was used before.
        """
        amount = reservation.amount_nano
        if not 0 <= amount <= MAX_NANO:
            raise ConfigurationError(
                f"a call to {reservation.candidate!r} could cost {amount} nano-dollars, outside "
                f"0..{MAX_NANO}; set a smaller max_tokens"
            )
        return self._submit(_Reserving(reservation.id, reservation))

    def settle(
        self, reservation_id: str, cost_nano: int, *, estimated: bool = False
    ) -> Future[bool]:
        """Replace a reservation by what the call cost.

        The future holds False when the reservation was already settled or released (then
        nothing changes). A cost over the reserved amount is recorded in full: it was spent.

        Args:
            reservation_id: the reservation.
            cost_nano: true cost in nano-dollars.
            estimated: True when the provider did not say what it charged.
        """
        return self._close(reservation_id, "settled", cost_nano, estimated)

    def settle_in_full(self, reservation_id: str) -> Future[bool]:
        """Settle at the reserved amount: the provider may have charged up to all of it."""
        return self._close(reservation_id, "settled", None, True)

    def release(self, reservation_id: str) -> Future[bool]:
        """Give the money back: the call was not billed. As :meth:`settle` for the result."""
        return self._close(reservation_id, "released", 0, False)

    def recover(self) -> int:
        """Close, at the full amount, the reservations whose lease is over; returns how many."""
        overdue = select(reservations.c.id).where(
            reservations.c.state == "open", reservations.c.expires_at < self._clock()
        )
        with self._database.read() as connection:
            ids = list(connection.scalars(overdue))
        closed = [self._close(overdue_id, "expired", None, True) for overdue_id in ids]
        return sum(future.result() for future in closed)

    def balances(self) -> list[Balance]:
        """Every budget in its current window, by name."""
        now = self._clock()
        with self._database.read() as connection:
            rows = connection.execute(select(budgets).order_by(budgets.c.name)).all()
            return [_balance(connection, row, now) for row in rows]

    def balance(self, name: str) -> Balance:
        """One budget in its current window.

        Raises:
            ConfigurationError: no budget of that name.
        """
        with self._database.read() as connection:
            row = connection.execute(select(budgets).where(budgets.c.name == name)).first()
            if row is None:
                raise ConfigurationError(f"no budget {name!r} in this store; create it first")
            return _balance(connection, row, self._clock())

    def verify(self) -> list[str]:
        """Recompute every balance from the reservations; one sentence per difference."""
        with self._database.read() as connection:
            kept = {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(_KEPT)}
            true = {
                (row[0], row[1]): (int(row[2]), int(row[3])) for row in connection.execute(_TRUE)
            }
        return [
            f"budget {name!r}, window {start}: spent and reserved are {kept.get(key)} "
            f"in the balances but {true.get(key, (0, 0))} in the reservations"
            for key in sorted(kept.keys() | true.keys())
            for name, start in [key]
            if kept.get(key) != true.get(key, (0, 0))
        ]

    def _close(
        self, reservation_id: str, state: State, cost_nano: int | None, estimated: bool
    ) -> Future[bool]:
        if cost_nano is not None and not 0 <= cost_nano <= MAX_NANO:
            raise ConfigurationError(f"a cost of {cost_nano} nano-dollars is outside 0..{MAX_NANO}")
        return self._submit(_Closing(reservation_id, state, cost_nano, estimated))

    def _submit(self, operation: _Reserving | _Closing) -> Future[Any]:
        return self._database.submit_to(self._apply, operation)

    def _apply(
        self, connection: Connection, operations: Sequence[_Reserving | _Closing]
    ) -> list[Refusal | bool | None]:
        """Carry operations out in order, in the transaction that ``connection`` is in."""
        now = self._clock()
        names = {
            name
            for operation in operations
            if isinstance(operation, _Reserving)
            for name in operation.reservation.budgets
        }
        books = Books(connection, {operation.id for operation in operations}, names, now)
        results = [
            _reserve(books, operation, now)
            if isinstance(operation, _Reserving)
            else _close(books, operation)
            for operation in operations
        ]
        books.write()
        return results


@dataclass
class _Reserving:
    id: str
    reservation: Reservation
    written: bool = False
    """In a transaction before this one, which may have been committed or not."""


@dataclass
class _Closing:
    id: str
    state: State
    cost_nano: int | None
    estimated: bool
    written: bool = False


_KEPT = select(
    balances.c.budget, balances.c.window_start, balances.c.spent_nano, balances.c.reserved_nano
)
_TRUE = (
    select(
        reservation_budgets.c.budget,
        reservation_budgets.c.window_start,
        func.sum(reservations.c.settled_nano),
        func.sum(case((reservations.c.state == "open", reservations.c.reserved_nano), else_=0)),
    )
    .join(reservations, reservations.c.id == reservation_budgets.c.reservation_id)
    .group_by(reservation_budgets.c.budget, reservation_budgets.c.window_start)
)


def _reserve(books: Books, operation: _Reserving, now: float) -> Refusal | None:
    reservation = operation.reservation
    amount, names = reservation.amount_nano, sorted(set(reservation.budgets))
    if operation.id in books.entries:
        if operation.written:
            return None
        raise ConfigurationError(
            f"reservation id {operation.id!r} was used before; every call needs a unique one"
        )
    for name in names:
        if name not in books.limits:
            raise ConfigurationError(f"no budget {name!r} in this store; create it first")
        limit = books.limits[name]
        moved = books.accounts[limit.account]
        left = limit.nano - moved.spent - moved.reserved
        if amount > left:
            return Refusal(name, max(0, left), moved.reserved, limit.next_window)
    accounts = tuple(books.limits[name].account for name in names)
    for account in accounts:
        books.accounts[account].reserved += amount
    columns = {
        "decision_id": reservation.decision_id,
        "candidate": reservation.candidate,
        "price_source": reservation.price_source,
        "created_at": now,
        "expires_at": now + reservation.lease_seconds,
    }
    books.enter(operation.id, Entry("open", amount, 0, False, accounts), columns)
    operation.written = True
    return None


def _close(books: Books, operation: _Closing) -> bool:
    entry = books.entries.get(operation.id)
    if entry is None:
        return False
    cost = entry.reserved if operation.cost_nano is None else operation.cost_nano
    closed = replace(entry, state=operation.state, settled=cost, estimated=operation.estimated)
    closable = ("open",) if operation.state == "expired" else ("open", "expired")
    if entry.state not in closable:
        return operation.written and entry == closed
    for account in entry.accounts:
        moved = books.accounts[account]
        if entry.state == "open":
            moved.reserved -= entry.reserved
        moved.spent += cost - entry.settled
    books.change(operation.id, closed)
    operation.written = True
    return True


def _balance(connection: Connection, row: Row[tuple[str, str, int]], now: float) -> Balance:
    start, end = window_bounds(row.window, now)
    spent, reserved = _moved(connection, row.name, start)
    return Balance(row.name, row.window, start, end, int(row.limit_nano), spent, reserved)


def _moved(connection: Connection, name: str, start: int) -> tuple[int, int]:
    found = connection.execute(
        select(balances.c.spent_nano, balances.c.reserved_nano).where(
            balances.c.budget == name, balances.c.window_start == start
        )
    ).first()
    return (int(found[0]), int(found[1])) if found else (0, 0)
