"""Calls that do not wait for commits, and what remains of them when things go wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest
from busy_writer import busy
from sqlalchemy import select

from optllm_router._errors import ConfigurationError, StoreError
from optllm_router._money import Budget
from optllm_router.ledger import LeasingLedger, Ledger, Reservation, Soft, _blocks, _leases
from optllm_router.ledger._operations import Drawing, Held, Reserving, Returning
from optllm_router.store import Database
from optllm_router.store.schema import reservations

LIMIT = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_800.0  # an hour begins

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _blocks_for_sixteen_calls(monkeypatch):
    """So that a test can make some calls with the first block already."""
    monkeypatch.setattr(_blocks, "_FEWEST_CALLS", 16)


@pytest.fixture
def database(store_url):
    with closing(Database(store_url)) as database:
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(database, clock):
    with closing(LeasingLedger(database, clock)) as ledger:
        ledger.set_budget(Budget(f"{LIMIT}e-9"))
        yield ledger


def call(id: str, amount: int = 100, *scopes: str, soft: int | None = None) -> Reservation:
    return Reservation(id, id, "m", amount, scopes, "test", 60.0, soft)


def warm(ledger: LeasingLedger, amount: int = 100, *scopes: str) -> None:
    """Make a first call, so that the process holds a block."""
    assert ledger.reserve(call("warm", amount, *scopes)).result() is None
    ledger._database.catch_up()
    assert ledger.settle("warm", 0).result() is True
    ledger._database.catch_up()
    assert ledger._blocks


def blocks(database: Database) -> list[str]:
    """States of the blocks that the database knows."""
    with database.read() as connection:
        return list(
            connection.scalars(select(reservations.c.state).where(reservations.c.candidate == ""))
        )


def books(ledger: Ledger) -> tuple[int, int]:
    assert ledger.verify() == []
    (balance,) = ledger.balances()
    return balance.spent_nano, balance.reserved_nano


def test_a_call_waits_for_no_commit_and_the_books_are_exact(ledger, database):
    warm(ledger)
    go = busy(database)
    for n in range(10):
        assert ledger.reserve(call(f"r{n}")).done()
        assert ledger.settle(f"r{n}", n).done()
    go.set()
    assert books(ledger) == (45, 0)
    (balance,) = ledger.balances()
    assert (balance.calls, balance.open_calls) == (11, 0)


def test_what_is_held_is_set_aside_and_watched_by_the_books(ledger, database):
    warm(ledger)
    ledger.reserve(call("under way", 70))
    other = Ledger(database)
    assert other.verify() == []
    (balance,) = other.balances()
    assert balance.reserved_nano == 16 * 100
    assert balance.open_calls == 1
    assert books(ledger) == (0, 70)
    assert blocks(database) == []


def test_a_block_is_a_small_part_of_what_is_left(ledger, database):
    warm(ledger, amount=LIMIT // 64 // 5)
    (balance,) = Ledger(database).balances()
    assert 0 < balance.reserved_nano <= LIMIT // 64
    books(ledger)
    assert ledger.reserve(call("large", LIMIT // 64)).result() is None
    database.catch_up()
    assert ledger._blocks == {}


def test_all_blocks_of_a_process_are_a_small_part_of_what_is_left(ledger, database):
    """However many tenants it serves."""
    ledger.set_budget(Budget(1, scope="tenant:*"))
    for n in range(100):
        assert ledger.reserve(call(f"r{n}", 100, f"tenant:{n}")).result() is None
    for n in range(100):
        ledger.release(f"r{n}")
    database.catch_up()
    held = {balance.budget: balance.reserved_nano for balance in Ledger(database).balances()}
    assert 0 < held["default"] <= LIMIT // 64
    assert ledger._holdings.of("default") == held["default"]
    assert books_of_many(ledger) == 0
    assert ledger._holdings.of("default") == 0


def books_of_many(ledger: Ledger) -> int:
    assert ledger.verify() == []
    return sum(balance.reserved_nano for balance in ledger.balances())


def test_a_block_is_for_the_traffic_that_was_seen(monkeypatch):
    monkeypatch.setattr(_blocks, "_FEWEST_CALLS", 4)

    def next_after(drawn: int, seconds: float) -> int:
        held = Held("block", (), 10**9, 0, None)
        before = _blocks.Block(held, 0, 0, since=100.0, drawn=drawn)
        return _blocks.calls_to_hold_for(before, 100.0 + seconds)

    assert _blocks.calls_to_hold_for(None, 100.0) == 4
    assert next_after(0, 1.0) == 4
    assert next_after(30, 1.0) == 15  # half a second
    assert next_after(30, 0.0) == next_after(30, 0.1) == 120  # four times as many
    assert next_after(1_000, 0.01) == 1_024


@pytest.mark.parametrize("callers", [1, 8])
def test_one_process_uses_a_budget_to_its_last_nano_dollar(ledger, callers):
    def spend(caller: int) -> int:
        granted = 0
        for n in range(400 // callers):
            id = f"{caller}-{n}"
            if ledger.reserve(call(id, 4_000)).result() is None:
                granted += 1
                assert ledger.settle(id, 4_000).result() is True
        return granted

    with ThreadPoolExecutor(callers) as pool:
        assert sum(pool.map(spend, range(callers))) == LIMIT // 4_000
    assert books(ledger) == (LIMIT, 0)


def test_blocks_of_other_scopes_give_way(ledger):
    ledger.set_budget(Budget(1, scope="tag:*"))
    for tag in "abc":
        warm_id = f"warm {tag}"
        assert ledger.reserve(call(warm_id, 100, f"tag:{tag}")).result() is None
        assert ledger.release(warm_id).result() is True
    ledger._database.catch_up()
    assert ledger.reserve(call("all", LIMIT)).result() is None
    assert ledger.verify() == []


def test_a_call_that_was_given_up_is_not_tried_again(ledger, database):
    """It is refused, and would be granted once the blocks are back; but nobody waits for it."""
    ledger.set_budget(Budget(1, scope="tag:*"))
    assert ledger.reserve(call("warm", 100, "tag:a")).result() is None
    assert ledger.release("warm").result() is True
    database.catch_up()
    assert ledger._blocks
    go = busy(database)
    ledger.reserve(call("all", LIMIT))
    ledger.release("all")
    go.set()
    assert [balance.reserved_nano for balance in ledger.balances()] == [0, 0]
    assert ledger.verify() == []


def test_soft_budgets_are_drawn_from_at_their_own_amount(ledger, database):
    ledger.set_budget(Budget(f"{LIMIT}e-9", scope="tag:soft", hard=False))
    ledger.reserve(call("warm", 100, "tag:soft", soft=10)).result()
    database.catch_up()
    for n in range(5):
        assert ledger.reserve(call(f"r{n}", 100, "tag:soft", soft=10)).done()
        ledger.settle(f"r{n}", 30)
    hard, soft = ledger.balances()
    assert (hard.spent_nano, hard.reserved_nano, hard.excess_nano) == (150, 100, 0)
    assert (soft.spent_nano, soft.reserved_nano, soft.excess_nano) == (150, 10, 100)
    assert (hard.expected_excess_nano, soft.expected_excess_nano) == (0, 20)
    assert ledger.verify() == []


def test_a_budget_that_becomes_hard_is_exceeded_by_no_more_than_the_first_calls(
    ledger, database, clock
):
    """Another process changes it; what was drawn before that was written is found out by that."""
    ledger.set_budget(Budget(f"{LIMIT}e-9", hard=False))
    assert ledger.reserve(call("warm", soft=10)).result() == Soft()
    database.catch_up()
    assert ledger.reserve(call("drawn", soft=10)).result() == Soft()
    database.catch_up()
    Ledger(database, clock).set_budget(Budget(f"{LIMIT}e-9"))
    assert ledger.reserve(call("unaware", soft=10)).result() == Soft()
    database.catch_up()
    assert ledger.reserve(call("aware", soft=10)).result() is None
    assert books(ledger) == (0, 10 + 10 + 10 + 100)


@pytest.mark.parametrize("name", ["default", "new"])
def test_a_hard_budget_of_another_process_waits_for_no_block_longer_than_that_lives(
    ledger, database, clock, name
):
    ledger.set_budget(Budget(f"{LIMIT}e-9", hard=False))
    assert ledger.reserve(call("warm", soft=10)).result() == Soft()
    database.catch_up()
    Ledger(database, clock).set_budget(Budget(f"{LIMIT}e-9", name=name))
    assert ledger.reserve(call("drawn", soft=10)).result() == Soft()
    clock.now += _blocks.LIFE_SECONDS
    assert ledger.reserve(call("aware", soft=10)).result() is None


def test_a_block_may_be_given_back_while_a_call_draws_from_it(ledger, database, monkeypatch):
    """The drawing is written, and finds a budget that became soft, before the caller goes on."""
    assert ledger.reserve(call("warm", soft=10)).result() is None
    database.catch_up()
    ((block,),) = ledger._blocks.values()
    Ledger(database).set_budget(Budget(f"{LIMIT}e-9", hard=False))
    submit = ledger._submit

    def submit_and_wait(operation, **how):
        written = submit(operation, **how)
        written.result()
        return written

    monkeypatch.setattr(ledger, "_submit", submit_and_wait)
    monkeypatch.setattr(block, "is_low", lambda: True)
    assert ledger.reserve(call("drawn", soft=10)).result() is None
    assert ledger._blocks == {}


def test_a_block_ends_with_its_window(ledger, clock, database):
    ledger.set_budget(Budget(f"{LIMIT}e-9", "hour", scope="tag:hourly"))
    clock.now += 3_599
    warm(ledger, 100, "tag:hourly")
    assert ledger.reserve(call("before", 100, "tag:hourly")).done()
    clock.now += 1
    assert ledger.reserve(call("after", 100, "tag:hourly")).result() is None
    assert ledger.settle("before", 7).result() is True
    _, hourly = ledger.balances()
    assert (hourly.spent_nano, hourly.reserved_nano, hourly.calls) == (0, 100, 1)
    assert ledger.verify() == []


def test_an_idle_block_is_given_back_once_it_is_over(ledger, clock, database):
    warm(ledger)
    clock.now += 1.4
    with ledger._changed:
        ledger._changed.notify_all()  # who tends to the blocks looks at once
    assert ledger.reserve(call("drawn", 0)).done()
    assert blocks(database) == ["open"]
    clock.now += 0.2
    start = time.monotonic()
    while blocks(database):
        assert time.monotonic() < start + 30
        time.sleep(0.01)
    assert ledger.release("drawn").result() is True
    assert books(Ledger(database, clock)) == (0, 0)


def test_a_limit_lowered_elsewhere_stops_calls_once_the_block_is_over(ledger, clock, database):
    warm(ledger)
    Ledger(database).set_limit("default", 0)
    assert ledger.reserve(call("drawn")).result() is None
    clock.now += 2
    assert ledger.reserve(call("late")).result() is not None
    assert ledger.settle("drawn", 60).result() is True
    assert books(ledger) == (60, 0)


def test_a_limit_lowered_here_stops_the_next_call(ledger):
    warm(ledger)
    ledger.set_limit("default", 0)
    assert ledger.reserve(call("late")).result() is not None


def test_a_clock_that_goes_back_ends_a_block(ledger, clock):
    warm(ledger)
    clock.now -= 3_600
    assert not ledger.reserve(call("a")).done() or books(ledger) == (0, 100)
    assert ledger.verify() == []


def test_racing_settles_of_a_drawn_call_count_once(ledger):
    warm(ledger)
    ledger.reserve(call("a"))
    racing = [ledger.settle("a", 7) for _ in range(4)]
    assert [future.result() for future in racing] == [True, False, False, False]
    assert books(ledger) == (7, 0)


def test_an_id_is_good_for_one_drawing(ledger):
    warm(ledger)
    ledger.reserve(call("a"))
    with pytest.raises(ConfigurationError, match="unique"):
        ledger.reserve(call("a"))
    assert books(ledger) == (0, 100)


def test_a_closed_ledger_holds_nothing_and_still_works(ledger, database):
    warm(ledger)
    ledger.reserve(call("a"))
    ledger.close()
    assert blocks(database) == []
    assert ledger.reserve(call("b")).result() is None
    assert ledger.settle("a", 5).result() is True
    database.catch_up()
    assert blocks(database) == []
    assert books(ledger) == (5, 100)


# A database in trouble


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A ledger on SQLite that gives up on locks at once, and what locks it."""
    monkeypatch.setattr(_blocks, "LIFE_SECONDS", 3_600.0)
    url = f"sqlite:///{tmp_path}/ledger.db?timeout=0.05"
    with closing(Database(url)) as database, closing(LeasingLedger(database)) as ledger:
        ledger.set_budget(Budget(f"{LIMIT}e-9"))
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            yield ledger, other


