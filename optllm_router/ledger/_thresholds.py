"""Reports when a budget has spent a given percentage of its limit: once, among all processes.

Who crosses a threshold writes a row in the same transaction; the one whose row it is reports it
once that is committed. When the reply of a commit is lost, the transaction runs again and finds
its own row, so a process remembers what it tried to write.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from optllm_router.ledger._limits import Limit

_log = logging.getLogger("optllm_router")

_LAST_WORDS_SECONDS = 5.0
"""How long a process that ends waits for its hooks."""


@dataclass(frozen=True)
class Crossing:
    """A budget has spent a percentage of its limit.

    Attributes:
        budget: its name.
        scope: the calls that it pays for.
        window: over which time its limit holds.
        percent: the threshold.
        spent_nano: what is spent, in nano-dollars.
        limit_nano: the limit, in nano-dollars.
    """

    budget: str
    scope: str
    window: str
    percent: int
    spent_nano: int
    limit_nano: int


@dataclass
class _Period:
    """What this process knows of one budget since ``start``."""

    start: int
    known: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)


class Thresholds:
    """Finds crossings inside transactions, and reports them afterwards.

    Args:
        report: what to call, in a thread of its own; what it raises is logged.
    """

    def __init__(self, report: Callable[[Crossing], Any]) -> None:
        self._report = report
        self._periods: dict[str, _Period] = {}
        self._lock = threading.Lock()

    def cross(
        self, connection: Connection, limit: Limit, spent: int, before: int
    ) -> list[Crossing]:
        """Thresholds that are reached and were not reported in this window; claims them.

        Args:
            connection: in the transaction that spends.
            limit: of the budget.
            spent: what it has spent, in nano-dollars.
            before: what it had spent before this transaction; of a limit that was changed, what
                was the same share of the old one.
        """
        with self._lock:
            period = self._periods.get(limit.name)
            if period is None or period.start != limit.span.period:
                period = self._periods[limit.name] = _Period(limit.span.period)
        crossed = []
        for percent in limit.thresholds:
            if percent in period.known or spent == 0 or 100 * spent < percent * limit.nano:
                continue
            row = {"budget": limit.name, "period": period.start, "percent": percent}
            claimed = connection.execute(_CLAIM, row).rowcount == 1
            if not claimed and percent not in period.tried:
                period.known.add(percent)
                continue
            exceeded = before > 0 and 100 * before >= percent * limit.nano
            if claimed and exceeded and _was_told(connection, limit, percent):
                continue  # it was told in the stretch before, and is exceeded since
            crossed.append(
                Crossing(limit.name, limit.scope, limit.window, percent, spent, limit.nano)
            )
            period.tried.add(percent)
        return crossed

    def committed(self, crossings: Sequence[Crossing]) -> None:
        """Report what was claimed, without waiting for it."""
        new = []
        with self._lock:
            for crossing in crossings:
                known = self._periods[crossing.budget].known
                if crossing.percent not in known:
                    known.add(crossing.percent)
                    new.append(crossing)
        if new:
            name = "optllm-thresholds"
            teller = threading.Thread(target=self._tell, args=(new,), name=name, daemon=True)
            _tellers.add(teller)
            teller.start()

    def _tell(self, crossings: Sequence[Crossing]) -> None:
        for crossing in crossings:
            try:
                self._report(crossing)
            except Exception:  # noqa: BLE001 - the hook is the user's; money goes on without it
                _log.exception(
                    "on_threshold failed for budget %r at %d %%", crossing.budget, crossing.percent
                )


def _was_told(connection: Connection, limit: Limit, percent: int) -> bool:
    """Whether a threshold was reported in the stretch before this one."""
    if limit.span.period_before is None:
        return False
    row = {"budget": limit.name, "period": limit.span.period_before, "percent": percent}
    return connection.execute(_TOLD, row).first() is not None


_tellers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _hear_them_out() -> None:
    """A process that ends tells before it does; but a hook that hangs does not keep it."""
    end = time.monotonic() + _LAST_WORDS_SECONDS
    for teller in list(_tellers):
        teller.join(max(0.0, end - time.monotonic()))
        if teller.is_alive():
            _log.warning("on_threshold did not return in time; the process ends without it")
            return


_CLAIM = text(
    "INSERT INTO thresholds (budget, period, percent) VALUES (:budget, :period, :percent)"
    " ON CONFLICT DO NOTHING"
)
_TOLD = text(
    "SELECT 1 FROM thresholds WHERE budget = :budget AND period = :period AND percent = :percent"
)
