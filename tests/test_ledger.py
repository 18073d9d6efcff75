from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest
from busy_writer import busy
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from postgresql_stores import new_postgresql_store, postgresql_is_missing
from sqlalchemy import select

from optllm_router._errors import ConfigurationError
from optllm_router._money import MAX_NANO, NANO_PER_USD, Budget
from optllm_router.ledger import LeasingLedger, Ledger, Refusal, Reservation
from optllm_router.store import Database
from optllm_router.store.schema import balances

MINUTE, HOUR = 60, 3600


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(store_url):
    database = Database(store_url)
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(database, clock) -> Ledger:
    ledger = Ledger(database, clock)
    ledger.set_budget(budget_of(100))
    return ledger


def budget_of(nano: int, window: str = "total", tag: str = "", **manners) -> Budget:
    """On everything, or on a tag, whose name it has."""
    name, scope = (tag, f"tag:{tag}") if tag else ("default", "everything")
    return Budget(f"{nano}e-9", window, name, scope=scope, **manners)


def reservation(
    id: str, amount: int, *tags: str, lease_seconds: float = 60, soft: int | None = None
) -> Reservation:
    scopes = tuple(f"tag:{tag}" for tag in tags)
    return Reservation(id, f"for {id}", "m", amount, scopes, "test", lease_seconds, soft)


def reserve(ledger: Ledger, id: str, amount: int, *tags: str, **kw) -> Refusal | None:
    return ledger.reserve(reservation(id, amount, *tags, **kw)).result()


def told(refusal: Refusal | None) -> tuple[str, int, int, int | None] | None:
    """Who refused, what is left, what is reserved, and when there is room."""
    if refusal is None:
        return None
    return refusal.budget, refusal.left_nano, refusal.reserved_nano, refusal.next_window


def moved(ledger: Ledger, name: str = "default") -> tuple[int, int]:
    balance = ledger.balance(name)
    assert ledger.verify() == []
    return balance.spent_nano, balance.reserved_nano


# One call


def test_money_is_set_aside_and_then_settled_at_its_true_cost(ledger):
    assert reserve(ledger, "a", 60) is None
    assert moved(ledger) == (0, 60)
    assert ledger.settle("a", 25).result() is True
    assert moved(ledger) == (25, 0)
    assert ledger.balance("default").left_nano == 75


def test_released_money_is_there_again(ledger):
    reserve(ledger, "a", 60)
    assert ledger.release("a").result() is True
    assert moved(ledger) == (0, 0)
    assert reserve(ledger, "b", 100) is None


def test_settling_in_full_costs_what_was_reserved(ledger):
    reserve(ledger, "a", 60)
    assert ledger.settle_in_full("a").result() is True
    assert moved(ledger) == (60, 0)


def test_the_budget_is_usable_to_its_last_nano_dollar_and_not_beyond(ledger):
    reserve(ledger, "a", 99)
    assert told(reserve(ledger, "b", 2)) == ("default", 1, 99, None)
    assert reserve(ledger, "c", 1) is None
    assert told(reserve(ledger, "d", 1)) == ("default", 0, 100, None)
    assert reserve(ledger, "free", 0) is None
    assert moved(ledger) == (0, 100)


@pytest.mark.parametrize("first", ["settle", "settle_in_full", "release"])
@pytest.mark.parametrize("second", ["settle", "settle_in_full", "release"])
def test_whatever_closes_second_changes_nothing(ledger, first, second):
    def close(how: str) -> bool:
        arguments = ("a", 7) if how == "settle" else ("a",)
        return getattr(ledger, how)(*arguments).result()

    reserve(ledger, "a", 60)
    assert close(first) is True
    after_first = moved(ledger)
    assert close(second) is False
    assert moved(ledger) == after_first


def test_closing_what_was_never_reserved_changes_nothing(ledger):
    assert ledger.settle("nobody", 5).result() is False
    assert ledger.release("nobody").result() is False
    assert ledger.settle_in_full("nobody").result() is False
    assert moved(ledger) == (0, 0)


def test_a_cost_over_the_reservation_was_spent_and_is_recorded(ledger):
    reserve(ledger, "a", 60)
    ledger.settle("a", 130).result()
    assert moved(ledger) == (130, 0)
    assert ledger.balance("default").left_nano == 0
    assert told(reserve(ledger, "b", 1)) == ("default", 0, 0, None)


def test_an_id_is_good_for_one_reservation(ledger):
    reserve(ledger, "a", 10)
    with pytest.raises(Exception, match=r"(?i)unique"):
        reserve(ledger, "a", 10)
    assert moved(ledger) == (0, 10)


@pytest.mark.parametrize("amount", [-1, MAX_NANO + 1])
def test_amounts_out_of_range_are_refused_before_the_database(ledger, amount):
    reserve(ledger, "a", 10)
    with pytest.raises(ConfigurationError, match=str(amount)):
        reserve(ledger, "b", amount)
    with pytest.raises(ConfigurationError, match=str(amount)):
        ledger.settle("a", amount)
    assert moved(ledger) == (0, 10)