def test_a_drawing_that_did_not_arrive_is_made_good_by_the_settlement(locked, caplog):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("a", 60)).result() is None
    ledger._database.catch_up()
    other.execute("ROLLBACK")
    assert "reservation a: 60 nano-dollars that were set aside could not be recorded" in caplog.text
    assert ledger.settle("a", 50).result() is True
    assert books(ledger) == (50, 0)
    with pytest.raises(StoreError, match="locked"):
        ledger.reserve(call("b"))
    assert ledger.reserve(call("b")).result() is None


def test_money_whose_use_could_not_be_recorded_stays_set_aside(locked):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    ledger.reserve(call("a", 60))
    ledger.settle("a", 50)
    with pytest.raises(StoreError, match="stays set aside"):
        ledger.close()
    other.execute("ROLLBACK")
    later = Ledger(ledger._database, lambda: time.time() + 60)
    assert books(later) == (0, 1_600)  # the block, until its lease is over
    assert later.recover() == 1
    assert books(later) == (1_600, 0)


def test_a_fault_that_nobody_was_told_of_surfaces_on_close(locked):
    ledger, other = locked
    warm(ledger)
    ledger.reserve(call("a", 60))
    ledger._database.catch_up()
    other.execute("BEGIN IMMEDIATE")
    ledger.settle("a", 50)
    with pytest.raises(StoreError, match="locked"):
        ledger.close()
    other.execute("ROLLBACK")
    assert books(Ledger(ledger._database))[0] == 0


