"""Budgets that change while calls run: what is given changes, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from dataclasses import replace

import pytest

from optllm_router import AsyncOptLLM, Budget, ConfigurationError, OptLLM, _budgets
from optllm_router._scopes import checked_scope
from optllm_router.config import read_budgets
from optllm_router.ledger import Ledger, set_what_is_given
from optllm_router.ledger._limits import Limit, find_limits
from optllm_router.store import Database

MINE = Budget(20, "day", "mine", scope="tag:mine", hard=False, pace=False, thresholds=(7, 70))


@pytest.fixture
def ledger(store_url):
    with contextlib.closing(Database(store_url)) as database:
        yield Ledger(database)


def limit(ledger: Ledger, scope: str = "tag:mine") -> Limit:
    """The only budget on a scope."""
    with ledger._database.read() as connection:
        (found,) = find_limits(connection, [scope], 0.0)
    return found


def manners(found: Limit) -> tuple:
    return found.nano // 10**9, found.hard, found.pace, found.thresholds


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, (5, False, False, (7, 70))),
        ({"hard": True}, (5, True, False, (7, 70))),
        ({"pace": True}, (5, False, True, (7, 70))),
        ({"thresholds": [90, 10, 90]}, (5, False, False, (10, 90))),
        ({"thresholds": ()}, (5, False, False, ())),
    ],
)
def test_what_is_given_changes_and_all_else_stays(ledger, given, then):
    ledger.set_budget(MINE)
    set_what_is_given(ledger, "5 USD per day for tag:mine", name="mine", **given)
    assert manners(limit(ledger)) == then


def test_a_new_budget_and_one_that_was_removed_have_what_is_usual(ledger):
    usual = (5, True, True, (50, 80, 95, 100))
    set_what_is_given(ledger, "5 USD for tag:mine")
    assert manners(limit(ledger)) == usual
    ledger.set_budget(replace(MINE, name="tag:mine", window="total"))
    ledger.remove_budget("tag:mine")
    set_what_is_given(ledger, "5 USD for tag:mine")
    assert manners(limit(ledger)) == usual


def test_a_budget_as_an_object_gives_everything(ledger):
    set_what_is_given(ledger, MINE)
    set_what_is_given(ledger, replace(MINE, hard=True, limit_usd=1))
    assert manners(limit(ledger)) == (1, True, False, (7, 70))


def test_copies_of_a_template_follow_in_what_is_given(ledger):
    ledger.set_budget(replace(MINE, scope="tag:*"))
    with ledger._database._engine.begin() as connection:
        find_limits(connection, ["tag:mine"], 0.0, lock=True)
    set_what_is_given(ledger, "5 USD per day for tag:*", name="mine", pace=True)
    assert manners(limit(ledger)) == (5, False, True, (7, 70))


# Configurations


def test_an_unchanged_configuration_does_not_undo_a_live_change(ledger):
    for _ in range(2):
        ledger.configure(MINE)
        assert manners(limit(ledger)) == (20, False, False, (7, 70))
    ledger.set_limit("mine", 3)
    ledger.configure(MINE)
    assert limit(ledger).nano == 3 * 10**9


@pytest.mark.parametrize(
    "new", [{"limit_usd": 4}, {"hard": True}, {"pace": True}, {"thresholds": (1,)}]
)
def test_a_configuration_that_says_something_new_is_applied(ledger, new):
    ledger.configure(MINE)
    ledger.set_limit("mine", 3)
    changed = replace(MINE, **new)
    ledger.configure(changed)
    expected = (int(changed.limit_usd), changed.hard, changed.pace, changed.thresholds)
    assert manners(limit(ledger)) == expected


def test_what_is_configured_holds_where_it_was_removed_or_set_by_hand_before(ledger):
    ledger.set_budget(replace(MINE, limit_usd=100))
    ledger.configure(MINE)
    ledger.remove_budget("mine")
    ledger.configure(MINE)
    assert limit(ledger).nano == 20 * 10**9


def test_a_configuration_cannot_change_what_the_books_are_kept_by(ledger):
    ledger.configure(MINE)
    with pytest.raises(ConfigurationError, match="'day', which cannot become 'week'"):
        ledger.configure(replace(MINE, window="week"))
    ledger.remove_budget("mine")
    with pytest.raises(ConfigurationError, match=r"was removed and keeps its books, has.*--name"):
        ledger.configure(replace(MINE, window="week"))


# Clients


def client_of(url: str, kind=OptLLM, **settings):
    entry = {"model": "openai/own", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    models = [{"model_name": "own", "litellm_params": {**entry, "api_key": "unused"}}]
    return kind(models, store=url, budget=MINE, **settings)


def test_a_client_changes_budgets_that_outlast_it(sqlite_url):
    with client_of(sqlite_url) as client:
        client.budgets.set("5 USD per day for tag:mine", name="mine", thresholds=(1, 2))
        client.budgets.set(1.5)
        assert {one.budget: one.limit_nano for one in client.budgets.list()} == {
            "mine": 5 * 10**9,
            "default": 15 * 10**8,
        }
        client.budgets.remove("default")
    with client_of(sqlite_url) as client:
        assert manners(limit(client._runtime.ledger)) == (5, False, False, (1, 2))
        assert [one.budget for one in client.budgets.list()] == ["mine"]
        with pytest.raises(ConfigurationError, match="no budget 'default'"):
            client.budgets.remove("default")
        with pytest.raises(ConfigurationError, match="'1 EUR'"):
            client.budgets.set("1 EUR")


def test_a_client_lists_what_is_for_each_before_anyone_spent_of_it(sqlite_url):
    with client_of(sqlite_url) as client:
        client.budgets.set("5 USD per day for tenant:*")
        listed = {one.budget: one.scope for one in client.budgets.list()}
        assert listed == {"mine": "tag:mine", "tenant:*": "tenant:*"}
        client.budgets.remove("tenant:*")
        assert [one.budget for one in client.budgets.list()] == ["mine"]


def test_without_blocking_the_event_loop(sqlite_url):
    async def main():
        async with client_of(sqlite_url, AsyncOptLLM) as client:
            await client.budgets.set("5 USD for tag:other", pace=False)
            other, mine = sorted(await client.budgets.list(), key=lambda one: one.limit_nano)
            assert (other.budget, other.pace, mine.budget) == ("tag:other", False, "mine")
            await client.budgets.remove("tag:other")
            assert [one.budget for one in await client.budgets.list()] == ["mine"]

    asyncio.run(main())


@pytest.mark.parametrize("name", ["list", "set", "remove"])
def test_both_clients_take_the_same(name):
    one, other = (getattr(kind, name) for kind in (_budgets.Budgets, _budgets.AsyncBudgets))
    assert inspect.signature(one) == inspect.signature(other)


# What is no budget


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hard": "no"}, "budget setting hard 'no' must be True or False"),
        ({"hard": 1}, "hard 1 must be"),
        ({"pace": "false"}, "pace 'false' must be"),
        ({"pace": None}, "pace None must be"),
        ({"timezone": []}, r"time zone \[\]"),
        ({"timezone": None}, "time zone None"),
        ({"window": []}, r"window \[\]"),
        ({"scope": []}, r"scope '\[\]'"),
        ({"name": []}, "name"),
        ({"thresholds": {}}, "threshold {}"),
        ({"limit_usd": []}, r"limit \[\]"),
    ],
)
def test_a_setting_of_another_kind_is_refused(wrong, says):
    with pytest.raises(ConfigurationError, match=says):
        read_budgets({"limit_usd": 5, **wrong})


@pytest.mark.parametrize("character", ["\x1b", "\n", "\x00", "\x7f", "\x9b", "\u2028", "\ud800"])
def test_what_a_terminal_obeys_is_no_name(character):
    with pytest.raises(ConfigurationError, match="no text"):
        checked_scope(f"tenant:a{character}b")
    with pytest.raises(ConfigurationError, match="no text"):
        Budget(1, name=f"a{character}")
    assert (
        checked_scope("tenant:[/x] 'Zoë' \N{SNOWMAN} %;--") == "tenant:[/x] 'Zoë' \N{SNOWMAN} %;--"
    )
