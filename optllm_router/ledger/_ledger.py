"""The ledger: money is set aside before a call and settled at its true cost after it.

The invariant, at every instant and for every hard budget and window::

    spent + reserved <= limit

It holds because a reservation is the most that its call can cost, and because only
:mod:`._operations` raise ``spent + reserved`` before a call: they compare with the limit while
the balance is locked, see :mod:`._books`. A reservation leaves the state ``open`` exactly
once; whatever comes second finds it closed and changes nothing. :meth:`Ledger.verify`
recomputes every balance from the reservations and names each difference.

Which budgets a call must fit into is said by its scopes, see :mod:`._limits`. A soft budget sets
aside a high quantile of what a call may cost, and so can be exceeded by what calls under way cost
beyond it; :attr:`Balance.expected_excess_nano` says how much that is going to be.

When a connection breaks, nobody knows whether the last commit arrived; the store then runs its
operations again, and each recognises what it wrote the first time.

A process that dies leaves its reservations open. Once their lease is over,
:meth:`Ledger.recover` closes them at their full amount (state ``expired``): the provider may
have charged for them. Should the true cost become known after all, settling corrects it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, case, func, select

from optllm_router._errors import ConfigurationError
from optllm_router._money import MAX_NANO, Budget, nano_from_usd
from optllm_router._scopes import scopes_of_call
from optllm_router.ledger._balances import Balance, Glances, balance_of, read_balances
from optllm_router.ledger._books import Books, State
from optllm_router.ledger._limits import (
    MANNERS,
    Limit,
    change_limit,
    configure_budget,
    find_limits,
    keep_budget,
    read_limit,
    read_limits,
    read_with_copies,
    remove_budget,
)
from optllm_router.ledger._operations import (
    Closing,
    Effects,
    Freeing,
    Operation,
    Refusal,
    Reservation,
    Reserving,
    Soft,
)
from optllm_router.ledger._thresholds import Crossing, Thresholds
from optllm_router.store import Database
from optllm_router.store.schema import balances, reservation_budgets, reservations


class Ledger:
    """Reserve, settle, release; thread-safe, and safe between processes that share a database.

    Args:
        database: where the books are.
        clock: gives Unix seconds.
        on_threshold: called in a thread of its own when a budget has spent one of its
            percentages, once per budget, window and percentage among all processes. (A process
            that loses its database at that very moment may lead to a second call in another.)
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        *,
        on_threshold: Callable[[Crossing], object] | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._thresholds = Thresholds(on_threshold) if on_threshold else None
        self._glances = Glances(self._find_balances, clock)

    def set_budget(self, budget: Budget, *, only: Collection[str] = MANNERS) -> None:
        """Create a budget, or change its limit, thresholds and manners from now on.

        Args:
            budget: as it is to be.
            only: what to change of one that is there: some of ``limit_nano``, ``hard``,
                ``thresholds`` and ``pace``.

        Raises:
            ConfigurationError: the budget has another scope, window or time zone. Its books are
                kept by these: what was spent in another window is not in them. Or it has the
                name of a budget that a template makes.
        """
        self._change(budget.name, lambda connection: keep_budget(connection, budget, only))

    def configure(self, budget: Budget) -> None:
        """As :meth:`set_budget`, unless the same was configured before.

        A budget that was changed since then keeps its changes; one that was removed comes back.

        Raises:
            ConfigurationError: as :meth:`set_budget`.
        """
        self._change(budget.name, lambda connection: configure_budget(connection, budget))

    def set_limit(self, name: str, usd: Decimal | float | int | str) -> None:
        """Change a limit from now on; below what is spent, it stops new calls and cancels none.

        Thresholds that are reached by that are reported.

        Raises:
            ConfigurationError: no budget of that name, or no amount.
        """
        nano = nano_from_usd(usd, what="budget limit")
        self._change(name, lambda connection: change_limit(connection, name, nano))

    def remove_budget(self, name: str) -> None:
        """Take a budget out of use. What was spent from it stays in the books.

        Raises:
            ConfigurationError: no budget of that name.
        """
        self._database.submit(lambda connection: remove_budget(connection, name)).result()
        self._glances.forget()

    def reserve(self, reservation: Reservation) -> Future[Refusal | Soft | None]:
        """Set money aside in all budgets that the call must fit into, or in none.

        The future holds ``None`` when the money is set aside, or :class:`Soft` when it is and no
        hard budget applies; else the first refusal. It raises ``ConfigurationError`` when no
        budget covers a scope or the id was used before.

        Raises:
            ConfigurationError: a scope is none, or an amount is out of range.
        """
        return self._submit(Reserving(reservation.id, checked(reservation)))

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

    def free(self, block_id: str, held_nano: int, kept_nano: int) -> Future[bool]:
        """Take out of an expired block what nobody was charged for.

        The future holds False when the block holds something else meanwhile (then nothing
        changes).

        Args:
            block_id: the block.
            held_nano: what it held when it was looked at.
            kept_nano: what it keeps.
        """
        return self._submit(Freeing(block_id, held_nano, kept_nano))

    def recover(self) -> int:
        """Close, at the full amount, the reservations whose lease is over; returns how many."""
        with self._database.read() as connection:
            overdue = self._overdue(connection)
        return sum(closed.result() for closed in self._expire(overdue))

    def balances(self) -> list[Balance]:
        """Every budget in its current window, by name."""
        with self._database.read() as connection:
            return read_balances(connection, read_limits(connection, self._clock()))

    def templates(self) -> list[Balance]:
        """The budgets that are for each (``tenant:*``), by name, as if nothing were spent.

        What each has spent is in the balance of its own, of which there is one from its first
        call on.
        """
        with self._database.read() as connection:
            limits = read_limits(connection, self._clock(), templates=True)
        return [balance_of(limit, {}) for limit in limits]

    def balance(self, name: str) -> Balance:
        """One budget in its current window.

        Raises:
            ConfigurationError: no budget of that name.
        """
        for balance in self.balances():
            if balance.budget == name:
                return balance
        raise ConfigurationError(f"no budget {name!r} in this store; create it first")

    def glance(self, scopes: Iterable[str] = ()) -> tuple[Balance, ...]:
        """The balances that a call of these scopes must fit into, by name, from memory.

        Up to date with what this process committed, and about a second behind other processes.
        """
        return self._glances.at(scopes_of_call(scopes))

    def remembered(self, scopes: Iterable[str] = ()) -> tuple[Balance, ...] | None:
        """As :meth:`glance`, or ``None`` where that takes a look at the database."""
        return self._glances.known(scopes_of_call(scopes))

    def can_glance(self, scopes: Iterable[str] = ()) -> bool:
        """Whether :meth:`glance` needs no look at the database."""
        return self.remembered(scopes) is not None

    def verify(self) -> list[str]:
        """Recompute every balance from the reservations; one sentence per difference."""
        nothing = (0, 0, 0, 0, 0)
        with self._database.read() as connection:
            kept = {(row[0], row[1]): tuple(row[2:]) for row in connection.execute(_KEPT)}
            true = {(row[0], row[1]): tuple(map(int, row[2:])) for row in connection.execute(_TRUE)}
        return [
            f"budget {name!r}, window {start}: spent, reserved, calls, calls under way and excess "
            f"are {kept.get(key, nothing)} in the balances but {true.get(key, nothing)} in the "
            "reservations"
            for key in sorted(kept.keys() | true.keys())
            for name, start in [key]
            if kept.get(key, nothing) != true.get(key, nothing)
        ]

    def _change(self, name: str, work: Callable[[Connection], None]) -> None:
        """Change a budget of that name and its copies, and report what thresholds that reaches."""

        def change(connection: Connection) -> list[Crossing]:
            before = read_limit(connection, name, self._clock())
            work(connection)
            return self._reached(connection, before)

        crossings = self._database.submit(change).result()
        self._glances.forget()
        if self._thresholds is not None:
            self._thresholds.committed(crossings)

    def _reached(self, connection: Connection, old: Limit | None) -> list[Crossing]:
        """Thresholds that a budget, or copies of it, reach by the change of what it was."""
        if self._thresholds is None or old is None:
            return []
        now = self._clock()
        new = read_limit(connection, old.name, now)
        if new is None or (new.nano, new.thresholds) == (old.nano, old.thresholds):
            return []
        limits = read_with_copies(connection, old.name, now)
        changed = [limit for limit in limits if limit.nano == new.nano]
        found = []
        for limit, balance in zip(changed, read_balances(connection, changed), strict=True):
            spent = balance.spent_nano
            before = spent * new.nano // old.nano if old.nano else spent
            found += self._thresholds.cross(connection, limit, spent, before)
        return found

    def _overdue(self, connection: Connection) -> list[str]:
        """The reservations whose lease is over."""
        overdue = select(reservations.c.id).where(
            reservations.c.state == "open", reservations.c.expires_at < self._clock()
        )
        return list(connection.scalars(overdue))

    def _expire(self, overdue: Iterable[str]) -> list[Future[bool]]:
        """Have them closed."""
        return [self._close(overdue_id, "expired", None, True) for overdue_id in overdue]

    def _find_balances(self, scopes: tuple[str, ...]) -> list[Balance]:
        with self._database.read(behind=True) as connection:
            return read_balances(connection, find_limits(connection, scopes, self._clock()))

    def _close(
        self, reservation_id: str, state: State, cost_nano: int | None, estimated: bool
    ) -> Future[bool]:
        return self._submit(closing_of(reservation_id, state, cost_nano, estimated))

    def _submit(self, operation: Operation, *, urgent: bool = True) -> Future[Any]:
        done: Future[Any] = self._database.submit_to(self._apply, operation, urgent=urgent)
        done.add_done_callback(functools.partial(self._announce, operation))
        return done

    def _apply(self, connection: Connection, operations: Sequence[Operation]) -> list[object]:
        """Carry operations out in order, in the transaction that ``connection`` is in."""
        now = self._clock()
        ids = {id for operation in operations for id in operation.ids()}
        scopes = {scope for operation in operations for scope in operation.scopes()}
        books = Books(connection, ids, scopes, now)
        results = [operation.attempt(books, now) for operation in operations]
        books.write()
        for operation in operations:
            operation.effects = None
        effects = Effects(books.moves(), self._crossings(connection, books))
        for operation, result in zip(operations, results, strict=True):
            if not isinstance(result, Exception):  # who fails, announces nothing
                operation.effects = effects
                break
        return results

    def _crossings(self, connection: Connection, books: Books) -> list[Crossing]:
        if self._thresholds is None:
            return []
        new = {account: moved.spent for account, moved in books.moves().items()}
        spent_from = {name for (name, _), spent in new.items() if spent > 0}
        found = []
        for limit in books.limits:
            if limit.name in spent_from:
                spent = sum(moved.spent for moved in books.counted(limit).values())
                before = spent - sum(one for account, one in new.items() if limit.counts(account))
                found += self._thresholds.cross(connection, limit, spent, before)
        return found

    def _announce(self, operation: Operation, done: Future[Any]) -> None:
        """Tell of what a group did, once that is committed."""
        effects = operation.effects
        if effects is None or done.exception() is not None:
            return
        for account, moved in effects.moves.items():
            self._glances.move(account, moved)
        if self._thresholds is not None:
            self._thresholds.committed(effects.crossings)


