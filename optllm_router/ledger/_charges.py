"""What the charges of a provider's report mean among the calls that the books know.

A charge may mean, by its id and candidate:

- by the id of a reservation, that call alone;
- by the id of a decision and a candidate, any attempt of that decision at that candidate: there
  are several where it was tried again;
- by the id of a decision alone, any attempt of it;
- nothing that the books know: another candidate of a decision, or no id of theirs. Then it was
  charged for a call that is *unknown*.

Charges that may mean the same calls are added up, and laid on these calls, as far as each counts:
first those with the fewest to choose from. Calls whose cost is known come first, as they have had
theirs. What is left is laid on calls that count an estimate or their full amount, and once in each
set of budgets and windows that these calls count in: in every budget there is then as much for the
calls as they were charged, whichever of them it was. What does not fit onto them is unknown, too.

A call that is under way is charged nothing yet: it may still come to cost nothing. As long as it
does, what a charge may mean beside it stays undecided.

A report is of a period. A charge that may mean a call of another time beside others is undecided,
and none is laid on calls that were surely sent at another time: they were charged elsewhere.

A try that the books do not know is taken to count where others of its decision do. It may count in
later windows, too, or belong to the period when they do not. So what is laid on calls whose cost is
not known, or that were sent near an edge of the period, may be for an :class:`UnwrittenRetry`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, or_, select

from optllm_router.ledger._limits import Account
from optllm_router.ledger._operations import BLOCK_LEASE_SECONDS
from optllm_router.store.schema import reservation_budgets, reservations

T = TypeVar("T")
Place: TypeAlias = tuple[Account, ...]
"""In which windows of which budgets a call counts."""

_AT_ONCE = 500
_SKEW_SECONDS = BLOCK_LEASE_SECONDS
"""Clocks differ by so much at most, and so long after a call has timed out it may be retried."""


@dataclass(frozen=True)
class Charge:
    """A line of a provider's report.

    Attributes:
        id: of a completion as we returned it, or of a reservation.
        cost_nano: what was charged, in nano-dollars.
        candidate: who was paid; empty when only one can be meant.
    """

    id: str
    cost_nano: int
    candidate: str = ""


@dataclass(frozen=True)
class Period:
    """From when until before when a report names all calls that were sent; Unix seconds."""

    since: float
    until: float

    def covers(self, created_at: float, expires_at: float) -> bool:
        """Whether all calls of an entry were sent in it, also if clocks differ by a little."""
        return self.since <= created_at - _SKEW_SECONDS and expires_at <= self.until

    def excludes(self, created_at: float) -> bool:
        """Whether a call was sent at another time, also if clocks differ by a little."""
        return not self.since - _SKEW_SECONDS <= created_at <= self.until + _SKEW_SECONDS

    def borders(self, created_at: float, expires_at: float) -> bool:
        """Whether a call may have been sent in it or not, as clocks differ by a little."""
        to_edge = min(abs(created_at - self.since), abs(created_at - self.until))
        return to_edge <= _SKEW_SECONDS and not self.covers(created_at, expires_at)


ALWAYS = Period(-math.inf, math.inf)


@dataclass(frozen=True)
class UnwrittenRetry:
    """A later try that calls may have had, and that the books do not know.

    Attributes:
        calls: the reservations whose decision it would belong to.
        nano: how much of what is laid on them may be for it, in nano-dollars.
        places: where that much is kept for it already.
        budgets: in which it counts.
        since: when it was drawn from a block at the earliest, Unix seconds.
        until: when at the latest.
    """

    calls: tuple[str, ...]
    nano: int
    places: frozenset[Place]
    budgets: frozenset[frozenset[str]]
    since: float
    until: float

    def may_be_from(self, block: Any, place: Place) -> bool:
        """Whether it may have been drawn from a block that counts in a place, and is not kept."""
        return (
            self.since <= block.created_at <= self.until
            and place not in self.places
            and _budgets_of(place) in self.budgets
        )


def _budgets_of(place: Place) -> frozenset[str]:
    return frozenset(name for name, _ in place)


@dataclass(frozen=True)
class Told:
    """What a report says about the calls that the books know; amounts in nano-dollars.

    Attributes:
        charged: what is laid on each, by reservation.
        doubtful: reservations that may have been charged more, or else, than what is charged to
            them alone.
        guessed: reservations that share charges with those of other candidates, or of other places.
        undecided: reservations that share charges with calls under way, or of another time.
        unknown_nano: what was charged for calls that the books do not know.
        retries: what else may have been charged for such calls.
    """

    charged: Mapping[str, int]
    doubtful: frozenset[str]
    guessed: frozenset[str]
    undecided: frozenset[str]
    unknown_nano: int
    retries: tuple[UnwrittenRetry, ...]


class Meanings:
    """Finds what charges may mean.

    Args:
        rows: of the table of reservations; those that were released were not charged.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        self._named: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            if row.state != "released":
                for name in {row.id, row.decision_id}:
                    self._named[name].append(row)

    def of(self, charge: Charge) -> list[Any]:
        """The calls that a charge may be for."""
        named = self._named.get(charge.id, ())
        return [row for row in named if charge.candidate in ("", row.candidate)]


