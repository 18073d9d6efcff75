from __future__ import annotations

import math

import numpy as np
import pytest

from optllm_router.policy import Forecast, MaxSuccess, MinCost, WillingnessToPay, follow
from optllm_router.traffic import Means, Pot, Traffic

HOUR, DAY = 3600.0, 86400.0


def forecast(rows: int, seed: int = 0) -> Forecast:
    """Two candidates: a free guess, and an answer of 1 USD that is better by what varies."""
    gain = np.random.default_rng(seed).uniform(0, 0.6, rows)
    p = np.column_stack([np.full(rows, 0.3), 0.3 + gain])
    return Forecast(p, np.zeros_like(p), np.tile([0.0, 1.0], (rows, 1)))


def one(batch: Forecast, i: int) -> Forecast:
    return Forecast(batch.p[i : i + 1], batch.std[i : i + 1], batch.cost[i : i + 1])


def spend(usd: float, moments: list[float], *, paced: bool = True, seed: int = 0) -> list[int]:
    """Who answers each query of a day, when true costs are as forecast."""
    traffic, batch, chosen = Traffic(2), forecast(len(moments), seed), []
    for i, now in enumerate(moments):
        means = Means((Pot(usd - sum(chosen), 0.0, DAY, i, paced),), now)
        chosen += traffic.choose(MaxSuccess(), one(batch, i), means).allocation.tolist()
    return chosen


EVENLY = np.linspace(0, DAY, 2000, endpoint=False).tolist()


def test_the_money_lasts_and_is_spent():
    chosen = spend(200.0, EVENLY)
    assert 196 <= sum(chosen) <= 200
    by_quarter = np.reshape(chosen, (4, 500)).sum(axis=1)
    assert by_quarter.min() > 30


def test_without_pacing_it_is_gone_first():
    chosen = spend(200.0, EVENLY, paced=False)
    assert sum(chosen) == 200
    assert sum(chosen[:205]) > 195


def test_it_buys_what_gains_most():
    gain = forecast(len(EVENLY)).p[:, 1] - 0.3
    paced, greedy = (
        gain[np.array(spend(200.0, EVENLY, paced=paced), dtype=bool)].sum()
        for paced in (True, False)
    )
    best = np.sort(gain)[-200:].sum()
    assert greedy < 0.6 * best
    assert paced > 0.9 * best


def test_a_budget_that_does_not_bind_holds_nothing_back():
    assert sum(spend(1e6, EVENLY[:200])) == 200


def test_the_tightest_budget_rules():
    wide, narrow = Pot(1000.0, 0.0, DAY, name="wide"), Pot(1.0, 0.0, DAY, name="narrow")
    traffic = Traffic(2, expected_queries=100)
    assert traffic.allowance(Means((wide, narrow)), 1) == pytest.approx(0.01)
    assert traffic.allowance(Means((wide,)), 1) == pytest.approx(10)
    assert Means((wide, narrow)).left_usd == 1.0
    part = Means((wide, narrow)).part(0.25)
    assert part.left_usd == 0.25
    assert traffic.allowance(part, 1) == pytest.approx(0.01), "the price is the same for all"


def test_without_a_budget_money_is_no_object():
    assert Means().left_usd == math.inf
    assert Traffic(2).allowance(Means(), 1) == math.inf


def test_expected_queries_count_those_that_came():
    traffic = Traffic(2, expected_queries=100)
    assert traffic.allowance(Means((Pot(9.0, seen=10),)), 1) == pytest.approx(0.1)
    assert traffic.allowance(Means((Pot(9.0, seen=10**6),)), 3) == pytest.approx(3.0)


def spend_without_end(usd: float, batch: Forecast, *, paced: bool, group: int = 1) -> list[int]:
    """Who answers each query, -1 for nobody, when nothing is known of how many come."""
    traffic, left, chosen = Traffic(2), usd, []
    for start in range(0, len(batch), group):
        rows = slice(start, start + group)
        few = Forecast(batch.p[rows], batch.std[rows], batch.cost[rows])
        pot = Pot(left, seen=start, paced=paced, limit_usd=usd)
        for i, j in enumerate(traffic.choose(MaxSuccess(), few, Means((pot,))).allocation):
            affordable = few.cost[i, j] <= left
            left -= few.cost[i, j] if affordable else 0.0
            chosen.append(int(j) if affordable else -1)
    return chosen


def priced(rows: int) -> Forecast:
    """As :func:`forecast`, but a guess costs something, too."""
    free = forecast(rows)
    return Forecast(free.p, free.std, np.tile([0.1, 1.0], (rows, 1)))


