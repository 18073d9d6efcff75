"""The rows of the ledger that a group of operations touches: read once, written back once.

Operations are applied to the rows in memory, one after the other, each seeing what those before
it did; then the rows go back in as few statements as there are tables. That is safe because

- no other transaction can change the rows meanwhile: SQLite's writers take turns, and
  PostgreSQL locks them (reservations by id, then budgets by name, then balances by name and
  window: always in this order, so that two transactions do not wait for each other). Who
  reserves locks the budget, so that two calls on either side of a window's edge take turns, too;
- a balance is written only over the very amounts that were read, else nothing is.

What a reservation adds to a balance is said in one place, :func:`_share`; putting an entry takes
back what it added before and adds what it adds now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, bindparam, select, text

from optllm_router._errors import StoreError
from optllm_router.ledger._balances import Moved, counted, read_accounts
from optllm_router.ledger._limits import Account, Limit, applicable, find_limits
from optllm_router.store.schema import balances, reservation_budgets, reservations

State: TypeAlias = Literal["open", "settled", "released", "expired"]


class Part(NamedTuple):
    """What a reservation sets aside on one account, in nano-dollars."""

    account: Account
    amount: int


@dataclass(frozen=True)
class Entry:
    """A reservation as the books know it; amounts in nano-dollars.

    Attributes:
        state: only ``open`` ones set money aside.
        reserved: the most that the call can cost.
        settled: what it cost.
        estimated: whether the provider did not say so.
        parts: what it sets aside where, by account.
        block: whether it is held for calls to come, and so is none itself.
    """

    state: State
    reserved: int
    settled: int
    estimated: bool
    parts: tuple[Part, ...]
    block: bool = False


def _share(entry: Entry, part: Part) -> Moved:
    """What an entry adds to one of its accounts."""
    is_open = entry.state == "open"
    return Moved(
        spent=entry.settled,
        reserved=part.amount if is_open else 0,
        calls=int(not entry.block),
        open_calls=int(is_open and not entry.block),
        excess=0 if entry.block else max(0, entry.settled - part.amount),
    )


class Books:
    """Budgets, balances and reservations, locked for one transaction.

    Args:
        connection: in a transaction that may write.
        ids: reservations that will be looked at or made.
        scopes: scopes of the calls that will ask for money.
        now: Unix seconds that decide which window is current.

    Attributes:
        limits: the budgets on ``scopes`` and on everything, and those of known reservations.
        leased: what blocks were leased in this transaction, by budget.
    """

    def __init__(
        self, connection: Connection, ids: Collection[str], scopes: Collection[str], now: float
    ) -> None:
        self._connection = connection
        self._entries = _read_entries(connection, ids)
        known = {part.account for entry in self._entries.values() for part in entry.parts}
        names = {name for name, _ in known}
        self.limits = find_limits(connection, scopes, now, names=names, lock=True)
        self._accounts = read_accounts(connection, self.limits, known, lock=True)
        self._as_read = {account: replace(moved) for account, moved in self._accounts.items()}
        self.leased: Counter[str] = Counter()
        self._touched: set[Account] = set()
        self._changed: set[str] = set()
        self._parted: set[str] = set()
        self._dropped: set[str] = set()
        self._new: dict[str, Mapping[str, Any]] = {}
        self._applicable: dict[tuple[str, ...], tuple[Limit, ...]] = {}

    def limits_of(self, scopes: tuple[str, ...]) -> tuple[Limit, ...]:
        """The budgets that a call of these scopes must fit into.

        Raises:
            ConfigurationError: no budget covers one of them.
        """
        if scopes not in self._applicable:
            self._applicable[scopes] = applicable(self.limits, scopes)
        return self._applicable[scopes]

    def counted(self, limit: Limit) -> dict[int, Moved]:
        """What uses a limit up now, by slot."""
        return counted(limit, self._accounts)

    def entry(self, id: str) -> Entry | None:
        """A reservation; ``None`` when there is none of that id."""
        return self._entries.get(id)

    def put(self, id: str, entry: Entry, columns: Mapping[str, Any] | None = None) -> None:
        """Put a reservation in the place of the one of that id, and move the balances.

        Args:
            id: the reservation.
            entry: what it is from now on.
            columns: of a new one, those that never change.
        """
        before = self._entries.get(id)
        self._entries[id] = entry
        if before is not None:
            self._move(before, -1)
            if before.parts != entry.parts:
                self._parted.add(id)
        self._move(entry, 1)
        if columns is not None:
            self._new[id] = columns
        elif id not in self._new:
            self._changed.add(id)

    def drop(self, id: str) -> None:
        """Forget a reservation that came to nothing, as if it had never been made."""
        self._move(self._entries.pop(id), -1)
        if self._new.pop(id, None) is None:
            self._dropped.add(id)

    def moves(self) -> dict[Account, Moved]:
        """What was done, by account."""
        done = {}
        for account in self._touched:
            done[account] = replace(self._accounts[account])
            done[account].add(self._as_read.get(account, Moved()), -1)
        return done

    def write(self) -> None:
        """Bring the database to what is in memory."""
        self._insert_new_entries()
        changed = sorted(self._changed - self._dropped)
        if changed:
            rows = [{"id": id, **_changeable(self._entries[id])} for id in changed]
            self._connection.execute(_UPDATE_ENTRY, rows)
        parts = [
            _part_row(id, part)
            for id in changed
            if id in self._parted
            for part in self._entries[id].parts
        ]
        if parts:
            self._connection.execute(_UPDATE_PART, parts)
        if self._dropped:
            rows = [{"id": id} for id in sorted(self._dropped)]
            self._connection.execute(_DELETE_ENTRY, rows)
            self._connection.execute(_DELETE_PARTS, rows)
        for account in sorted(self._touched):
            self._write_account(account)

    def _move(self, entry: Entry, sign: int) -> None:
        for part in entry.parts:
            self._accounts.setdefault(part.account, Moved()).add(_share(entry, part), sign)
            self._touched.add(part.account)

    def _insert_new_entries(self) -> None:
        rows: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        for id, columns in self._new.items():
            entry = self._entries[id]
            rows.append({"id": id, **columns, **_changeable(entry)})
            parts.extend(_part_row(id, part) for part in entry.parts)
        if rows:
            self._connection.execute(reservations.insert(), rows)
        if parts:
            self._connection.execute(reservation_budgets.insert(), parts)

    def _write_account(self, account: Account) -> None:
        moved = self._accounts[account]
        values = {
            "budget": account[0],
            "window_start": account[1],
            "spent_nano": moved.spent,
            "reserved_nano": moved.reserved,
            "calls": moved.calls,
            "open_calls": moved.open_calls,
            "excess_nano": moved.excess,
        }
        if account not in self._as_read:  # its budget is locked: nobody else can open it
            self._connection.execute(balances.insert(), values)
            return
        as_read = self._as_read[account]
        before = {"spent_before": as_read.spent, "reserved_before": as_read.reserved}
        if self._connection.execute(_UPDATE_ACCOUNT, {**values, **before}).rowcount != 1:
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
        reservations.c.candidate,
    )
    .where(reservations.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(reservations.c.id)
    .with_for_update()
)
_PARTS = (
    select(reservation_budgets)
    .where(reservation_budgets.c.reservation_id.in_(bindparam("ids", expanding=True)))
    .order_by(reservation_budgets.c.reservation_id, reservation_budgets.c.budget)
)
_UPDATE_ACCOUNT = text(
    "UPDATE balances SET spent_nano = :spent_nano, reserved_nano = :reserved_nano,"
    " calls = :calls, open_calls = :open_calls, excess_nano = :excess_nano"
    " WHERE budget = :budget AND window_start = :window_start"
    " AND spent_nano = :spent_before AND reserved_nano = :reserved_before"
)
_UPDATE_ENTRY = text(
    "UPDATE reservations SET state = :state, reserved_nano = :reserved_nano,"
    " settled_nano = :settled_nano, estimated = :estimated WHERE id = :id"
)

_UPDATE_PART = text(
    "UPDATE reservation_budgets SET amount_nano = :amount_nano WHERE reservation_id ="
    " :reservation_id AND budget = :budget AND window_start = :window_start"
)
_DELETE_ENTRY = text("DELETE FROM reservations WHERE id = :id")
_DELETE_PARTS = text("DELETE FROM reservation_budgets WHERE reservation_id = :id")


def _part_row(id: str, part: Part) -> dict[str, Any]:
    return {
        "reservation_id": id,
        "budget": part.account[0],
        "window_start": part.account[1],
        "amount_nano": part.amount,
    }


def _changeable(entry: Entry) -> dict[str, Any]:
    return {
        "state": entry.state,
        "reserved_nano": entry.reserved,
        "settled_nano": entry.settled,
        "estimated": int(entry.estimated),
    }


def _read_entries(connection: Connection, ids: Collection[str]) -> dict[str, Entry]:
    locked = connection.execute(_ENTRIES, {"ids": list(ids)}).all()
    parts: dict[str, list[Part]] = {row.id: [] for row in locked}
    if locked:  # read only now: another transaction may have changed them before it let go
        for id, budget, start, amount in connection.execute(_PARTS, {"ids": list(parts)}):
            parts[id].append(Part((budget, start), amount))
    return {
        id: Entry(
            state, reserved, settled, bool(estimated), tuple(sorted(parts[id])), candidate == ""
        )
        for id, state, reserved, settled, estimated, candidate in locked
    }
