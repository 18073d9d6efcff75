from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import ConfigurationError
from optllm_router.policy import (
    Choice,
    Forecast,
    MatchBest,
    MaxSuccess,
    MinCost,
    WillingnessToPay,
    choose,
    explore,
    follow,
    match_best_allocation,
)

POLICIES = (MaxSuccess(), MinCost(0.7), MatchBest(), WillingnessToPay(2.0))


def forecast(p, cost, std=0.0) -> Forecast:
    p = np.array(p, dtype=float)
    return Forecast(p, np.full(p.shape, std), np.broadcast_to(np.array(cost, float), p.shape))


@st.composite
def forecasts(draw) -> Forecast:
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    hundredths = st.integers(0, 100).map(lambda value: value / 100)

    def array():
        values = draw(st.lists(hundredths, min_size=n * k, max_size=n * k))
        return np.array(values).reshape(n, k)

    return Forecast(array(), array() / 4, array() + 0.01)


def success(batch: Forecast, allocation) -> float:
    return batch.p[np.arange(len(batch)), allocation].sum()


def spent(batch: Forecast, allocation) -> float:
    return batch.cost[np.arange(len(batch)), allocation].sum()


def every_allocation(batch: Forecast):
    n, k = batch.p.shape
    return map(list, itertools.product(range(k), repeat=n))


# What each policy promises


@given(forecasts(), st.floats(0, 3))
def test_max_success_keeps_within_the_money_if_anything_does(batch, usd):
    choice = choose(MaxSuccess(), batch, left_usd=usd)
    assert spent(batch, choice.allocation) <= max(usd, batch.cost.min(axis=1).sum()) + 1e-9


@given(forecasts(), st.floats(0, 3))
def test_max_success_is_within_one_query_of_the_best_there_is(batch, usd):
    affordable = [a for a in every_allocation(batch) if spent(batch, a) <= usd]
    if affordable:
        best = max(success(batch, allocation) for allocation in affordable)
        choice = choose(MaxSuccess(), batch, left_usd=usd)
        assert success(batch, choice.allocation) >= best - 1


def test_max_success_without_a_limit_takes_the_best_and_of_equals_the_cheapest():
    batch = forecast([[0.5, 0.9, 0.9], [0.8, 0.8, 0.8]], [1, 3, 2])
    choice = choose(MaxSuccess(), batch)
    assert choice.allocation.tolist() == [2, 0]
    assert choice.price == 0
    assert "does not bind" in choice.reason


@given(forecasts(), st.floats(0.01, 1))
def test_min_cost_reaches_its_target_where_it_can_be_reached(batch, target):
    choice = choose(MinCost(target), batch)
    most = batch.p.max(axis=1).sum()
    reached = success(batch, choice.allocation)
    if most >= target * len(batch):
        assert reached >= target * len(batch) - 1e-9
    else:
        assert reached == pytest.approx(most)
        assert "out of reach" in choice.reason


def test_min_cost_buys_no_more_than_the_target():
    batch = forecast([[0.5, 0.9]] * 4, [1, 10])
    assert choose(MinCost(0.5), batch).allocation.tolist() == [0, 0, 0, 0]
    assert choose(MinCost(0.6), batch).allocation.tolist().count(1) == 1
    assert choose(MinCost(0.9), batch).allocation.tolist() == [1, 1, 1, 1]


@given(forecasts())
def test_match_best_predicts_no_less_than_the_best_single_model_and_saves(batch):
    best = int(np.argmax(batch.p.mean(axis=0)))
    choice = choose(MatchBest(), batch)
    assert success(batch, choice.allocation) >= batch.p[:, best].sum() - 1e-9
    # The point of the front overshoots by one query at most.
    assert spent(batch, choice.allocation) <= batch.cost[:, best].sum() + batch.cost.max()


def test_match_best_stays_where_nothing_is_certain():
    batch = forecast([[0.7, 0.8]] * 3, [1, 10], std=0.3)
    choice = choose(MatchBest(), batch)
    assert choice.allocation.tolist() == [1, 1, 1]
    assert "no switch is confident enough, nor is it which model is best" in choice.reason


def test_match_best_takes_the_dearest_of_those_that_look_equally_good():
    batch = forecast([[0.5, 0.5, 0.5]] * 4, [1, 100, 10], std=0.2)
    assert choose(MatchBest(), batch).allocation.tolist() == [1, 1, 1, 1]
    but_for_rounding = forecast([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]], [1, 100], std=0.3)
    assert choose(MatchBest(), but_for_rounding).allocation.tolist() == [1, 1, 1]


