"""Capacities beside the budget: feasible, certified, and close to HiGHS."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from allocation_instances import Instance, instances, milp_optimum, random_instance
from hypothesis import assume, given
from hypothesis import strategies as st

from optllm_router._errors import InfeasibleError, InvalidDataError
from optllm_router.allocation import exact_front, solve_with_capacities
from optllm_router.allocation._limits import ROUNDING


def allocations(instance):
    n, k = instance.p.shape
    return map(list, itertools.product(range(k), repeat=n))


def misses_one_by_rounding(instance, usd) -> bool:
    """Whether a budget is below the cost of an allocation by so little that it counts as that."""
    rows = np.arange(len(instance.p))
    costs = [math.fsum(instance.cost[rows, choice]) for choice in allocations(instance)]
    return any(cost * (1.0 - ROUNDING) <= usd < cost for cost in costs)


def best_by_brute_force(instance, capacities, usd, loads) -> float | None:
    n, k = instance.p.shape
    rows, best = np.arange(n), None
    for choice in allocations(instance):
        used = np.bincount(choice, weights=loads[rows, choice], minlength=k)
        if np.all(used <= capacities) and math.fsum(instance.cost[rows, choice]) <= usd:
            success = math.fsum(instance.p[rows, choice])
            best = success if best is None else max(best, success)
    return best


def halfway_budget(instance: Instance) -> float:
    front = exact_front(*instance)
    return float(0.6 * front.cost[0] + 0.4 * front.cost[-1])


def scarce_capacities(instance: Instance, usd: float) -> np.ndarray:
    """Less than what the best allocation without capacities uses, where that is much."""
    n, k = instance.p.shape
    used = np.bincount(exact_front(*instance).at_budget(usd).allocation, minlength=k)
    return np.maximum((0.7 * used).astype(int), int(1.2 * n / k))


@given(
    instances(max_queries=4, max_candidates=3),
    st.integers(1, 4),
    st.sampled_from([1.0, 1e-4, 1e-7]),
    st.data(),
)
def test_what_brute_force_finds_is_found_and_not_above_the_bound(instance, largest, unit, data):
    instance = instance._replace(cost=instance.cost * unit)
    n, k = instance.p.shape
    most = st.integers(0, n * largest)
    capacities = np.array(data.draw(st.lists(most, min_size=k, max_size=k)))
    usd = data.draw(st.one_of(st.just(math.inf), st.floats(0.0, 200.0).map(lambda x: x * unit)))
    assume(not misses_one_by_rounding(instance, usd))
    load = st.integers(1, largest)
    drawn = data.draw(st.lists(load, min_size=n * k, max_size=n * k))
    loads = np.array(drawn, dtype=np.float64).reshape(n, k)
    best = best_by_brute_force(instance, capacities, usd, loads)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve_with_capacities(*instance, capacities, usd, loads=loads)
        return
    solution = solve_with_capacities(*instance, capacities, usd, loads=loads)
    used = np.bincount(
        solution.allocation, weights=loads[np.arange(n), solution.allocation], minlength=k
    )
    assert solution.success <= best + 1e-9
    assert best <= solution.bound + 1e-6
    assert solution.cost <= usd
    assert np.all(used <= capacities)
    assert solution.gap == solution.bound - solution.success


@pytest.mark.parametrize("capacities", [[1, 1], [0, 1]])
def test_a_budget_that_misses_the_cheapest_by_rounding_counts_as_that(capacities):
    dear = 16.488428538983992
    usd = math.nextafter(dear, 0.0)
    solution = solve_with_capacities([[0.0, 0.0]], [[17.0, dear]], capacities, usd)
    assert solution.allocation.tolist() == [1]
    with pytest.raises(InfeasibleError):
        solve_with_capacities([[0.0, 0.0]], [[17.0, dear]], capacities, dear * (1.0 - 2e-12))


@pytest.mark.parametrize("seed", range(6))
def test_close_to_highs(seed):
    instance = random_instance(100, 4, seed)
    usd = halfway_budget(instance)
    capacities = scarce_capacities(instance, usd)
    solution = solve_with_capacities(*instance, capacities, usd)
    best = milp_optimum(instance, usd, capacities)
    relaxed = milp_optimum(instance, usd, capacities, relaxed=True)
    assert solution.bound == pytest.approx(relaxed, rel=1e-5)
    assert solution.success <= best + 1e-9 <= solution.bound + 2e-9
    assert best - solution.success <= 0.01 * best


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_left_on_a_large_instance(seed):
    instance = random_instance(5_000, 10, seed)
    usd = halfway_budget(instance)
    capacities = scarce_capacities(instance, usd)
    solution = solve_with_capacities(*instance, capacities, usd)
    assert np.all(np.bincount(solution.allocation, minlength=10) <= capacities)
    assert solution.cost <= usd
    assert solution.gap <= 1e-4 * solution.bound


def test_within_a_thousandth_of_highs_on_a_large_instance():
    instance = random_instance(5_000, 10, seed=7)
    usd = halfway_budget(instance)
    capacities = scarce_capacities(instance, usd)
    solution = solve_with_capacities(*instance, capacities, usd)
    relaxed = milp_optimum(instance, usd, capacities, relaxed=True)  # no allocation has more
    assert solution.bound == pytest.approx(relaxed, rel=1e-5)
    assert relaxed - solution.success <= 1e-3 * relaxed


def test_the_same_p_and_cost_for_every_query():
    p = np.tile([0.2, 0.5, 0.9], (300, 1))
    cost = np.tile([1.0, 2.0, 4.0], (300, 1))
    solution = solve_with_capacities(p, cost, [300, 100, 100], 600.0)
    assert solution.cost <= 600.0
    assert solution.gap <= 0.01 * solution.bound


def test_capacities_that_bind_nobody_leave_the_exact_front():
    instance = random_instance(2_000, 6, seed=3)
    usd = halfway_budget(instance)
    solution = solve_with_capacities(*instance, np.full(6, np.inf), usd)
    exact = exact_front(*instance).at_budget(usd)
    assert solution.bound == pytest.approx(exact.bound, rel=1e-6)
    assert solution.success == pytest.approx(exact.success, rel=1e-4)
    assert solution.price == pytest.approx(exact.price, rel=1e-2)
    assert solution.capacity_price.tolist() == [0.0] * 6


def test_without_a_budget():
    instance = random_instance(500, 4, seed=4)
    solution = solve_with_capacities(*instance, [125, 125, 125, 125])
    assert np.bincount(solution.allocation).tolist() == [125] * 4
    assert solution.price == 0.0
    assert solution.gap <= 1e-4 * solution.bound


def test_prices_are_what_one_more_unit_would_bring():
    instance = random_instance(3_000, 4, seed=5)
    usd = halfway_budget(instance)
    capacities = scarce_capacities(instance, usd).astype(float)
    solution = solve_with_capacities(*instance, capacities, usd)
    scarcest = int(solution.capacity_price.argmax())
    capacities[scarcest] += 30
    more = solve_with_capacities(*instance, capacities, usd)
    gain, promised = more.bound - solution.bound, 30 * solution.capacity_price[scarcest]
    assert 0.5 * promised <= gain <= promised * 1.001  # the 30th brings less than the first


def test_loads_in_tokens():
    instance = random_instance(1_000, 5, seed=6)
    tokens = np.random.default_rng(7).integers(50, 2_000, (1_000, 1)) * np.ones((1, 5))
    capacities = np.full(5, 0.25 * tokens[:, 0].sum())
    usd = halfway_budget(instance)
    solution = solve_with_capacities(*instance, capacities, usd, loads=tokens)
    used = np.bincount(solution.allocation, weights=tokens[:, 0], minlength=5)
    assert np.all(used <= capacities)
    assert solution.cost <= usd
    assert solution.gap <= 1e-3 * solution.bound


def test_a_candidate_without_capacity_is_not_used():
    solution = solve_with_capacities([[0.1, 0.9]], [[1.0, 1.0]], [1, 0])
    assert solution.allocation.tolist() == [0]


@pytest.mark.parametrize("usd", [0.0, 5e-324])
def test_a_budget_that_pays_for_free_candidates_only(usd):
    solution = solve_with_capacities(
        [[0.1, 0.9], [0.2, 0.8]], [[0.0, 1.0], [0.0, 1.0]], [2, 2], usd
    )
    assert solution.allocation.tolist() == [0, 0]


def test_no_query_at_all():
    solution = solve_with_capacities(np.empty((0, 2)), np.empty((0, 2)), [1, 2], 5.0)
    assert (solution.allocation.shape, solution.cost, solution.gap) == ((0,), 0.0, 0.0)


def test_the_least_budget_is_the_least_however_it_was_summed():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, p = rng.random((1_000, 2)) * 1e-4, rng.random((1_000, 2))
        cheapest = cost.argmin(axis=1)
        usd = float(cost.min(axis=1).sum())
        for unlimited in (usd, math.nextafter(usd, 0.0)):
            solution = solve_with_capacities(p, cost, [np.inf, np.inf], unlimited)
            assert solution.allocation.tolist() == cheapest.tolist()


def test_the_least_budget_within_capacities_is_the_least_however_it_was_summed():
    cost = np.tile([0.1, 0.2], (10, 1))
    usd = math.fsum([0.1] * 5 + [0.2] * 5)
    solution = solve_with_capacities(np.full((10, 2), 0.5), cost, [5, 10], usd * (1 - 1e-15))
    assert solution.cost == usd


def test_loads_may_fill_a_capacity():
    loads = np.full((3, 2), 0.1)  # their sum is a bit over 0.3
    p = np.tile([0.9, 0.1], (3, 1))
    solution = solve_with_capacities(p, np.ones((3, 2)), [0.3, 9.0], loads=loads)
    assert solution.allocation.tolist() == [0, 0, 0]


class TestInfeasible:
    def test_tokens_are_compared_with_tokens(self):
        loads = np.tile([40.0, 60.0], (3, 1))
        with pytest.raises(InfeasibleError, match=r"capacities \[50\.0, 60\.0\]") as caught:
            solve_with_capacities(np.full((3, 2), 0.5), np.ones((3, 2)), [50, 60], loads=loads)
        assert caught.value.limit == pytest.approx(110.0)
        assert caught.value.attainable == 120.0

    def test_a_query_that_is_too_large_for_all_is_compared_with_a_capacity(self):
        loads = [[1.0, 1.0], [9.0, 8.0]]
        with pytest.raises(InfeasibleError) as caught:
            solve_with_capacities(np.full((2, 2), 0.5), np.ones((2, 2)), [5, 6], loads=loads)
        assert caught.value.limit == pytest.approx(6.0)
        assert caught.value.attainable == 8.0

    def test_a_query_that_only_a_dear_candidate_has_room_for(self):
        with pytest.raises(InfeasibleError) as caught:
            solve_with_capacities([[0.5, 0.5]], [[1.0, 3.0]], [0, 1], 2.0)
        assert (caught.value.limit, caught.value.attainable) == (2.0, 3.0)

    def test_fewer_places_than_queries(self):
        with pytest.raises(InfeasibleError, match="within the capacities") as caught:
            solve_with_capacities(np.full((3, 2), 0.5), np.ones((3, 2)), [1, 1])
        assert (caught.value.limit, caught.value.attainable) == (2.0, 3.0)

    def test_cheap_candidate_too_small_for_the_budget(self):
        cost = np.tile([1.0, 10.0], (10, 1))
        with pytest.raises(InfeasibleError, match="the cheapest found costs 55 USD") as caught:
            solve_with_capacities(np.full((10, 2), 0.5), cost, [5, 10], 54.0)
        assert (caught.value.limit, caught.value.attainable) == (54.0, 55.0)
        enough = solve_with_capacities(np.full((10, 2), 0.5), cost, [5, 10], 55.0)
        assert enough.cost == 55.0

    def test_a_query_that_fits_nowhere(self):
        loads = [[1.0, 1.0], [9.0, 9.0]]
        with pytest.raises(InfeasibleError, match="query 1 fits no candidate"):
            solve_with_capacities(np.full((2, 2), 0.5), np.ones((2, 2)), [5, 5], loads=loads)


class TestRefused:
    @pytest.mark.parametrize(
        "capacities", [[1.0], [1.0, -1.0], [1.0, math.nan], ["a", 1], None, [[1.0], [1.0, 2.0]]]
    )
    def test_capacities(self, capacities):
        with pytest.raises(InvalidDataError, match="one number >= 0 is needed for each of the 2"):
            solve_with_capacities([[0.5, 0.5]], [[1.0, 1.0]], capacities)

    def test_loads(self):
        with pytest.raises(InvalidDataError, match=r"loads\[0, 1\] is -1.0"):
            solve_with_capacities([[0.5, 0.5]], [[1.0, 1.0]], [1, 1], loads=[[1.0, -1.0]])
