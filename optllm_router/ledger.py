"""The ledger: money is set aside before a call and settled at its true cost after it.

The invariant, at every instant and for every budget and window::

    spent + reserved <= limit

It holds because the only statement that raises ``spent + reserved`` before a call is one
conditional ``UPDATE`` (:meth:`Ledger.reserve`), and because a reservation is the most that
its call can cost. A reservation leaves the state ``open`` exactly once; whatever comes
second finds it closed and changes nothing. :meth:`Ledger.verify` recomputes every balance
from the reservations and names each difference.

A process that dies leaves its reservations open. Once their lease is over,
:meth:`Ledger.recover` closes them at their full amount (state ``expired``): the provider may
have charged for them. Should the true cost become known after all, settling corrects it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy import Connection, Row, case, func, select, text, update

from optllm_router._errors import ConfigurationError
from optllm_router._money import MAX_NANO, Budget, window_bounds
from optllm_router.store import Database
from optllm_router.store.schema import balances, budgets, reservation_budgets, reservations

_OPEN, _SETTLED, _RELEASED, _EXPIRED = "open", "settled", "released", "expired"

_OPEN_WINDOW = text(
    "INSERT INTO balances (budget, window_start, spent_nano, reserved_nano)"
    " VALUES (:budget, :window_start, 0, 0) ON CONFLICT DO NOTHING"
)
_SET_ASIDE = text(
    "UPDATE balances SET reserved_nano = reserved_nano + :amount"
    " WHERE budget = :budget AND window_start = :window_start"
    " AND spent_nano + reserved_nano + :amount"
    " <= (SELECT limit_nano FROM budgets WHERE name = :budget)"
)
_MOVE = text(
    "UPDATE balances SET reserved_nano = reserved_nano + :reserved,"
    " spent_nano = spent_nano + :spent"
    " WHERE budget = :budget AND window_start = :window_start"
)


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
        """Create a budget, or change its limit from now on."""
        values = {"window": budget.window, "limit_nano": budget.limit_nano}

        def work(connection: Connection) -> None:
            changed = connection.execute(
                update(budgets).where(budgets.c.name == budget.name).values(values)
            )
            if changed.rowcount == 0:
                connection.execute(budgets.insert().values(name=budget.name, **values))

        self._database.submit(work).result()

    def reserve(self, reservation: Reservation) -> Future[Refusal | None]:
        """Set money aside in all of its budgets, or in none.

        The future holds ``None`` when the money is set aside, else the first refusal. It
        raises ``ConfigurationError`` when a budget is not known.
        """
        amount = reservation.amount_nano
        if not 0 <= amount <= MAX_NANO:
            raise ConfigurationError(
                f"a call to {reservation.candidate!r} could cost {amount} nano-dollars, outside "
                f"0..{MAX_NANO}; set a smaller max_tokens"
            )
        now = self._clock()

        def work(connection: Connection) -> Refusal | None:
            parts: list[dict[str, object]] = []
            for name in sorted(reservation.budgets):
                start, end = window_bounds(_window(connection, name), now)
                part = {"budget": name, "window_start": start}
                connection.execute(_OPEN_WINDOW, part)
                if connection.execute(_SET_ASIDE, {**part, "amount": amount}).rowcount == 0:
                    for done in parts:
                        connection.execute(_MOVE, {**done, "reserved": -amount, "spent": 0})
                    return _refusal(connection, name, start, end)
                parts.append(part)
            _insert(connection, reservation, parts, now)
            return None

        return self._database.submit(work)

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
        return self._close(reservation_id, _SETTLED, cost_nano, estimated)

    def settle_in_full(self, reservation_id: str) -> Future[bool]:
        """Settle at the reserved amount: the provider may have charged up to all of it."""
        return self._close(reservation_id, _SETTLED, None, True)

    def release(self, reservation_id: str) -> Future[bool]:
        """Give the money back: the call was not billed. As :meth:`settle` for the result."""
        return self._close(reservation_id, _RELEASED, 0, False)

    def recover(self) -> int:
        """Close, at the full amount, the reservations whose lease is over; returns how many."""
        overdue = select(reservations.c.id).where(
            reservations.c.state == _OPEN, reservations.c.expires_at < self._clock()
        )
        with self._database.read() as connection:
            ids = list(connection.scalars(overdue))
        closed = [self._close(overdue_id, _EXPIRED, None, True) for overdue_id in ids]
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
        self, reservation_id: str, state: str, cost_nano: int | None, estimated: bool
    ) -> Future[bool]:
        if cost_nano is not None and not 0 <= cost_nano <= MAX_NANO:
            raise ConfigurationError(f"a cost of {cost_nano} nano-dollars is outside 0..{MAX_NANO}")

        def work(connection: Connection) -> bool:
            return _close(connection, reservation_id, state, cost_nano, estimated)

        return self._database.submit(work)


_KEPT = select(
    balances.c.budget, balances.c.window_start, balances.c.spent_nano, balances.c.reserved_nano
)
_TRUE = (
    select(
        reservation_budgets.c.budget,
        reservation_budgets.c.window_start,
        func.sum(reservations.c.settled_nano),
        func.sum(case((reservations.c.state == _OPEN, reservations.c.reserved_nano), else_=0)),
    )
    .join(reservations, reservations.c.id == reservation_budgets.c.reservation_id)
    .group_by(reservation_budgets.c.budget, reservation_budgets.c.window_start)
)


def _insert(
    connection: Connection, reservation: Reservation, parts: Sequence[dict[str, object]], now: float
) -> None:
    connection.execute(
        reservations.insert(),
        {
            "id": reservation.id,
            "decision_id": reservation.decision_id,
            "candidate": reservation.candidate,
            "state": _OPEN,
            "reserved_nano": reservation.amount_nano,
            "settled_nano": 0,
            "estimated": 0,
            "price_source": reservation.price_source,
            "created_at": now,
            "expires_at": now + reservation.lease_seconds,
        },
    )
    for part in parts:
        connection.execute(reservation_budgets.insert(), {"reservation_id": reservation.id, **part})


def _close(
    connection: Connection, reservation_id: str, state: str, cost: int | None, estimated: bool
) -> bool:
    mine = reservations.c.id == reservation_id
    row = connection.execute(select(reservations).where(mine).with_for_update()).first()
    closable = (_OPEN,) if state == _EXPIRED else (_OPEN, _EXPIRED)
    if row is None or row.state not in closable:
        return False
    settled = row.reserved_nano if cost is None else cost
    connection.execute(
        update(reservations)
        .where(mine)
        .values(state=state, settled_nano=settled, estimated=int(estimated))
    )
    parts = select(reservation_budgets).where(
        reservation_budgets.c.reservation_id == reservation_id
    )
    for part in connection.execute(parts).all():
        move = {
            "budget": part.budget,
            "window_start": part.window_start,
            "reserved": -row.reserved_nano if row.state == _OPEN else 0,
            "spent": settled - row.settled_nano,
        }
        connection.execute(_MOVE, move)
    return True


def _window(connection: Connection, name: str) -> str:
    window = connection.scalar(select(budgets.c.window).where(budgets.c.name == name))
    if window is None:
        raise ConfigurationError(f"no budget {name!r} in this store; create it first")
    return str(window)


def _refusal(connection: Connection, name: str, start: int, end: int | None) -> Refusal:
    limit = connection.scalar(select(budgets.c.limit_nano).where(budgets.c.name == name)) or 0
    spent, reserved = _moved(connection, name, start)
    return Refusal(name, max(0, limit - spent - reserved), reserved, end)


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
