"""The rows of the ledger that a group of operations touches: read once, written back once.

Operations are applied to the rows in memory, one after the other, each seeing what those before
it did; then the rows go back in as few statements as there are tables. That is safe because

- no other transaction can change the rows meanwhile: SQLite's writers take turns, and
  PostgreSQL locks them (reservations by id, then balances by name and window: always in this
  order, so that two transactions do not wait for each other);
- a balance is written only over the very amounts that were read, else nothing is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, bindparam, select, text

from optllm_router._errors import StoreError
from optllm_router._money import window_bounds
from optllm_router.store.schema import balances, budgets, reservation_budgets, reservations

State: TypeAlias = Literal["open", "settled", "released", "expired"]
Account: TypeAlias = tuple[str, int]
"""A budget's name and the first second of one of its windows."""


@dataclass
class Moved:
    """What was spent from an account and what is set aside, in nano-dollars."""

    spent: int
    reserved: int


@dataclass(frozen=True)
class Limit:
    """A budget's cap in nano-dollars, in its current window."""

    nano: int
    account: Account
    next_window: int | None


@dataclass(frozen=True)
class Entry:
    """A reservation as the books know it; amounts in nano-dollars."""

    state: State
    reserved: int
    settled: int
    estimated: bool
    accounts: tuple[Account, ...]


class Books:
    """Budgets, balances and reservations, locked for one transaction.

    Args:
        connection: in a transaction that may write.
        ids: reservations that will be looked at or made.
        names: budgets that will be asked for money.
        now: Unix seconds that decide which window is current.

    Attributes:
        limits: known budgets among ``names``.
        accounts: all accounts that can be touched; change them in place.
        entries: the reservations among ``ids``; :meth:`enter` new ones, :meth:`change` others.
    """

    def __init__(
        self, connection: Connection, ids: Collection[str], names: Collection[str], now: float
    ) -> None:
        self._connection = connection
        self.entries = _read_entries(connection, ids)
        self.limits = _read_limits(connection, names, now)
        accounts = {account for entry in self.entries.values() for account in entry.accounts}
        accounts.update(limit.account for limit in self.limits.values())
        self.accounts = _read_accounts(connection, accounts)
        self._as_read = {account: (m.spent, m.reserved) for account, m in self.accounts.items()}
        self._changed: set[str] = set()
        self._new: dict[str, Mapping[str, Any]] = {}

    def enter(self, id: str, entry: Entry, columns: Mapping[str, Any]) -> None:
        """Add a reservation; ``columns`` are those that never change."""
        self.entries[id] = entry
        self._new[id] = columns

    def change(self, id: str, entry: Entry) -> None:
        """Put an entry in the place of one that is known."""
        self.entries[id] = entry
        if id not in self._new:
            self._changed.add(id)

    def write(self) -> None:
        """Bring the database to what is in memory."""
        self._insert_new_entries()
        if self._changed:
            rows = [{"id": id, **_changeable(self.entries[id])} for id in sorted(self._changed)]
            self._connection.execute(_UPDATE_ENTRY, rows)
        for account in sorted(self.accounts):
            self._write_account(account)

    def _insert_new_entries(self) -> None:
        rows: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        for id, columns in self._new.items():
            entry = self.entries[id]
            rows.append(
                {"id": id, **columns, "reserved_nano": entry.reserved, **_changeable(entry)}
            )
            parts.extend(
                {"reservation_id": id, "budget": name, "window_start": start}
                for name, start in entry.accounts
            )
        if rows:
            self._connection.execute(reservations.insert(), rows)
        if parts:
            self._connection.execute(reservation_budgets.insert(), parts)

    def _write_account(self, account: Account) -> None:
        moved, (spent, reserved) = self.accounts[account], self._as_read[account]
        if (moved.spent, moved.reserved) == (spent, reserved):
            return
        values = {
            "budget": account[0],
            "window_start": account[1],
            "spent": moved.spent,
            "reserved": moved.reserved,
            "spent_before": spent,
            "reserved_before": reserved,
        }
        if self._connection.execute(_UPDATE_ACCOUNT, values).rowcount != 1:
            raise StoreError(
                f"the balance of budget {account[0]!r} changed under a lock; nothing was written. "
                "Check with `optllm budget --verify` that no other program writes to this database"
            )


_ENTRIES = (
    select(
        reservations.c.id,
        reservations.c.state,
        reservations.c.reserved_nano,
        reservations.c.settled_nano,
        reservations.c.estimated,
        reservation_budgets.c.budget,
        reservation_budgets.c.window_start,
    )
    .outerjoin(reservation_budgets, reservation_budgets.c.reservation_id == reservations.c.id)
    .where(reservations.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(reservations.c.id, reservation_budgets.c.budget)
    .with_for_update(of=reservations)
)
_LIMITS = select(budgets).where(budgets.c.name.in_(bindparam("names", expanding=True)))
_ACCOUNTS = (
    select(balances)
    .where(balances.c.budget.in_(bindparam("names", expanding=True)))
    .where(balances.c.window_start.in_(bindparam("starts", expanding=True)))
    .order_by(balances.c.budget, balances.c.window_start)
    .with_for_update()
)
_OPEN_ACCOUNT = text(
    "INSERT INTO balances (budget, window_start, spent_nano, reserved_nano)"
    " VALUES (:budget, :window_start, 0, 0) ON CONFLICT DO NOTHING"
)
_UPDATE_ACCOUNT = text(
    "UPDATE balances SET spent_nano = :spent, reserved_nano = :reserved"
    " WHERE budget = :budget AND window_start = :window_start"
    " AND spent_nano = :spent_before AND reserved_nano = :reserved_before"
)
_UPDATE_ENTRY = text(
    "UPDATE reservations SET state = :state, settled_nano = :settled_nano,"
    " estimated = :estimated WHERE id = :id"
)


def _changeable(entry: Entry) -> dict[str, Any]:
    return {
        "state": entry.state,
        "settled_nano": entry.settled,
        "estimated": int(entry.estimated),
    }


def _read_entries(connection: Connection, ids: Collection[str]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for id, state, reserved, settled, estimated, budget, start in connection.execute(
        _ENTRIES, {"ids": list(ids)}
    ):
        before = found[id].accounts if id in found else ()
        accounts = before if budget is None else (*before, (budget, start))
        found[id] = Entry(state, reserved, settled, bool(estimated), accounts)
    return found


def _read_limits(connection: Connection, names: Collection[str], now: float) -> dict[str, Limit]:
    if not names:
        return {}
    limits = {}
    for name, window, nano in connection.execute(_LIMITS, {"names": list(names)}):
        start, end = window_bounds(window, now)
        limits[name] = Limit(nano, (name, start), end)
    return limits


def _read_accounts(connection: Connection, accounts: set[Account]) -> dict[Account, Moved]:
    found = _lock_accounts(connection, accounts)
    missing = [
        {"budget": name, "window_start": start} for name, start in sorted(accounts - found.keys())
    ]
    if missing:
        connection.execute(_OPEN_ACCOUNT, missing)
        found = _lock_accounts(connection, accounts)  # another process may have been faster
    return found


def _lock_accounts(connection: Connection, accounts: set[Account]) -> dict[Account, Moved]:
    if not accounts:
        return {}
    rows = connection.execute(
        _ACCOUNTS,
        {
            "names": sorted({name for name, _ in accounts}),
            "starts": sorted({start for _, start in accounts}),
        },
    )
    moved = {(name, start): Moved(spent, reserved) for name, start, spent, reserved in rows}
    return {account: moved[account] for account in accounts & moved.keys()}
