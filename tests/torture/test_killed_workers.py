"""Workers are killed at random while they spend; the books must be right all the time.

Run the long form with ``pytest tests/torture --long --log-cli-level INFO``.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import select

from optllm_router._money import Budget
from optllm_router.ledger import Charge, Ledger, Period, Reservation, reconcile
from optllm_router.store import Database
from optllm_router.store.schema import reservations

WORKER = Path(__file__).with_name("torture_worker.py")
SCOPES = ("everything", "tenant:acme")
ROOM_NANO = 5_000_000
"""So much more than is used may be used after each kill: about ten calls to the dear model, or
forty times that, so that blocks are leased."""

RECOVERED_WITHIN_SECONDS = 8.0
"""Of the end of a lease: the living look every five seconds, on a machine that has much to do."""

_log = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is posix")


class Shape(NamedTuple):
    processes: int
    callers: int
    kills: int


class Workers:
    """Running processes; whoever dies is replaced."""

    def __init__(self, url: str, bill: Path, shape: Shape) -> None:
        self._url, self._bill, self._callers = url, bill, shape.callers
        self._seeds = iter(range(0, 10**6, 10))
        self._running = [self._start() for _ in range(shape.processes)]

    def kill(self, which: int) -> None:
        """Kill the one that has run for so long; 0 is the oldest."""
        victim = self._running.pop(which)
        victim.kill()
        victim.communicate()
        assert victim.returncode == -9
        self._running.append(self._start())

    def stop(self) -> Counter[str]:
        """Let them end in peace; what happened to their callers."""
        seen: Counter[str] = Counter()
        endings = []
        for worker in self._running:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.stdin = None
        for worker in self._running:
            printed, complaints = worker.communicate(timeout=60)
            endings.append((worker.returncode, complaints))
            seen.update(json.loads(printed) if worker.returncode == 0 else {})
        assert endings == [(0, "")] * len(endings)
        return seen

    def end(self) -> None:
        for worker in self._running:
            worker.kill()
            worker.communicate()

    def _start(self) -> subprocess.Popen[str]:
        arguments = [self._url, self._bill, next(self._seeds), self._callers]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )


class Observer:
    """Polls the balances; ``snapshots`` are the different ones it saw."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.snapshots: set[tuple[int, ...]] = set()

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.002)

    def look(self) -> None:
        found = self._ledger.balances()
        for balance in found:
            assert balance.spent_nano + balance.reserved_nano <= balance.limit_nano, balance
        self.snapshots.add(tuple(n for b in found for n in (b.spent_nano, b.reserved_nano)))


@pytest.fixture
def shape(long) -> Shape:
    return Shape(8, 32, 50) if long else Shape(3, 8, 5)


def test_no_nano_dollar_is_lost_when_workers_are_killed(store_url, shape, long, tmp_path):
    bill = tmp_path / "bill"
    bill.touch()
    chance = random.Random(7)
    with closing(Database(store_url)) as database:
        ledger = Ledger(database)
        for scope in SCOPES:
            ledger.set_budget(Budget(f"{ROOM_NANO}e-9", name=scope, scope=scope))
        observer = Observer(ledger)
        workers = Workers(store_url, bill, shape)
        try:
            for kill in range(shape.kills):
                start, size = time.monotonic(), bill.stat().st_size
                room = ROOM_NANO if kill >= shape.kills // 2 else 40 * ROOM_NANO
                while bill.stat().st_size == size:
                    assert time.monotonic() < start + 60, "nobody gets anywhere"
                    raise_limits(ledger, room)
                    observer.watch(chance.uniform(0.1, 0.5))
                # Mostly one that has been busy for a while, sometimes one that just starts.
                workers.kill(min(chance.randrange(shape.processes) for _ in range(2)))
                ledger.recover()
            end = time.monotonic() + 120
            while min(balance.left_nano for balance in ledger.balances()) > ROOM_NANO:
                assert time.monotonic() < end, "money does not get short"
                observer.watch(0.4)
            billed, end = streams_billed(bill), time.monotonic() + 60
            observer.watch(10.0)
            while long and streams_billed(bill) < billed + 200 and time.monotonic() < end:
                observer.watch(1.0)
            check_leases(database)
            seen = workers.stop()
        finally:
            workers.end()
        observer.look()
        assert len(observer.snapshots) > 2 * shape.kills
        if long:  # in the short form the last workers may be too young to have seen everything
            assert seen["answered"] > 10
            assert seen["cancelled"] > 10
            assert seen["BudgetExceededError"] > 10
            assert min(seen["read"], seen["closed"], seen["let go of"]) > 10
        assert seen["StoreError"] == 0
        check_books(database, bill)
        repair_books(database, bill)
        use_up(ledger)
    _log.info("%s: %s, %d snapshots", shape, dict(seen), len(observer.snapshots))