def test_the_largest_budget_is_exact(ledger):
    ledger.set_budget(Budget(f"{MAX_NANO // NANO_PER_USD}.{MAX_NANO % NANO_PER_USD:09d}"))
    reserve(ledger, "a", MAX_NANO)
    assert told(reserve(ledger, "b", 1)) == ("default", 0, MAX_NANO, None)
    ledger.settle("a", MAX_NANO - 1).result()
    assert moved(ledger) == (MAX_NANO - 1, 0)


# Several budgets, and their windows


def test_all_budgets_must_have_room_or_none_is_touched(ledger):
    ledger.set_budget(budget_of(50, tag="small"))
    ledger.set_budget(budget_of(500, tag="a large one"))
    assert reserve(ledger, "a", 60, "small", "a large one").budget == "small"
    assert [b.reserved_nano for b in ledger.balances()] == [0, 0, 0]
    assert reserve(ledger, "b", 50, "small", "a large one") is None
    assert [b.reserved_nano for b in ledger.balances()] == [50, 50, 50]
    ledger.settle("b", 20).result()
    assert [b.spent_nano for b in ledger.balances()] == [20, 20, 20]
    assert ledger.verify() == []


def test_a_scope_that_no_budget_covers_is_named_and_nothing_is_set_aside(ledger):
    ledger.set_budget(budget_of(50, tag="known"))
    with pytest.raises(ConfigurationError, match=r"'tag:knwon'.*for tag:knwon.*for tag:\*"):
        reserve(ledger, "a", 1, "known", "knwon")
    with pytest.raises(ConfigurationError, match="'knwon'"):
        ledger.balance("knwon")
    assert moved(ledger) == (0, 0)


def test_names_are_data(ledger):
    name = "'; DROP TABLE reservations; -- \" % :budget ü"
    ledger.set_budget(budget_of(10, tag=name))
    assert reserve(ledger, name, 6, name) is None
    assert told(reserve(ledger, "b", 6, name)) == (name, 4, 6, None)
    ledger.settle(name, 5).result()
    assert moved(ledger, name) == (5, 0)


def test_each_window_has_the_whole_limit(ledger, clock):
    ledger.set_limit("default", 1)
    ledger.set_budget(budget_of(100, "hour", "hourly"))
    clock.now = 10 * HOUR + 1
    reserve(ledger, "a", 100, "hourly")
    assert told(reserve(ledger, "b", 1, "hourly")) == ("hourly", 0, 100, 11 * HOUR)
    clock.now = 11 * HOUR
    assert reserve(ledger, "c", 70, "hourly") is None
    assert moved(ledger, "hourly") == (0, 70)


def test_a_call_is_paid_from_the_window_in_which_it_began(ledger, clock):
    ledger.set_budget(budget_of(100, "hour", "hourly"))
    clock.now = 11 * HOUR - 1
    reserve(ledger, "a", 100, "hourly")
    clock.now = 11 * HOUR
    ledger.settle("a", 40).result()
    assert moved(ledger, "hourly") == (0, 0)
    clock.now = 11 * HOUR - 1
    assert moved(ledger, "hourly") == (40, 0)


@pytest.mark.parametrize("new", ["total", "hour", "month"])
def test_a_budget_keeps_its_window_and_so_its_spend(ledger, clock, new):
    clock.now = 0.0  # an hour, a day and a month begin at this moment
    ledger.set_budget(budget_of(100, "day", "mine"))
    reserve(ledger, "a", 60, "mine")
    with pytest.raises(ConfigurationError, match=f"'mine'.*'day'.*'{new}'.*another name"):
        ledger.set_budget(budget_of(5, new, "mine"))
    assert (ledger.balance("mine").window, ledger.balance("mine").limit_nano) == ("day", 100)
    ledger.set_budget(budget_of(70, "day", "mine"))
    assert told(reserve(ledger, "b", 11, "mine")) == ("mine", 10, 60, 24 * HOUR)


def test_a_limit_below_what_is_spent_stops_new_calls_and_cancels_none(ledger):
    reserve(ledger, "a", 60)
    ledger.set_budget(budget_of(10))
    assert told(reserve(ledger, "b", 1)) == ("default", 0, 60, None)
    assert ledger.settle("a", 60).result() is True
    assert ledger.balance("default").left_nano == 0
    ledger.set_budget(budget_of(61))
    assert reserve(ledger, "b", 1) is None
    assert moved(ledger) == (60, 1)


def test_verify_names_a_balance_that_someone_changed(ledger, database):
    from sqlalchemy import text

    reserve(ledger, "a", 60)
    database.submit(lambda c: c.execute(text("UPDATE balances SET spent_nano = 5"))).result()
    (sentence,) = ledger.verify()
    assert "'default'" in sentence
    assert "(5, 60, 1, 1, 0)" in sentence
    assert "(0, 60, 1, 1, 0)" in sentence


def test_verify_finds_money_that_nobody_reserved(ledger, database):
    from sqlalchemy import text

    reserve(ledger, "a", 60)
    database.submit(lambda c: c.execute(text("DELETE FROM reservations"))).result()
    assert len(ledger.verify()) == 1