_KEPT = select(
    balances.c.budget,
    balances.c.window_start,
    balances.c.spent_nano,
    balances.c.reserved_nano,
    balances.c.calls,
    balances.c.open_calls,
    balances.c.excess_nano,
)
_IS_OPEN = reservations.c.state == "open"
_IS_CALL = case((reservations.c.candidate == "", 0), else_=1)  # the others are blocks
_BEYOND = reservations.c.settled_nano - reservation_budgets.c.amount_nano
_TRUE = (
    select(
        reservation_budgets.c.budget,
        reservation_budgets.c.window_start,
        func.sum(reservations.c.settled_nano),
        func.sum(case((_IS_OPEN, reservation_budgets.c.amount_nano), else_=0)),
        func.sum(_IS_CALL),
        func.sum(case((_IS_OPEN, _IS_CALL), else_=0)),
        func.sum(case((_BEYOND > 0, _BEYOND * _IS_CALL), else_=0)),
    )
    .join(reservations, reservations.c.id == reservation_budgets.c.reservation_id)
    .group_by(reservation_budgets.c.budget, reservation_budgets.c.window_start)
)


def checked(reservation: Reservation) -> Reservation:
    """The reservation with its scopes in order.

    Raises:
        ConfigurationError: a scope is none, or an amount is out of range.
    """
    soft = reservation.soft_nano
    for amount in (reservation.amount_nano, 0 if soft is None else soft):
        if not 0 <= amount <= MAX_NANO:
            raise ConfigurationError(
                f"a call to {reservation.candidate!r} could cost {amount} nano-dollars, "
                f"outside 0..{MAX_NANO}; set a smaller max_tokens"
            )
    scopes = scopes_of_call(reservation.scopes)
    return reservation if scopes == reservation.scopes else replace(reservation, scopes=scopes)


def closing_of(
    reservation_id: str, state: State, cost_nano: int | None, estimated: bool
) -> Closing:
    """What closes a reservation.

    Raises:
        ConfigurationError: the cost is out of range.
    """
    if cost_nano is not None and not 0 <= cost_nano <= MAX_NANO:
        raise ConfigurationError(f"a cost of {cost_nano} nano-dollars is outside 0..{MAX_NANO}")
    return Closing(reservation_id, state, cost_nano, estimated)
