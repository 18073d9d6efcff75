"""What the ledger says and keeps when a write of it fails."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager

import pytest
from busy_writer import busy
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from optllm_router._errors import ConfigurationError, StoreError
from optllm_router._money import Budget
from optllm_router.ledger import Ledger, Reservation
from optllm_router.store import Database

LIMIT = 1_000


@pytest.fixture
def database(store_url):
    with closing(Database(store_url)) as database:
        yield database


def call(id: str, amount: int = 100, *scopes: str) -> Reservation:
    return Reservation(id, id, "m", amount, scopes, "test", 60.0)


def used(balance) -> tuple[int, int]:
    return balance.spent_nano, balance.reserved_nano


@contextmanager
def failing_commits(database: Database):
    """The disk is full whenever a transaction is to be committed."""

    def fail(connection) -> None:
        if not connection.get_execution_options().get("optllm_read_only"):
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk is full"))

    event.listen(database._engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(database._engine, "commit", fail)


@contextmanager
def one_group(database: Database):
    """What is submitted meanwhile is written together."""
    go = busy(database)
    try:
        yield
    finally:
        go.set()


# Commits that fail


def test_what_was_not_committed_is_not_announced(database):
    told = []
    heard = threading.Event()

    def hear(crossing) -> None:
        told.append(crossing.percent)
        if crossing.percent == 80:
            heard.set()

    ledger = Ledger(database, on_threshold=hear)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    assert ledger.reserve(call("a", 900)).result() is None
    assert used(ledger.glance()[0]) == (0, 900)
    with failing_commits(database):
        assert isinstance(ledger.settle("a", 850).exception(), StoreError)
    assert used(ledger.glance()[0]) == used(ledger.balance("default")) == (0, 900)
    assert ledger.release("a").result() is True
    assert ledger.reserve(call("b", 900)).result() is None
    assert told == []
    assert ledger.settle("b", 850).result() is True
    assert heard.wait(30)
    assert told == [50, 80]


# Writes that are refused


def test_a_refused_write_costs_its_group_nothing(database):
    ledger = Ledger(database)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    assert ledger.reserve(call("known", 1)).result() is None
    transactions = []
    event.listen(database._engine, "begin", transactions.append)
    with one_group(database):
        typos = [ledger.reserve(call(f"t{n}", 1, "tenant:typo")) for n in range(20)]
        twice = ledger.reserve(call("known", 1))
        good = [ledger.reserve(call(f"g{n}", 1)) for n in range(20)]
    assert {type(write.exception()) for write in typos} == {ConfigurationError}
    assert "unique" in str(twice.exception())
    assert [write.result() for write in good] == [None] * 20
    assert len(transactions) <= 2  # what kept the writer busy, and the group
    assert used(ledger.glance()[0]) == (0, 21)
    assert used(ledger.balance("default")) == (0, 21)
    assert ledger.verify() == []


def test_a_group_whose_first_write_is_refused_is_announced(database):
    ledger = Ledger(database)
    ledger.set_budget(Budget(f"{LIMIT}e-9"))
    assert used(ledger.glance()[0]) == (0, 0)
    with one_group(database):
        refused = ledger.reserve(call("typo", 1, "tag:typo"))
        ledger.reserve(call("a", 5))
    assert isinstance(refused.exception(), ConfigurationError)
    database.catch_up()
    assert used(ledger.glance()[0]) == (0, 5)