# Budgets of each tenant


def test_a_template_gives_each_a_budget_of_its_own(ledger):
    ledger.set_budget(budget_of(40, tag="*", hard=False))
    assert [balance.budget for balance in ledger.balances()] == ["default"]
    assert [balance.left_nano for balance in ledger.glance(["tag:a"])] == [40, 100]
    assert reserve(ledger, "a", 40, "a") is None
    assert told(reserve(ledger, "b", 1, "a")) == ("*/tag:a", 0, 40, None)
    assert reserve(ledger, "c", 30, "a b") is None
    left = {balance.scope: (balance.left_nano, balance.hard) for balance in ledger.balances()}
    assert left == {"tag:a": (0, False), "tag:a b": (10, False), "everything": (30, True)}
    assert ledger.verify() == []


def test_copies_follow_their_template_unless_set_apart(ledger):
    ledger.set_limit("default", 1)
    ledger.set_budget(budget_of(40, tag="*"))
    for tag in "ab":
        reserve(ledger, tag, 1, tag)
    ledger.set_limit("*/tag:a", "50e-9")
    ledger.set_limit("*", "60e-9")
    ledger.set_budget(budget_of(60, tag="*"))
    limits = {balance.scope: balance.limit_nano for balance in ledger.balances()}
    assert (limits["tag:a"], limits["tag:b"]) == (50, 60)
    assert reserve(ledger, "c", 60, "c") is None


def test_a_removed_budget_neither_pays_nor_forgets(ledger):
    ledger.set_budget(budget_of(40, tag="*"))
    ledger.set_budget(budget_of(40, tag="own"))
    reserve(ledger, "a", 30, "own")
    reserve(ledger, "b", 30, "other")
    with pytest.raises(ConfigurationError, match=r"'\*/tag:other' is made from '\*'; remove that"):
        ledger.remove_budget("*/tag:other")
    for name in ("own", "*"):
        ledger.remove_budget(name)
        with pytest.raises(ConfigurationError, match="no budget"):
            ledger.remove_budget(name)
    assert [balance.budget for balance in ledger.balances()] == ["default"]
    with pytest.raises(ConfigurationError, match="'tag:other'"):
        reserve(ledger, "c", 1, "other")
    assert ledger.settle("a", 20).result() is True
    assert moved(ledger) == (20, 30)
    with pytest.raises(ConfigurationError, match="window"):
        ledger.set_budget(budget_of(40, "day", "own"))
    ledger.set_budget(budget_of(40, tag="own"))
    ledger.set_budget(budget_of(40, tag="*"))
    assert ledger.balance("own").spent_nano == 20
    assert ledger.balance("*/tag:other").reserved_nano == 30


@pytest.mark.parametrize("what", ["scope", "timezone"])
def test_a_name_means_one_budget(ledger, what):
    ledger.set_budget(budget_of(1, "day", "mine"))
    changed = {"scope": "tag:other", "timezone": "Asia/Tokyo"}[what]
    with pytest.raises(ConfigurationError, match=f"has the {what} .* cannot become '{changed}'"):
        ledger.set_budget(dataclasses.replace(budget_of(1, "day", "mine"), **{what: changed}))


def test_many_first_calls_make_one_copy(store_url, ledger):
    ledger.set_budget(budget_of(1_000, tag="*"))
    ledger.set_limit("default", 1)
    databases = [Database(store_url) for _ in range(3)]
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for n in range(10):
                calls = [
                    pool.submit(reserve, Ledger(one), f"{n} {i}", 1, f"tag {n}")
                    for i, one in enumerate(databases)
                ]
                assert [future.result() for future in calls] == [None] * 3
    finally:
        for one in databases:
            one.close()
    assert [b.calls for b in ledger.balances() if b.scope != "everything"] == [3] * 10
    assert ledger.verify() == []


def test_processes_that_start_together_set_the_same_budget(store_url):
    databases = [Database(store_url) for _ in range(3)]
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for n in range(10):
                together = threading.Barrier(3)

                def set_one(one: Database, n: int = n, together=together) -> None:
                    together.wait(30)
                    Ledger(one).set_budget(budget_of(7, "day", f"tag {n}"))

                for done in [pool.submit(set_one, one) for one in databases]:
                    done.result()
        found = Ledger(databases[0]).balances()
        assert [(b.limit_nano, b.window) for b in found] == [(7, "day")] * 10
    finally:
        for one in databases:
            one.close()


def test_a_budget_is_not_called_like_one_that_a_template_makes(ledger):
    ledger.set_budget(budget_of(40, tag="*"))
    taken = Budget(1, name="*/tag:a", scope="tag:b")
    with pytest.raises(ConfigurationError, match=r"'\*/tag:a' is kept for what budget '\*'"):
        ledger.set_budget(taken)
    assert reserve(ledger, "a", 1, "a") is None
    ledger.set_budget(Budget(1, name="*/user:a", scope="tag:b"))
    ledger.set_budget(Budget(1, name="each/tag:a", scope="tag:b"))
    with pytest.raises(ConfigurationError, match="'each/tag:a', which is taken"):
        ledger.set_budget(Budget(1, name="each", scope="tag:*"))
    ledger.set_budget(Budget("40e-9", name="*/tag:a", scope="tag:a"))  # the copy itself
    assert reserve(ledger, "b", 1, "a") is None
    assert ledger.verify() == []


