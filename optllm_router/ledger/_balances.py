"""What happened on the accounts of budgets, and what that leaves of each."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Connection, and_, bindparam, or_, select

from optllm_router._windows import Span
from optllm_router.ledger._limits import Account, Limit
from optllm_router.store.schema import balances


@dataclass
class Moved:
    """What happened on an account, amounts in nano-dollars.

    Attributes:
        spent: what calls cost.
        reserved: what is set aside for calls under way.
        calls: how many were reserved.
        open_calls: how many of them are under way.
        excess: what calls cost beyond what was set aside for them.
    """

    spent: int = 0
    reserved: int = 0
    calls: int = 0
    open_calls: int = 0
    excess: int = 0

    @property
    def used(self) -> int:
        """What no other call may spend."""
        return self.spent + self.reserved

    def add(self, other: Moved, sign: int = 1) -> None:
        """Change it by as much as ``other`` says; -1 takes that back."""
        self.spent += sign * other.spent
        self.reserved += sign * other.reserved
        self.calls += sign * other.calls
        self.open_calls += sign * other.open_calls
        self.excess += sign * other.excess


@dataclass(frozen=True)
class Balance:
    """A budget in its current window; amounts in nano-dollars.

    Attributes:
        budget: its name.
        window: over which time the limit holds.
        window_start: Unix seconds at which the window began.
        next_window: Unix seconds at which it starts afresh; for a rolling window, at which the
            oldest money in it leaves; ``None`` when it never ends.
        limit_nano: the cap.
        spent_nano: what calls cost.
        reserved_nano: what is set aside for calls under way.
        scope: the calls that it pays for.
        timezone: zone of the window.
        hard: whether the limit is never exceeded.
        pace: whether the money is to last for the window.
        calls: how many were reserved in the window.
        open_calls: how many of them are under way.
        excess_nano: what calls cost beyond what was set aside for them.
    """

    budget: str
    window: str
    window_start: int
    next_window: int | None
    limit_nano: int
    spent_nano: int
    reserved_nano: int
    scope: str = "everything"
    timezone: str = "UTC"
    hard: bool = True
    pace: bool = False
    calls: int = 0
    open_calls: int = 0
    excess_nano: int = 0

    @property
    def left_nano(self) -> int:
        """What can still be set aside; 0 when the limit was lowered below what is spent."""
        return max(0, self.limit_nano - self.spent_nano - self.reserved_nano)

    @property
    def rolling(self) -> bool:
        """Whether the window ends now, whenever that is."""
        return self.window.startswith("rolling")

    @property
    def expected_excess_nano(self) -> int:
        """What the calls under way are expected to cost beyond what is set aside for them.

        By so much a soft budget that is used up is expected to be exceeded. It is what the
        finished calls of the window exceeded by, per call; 0 before any of them finished.
        """
        finished = self.calls - self.open_calls
        if self.hard or not finished:
            return 0
        return -(-self.excess_nano * self.open_calls // finished)

    def moved(self, slot: int, by: Moved) -> Balance:
        """This balance after something happened on one of the budget's accounts."""
        if slot < self.window_start if self.rolling else slot != self.window_start:
            return self
        return replace(
            self,
            spent_nano=self.spent_nano + by.spent,
            reserved_nano=self.reserved_nano + by.reserved,
            calls=self.calls + by.calls,
            open_calls=self.open_calls + by.open_calls,
            excess_nano=self.excess_nano + by.excess,
        )


_EXACTLY = and_(
    balances.c.budget.in_(bindparam("names", expanding=True)),
    balances.c.window_start.in_(bindparam("starts", expanding=True)),
)
_ACCOUNTS = select(balances).where(_EXACTLY).order_by(balances.c.budget, balances.c.window_start)
_LOCKED = _ACCOUNTS.with_for_update()


def read_accounts(
    connection: Connection,
    limits: Iterable[Limit],
    known: Iterable[Account] = (),
    *,
    lock: bool = False,
) -> dict[Account, Moved]:
    """The accounts that count for limits, and those that are known, as far as there are any.

    Some others of the same budgets may be among them.
    """
    statement = _LOCKED if lock else _ACCOUNTS
    exact = set(known)
    spans = []
    for limit in limits:
        exact.add(limit.account)
        if limit.span.first != limit.span.last:
            start = balances.c.window_start.between(limit.span.first, limit.span.last)
            spans.append(and_(balances.c.budget == limit.name, start))
    if not exact:
        return {}
    if spans:
        statement = select(balances).where(or_(_EXACTLY, *spans))
        statement = statement.order_by(balances.c.budget, balances.c.window_start)
        statement = statement.with_for_update() if lock else statement
    parameters = {
        "names": sorted({name for name, _ in exact}),
        "starts": sorted({start for _, start in exact}),
    }
    return {
        (row.budget, row.window_start): Moved(
            row.spent_nano, row.reserved_nano, row.calls, row.open_calls, row.excess_nano
        )
        for row in connection.execute(statement, parameters)
    }