def settle_while_locked(ledger: LeasingLedger, other: sqlite3.Connection, *ids: str) -> None:
    """Their cost of 7 is known, and cannot be written."""
    other.execute("BEGIN IMMEDIATE")
    for id in ids:
        assert ledger.settle(id, 7).result() is True
    ledger._database.catch_up()
    other.execute("ROLLBACK")
    assert Ledger(ledger._database).balance("default").spent_nano == 0


def test_a_known_cost_is_written_when_the_ledger_is_closed(locked):
    ledger, other = locked
    assert ledger.reserve(call("alone", 500)).result() is None
    warm(ledger)
    assert ledger.reserve(call("drawn", 60)).result() is None
    settle_while_locked(ledger, other, "alone", "drawn")
    ledger.close()
    assert books(ledger) == (14, 0)


def test_a_known_cost_is_written_once_another_write_succeeds(locked):
    """Also that of a call which the database never heard of, and which is drawn only now."""
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("unheard of", 60)).result() is None
    ledger._database.catch_up()
    other.execute("ROLLBACK")
    settle_while_locked(ledger, other, "unheard of")
    with pytest.raises(StoreError, match="locked"):
        ledger.reserve(call("b"))
    assert ledger.reserve(call("b", 0)).result() is None
    ledger._database.catch_up()  # b is written; and then,
    ledger._database.catch_up()  # submitted by that, what was lost
    assert not ledger._lost
    assert books(Ledger(ledger._database))[0] == 7
    ledger.close()
    assert books(ledger) == (7, 0)


