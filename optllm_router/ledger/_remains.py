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
   of several candidates, or count in several such sets, that is an estimate. Where only calls of a
   known cost count, what is charged beyond that is unknown: a try that nobody wrote down may have
   been charged.
3. What the report charges for unknown calls stays. Nobody knows which budgets it concerns. Among
   entries that count in the same budgets and windows it makes no difference which of them keeps
   the money; among others it does, and so all such groups keep it, blocks first. A call keeps all
   of its money for that, or nothing of it.
4. A call that shares a charge with another one that is still under way, or that was sent outside
   the period, stays as it is. What is charged for calls that were surely sent outside is unknown.
5. An unknown try may count in later windows than the calls that keep what it was charged, or have
   been sent in the period when they were not. So blocks keep that, too, if they were made while it
   can have been drawn: from half a minute before the decision's first known call until half a
   minute after the last lease of one. The known calls' cost is an estimate then.

What is spent never falls below the truth in any budget, as long as clocks differ by half a minute
at most, and no budget is made or removed between the tries of a decision one of which is unknown.
It can exceed the truth by charges that may be for unknown calls: of other scopes, of somebody
else, or of the tries in rules 2 and 5. Where there are none, no call is under way, and none shares
a charge across an edge of the period, nothing remains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select

from optllm_router.ledger._charges import (
    Charge,
    Period,
    Place,
    Told,
    read_named,
    read_places,
    told_by,
)
from optllm_router.ledger._ledger import Ledger
from optllm_router.store import Database
from optllm_router.store.schema import reservations


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
        blocks = read_blocks(connection)
    told = told_by(known, named, places, period)
    guessed = told.guessed | may_be_retries(told, blocks)
    groups: dict[Place, list[Any]] = defaultdict(list)
    for row in remains:
        if row.id not in told.undecided:
            groups[places[row.id]].append(row)
    waiting = []
    for place, group in groups.items():
        held = [row for row in group if row.candidate == ""]
        to_keep = told.unknown_nano + sum(
            retry.nano
            for retry in told.retries
            if any(retry.may_be_from(block, place) for block in held)
        )
        for row in group:
            charged = told.charged.get(row.id, 0)
            more = min(to_keep, row.settled_nano - charged)
            to_keep -= more
            if row.candidate != "" and more > 0:  # for unknown calls, a call keeps all or nothing
                continue
            freed = Freed(row.id, row.candidate, row.settled_nano, charged + more)
            if row.candidate != "" or freed.after_nano < freed.before_nano:
                estimated = row.id in guessed
                waiting.append((_free(ledger, freed, estimated=estimated), freed))
    return [freed for done, freed in waiting if done.result()]


def read_blocks(connection: Connection) -> list[tuple[Any, Place]]:
    """The blocks that hold money, or keep some, and where they count."""
    rows = connection.execute(_ENTRIES.where(_IS_BLOCK & _HOLDS_MONEY)).all()
    places = read_places(connection, [row.id for row in rows])
    return [(row, places[row.id]) for row in rows]


def may_be_retries(told: Told, blocks: Iterable[tuple[Any, Place]]) -> frozenset[str]:
    """Calls whose charges may be for a later try that was drawn from one of the blocks.

    What they come to cost is an estimate: thus the next report finds the same.
    """
    drawable = list(blocks)
    return frozenset(
        id
        for retry in told.retries
        if any(retry.may_be_from(block, place) for block, place in drawable)
        for id in retry.calls
    )


def _free(ledger: Ledger, freed: Freed, *, estimated: bool) -> Future[bool]:
    if freed.candidate == "":
        return ledger.free(freed.id, freed.before_nano, freed.after_nano)
    if freed.after_nano == 0:
        return ledger.release(freed.id)
    return ledger.settle(freed.id, freed.after_nano, estimated=estimated)


_IS_BLOCK = reservations.c.candidate == ""
_HOLDS_MONEY = (reservations.c.state == "open") | (
    reservations.c.state.in_(["expired", "settled"]) & (reservations.c.settled_nano > 0)
)
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