def test_templates_are_listed_by_themselves(ledger):
    ledger.set_budget(budget_of(40, "day", "*", hard=False))
    (each,) = ledger.templates()
    assert (each.budget, each.scope, each.window, each.hard) == ("*", "tag:*", "day", False)
    assert (each.limit_nano, each.left_nano, each.calls) == (40, 40, 0)
    assert reserve(ledger, "a", 1, "a") is None
    assert ledger.templates() == [each]
    ledger.remove_budget("*")
    assert ledger.templates() == []


@pytest.mark.parametrize("scope", ["tag:*", "tag:", "team:a", "tag:a\0b", 5])
def test_a_call_belongs_to_scopes_that_are_some(ledger, scope):
    with pytest.raises(ConfigurationError, match="scope"):
        ledger.reserve(Reservation("a", "a", "m", 1, (scope,), "test", 60))
    with pytest.raises(ConfigurationError, match="at most 32"):
        reserve(ledger, "a", 1, *map(str, range(33)))


# What is known without asking the database


def test_a_glance_sees_what_this_process_did(ledger, database, clock):
    ledger.set_budget(budget_of(1_000, "hour", "hourly"))
    with database.read() as connection:  # nothing that follows needs it
        ledger.glance(["tag:hourly"])
        reserve(ledger, "a", 60, "hourly")
        ledger.settle("a", 25).result()
        reserve(ledger, "b", 10, "hourly")
        assert connection is not None
    for balance in ledger.glance(["tag:hourly"]):
        assert (balance.spent_nano, balance.reserved_nano, balance.calls) == (25, 10, 2)
    clock.now += HOUR
    everything, hourly = ledger.glance(["tag:hourly"])
    assert (everything.spent_nano, hourly.spent_nano) == (25, 0)
    assert ledger.glance(["tag:unknown"]) == ledger.glance()


def test_a_glance_is_a_second_behind_other_processes(ledger, store_url):
    ledger.glance()
    other = Database(store_url)
    reserve(Ledger(other), "a", 60)
    other.close()
    start = time.monotonic()
    while ledger.glance()[0].reserved_nano != 60:
        assert time.monotonic() < start + 5
        time.sleep(0.05)


# Thresholds


