"""What is remembered of budgets is looked at again after a second, whoever else looks."""

from __future__ import annotations

import time
from contextlib import closing
from decimal import Decimal
from types import SimpleNamespace

import pytest
from in_process import InProcess

from optllm_router import Candidate, OptLLM, Price
from optllm_router._money import Budget
from optllm_router._types import Usage
from optllm_router.ledger import Ledger, _balances
from optllm_router.store import Database


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_balances, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def elsewhere(sqlite_url):
    """The ledger of another process."""
    with closing(Database(sqlite_url)) as database:
        yield Ledger(database)


@pytest.fixture
def ledger(sqlite_url):
    with closing(Database(sqlite_url)) as database:
        yield Ledger(database)


def names(ledger: Ledger, *scopes: str) -> list[str]:
    return [balance.budget for balance in ledger.glance(scopes)]


def test_that_no_budget_applies_is_looked_at_again(ledger, elsewhere, clock):
    for _ in range(2):  # also when it is set again
        assert names(ledger) == []
        assert ledger.can_glance()
        elsewhere.set_budget(Budget(1))
        clock.now += 1.1
        assert not ledger.can_glance()
        assert names(ledger) == ["default"]
        elsewhere.remove_budget("default")
        clock.now += 1.1


def test_a_new_budget_is_seen_however_much_others_look_at_the_old_one(ledger, elsewhere, clock):
    ledger.set_budget(Budget(5))
    ledger.set_budget(Budget(5, scope="tag:x"))
    assert names(ledger) == ["default"]
    assert names(ledger, "tag:x") == ["default", "tag:x"]
    elsewhere.set_budget(Budget(1, name="new"))
    for _ in range(4):
        clock.now += 0.7
        names(ledger, "tag:x")
        seen = names(ledger)
    assert seen == ["default", "new"]


class Talkative(InProcess):
    """Says as much as it may."""

    def __init__(self) -> None:
        self.bounds: list[int | None] = []

    def consumed(self, candidate, call) -> Usage:
        bound = call.max_output_tokens
        self.bounds.append(bound)
        return Usage(10, min(200_000, bound or 200_000))


def test_a_hard_budget_that_another_process_sets_bounds_every_call_that_it_counts(
    sqlite_url, elsewhere
):
    provider = Talkative()
    price = Price(Decimal(1), Decimal(10), "test")
    chat = Candidate("m", "x/m", price, 100)
    with OptLLM(models=[chat], store=sqlite_url, transport=provider, seed=0) as client:

        def ask() -> None:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])

        ask()
        elsewhere.set_budget(Budget("0.5"))
        end = time.monotonic() + 30
        while 100 not in provider.bounds and time.monotonic() < end:
            ask()  # from money that was held before: a second and a half at most
        for _ in range(100):
            ask()
    first_bounded = provider.bounds.index(100)
    assert set(provider.bounds[first_bounded:]) == {100}
    balance = elsewhere.balance("default")
    assert balance.calls == len(provider.bounds) - first_bounded
    assert balance.spent_nano <= balance.limit_nano