def counted(limit: Limit, accounts: dict[Account, Moved]) -> dict[int, Moved]:
    """What uses a limit up now, by slot."""
    if limit.span.first == limit.span.last:
        moved = accounts.get(limit.account)
        return {} if moved is None else {limit.span.slot: moved}
    return {account[1]: moved for account, moved in accounts.items() if limit.counts(account)}


def balance_of(limit: Limit, slots: dict[int, Moved]) -> Balance:
    """The balance of a limit that is used up by these."""
    total = Moved()
    for moved in slots.values():
        total.add(moved)
    return Balance(
        budget=limit.name,
        window=limit.window,
        window_start=limit.span.first,
        next_window=_next_window(limit.span, slots),
        limit_nano=limit.nano,
        spent_nano=total.spent,
        reserved_nano=total.reserved,
        scope=limit.scope,
        timezone=limit.timezone,
        hard=limit.hard,
        pace=limit.pace,
        calls=total.calls,
        open_calls=total.open_calls,
        excess_nano=total.excess,
    )


def room_from(limit: Limit, slots: dict[int, Moved], amount: int) -> int | None:
    """When an amount will fit if nothing else happens; ``None`` when time alone does not help."""
    used = sum(moved.used for moved in slots.values())
    for slot in sorted(slots):
        used -= slots[slot].used
        if used + amount <= limit.nano:
            return limit.span.over(slot)
    return None


def read_balances(connection: Connection, limits: Iterable[Limit]) -> list[Balance]:
    """The balance of each limit."""
    wanted = list(limits)
    accounts = read_accounts(connection, wanted)
    return [balance_of(limit, counted(limit, accounts)) for limit in wanted]


def _next_window(span: Span, slots: dict[int, Moved]) -> int | None:
    return span.over(min((slot for slot, moved in slots.items() if moved.used), default=span.slot))


_FRESH_SECONDS = 1.0
_MOST_KEPT = 4_096
_NEVER: tuple[float, tuple[str, ...]] = (-math.inf, ())


class Glances:
    """Balances in memory: moved by what this process commits, read again after a second.

    Args:
        find: reads the balances that a call of some scopes must fit into.
        clock: gives Unix seconds.
    """

    def __init__(
        self, find: Callable[[tuple[str, ...]], list[Balance]], clock: Callable[[], float]
    ) -> None:
        self._find = find
        self._clock = clock
        self._lock = threading.Lock()
        self._names: dict[tuple[str, ...], tuple[float, tuple[str, ...]]] = {}
        self._balances: dict[str, tuple[float, Balance]] = {}

    def at(self, scopes: tuple[str, ...]) -> tuple[Balance, ...]:
        """The balances that apply to a call of these scopes, by name."""
        fresh = self.known(scopes)
        return self._read(scopes) if fresh is None else fresh

    def known(self, scopes: tuple[str, ...]) -> tuple[Balance, ...] | None:
        """The same, unless they have to be read again."""
        now, then = self._clock(), time.monotonic() - _FRESH_SECONDS
        with self._lock:
            looked, names = self._names.get(scopes, _NEVER)
            kept = [self._balances.get(name) for name in names]
        if looked < then:  # other budgets may apply meanwhile, also where none did
            return None
        fresh = [
            balance
            for known in kept
            if known is not None
            for read, balance in [known]
            if read >= then and balance.window_start <= now
            if balance.next_window is None or now < balance.next_window
        ]
        return tuple(fresh) if len(fresh) == len(kept) else None

    def move(self, account: Account, by: Moved) -> None:
        """Something was committed."""
        with self._lock:
            if account[0] in self._balances:
                read, balance = self._balances[account[0]]
                self._balances[account[0]] = read, balance.moved(account[1], by)

    def forget(self) -> None:
        """Read everything again: budgets were changed."""
        with self._lock:
            self._names.clear()
            self._balances.clear()

    def _read(self, scopes: tuple[str, ...]) -> tuple[Balance, ...]:
        now, found = time.monotonic(), self._find(scopes)
        with self._lock:
            if len(self._balances) > _MOST_KEPT:
                self._names.clear()
                self._balances.clear()
            self._names[scopes] = now, tuple(balance.budget for balance in found)
            self._balances.update({balance.budget: (now, balance) for balance in found})
        return tuple(found)