class Told:
    """Receives reports, and says which, once they had time to arrive."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.crossings = []
        self.threads = set()

    def __call__(self, crossing) -> None:
        self.threads.add(threading.current_thread().name)
        self.crossings.append((crossing.budget, crossing.percent, crossing.spent_nano))

    def all(self) -> list[tuple[str, int, int]]:
        self.database.catch_up()
        for thread in threading.enumerate():
            if thread.name == "optllm-thresholds":
                thread.join(10)
        return self.crossings


def test_each_threshold_is_told_once_in_a_window(database, clock):
    clock.now = 10.0 * HOUR
    tell = Told(database)
    ledger = Ledger(database, clock, on_threshold=tell)
    ledger.set_budget(budget_of(100, "hour", "hourly", thresholds=(50, 80, 120)))
    for id, cost in (("a", 49), ("b", 1), ("c", 40), ("d", 10)):
        assert reserve(ledger, id, cost, "hourly") is None
        ledger.settle(id, cost).result()
    assert tell.all() == [("hourly", 50, 50), ("hourly", 80, 90)]
    assert tell.threads == {"optllm-thresholds"}
    ledger.set_limit("hourly", "200e-9")
    again = Told(database)
    other = Ledger(database, clock, on_threshold=again)
    reserve(other, "e", 100, "hourly")
    other.settle("e", 150).result()
    assert again.all() == [("hourly", 120, 250)]
    clock.now += HOUR
    reserve(ledger, "f", 100, "hourly")
    ledger.settle("f", 100).result()
    assert tell.all()[2:] == [("hourly", 50, 100)]


def test_a_threshold_of_a_rolling_window_is_told_again_only_when_it_was_not_exceeded(
    database, clock
):
    clock.now = 10.0 * HOUR - 30
    tell = Told(database)
    ledger = Ledger(database, clock, on_threshold=tell)
    ledger.set_budget(budget_of(100, "rolling 1h", "rolling", thresholds=(50,)))
    spent = 0

    def spend(cost: int) -> None:
        nonlocal spent
        spent += 1
        assert reserve(ledger, f"{spent}", cost, "rolling") is None
        ledger.settle(f"{spent}", cost).result()

    spend(60)
    clock.now += MINUTE  # into another hour of the clock
    spend(1)
    other = Ledger(database, clock, on_threshold=tell)
    assert reserve(other, "others", 1, "rolling") is None
    other.settle("others", 1).result()
    assert tell.all() == [("rolling", 50, 60)]
    clock.now += 2 * HOUR
    spend(10)
    spend(45)
    assert tell.all() == [("rolling", 50, 60), ("rolling", 50, 55)]


def test_a_threshold_that_a_lowered_limit_reaches_is_told(database, clock):
    tell = Told(database)
    ledger = Ledger(database, clock, on_threshold=tell)
    ledger.set_budget(budget_of(100))
    reserve(ledger, "a", 40)
    ledger.settle("a", 40).result()
    assert tell.all() == []
    ledger.set_limit("default", "50e-9")
    assert tell.all() == [("default", 50, 40), ("default", 80, 40)]
    ledger.set_budget(budget_of(40))
    assert tell.all()[2:] == [("default", 95, 40), ("default", 100, 40)]


def test_what_a_lowered_limit_reaches_is_told_though_it_was_told_before(database, clock):
    clock.now = 10.0 * HOUR
    tell = Told(database)
    ledger = Ledger(database, clock, on_threshold=tell)
    ledger.set_budget(budget_of(100, "rolling 1h", "rolling", thresholds=(50,)))
    for id, cost, later in (("a", 60, 0), ("b", 30, HOUR + 2 * MINUTE)):
        clock.now += later
        reserve(ledger, id, cost, "rolling")
        ledger.settle(id, cost).result()
    ledger.configure(budget_of(100, "rolling 1h", "rolling", thresholds=(50,)))
    assert tell.all() == [("rolling", 50, 60)]
    ledger.set_limit("rolling", "50e-9")
    assert tell.all()[1:] == [("rolling", 50, 30)]
    clock.now += 50 * MINUTE  # another stretch of the clock, and exceeded since
    ledger.set_limit("rolling", "40e-9")
    assert len(tell.all()) == 2


def test_a_hook_that_fails_is_logged_and_harms_nobody(database, clock, caplog):
    def fail(crossing):
        raise LookupError("no mail today")

    ledger = Ledger(database, clock, on_threshold=fail)
    ledger.set_budget(budget_of(100))
    reserve(ledger, "a", 100)
    assert ledger.settle("a", 50).result() is True
    Told(database).all()
    assert "on_threshold failed for budget 'default' at 50 %" in caplog.text
    assert reserve(ledger, "b", 50) is None


TELLER = """
    import sys, threading, time
    from optllm_router._money import Budget
    from optllm_router.ledger import Ledger, Reservation
    from optllm_router.store import Database

    def tell(crossing):
        if crossing.percent == 50:
            time.sleep(0.3)
            print("told", flush=True)
        else:
            threading.Event().wait()

    database = Database(sys.argv[1])
    ledger = Ledger(database, on_threshold=tell)
    ledger.set_budget(Budget("100e-9", thresholds=(50, int(sys.argv[2]))))
    ledger.reserve(Reservation("a", "a", "m", 100, (), "test", 60)).result()
    ledger.settle("a", 90).result()
    database.close()