def test_a_write_that_never_succeeds_is_given_up(locked, monkeypatch):
    monkeypatch.setattr(_leases, "_MOST_FAILURES", 3)
    ledger, _ = locked
    warm(ledger)

    def refuse(operation, books, now):
        raise StoreError("never")

    with monkeypatch.context() as patch:
        patch.setattr(Drawing, "apply", refuse)
        ledger.reserve(call("a"))
        for n in range(10):
            ledger._submit(Reserving(f"other {n}", call(f"other {n}"))).result()
            ledger._database.catch_up()
            ledger._database.catch_up()
    assert not ledger._lost
    with pytest.raises(StoreError, match="never"):
        ledger.reserve(call("b"))


def write_all(ledger: LeasingLedger) -> None:
    """Also what is submitted once something else is written."""
    for _ in range(4):
        ledger._database.catch_up()


def test_a_fault_that_passes_burns_no_block(locked):
    """It was to be given back before the calls that drew from it could be recorded."""
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("a", 60)).result() is None
    ledger._start_afresh()
    write_all(ledger)
    other.execute("ROLLBACK")
    assert ledger.release("unknown").result() is False  # a write that succeeds
    write_all(ledger)
    assert not ledger._lost
    assert blocks(ledger._database) == []
    assert ledger.settle("a", 3).result() is True
    assert books(Ledger(ledger._database)) == (3, 0)