def test_match_best_says_nothing_of_the_best_where_it_is_plain():
    choice = choose(MatchBest(), forecast([[0.2, 0.8]] * 3, [1, 10], std=0.1))
    assert choice.reason == "stays with the best model: no switch is confident enough"


def test_match_best_switches_where_the_cheap_one_is_surely_as_good():
    batch = forecast([[0.9, 0.8], [0.1, 0.8], [0.8, 0.8]], [1, 10])
    assert choose(MatchBest(), batch).allocation.tolist() == [0, 1, 0]
    same = match_best_allocation(batch.p, batch.std, batch.cost, 0.95)
    assert same.tolist() == [0, 1, 0]


@given(forecasts(), st.floats(0.01, 100))
def test_willingness_to_pay_maximises_worth_query_by_query(batch, usd_per_success):
    choice = choose(WillingnessToPay(usd_per_success), batch)
    worth = batch.p * usd_per_success - batch.cost
    chosen = worth[np.arange(len(batch)), choice.allocation]
    assert chosen == pytest.approx(worth.max(axis=1))
    assert choice.price == pytest.approx(1 / usd_per_success)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        *[(MinCost, value) for value in (0, -1, 1.01, math.nan)],
        *[(MatchBest, value) for value in (0.4, 1.0, math.nan)],
        *[(WillingnessToPay, value) for value in (0, -1, math.inf, math.nan)],
    ],
)
def test_parameters_out_of_range_are_refused_with_their_value(make, value):
    with pytest.raises(ConfigurationError, match=repr(value)):
        make(value)


# What holds for all of them


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(data=st.data(), usd=st.floats(0, 3) | st.just(math.inf))
def test_no_policy_plans_to_spend_more_than_is_left(policy, data, usd):
    batch = data.draw(forecasts())
    choice = choose(policy, batch, left_usd=usd)
    assert spent(batch, choice.allocation) <= max(usd, batch.cost.min(axis=1).sum()) + 1e-9


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(data=st.data())
def test_fallbacks_name_every_candidate_once_and_the_most_worth_first(policy, data):
    batch = data.draw(forecasts())
    traffic = data.draw(forecasts().filter(lambda other: other.p.shape[1] == batch.p.shape[1]))
    n, k = batch.p.shape
    for choice in (
        choose(policy, batch, left_usd=1.0),
        follow(policy.look(traffic), batch, usd=0.5, left_usd=1.0),
    ):
        assert np.array_equal(np.sort(choice.fallbacks, axis=1), np.tile(np.arange(k), (n, 1)))
        assert choice.allocation.shape == (n,)
        assert 0 <= choice.price < math.inf
        assert choice.reason


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(data=st.data(), usd=st.floats(0, 3), left=st.floats(0, 1))
def test_who_cannot_serve_is_never_chosen_before_who_can(policy, data, usd, left):
    batch = data.draw(forecasts())
    n, k = batch.p.shape
    able = np.array(data.draw(st.lists(st.booleans(), min_size=n * k, max_size=n * k)))
    able = able.reshape(n, k)
    able[np.arange(n), data.draw(st.integers(0, k - 1))] = True
    batch = batch.among(able)
    rng = np.random.default_rng(0)
    for choice in (
        choose(policy, batch, left_usd=left),
        follow(policy.look(batch), batch, usd=usd, left_usd=left),
    ):
        assert able[np.arange(n), choice.allocation].all()
        for i, ranking in enumerate(choice.fallbacks):
            assert able[i, ranking].tolist() == sorted(able[i].tolist(), reverse=True)
        explored, propensity = explore(choice, batch, doubt=0.5, uniform=0.5, rng=rng)
        assert able[np.arange(n), explored].all()
        assert ((propensity > 0) & (propensity <= 1)).all()


def test_one_request_pays_the_price_that_traffic_sets():
    """Two of four can be dear: those with the most to gain."""
    traffic = forecast([[0.2, 0.9], [0.2, 0.8], [0.2, 0.3], [0.2, 0.4]], [0.0, 1.0])
    for p, chosen in ((0.9, 1), (0.25, 0)):
        one = forecast([[0.2, p]], [0.0, 1.0])
        choice = follow(MaxSuccess().look(traffic), one, usd=2.0, left_usd=2.0)
        assert choice.allocation.tolist() == [chosen]
        assert choice.price > 0


