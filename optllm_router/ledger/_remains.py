"""What dead processes left behind, and what of it a complete usage report frees.

A process that dies leaves calls under way, and blocks with money for calls to come. Both expire
and count as spent in full, because the provider may have charged for them: of a block, for calls
that were drawn from it and sent, and whose own entries never reached the database. Such calls are
unknown here, by id.

A report that is *complete* for a period names every call that was sent in it and charged. What
the charges may mean is told by :mod:`._charges`. By this rule expired entries become free:

1. A call that no charge may mean was not charged. It is released.
2. Calls that charges may mean keep what was charged for them all, and nothing more: those that
   count in the same budgets and windows keep it once, others once in each. The oldest comes to
   cost it, up to its full amount, then the next; the rest of them is released. Where the calls are
   of several candidates, that is an estimate.
3. What the report charges for unknown calls stays. Nobody knows which budgets it concerns. Among
   entries that count in the same budgets and windows it makes no difference which of them keeps
   the money; among others it does, and so all such groups keep it, blocks first. A call keeps all
   of its money for that, or nothing of it.
4. A call that shares a charge with another one that is still under way stays as it is.

What is spent never falls below the truth in any budget. It can exceed it by unknown charges that
belong to other scopes, or to a report of somebody else's calls. Where there are none, and nothing
is under way, nothing remains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select

from optllm_router.ledger._charges import Charge, Place, read_named, read_places, told_by
from optllm_router.ledger._ledger import Ledger
from optllm_router.ledger._operations import BLOCK_LEASE_SECONDS
from optllm_router.store import Database
from optllm_router.store.schema import reservations


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
        places = read_places(connection, [row.id for row in rows])
    return [
        ExpiredBlock(
            row.id, row.settled_nano, row.created_at, tuple(name for name, _ in places[row.id])
        )
        for row in rows
    ]


def free_remains(
    ledger: Ledger, database: Database, charges: Iterable[Charge], period: Period
) -> list[Freed]:
    """Free what expired in a period and was not charged.

    Args:
        ledger: of the same database.
        database: with the expired entries.
        charges: all of the period, as far as calls were charged.
        period: of the report.
    """
    known = list(charges)
    with database.read() as connection:
        remains = _remains(connection, period)
        named = list(read_named(connection, known))
        places = read_places(connection, {row.id for row in (*remains, *named)})
    told = told_by(known, named, places)
    groups: dict[Place, list[Any]] = defaultdict(list)
    for row in remains:
        if row.id not in told.undecided:
            groups[places[row.id]].append(row)
    waiting = []
    for group in groups.values():
        to_keep = told.unknown_nano
        for row in group:
            charged = told.charged.get(row.id, 0)
            more = min(to_keep, row.settled_nano - charged)
            to_keep -= more
            if row.candidate != "" and more > 0:  # for unknown calls, a call keeps all or nothing
                continue
            freed = Freed(row.id, row.candidate, row.settled_nano, charged + more)
            if row.candidate != "" or freed.after_nano < freed.before_nano:
                estimated = row.id in told.guessed
                waiting.append((_free(ledger, freed, estimated=estimated), freed))
    return [freed for done, freed in waiting if done.result()]


def _free(ledger: Ledger, freed: Freed, *, estimated: bool) -> Future[bool]:
    if freed.candidate == "":
        return ledger.free(freed.id, freed.before_nano, freed.after_nano)
    if freed.after_nano == 0:
        return ledger.release(freed.id)
    return ledger.settle(freed.id, freed.after_nano, estimated=estimated)


_IS_BLOCK = reservations.c.candidate == ""
_ENTRIES = select(reservations).order_by(reservations.c.created_at, reservations.c.id)


def _remains(connection: Connection, period: Period) -> list[Any]:
    """Blocks that expired and hold money, then calls that expired: oldest first.

    Blocks that were freed are among them: what they kept counts once.
    """
    left = reservations.c.state.in_(["expired", "settled"]) & (reservations.c.settled_nano > 0)
    called = ~_IS_BLOCK & (reservations.c.state == "expired")
    rows = [
        row
        for row in connection.execute(_ENTRIES.where(or_(_IS_BLOCK & left, called)))
        if period.covers(row.created_at, row.expires_at)
    ]
    return sorted(rows, key=lambda row: row.candidate != "")