def told_by(
    charges: Iterable[Charge],
    rows: Iterable[Any],
    places: Mapping[str, Place],
    period: Period = ALWAYS,
) -> Told:
    """Lay charges on the calls that they may mean.

    Args:
        charges: all of a report.
        rows: of the table of reservations: every call that one of the charges names.
        places: where these calls count, by reservation.
        period: of the report.
    """
    by_id = {row.id: row for row in rows}
    meanings = Meanings(by_id.values())
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    for charge in charges:
        sums[tuple(sorted(row.id for row in meanings.of(charge)))] += charge.cost_nano
    unknown = sums.pop((), 0)
    laying = _Laying(by_id, places, period)
    for calls in sorted(sums, key=lambda calls: (len(calls), calls)):
        laying.add(sums[calls], calls)
    return laying.told(unknown)


class _Laying:
    """Lays sums on calls, one after the other, and notes what that says about them.

    Args:
        rows: the calls, by reservation.
        places: where they count, by reservation.
        period: of the report.
    """

    def __init__(
        self, rows: Mapping[str, Any], places: Mapping[str, Place], period: Period
    ) -> None:
        self._rows = rows
        self._places = places
        self._period = period
        outside = {id for id, row in rows.items() if period.excludes(row.created_at)}
        self._room = {
            id: 0 if row.state == "open" or id in outside else row.settled_nano
            for id, row in rows.items()
        }
        self._charged = dict.fromkeys(rows, 0)
        self._doubtful = outside
        self._guessed: set[str] = set()
        self._undecided: set[str] = set()
        self._unknown_nano = 0
        self._retries: list[UnwrittenRetry] = []
        self._times_of: dict[str, list[float]] = defaultdict(list)
        for row in rows.values():
            self._times_of[row.decision_id] += (row.created_at, row.expires_at)

    def add(self, nano: int, calls: tuple[str, ...]) -> None:
        """Lay what was charged for these calls together on them."""
        meant = [self._rows[id] for id in calls]
        kept_in = {self._places[id] for id in calls}
        covered = all(self._period.covers(row.created_at, row.expires_at) for row in meant)
        if any(row.state == "open" for row in meant) or (len(calls) > 1 and not covered):
            self._undecided.update(calls)
        if len(kept_in) > 1 or len({row.candidate for row in meant}) > 1:
            self._guessed.update(calls)
        rest = self._lay(nano, [row.id for row in meant if _is_certain(row)])
        vague = [id for id in _settled_first(calls, self._rows) if not _is_certain(self._rows[id])]
        if rest and len(calls) > 1:
            self._doubtful.update(vague)
        beyond = max(
            self._lay(rest, [id for id in vague if self._places[id] == place]) for place in kept_in
        )
        self._unknown_nano += beyond
        if any(self._period.borders(row.created_at, row.expires_at) for row in meant):
            self._note_retry(nano - beyond, calls, kept=frozenset())
        else:
            self._note_retry(rest - beyond, calls, kept=frozenset(kept_in))

    def told(self, unknown_nano: int) -> Told:
        """What was noted, where so much more was charged for calls that nobody knows."""
        return Told(
            self._charged,
            frozenset(self._doubtful),
            frozenset(self._guessed),
            frozenset(self._undecided),
            unknown_nano + self._unknown_nano,
            tuple(self._retries),
        )

    def _lay(self, nano: int, calls: Iterable[str]) -> int:
        """What does not fit onto these calls."""
        for id in calls:
            laid = min(nano, self._room[id] - self._charged[id])
            self._charged[id] += laid
            nano -= laid
        return nano

    def _note_retry(self, nano: int, calls: tuple[str, ...], kept: frozenset[Place]) -> None:
        """So much of what is laid on these calls may be for a later try, if anything is."""
        if not nano:
            return
        times = [time for id in calls for time in self._times_of[self._rows[id].decision_id]]
        self._retries.append(
            UnwrittenRetry(
                calls,
                nano,
                kept,
                frozenset(_budgets_of(self._places[id]) for id in calls),
                min(times) - _SKEW_SECONDS,
                max(times) + _SKEW_SECONDS,
            )
        )


def _is_certain(row: Any) -> bool:
    """Whether a call's cost is known."""
    return row.state == "settled" and not row.estimated


def _settled_first(calls: Iterable[str], rows: Mapping[str, Any]) -> list[str]:
    """The others may be freed of what is not laid on them."""
    return sorted(calls, key=lambda id: (rows[id].state == "expired", rows[id].created_at, id))


def read_named(connection: Connection, charges: Iterable[Charge]) -> Iterator[Any]:
    """The reservations, in any state, that charges name by their own ids or their decisions'."""
    for ids in _slices(sorted({charge.id for charge in charges})):
        named = or_(reservations.c.id.in_(ids), reservations.c.decision_id.in_(ids))
        yield from connection.execute(select(reservations).where(named))


def read_places(connection: Connection, ids: Collection[str]) -> dict[str, Place]:
    """Where reservations count."""
    found: dict[str, list[Account]] = {id: [] for id in ids}
    for some in _slices(sorted(ids)):
        parts = select(reservation_budgets).where(reservation_budgets.c.reservation_id.in_(some))
        for row in connection.execute(parts):
            found[row.reservation_id].append((row.budget, row.window_start))
    return {id: tuple(sorted(accounts)) for id, accounts in found.items()}


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The same, in parts that a statement can name."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