def test_as_money_runs_out_cheaper_ones_are_taken_before_nothing_is():
    one = forecast([[0.2, 0.5, 0.9]], [0.01, 0.1, 1.0])
    outlook = MaxSuccess().look(one)
    chosen = [
        follow(outlook, one, usd=math.inf, left_usd=left).allocation[0]
        for left in (1.0, 0.99, 0.1, 0.09, 0.01, 0.0)
    ]
    assert chosen == [2, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("policy", [MinCost(0.6), MatchBest()], ids=repr)
def test_a_promise_is_kept_on_traffic_that_is_all_alike(policy):
    """Every query is the one at the margin: in doubt it is answered well, not cheaply."""
    alike = forecast([[0.5, 0.7]] * 20, [1, 10])
    chosen = follow(policy.look(alike), alike, usd=math.inf, left_usd=math.inf).allocation
    assert chosen.tolist() == [1] * 20


# Exploration


def settled(candidate: int, n: int, k: int) -> tuple[Choice, Forecast]:
    """n queries that all go to one candidate, and a forecast that is sure of nothing."""
    allocation = np.full(n, candidate)
    ranking = np.tile(np.roll(np.arange(k), -candidate), (n, 1))
    even = forecast(np.full((n, k), 0.5), [1.0] * k, std=0.2)
    return Choice(allocation, ranking, 0.0, "settled"), even


def test_without_exploration_nothing_changes():
    choice, batch = settled(2, 5, 3)
    rng = np.random.default_rng(0)
    drawn, propensity = explore(choice, batch, doubt=0.0, uniform=0.0, rng=rng)
    assert drawn.tolist() == [2] * 5
    assert propensity.tolist() == [1.0] * 5


def test_uniform_propensities_are_the_frequencies_with_which_choices_are_made():
    n, k, rate = 40_000, 4, 0.3
    choice, batch = settled(2, n, k)
    rng = np.random.default_rng(0)
    drawn, propensity = explore(choice, batch, doubt=0.0, uniform=rate, rng=rng)
    for j in range(k):
        expected = rate / k + (1 - rate) * (j == 2)
        assert np.mean(drawn == j) == pytest.approx(expected, abs=0.01)
        assert np.allclose(propensity[drawn == j], expected)


@pytest.mark.parametrize("uniform", [0.05, 0.3])
def test_importance_weights_of_every_candidate_add_up(uniform):
    """Weighted by 1 / propensity, each candidate stands for all queries: no bias is left."""
    n, k = 40_000, 3
    batch = forecast(np.tile([0.5, 0.55, 0.3], (n, 1)), [1.0] * k, std=0.2)
    choice = choose(MaxSuccess(), batch)
    rng = np.random.default_rng(0)
    drawn, propensity = explore(choice, batch, doubt=0.5, uniform=uniform, rng=rng)
    for j in range(k):
        assert np.sum(1 / propensity[drawn == j]) == pytest.approx(n, rel=0.1)


def test_doubt_tries_what_may_be_better_and_not_what_cannot_be():
    n = 4_000
    p = np.tile([0.5, 0.55, 0.2], (n, 1))
    batch = Forecast(p, np.tile([0.2, 0.05, 0.01], (n, 1)), np.ones((n, 3)))
    rng = np.random.default_rng(0)
    drawn, _ = explore(choose(MaxSuccess(), batch), batch, doubt=1.0, uniform=0.0, rng=rng)
    shares = np.bincount(drawn, minlength=3) / n
    # By the normal law: P(0.5 + 0.2 z > 0.55 + 0.05 z') = 0.404.
    assert shares[0] == pytest.approx(0.404, abs=0.03)
    assert shares[2] == 0.0


def test_doubt_minds_the_price():
    n = 1_000
    batch = forecast(np.full((n, 2), 0.5), [0.001, 0.1], std=0.1)
    choice = choose(WillingnessToPay(0.01), batch)
    rng = np.random.default_rng(0)
    drawn, _ = explore(choice, batch, doubt=1.0, uniform=0.0, rng=rng)
    assert np.all(drawn == 0)


def test_exploration_follows_its_seed():
    choice, batch = settled(0, 50, 3)
    first, again, other = (
        explore(choice, batch, doubt=0.5, uniform=0.1, rng=np.random.default_rng(seed))[0].tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