def test_of_a_budget_without_end_half_is_spent_freely_and_the_rest_lasts():
    batch = priced(920)
    greedy = spend_without_end(400.0, batch, paced=False)
    thrifty = spend_without_end(400.0, batch, paced=True)
    assert greedy.count(-1) > 450
    assert thrifty.count(-1) == 0
    assert thrifty[:200] == greedy[:200] == [1] * 200
    by_quarter = [thrifty[i : i + 180].count(1) for i in (200, 380, 560, 740)]
    assert by_quarter == sorted(by_quarter, reverse=True)
    assert by_quarter[0] > 2 * by_quarter[-1] > 0


def test_a_budget_without_end_of_which_half_would_do_is_spent_freely():
    batch = priced(150)
    assert spend_without_end(300.0, batch, paced=True) == [1] * 150


@pytest.mark.parametrize("group", [16, 250])
def test_a_group_is_as_thrifty_as_one_by_one(group: int):
    batch = priced(2000)
    alone = spend_without_end(600.0, batch, paced=True)
    together = spend_without_end(600.0, batch, paced=True, group=group)
    assert together.count(1) == pytest.approx(alone.count(1), rel=0.1)


def roll(usd: float, *, paced: bool = True) -> list[float]:
    """What each of 250 queries a day costs, under a cap on any 24 hours; 0 for a refused one."""
    batch, traffic, spent = priced(1250), Traffic(2), []
    for i in range(len(batch)):
        now = 100 * DAY + i * DAY / 250
        recent = spent[max(0, i - 249) :]
        left = usd - sum(recent)
        pot = Pot(left, now - DAY, None, len(recent), paced, rolling=True, limit_usd=usd)
        few = one(batch, i)
        j = traffic.choose(MaxSuccess(), few, Means((pot,), now)).allocation[0]
        spent.append(few.cost[0, j] if few.cost[0, j] <= left else 0.0)
    return spent


def test_a_rolling_window_is_used_up_and_always_has_something_left():
    """What is spent comes back, so nothing need be saved but for the queries of one window."""
    steady = np.array(roll(125.0))[250:]
    assert np.count_nonzero(steady == 0.0) == 0
    assert 0.9 * 125 < 250 * steady.mean() <= 125
    assert roll(125.0, paced=False).count(0.0) > 300


def test_a_rolling_window_that_does_not_bind_holds_nothing_back():
    assert min(roll(275.0)) == 1.0


def test_whoever_expects_so_many_queries_needs_no_thrift():
    traffic, batch = Traffic(2, expected_queries=10), priced(1)
    means = Means((Pot(20.0, seen=9, limit_usd=1000.0),))
    assert traffic.choose(MaxSuccess(), batch, means).allocation.tolist() == [1]
    assert Traffic(2).choose(MaxSuccess(), batch, means).allocation.tolist() == [0]


def test_a_share_of_the_traffic_is_remembered_into_the_next_window():
    """A tenant with a twentieth of all queries: on the ninth morning that is known."""
    traffic = Traffic(2)
    for minute in range(8 * 24 * 60):
        now = 60.0 * minute
        traffic.arrivals.add(now, 10)
        start = now // DAY * DAY
        seen = int((now - start) / 60 / 2)
        pot = Pot(100.0, start, start + DAY, seen, name="tenant")
        means = Means((pot,), now)
        traffic.allowance(means, 1)
    morning = Means((Pot(100.0, 8 * DAY, 9 * DAY, 0, name="tenant"),), 8 * DAY)
    assert traffic.allowance(morning, 1) == pytest.approx(100 / 720, rel=0.1)


@pytest.mark.parametrize("policy", [MaxSuccess(), MinCost(0.6), WillingnessToPay(3.0)], ids=repr)
def test_decisions_are_nearly_those_of_a_front_that_is_always_new(policy):
    traffic, batch, differ = Traffic(2), forecast(600), 0
    for i in range(600):
        means = Means((Pot(600.0 - i, seen=i),))
        chosen = traffic.choose(policy, one(batch, i), means).allocation[0]
        recent = slice(max(i - 255, 0), i + 1)
        outlook = policy.look(Forecast(batch.p[recent], batch.std[recent], batch.cost[recent]))
        fresh = follow(outlook, one(batch, i), usd=math.inf, left_usd=600.0 - i)
        differ += int(chosen != fresh.allocation[0])
    assert differ < 12


def test_a_batch_larger_than_the_sample_is_decided_in_one():
    batch = forecast(1000)
    means = Means((Pot(100.0, 0.0, DAY),), 0.0)
    chosen = Traffic(2).choose(MaxSuccess(), batch, means).allocation
    assert 0 < chosen.sum() <= 100