def test_a_block_whose_drawing_is_written_behind_it_is_given_back_after_it(locked):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("a", 60)).result() is None
    ledger._database.catch_up()
    other.execute("ROLLBACK")
    ledger._start_afresh()  # comes before what was lost
    write_all(ledger)
    assert not ledger._lost
    assert books(Ledger(ledger._database)) == (0, 60)


def test_a_closed_ledger_has_given_back_what_a_fault_kept(locked):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("a", 60)).result() is None
    ledger._start_afresh()
    write_all(ledger)
    other.execute("ROLLBACK")
    ledger.settle("a", 3)
    ledger.close()
    assert books(Ledger(ledger._database)) == (3, 0)


def test_a_block_that_cannot_be_given_back_breaks_no_call(locked, caplog):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    ledger._start_afresh()
    write_all(ledger)
    other.execute("ROLLBACK")
    assert "the return of 1600 nano-dollars that no call used could not be" in caplog.text
    assert ledger.reserve(call("a", 60)).result() is None
    write_all(ledger)
    assert not ledger._lost


def test_a_ledger_closes_in_peace_when_only_a_block_cannot_be_given_back(locked, caplog):
    """No call is concerned, and the block expires."""
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    ledger.close()
    other.execute("ROLLBACK")
    assert "the return of 1600 nano-dollars that no call used could not be" in caplog.text


def test_a_block_that_holds_something_else_is_left_to_its_lease(ledger, database, caplog):
    warm(ledger)
    (block,) = ledger._blocks[()]
    block.left -= 1
    ledger._start_afresh()
    write_all(ledger)
    assert blocks(database) == ["open"]
    assert "block block-" in caplog.text
    assert "stays set aside until its lease is over" in caplog.text
    assert not ledger._lost


def test_a_block_is_given_back_once(database, ledger):
    """Also when nobody knows whether the commit arrived, and it is done again."""
    warm(ledger)
    (block,) = ledger._blocks.pop(())
    returning = Returning(block.held.block_id, block.left)
    assert ledger._submit(returning).result() is True
    assert ledger._submit(returning).result() is True
    assert ledger._submit(Returning(block.held.block_id, block.left)).result() is False


def test_a_lost_drawing_takes_no_place_of_a_known_cost(locked):
    ledger, other = locked
    warm(ledger)
    other.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(call("a", 60)).result() is None
    ledger._database.catch_up()
    ((drawing, _),) = ledger._lost.values()
    assert ledger.settle("a", 7).result() is True
    ledger._database.catch_up()
    ledger._write_behind(drawing, _leases._CLOSED)  # it was tried again, behind the closing
    ledger._database.catch_up()
    other.execute("ROLLBACK")
    ledger.release("unknown").result()
    write_all(ledger)
    assert not ledger._lost
    ledger.close()
    assert books(Ledger(ledger._database)) == (7, 0)


# Neighbours that die


def test_a_busy_process_recovers_what_others_reserved_when_they_died(database):
    with closing(LeasingLedger(database)) as ledger:
        ledger.set_budget(Budget(f"{LIMIT}e-9"))
        dead = Reservation("dead", "dead", "m", 900, (), "test", 0.0)
        assert Ledger(database).reserve(dead).result() is None
        warm(ledger)
        assert Ledger(database).balance("default").spent_nano == 0  # not with every write
        ledger._next_recovery = 0.0
        ledger.reserve(call("a", 0)).result()
        for _ in range(3):
            database.catch_up()
        assert Ledger(database).balance("default").spent_nano == 900
        assert ledger._next_recovery > time.monotonic() + 1


