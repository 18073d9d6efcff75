"""What dead processes left behind, and what of it a complete usage report frees.

A process that dies leaves calls under way, and blocks with money for calls to come. Both expire
and count as spent in full, because the provider may have charged for them: of a block, for calls
that were drawn from it and sent, and whose own entries never reached the database. Such calls are
unknown here, by id.

A report that is *complete* for a period names every call that was sent in it and charged. So what
remains is free, less what the report charges beyond what the books have for the same ids. Nobody
knows which budgets these charges concern. Among entries that count in the same budgets and windows
it makes no difference which of them keeps the money; among others it does, and so all such groups
keep it. What is spent never falls below the truth in any budget; it can exceed it by charges that
belong to other scopes, or to a report of somebody else's calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, or_, select

from optllm_router.ledger._ledger import Ledger
from optllm_router.ledger._operations import BLOCK_LEASE_SECONDS
from optllm_router.store import Database
from optllm_router.store.schema import reservation_budgets, reservations

T = TypeVar("T")

_AT_ONCE = 500


@dataclass(frozen=True)
class Period:
    """From when until before when a report names all calls that were sent; Unix seconds."""

    since: float
    until: float

    def covers(self, created_at: float, expires_at: float) -> bool:
        """Whether all calls of an entry were sent in it, also if clocks differ by a little."""
        return self.since <= created_at - BLOCK_LEASE_SECONDS and expires_at <= self.until


@dataclass(frozen=True)
class ExpiredBlock:
    """Money for calls to come that a dead process held, and that counts as spent.

    Attributes:
        id: of its reservation.
        amount_nano: how much, in nano-dollars.
        created_at: when it was set aside, Unix seconds.
        budgets: in which budgets it counts.
    """

    id: str
    amount_nano: int
    created_at: float
    budgets: tuple[str, ...]


@dataclass(frozen=True)
class Freed:
    """An expired entry that counts for less; amounts in nano-dollars."""

    id: str
    candidate: str
    before_nano: int
    after_nano: int


def expired_blocks(database: Database) -> list[ExpiredBlock]:
    """The blocks that expired and count in full, oldest first."""
    left = _IS_BLOCK & (reservations.c.state == "expired") & (reservations.c.settled_nano > 0)
    with database.read() as connection:
        rows = connection.execute(_ENTRIES.where(left)).all()
        accounts = _accounts(connection, [row.id for row in rows])
    return [
        ExpiredBlock(
            row.id, row.settled_nano, row.created_at, tuple(name for name, _ in accounts[row.id])
        )
        for row in rows
    ]


def free_remains(
    ledger: Ledger, database: Database, charged: Iterable[tuple[str, int]], period: Period
) -> list[Freed]:
    """Free what expired in a period and was not charged.

    Args:
        ledger: of the same database.
        database: with the expired entries.
        charged: ids, of decisions or reservations, and nano-dollars: all of the period, as far
            as they were charged.
        period: of the report.
    """
    charges = list(charged)
    with database.read() as connection:
        unknown = _unknown_nano(connection, charges)
        rows = _remains(connection, {id for id, _ in charges}, period)
        accounts = _accounts(connection, [row.id for row in rows])
    groups = defaultdict(list)
    for row in rows:
        groups[accounts[row.id]].append(row)
    waiting = []
    for group in groups.values():
        to_keep = unknown
        for row in group:
            kept = min(to_keep, row.settled_nano)
            to_keep -= kept
            if row.candidate == "" and kept < row.settled_nano:
                done = ledger.free(row.id, row.settled_nano, kept)
            elif row.candidate != "" and kept == 0:
                done = ledger.release(row.id)
            else:  # a call keeps all or nothing
                continue
            waiting.append((done, Freed(row.id, row.candidate, row.settled_nano, kept)))
    return [freed for done, freed in waiting if done.result()]


_IS_BLOCK = reservations.c.candidate == ""
_ENTRIES = select(reservations).order_by(reservations.c.created_at, reservations.c.id)


def _remains(connection: Connection, named: set[str], period: Period) -> list[Any]:
    """Blocks, then calls, that nobody was charged for by name: oldest first.

    Where one attempt of a decision was charged, what its other attempts hold stays, too: a charge
    may name the decision alone, and may then be for any of them.

    Blocks that were freed are among them: what they kept counts once.
    """
    is_block = _IS_BLOCK & reservations.c.state.in_(["expired", "settled"])
    wanted = or_(is_block, reservations.c.state == "expired") & (reservations.c.settled_nano > 0)
    rows = [
        row
        for row in connection.execute(_ENTRIES.where(wanted))
        if period.covers(row.created_at, row.expires_at)
        if row.id not in named and row.decision_id not in named
    ]
    return sorted(rows, key=lambda row: row.candidate != "")


def _unknown_nano(connection: Connection, charges: Sequence[tuple[str, int]]) -> int:
    """What is charged beyond what the books have for the calls that the charges name."""
    decisions: dict[str, str] = {}
    booked: dict[str, dict[str, int]] = defaultdict(dict)
    for ids in slices(sorted({id for id, _ in charges})):
        named = or_(reservations.c.id.in_(ids), reservations.c.decision_id.in_(ids))
        for row in connection.execute(select(reservations).where(named, ~_IS_BLOCK)):
            decisions[row.id] = row.decision_id
            amount = row.reserved_nano if row.state == "open" else row.settled_nano
            booked[row.decision_id][row.id] = amount
    charged: dict[str, int] = defaultdict(int)
    for id, nano in charges:
        charged[decisions.get(id, id)] += nano
    return sum(max(0, nano - sum(booked[decision].values())) for decision, nano in charged.items())


def _accounts(
    connection: Connection, ids: Sequence[str]
) -> Mapping[str, tuple[tuple[str, int], ...]]:
    """In which windows of which budgets entries count."""
    found: dict[str, list[tuple[str, int]]] = {id: [] for id in ids}
    for some in slices(ids):
        parts = select(reservation_budgets).where(reservation_budgets.c.reservation_id.in_(some))
        for row in connection.execute(parts):
            found[row.reservation_id].append((row.budget, row.window_start))
    return {id: tuple(sorted(accounts)) for id, accounts in found.items()}


def slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The same, in parts that a statement can name."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