"""


@pytest.mark.parametrize(("other_threshold", "hangs"), [("99", False), ("80", True)])
def test_a_process_ends_after_its_hooks_unless_they_hang(sqlite_url, other_threshold, hangs):
    command = [sys.executable, "-c", textwrap.dedent(TELLER), sqlite_url, other_threshold]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "told\n")
    assert ("on_threshold did not return in time" in done.stderr) == hangs


# Leases


def test_recover_leaves_calls_under_way_alone(ledger, clock):
    reserve(ledger, "a", 60, lease_seconds=60)
    clock.now += 60
    assert ledger.recover() == 0
    assert moved(ledger) == (0, 60)


def test_what_a_dead_process_reserved_counts_as_spent(ledger, clock):
    reserve(ledger, "a", 60, lease_seconds=60)
    reserve(ledger, "b", 10, lease_seconds=600)
    clock.now += 61
    assert ledger.recover() == 1
    assert moved(ledger) == (60, 10)
    assert ledger.recover() == 0


@pytest.mark.parametrize(
    ("close", "spent"),
    [
        (lambda ledger: ledger.settle("a", 25), 25),
        (lambda ledger: ledger.settle_in_full("a"), 60),
        (lambda ledger: ledger.release("a"), 0),
    ],
    ids=["settle", "settle_in_full", "release"],
)
def test_the_truth_corrects_an_expired_reservation_once(ledger, clock, close, spent):
    reserve(ledger, "a", 60)
    clock.now += 61
    ledger.recover()
    assert close(ledger).result() is True
    assert moved(ledger) == (spent, 0)
    assert close(ledger).result() is False
    assert ledger.settle("a", 1).result() is False
    assert ledger.recover() == 0
    assert moved(ledger) == (spent, 0)


# Many at once


def test_threads_race_for_one_budget(ledger):
    """Forty threads want 7 of 100 each: 14 get it, and settle at 3."""
    all_have_asked = threading.Barrier(40)

    def call(n: int) -> bool:
        granted = reserve(ledger, f"call {n}", 7) is None
        all_have_asked.wait(30)
        return granted and ledger.settle(f"call {n}", 3).result()

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        sent = list(pool.map(call, range(40)))
    assert sum(sent) == 14
    assert moved(ledger) == (42, 0)


@pytest.mark.parametrize("kind", [Ledger, LeasingLedger])
def test_concurrent_calls_across_a_window_s_edge_lose_nothing(store_url, clock, kind):
    """Two processes, as it were, on either side of it at once: their clocks differ by a second."""
    clock.now = 10.0 * HOUR
    limit, callers, calls = 1_000, 6, 60
    ahead = Clock()
    with contextlib.ExitStack() as stack:
        databases = [stack.enter_context(contextlib.closing(Database(store_url))) for _ in "ab"]
        clocks = (clock, lambda: ahead.now)
        ledgers = [kind(one, watch) for one, watch in zip(databases, clocks, strict=True)]
        ledgers[0].set_budget(budget_of(limit, "hour", "hourly"))
        ledgers[0].set_budget(budget_of(10**9))
        asked = iter(range(callers * calls))
        moving = threading.Lock()

        def move_clocks() -> None:
            """Over an edge every 45 calls, the one a few calls before the other."""
            with moving:
                number = next(asked)
                clock.now = 10.0 * HOUR + HOUR * (number // 45)
                ahead.now = 10.0 * HOUR + HOUR * ((number + 10) // 45)

        def keep_calling(caller: int) -> tuple[int, int]:
            ledger, granted, cost = ledgers[caller % 2], 0, 0
            for n in range(calls):
                move_clocks()
                id = f"{caller}-{n}"
                most = 1 + 7 * n % 40
                if reserve(ledger, id, most, "hourly") is None:
                    granted, cost = granted + 1, cost + n % most
                    assert ledger.settle(id, n % most).result() is True
            return granted, cost

        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            done = list(pool.map(keep_calling, range(callers)))
        for ledger in ledgers:
            if isinstance(ledger, LeasingLedger):
                ledger.close()
        watcher = Ledger(databases[0], clock)
        assert watcher.verify() == []
        with databases[0].read() as connection:
            windows = connection.execute(
                select(balances).where(balances.c.budget == "hourly")
            ).all()
        assert len(windows) > callers * calls // 45 - 2
        assert all(one.spent_nano <= limit and one.reserved_nano == 0 for one in windows)
        assert sum(one.calls for one in windows) == sum(granted for granted, _ in done) > calls
        total = sum(cost for _, cost in done)
        assert sum(one.spent_nano for one in windows) == total
        assert watcher.balance("default").spent_nano == total
        left = watcher.balance("hourly").left_nano
        assert reserve(watcher, "the last of it", left, "hourly") is None
        assert reserve(watcher, "beyond it", 1, "hourly") is not None


def test_racing_settles_count_once(ledger):
    for n in range(10):
        reserve(ledger, f"call {n}", 10)
        racing = [ledger.settle(f"call {n}", 1) for _ in range(4)]
        assert sum(future.result() for future in racing) == 1
    assert moved(ledger) == (10, 0)


@pytest.mark.parametrize("before", ["settle", "reserve", "nothing", "record"])
def test_a_release_comes_after_the_reservation_that_it_follows(ledger, database, before):
    """A caller that is cancelled while it reserves releases at once: both are still waiting."""
    reserve(ledger, "other", 10)
    go = busy(database)
    if before == "settle":
        ledger.settle("other", 10)
    elif before == "reserve":
        ledger.reserve(reservation("another", 10))
    elif before == "record":
        database.submit(lambda connection: None)
    reserving = ledger.reserve(reservation("a", 60))
    releasing = ledger.release("a")
    go.set()
    assert reserving.result() is None
    assert releasing.result() is True
    assert moved(ledger)[0] + moved(ledger)[1] in (10, 20)


def test_one_commit_does_what_its_operations_do_one_by_one(ledger, database):
    go = busy(database)
    answers = [
        ledger.reserve(reservation("a", 60)),
        ledger.reserve(reservation("b", 60)),
        ledger.settle("a", 50),
        ledger.settle("a", 1),
        ledger.reserve(reservation("c", 50)),
        ledger.release("c"),
        ledger.reserve(reservation("d", 51)),
        ledger.reserve(reservation("e", 50)),
        ledger.settle_in_full("e"),
        ledger.settle("nobody", 1),
    ]
    go.set()
    results = [answer.result() for answer in answers]
    assert [told(r) if isinstance(r, Refusal) else r for r in results] == [
        None,
        ("default", 40, 60, None),
        *(True, False, None, True),
        ("default", 50, 0, None),
        *(None, True, False),
    ]
    assert moved(ledger) == (100, 0)


RACER = """
    import sys
    from optllm_router.ledger import Ledger, Reservation
    from optllm_router.store import Database

    url, me, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = Database(url)
    ledger = Ledger(database)
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    scopes = ("tag:other",)
    for first in range(0, calls, 8):
        ids = [f"{me}-{n}" for n in range(first, first + 8)]
        asked = [ledger.reserve(Reservation(i, i, "m", 3, scopes, "test", 60)) for i in ids]
        granted = [i for i, answer in zip(ids, asked) if answer.result() is None]
        won += len(granted)
        for future in [ledger.settle(i, 2) for i in granted]:
            assert future.result()
    database.close()
    print(won, flush=True)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_race_for_two_budgets(store_url, ledger):
    ledger.set_budget(budget_of(251))
    ledger.set_budget(budget_of(300, tag="other"))
    racers = [start(RACER, store_url, str(n), "200") for n in range(2)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    snapshots = 0
    while any(racer.poll() is None for racer in racers):
        for balance in ledger.balances():
            assert balance.spent_nano + balance.reserved_nano <= balance.limit_nano
            snapshots += 1
    won = [int(racer.communicate()[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert snapshots > 10
    # Each settles at 2 of 3: at the end there may be 2 left, which no call fits into.
    assert 124 <= sum(won) <= 125
    assert ledger.balance("default").spent_nano == 2 * sum(won)
    assert ledger.verify() == []


VICTIM = """
    import sys
    from optllm_router.ledger import Ledger, Reservation
    from optllm_router.store import Database

    ledger = Ledger(Database(sys.argv[1]))
    for n in range(3):
        ledger.reserve(Reservation(f"r{n}", "d", "m", 20, (), "test", 0.0)).result()
    ledger.settle("r0", 5).result()
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is posix")
def test_a_killed_process_loses_nothing(store_url):
    database = Database(store_url)
    ledger = Ledger(database)
    ledger.set_budget(budget_of(100))
    victim = start(VICTIM, store_url)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert moved(ledger) == (5, 40)
    assert told(reserve(ledger, "mine", 56)) == ("default", 55, 40, None)
    assert ledger.recover() == 2
    assert moved(ledger) == (45, 0)
    assert ledger.settle("r1", 1).result() is True
    assert moved(ledger) == (26, 0)
    assert reserve(ledger, "mine", 74) is None
    database.close()


def test_verify_is_right_while_others_write(ledger):
    ledger.set_budget(budget_of(10**9))
    done = threading.Event()

    def keep_writing() -> None:
        n = 0
        while not done.is_set():
            reserve(ledger, f"call {n}", 10)
            ledger.settle(f"call {n}", 1).result()
            n += 1

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        writer = pool.submit(keep_writing)
        try:
            found = [ledger.verify() for _ in range(150)]
        finally:
            done.set()
        writer.result()
    assert found == [[]] * 150


# Against a model of ten lines

BUDGETS = {
    "all": Budget("60e-9", name="all"),
    "tenant": Budget("40e-9", "rolling 1h", "tenant", scope="tenant:a"),
    "tag": Budget("30e-9", "hour", "tag", scope="tag:t", hard=False),
    "user": Budget("20e-9", "total", "user", scope="user:*"),
}
USER = "user/user:u"  # the copy that is made for the one user there is


class Books:
    """The ledger in ten lines: when each call began, what it set aside, and what it came to."""

    def __init__(self, scale: int) -> None:
        self.limits = {"all": 60 * scale, "tenant": 40 * scale, "tag": 30 * scale, USER: 20 * scale}
        self.calls: dict[str, tuple[float, int, dict[str, int], int, str]] = {}

    def counts(self, name: str, began: float, now: float) -> bool:
        if name == "tag":
            return began // HOUR == now // HOUR
        return name != "tenant" or began // 60 * 60 + HOUR + 60 > now

    def held(self, name: str, now: float) -> tuple[int, int]:
        calls = [c for c in self.calls.values() if name in c[2] and self.counts(name, c[0], now)]
        open_calls = [call for call in calls if call[4] == "open"]
        return sum(call[3] for call in calls), sum(call[2][name] for call in open_calls)

    def reserve(self, id: str, amount: int, aside: dict[str, int], now: float) -> bool:
        if any(sum(self.held(name, now)) + n > self.limits[name] for name, n in aside.items()):
            return False
        self.calls[id] = (now, amount, aside, 0, "open")
        return True

    def close(self, id: str, cost: int | None, state: str = "closed") -> bool:
        began, amount, aside, _, before = self.calls[id]
        if before == "closed" or (before, state) == ("expired", "expired"):
            return False
        self.calls[id] = (began, amount, aside, amount if cost is None else cost, state)
        return True


class LedgerAgainstBooks(RuleBasedStateMachine):
    """Any calls in any order; costs never exceed what was reserved for them in hard budgets."""

    kind: type[Ledger] = Ledger
    scale = 1
    looks_every = 1
    steps = 0

    @initialize()
    def open_books(self):
        self.store = contextlib.ExitStack()
        self.url = self.store.enter_context(self.new_store())
        self.clock = Clock()
        self.books = Books(self.scale)
        self.leases: dict[str, float] = {}
        self.open()
        for name, nano in {"all": 60, "tenant": 40, "tag": 30, "user": 20}.items():
            limit_usd = f"{nano * self.scale}e-9"
            self.ledger.set_budget(dataclasses.replace(BUDGETS[name], limit_usd=limit_usd))

    @staticmethod
    @contextlib.contextmanager
    def new_store():
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/ledger.db"

    def open(self):
        self.database = Database(self.url)
        self.ledger = self.kind(self.database, self.clock)

    @rule(
        amount=st.integers(0, 30),
        soft=st.floats(0, 1),
        names=st.sets(st.sampled_from(("tenant", "tag", USER))),
        lease=st.sampled_from([10, 10_000]),
    )
    def reserve(self, amount, soft, names, lease):
        id = f"r{len(self.leases)}"
        self.leases[id] = self.clock.now + lease
        soft = int(soft * amount)
        aside = {name: soft if name == "tag" else amount for name in ("all", *sorted(names))}
        scopes = {"tenant": "tenant:a", "tag": "tag:t", USER: "user:u"}
        call = Reservation(
            id, id, "m", amount, tuple(scopes[name] for name in names), "test", lease, soft
        )
        refusal = self.ledger.reserve(call).result()
        assert (refusal is None) == self.books.reserve(id, amount, aside, self.clock.now)
        if refusal is not None:
            used = self.books.held(refusal.budget, self.clock.now)
            left = self.books.limits[refusal.budget] - sum(used)
            assert (refusal.left_nano, refusal.reserved_nano) == (max(0, left), used[1])
            assert left < refusal.needed_nano == aside[refusal.budget]
            self.check_next_window(refusal)

    def check_next_window(self, refusal):
        """From then on there would be room, and not a second before."""
        at, need = refusal.next_window, refusal.needed_nano
        limit = self.books.limits[refusal.budget]
        if at is not None:
            assert sum(self.books.held(refusal.budget, at)) + need <= limit
            assert sum(self.books.held(refusal.budget, at - 1)) + need > limit
        elif refusal.budget in ("tenant", "tag"):
            assert need > limit

    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data, share):
        self.close(
            data,
            lambda id, amount: (self.ledger.settle(id, int(amount * share)), int(amount * share)),
        )

    @rule(data=st.data())
    def settle_in_full(self, data):
        self.close(data, lambda id, amount: (self.ledger.settle_in_full(id), amount))

    @rule(data=st.data())
    def release(self, data):
        self.close(data, lambda id, amount: (self.ledger.release(id), 0))

    def close(self, data, closing):
        if self.books.calls:
            id = data.draw(st.sampled_from(sorted(self.books.calls)))
            future, cost = closing(id, self.books.calls[id][1])
            assert future.result() == self.books.close(id, cost)

    @rule(seconds=st.sampled_from([1, 59, 600, 3_599]))
    def recover_later(self, seconds):
        self.database.catch_up()  # what is written behind begins when it is written
        self.clock.now += seconds
        late = [
            id
            for id, call in self.books.calls.items()
            if call[4] == "open" and self.leases[id] < self.clock.now
        ]
        assert self.ledger.recover() == len(late)
        assert all(self.books.close(id, None, "expired") for id in late)

    @rule(name=st.sampled_from(("all", "tenant", "tag")), limit=st.integers(0, 60))
    def change_limit(self, name, limit):
        self.ledger.set_limit(name, f"{limit}e-9")
        self.books.limits[name] = limit

    @rule()
    def restart(self):
        self.close_all()
        self.open()

    def close_all(self):
        if isinstance(self.ledger, LeasingLedger):
            self.ledger.close()
        self.database.close()

    @invariant()
    def always_as_in_the_books(self):
        self.steps += 1
        if not hasattr(self, "ledger") or self.steps % self.looks_every:
            return
        assert self.ledger.verify() == []
        for balance in self.ledger.balances():
            held = self.books.held(balance.budget, self.clock.now)
            assert (balance.spent_nano, balance.reserved_nano) == held
            assert balance.limit_nano == self.books.limits[balance.budget]

    def teardown(self):
        if hasattr(self, "database"):
            self.close_all()
            self.store.close()


TestLedgerAgainstBooks = LedgerAgainstBooks.TestCase
TestLedgerAgainstBooks.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


class LeasingLedgerAgainstBooks(LedgerAgainstBooks):
    """Blocks come and go, and nobody can tell."""

    kind = LeasingLedger
    scale = 30
    looks_every = 7  # looking gives the blocks back

    def open(self):
        super().open()
        self.ledger._next_recovery = math.inf  # the model recovers nothing by itself


TestLeasingLedgerAgainstBooks = LeasingLedgerAgainstBooks.TestCase
TestLeasingLedgerAgainstBooks.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None
)


class _OnPostgreSQL:
    @staticmethod
    def new_store():
        return new_postgresql_store()


class PostgreSQLLedgerAgainstBooks(_OnPostgreSQL, LedgerAgainstBooks):
    pass


class PostgreSQLLeasingLedgerAgainstBooks(_OnPostgreSQL, LeasingLedgerAgainstBooks):
    pass


TestPostgreSQLLedgerAgainstBooks = PostgreSQLLedgerAgainstBooks.TestCase
TestPostgreSQLLeasingLedgerAgainstBooks = PostgreSQLLeasingLedgerAgainstBooks.TestCase
for _case in (TestPostgreSQLLedgerAgainstBooks, TestPostgreSQLLeasingLedgerAgainstBooks):
    _case.settings = settings(max_examples=4, stateful_step_count=25, deadline=None)
    pytest.mark.skipif(bool(postgresql_is_missing()), reason=postgresql_is_missing())(_case)
del _case  # else it would be collected