def test_a_block_that_expires_tells_nothing_of_what_calls_exceed(ledger, clock, database):
    """It is no call: what a soft budget is exceeded by is forecast from calls."""
    ledger.set_budget(Budget(f"{LIMIT}e-9", scope="tag:soft", hard=False))
    assert ledger.reserve(call("finished", 100, "tag:soft", soft=10)).result() is None
    assert ledger.settle("finished", 30).result() is True
    database.catch_up()
    assert blocks(database) == ["open"]
    # Only the other's clock moves: the first would give the block back once it looks at its own.
    other = Ledger(database, lambda: clock.now + 40)
    assert other.recover() == 1
    assert other.reserve(call("under way", 100, "tag:soft", soft=10)).result() is None
    assert other.verify() == []
    soft = other.balance("tag:soft")
    assert (soft.spent_nano, soft.calls) == (30 + 16 * 100, 2)
    assert (soft.excess_nano, soft.expected_excess_nano) == (20, 20)


def test_recovery_makes_no_caller_read_the_database(database, monkeypatch):
    """Nor anyone who waits for the ledger's lock: a write may be done before it is waited for."""
    submit_to = database.submit_to

    def slowly(kind, item, *, urgent=True):
        written = submit_to(kind, item, urgent=urgent)
        wait([written], 30)
        return written

    readers = []

    def read(**options):
        readers.append(threading.current_thread().name)
        raise StoreError("nobody is to read")

    with closing(LeasingLedger(database)) as ledger:
        ledger.set_budget(Budget(f"{LIMIT}e-9"))
        dead = Reservation("dead", "dead", "m", 900, (), "test", 0.0)
        assert Ledger(database).reserve(dead).result() is None
        with monkeypatch.context() as patch:
            patch.setattr(database, "submit_to", slowly)
            patch.setattr(database, "read", read)
            ledger._next_recovery = 0.0
            assert ledger.reserve(call("a", 0)).result() is None
        for _ in range(3):
            database.catch_up()
        assert readers == []
        assert Ledger(database).balance("default").spent_nano == 900


# Processes that end

PROCESS = """
    import sys
    from optllm_router.ledger import LeasingLedger, Reservation
    from optllm_router.store import Database

    database = Database(sys.argv[1])
    ledger = LeasingLedger(database)
    for n in range(5):
        ledger.reserve(Reservation(f"r{n}", "d", "m", 100, (), "test", 0.0)).result()
        database.catch_up()
    ledger.settle("r0", 5)
    ledger.settle("r1", 5)
    if sys.argv[2] == "dies":
        database.catch_up()
        print("ready", flush=True)
        sys.stdin.readline()
"""


def start(url: str, end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), url, end]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is posix")
def test_a_killed_process_leaves_its_block_to_expire(database):
    now = time.time()
    ledger = Ledger(database, lambda: now)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    victim = start(database.url.render_as_string(hide_password=False), "dies")
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    # The first call is reserved by itself. The next three draw from a block for four, and make it
    # low, so that there is another one, from which the fifth may draw.
    assert blocks(database) == ["open", "open"]
    _, reserved = books(ledger)
    held = reserved - 300
    assert 4 * 100 <= held <= 12 * 100
    now += 60
    assert ledger.recover() == 3 + 2
    assert books(ledger) == (10 + 300 + held, 0)


FORKED = """
    import os
    import sys
    from optllm_router._errors import StoreError
    from optllm_router.ledger import LeasingLedger, Reservation
    from optllm_router.store import Database

    def reserve(id):
        return ledger.reserve(Reservation(id, "d", "m", 100, (), "test", 60.0)).result()

    database = Database(sys.argv[1])
    ledger = LeasingLedger(database)
    reserve("first")
    database.catch_up()
    assert ledger._blocks
    child = os.fork()
    if child == 0:
        for use in (lambda: reserve("child"), lambda: ledger.settle("first", 5), ledger.balances):
            try:
                use()
            except StoreError as error:
                assert "forked" in str(error)
            else:
                raise AssertionError("a copy spends what is not its own")
        ledger.close()
        database.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    reserve("parent")
    ledger.settle("parent", 5).result()
    ledger.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is posix")
def test_a_forked_copy_spends_nothing_and_leaves_the_original_in_peace(database):
    """Its block is a copy, too, and nobody would write down what it draws from it."""
    ledger = Ledger(database)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert blocks(database) == []
    assert books(ledger) == (5, 100)


def test_a_process_that_ends_gives_its_block_back(database):
    ledger = Ledger(database)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    process = start(database.url.render_as_string(hide_password=False), "ends")
    _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert blocks(database) == []
    assert books(ledger) == (10, 300)