def streams_billed(bill: Path) -> int:
    """How many streams were charged for."""
    return len({id for id, _ in charges_of(bill) if "-stream" in id})


def raise_limits(ledger: Ledger, room: int) -> None:
    """Money is always short, and never gone for good before the end."""
    for balance in ledger.balances():
        used = balance.spent_nano + balance.reserved_nano
        limit = max(balance.limit_nano, used + room)
        ledger.set_limit(balance.budget, f"{limit}e-9")


def check_leases(database: Database) -> None:
    """What the killed left behind was recovered by the living."""
    overdue = reservations.c.expires_at < time.time() - RECOVERED_WITHIN_SECONDS
    with database.read() as connection:
        left = select(reservations).where(reservations.c.state == "open", overdue)
        assert connection.execute(left).all() == []


def check_books(database: Database, bill: Path) -> None:
    """Every charge was set aside for, and every reservation came to what was charged for it.

    What a killed worker drew from a block, and did not write down any more, is in the block.
    """
    later = Ledger(database, lambda: time.time() + 3_600)
    later.recover()
    assert later.verify() == []
    charged = charges_of(bill)
    with database.read() as connection:
        rows = connection.execute(select(reservations)).all()
    known = {(row.decision_id, row.candidate) for row in rows}
    unwritten, held = Counter(), Counter()
    for id, candidate in charged.keys() - known:
        unwritten[id.partition("-")[0]] += charged[id, candidate]
    for row in rows:
        if row.candidate == "":
            held[row.id.split("-")[1]] += row.settled_nano
    assert unwritten <= held, "something was sent with nothing set aside"
    _log.info("drawn and not written: %d, blocks expired: %d", len(unwritten), len(held))
    assert Counter(row.state for row in rows).keys() == {"settled", "released", "expired"}
    for row in rows:
        cost = charged.get((row.decision_id, row.candidate))
        if row.state == "released":
            assert (cost, row.settled_nano) == (None, 0)
        elif row.state == "settled" and "-stream" in row.decision_id:
            assert (cost or 0) <= row.settled_nano <= row.reserved_nano
            assert row.estimated or cost == row.settled_nano
        elif row.estimated:
            assert (cost or 0) <= row.settled_nano == row.reserved_nano
        else:
            assert cost == row.settled_nano <= row.reserved_nano
    spent = later.balance("everything").spent_nano
    assert sum(charged.values()) <= spent == sum(row.settled_nano for row in rows)


def charges_of(bill: Path) -> Counter[tuple[str, str]]:
    """What was charged, by decision and candidate."""
    charged: Counter[tuple[str, str]] = Counter()
    for id, candidate, cost in map(str.split, bill.read_text().splitlines()):
        charged[id, candidate] += int(cost)
    return charged


def repair_books(database: Database, bill: Path) -> None:
    """The bill, which is complete, frees what was not charged, and nothing else."""
    later = Ledger(database, lambda: time.time() + 3_600)
    charged = charges_of(bill)
    with database.read() as connection:
        rows = connection.execute(select(reservations)).all()
    known = {(row.decision_id, row.candidate) for row in rows}
    unwritten = sum(charged[key] for key in charged.keys() - known)
    due = sum(
        charged[row.decision_id, row.candidate] if row.state == "expired" else row.settled_nano
        for row in rows
    )
    charges = [Charge(id, cost, candidate) for (id, candidate), cost in charged.items()]
    done = reconcile(later, database, charges, complete=Period(0.0, time.time() + 3_600))
    assert later.verify() == []
    spent = later.balance("everything").spent_nano
    assert sum(charged.values()) <= due + unwritten
    dearest = max(row.reserved_nano for row in rows)
    kept = unwritten + dearest if unwritten else 0  # once with the tenant's scope, once without
    assert due + unwritten <= spent <= due + 2 * kept
    if not unwritten:
        assert (done.still_expired, done.expired_blocks) == (0, ())
    _log.info("%d corrections; charged and not written: %d", len(done.corrections), unwritten)


def use_up(ledger: Ledger) -> None:
    """The last nano-dollar can be spent, and not one more."""
    for scopes in (("tenant:acme",), ()):
        where = ("everything", *scopes)
        left = min(b.left_nano for b in ledger.balances() if b.scope in where)
        assert ledger.reserve(reservation(f"last of {scopes}", left, scopes)).result() is None
        refusal = ledger.reserve(reservation(f"beyond {scopes}", 1, scopes)).result()
        assert refusal is not None
        assert refusal.left_nano == 0


def reservation(id: str, amount: int, scopes: tuple[str, ...]) -> Reservation:
    return Reservation(id, id, "m", amount, scopes, "torture", 60.0)
