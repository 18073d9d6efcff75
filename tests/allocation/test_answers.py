"""What a user asks of a front (budget, target, price, knee) and the certificates it gives."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from allocation_instances import (
    Instance,
    all_allocations,
    instances,
    milp_optimum,
    random_instance,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from optllm_router._errors import InfeasibleError, InvalidDataError
from optllm_router.allocation import Solution, exact_front

TINY = Instance(np.array([[0.9, 1.0], [0.2, 0.8]]), np.array([[1.0, 2.0], [1.0, 3.0]]))
fractions = st.floats(0.0, 1.0)


def assert_honest(solution: Solution, instance: Instance) -> None:
    """Cost and success are those of the allocation, to the last bit."""
    rows = np.arange(len(instance.p))
    assert solution.cost == math.fsum(instance.cost[rows, solution.allocation])
    assert solution.success == math.fsum(instance.p[rows, solution.allocation])
    assert solution.gap >= 0.0


class TestBudget:
    @given(instances(), fractions)
    def test_brute_force_finds_nothing_above_the_bound(self, instance, fraction):
        front = exact_front(*instance)
        usd = float(front.cost[0] + fraction * (front.cost[-1] - front.cost[0]))
        solution = front.at_budget(usd)
        assert_honest(solution, instance)
        cost, success = all_allocations(instance)
        best = success[cost <= usd].max()
        assert solution.cost <= usd
        assert solution.success <= best + 1e-12
        assert best <= solution.bound + 1e-9
        assert solution.gap == solution.bound - solution.success

    @given(instances(max_queries=12, max_candidates=6), fractions)
    def test_is_never_worse_than_the_point_below_and_loses_less_than_one_move(
        self, instance, fraction
    ):
        front = exact_front(*instance)
        usd = float(front.cost[0] + fraction * (front.cost[-1] - front.cost[0]))
        solution = front.at_budget(usd)
        below = int(np.searchsorted(front.cost, usd, side="right")) - 1
        assert solution.success >= front.success[below] - 1e-12
        if below + 1 < len(front):
            assert solution.gap <= np.diff(front.success)[below] + 1e-12

    @given(instances(max_queries=12, max_candidates=6))
    def test_a_points_own_cost_buys_the_point(self, instance):
        front = exact_front(*instance)
        for point in front:
            solution = front.at_budget(point.cost)
            assert solution.cost <= point.cost
            assert solution.success >= point.success - 1e-12

    def test_spends_the_rest_on_a_candidate_off_the_hull(self):
        front = exact_front([[0.0, 0.4, 1.0]], [[0.0, 5.0, 10.0]])
        solution = front.at_budget(7.0)
        assert solution.allocation.tolist() == [1]
        assert (solution.bound, solution.gap) == (pytest.approx(0.7), pytest.approx(0.3))
        assert solution.price == pytest.approx(0.1)

    def test_more_money_than_useful(self):
        solution = exact_front(*TINY).at_budget(math.inf)
        assert (solution.cost, solution.gap, solution.price) == (5.0, 0.0, 0.0)

    def test_the_least_cost_summed_by_the_caller_is_enough(self):
        instance = random_instance(1_000, 6, seed=1)
        front = exact_front(*instance)
        for total in (instance.cost.min(axis=1).sum(), sum(instance.cost.min(axis=1).tolist())):
            assert front.at_budget(float(total)).cost == pytest.approx(total)

    @pytest.mark.parametrize("usd", [0.0, 1.99])
    def test_below_the_least_cost(self, usd):
        with pytest.raises(InfeasibleError, match="the cheapest costs 2 USD") as caught:
            exact_front(*TINY).at_budget(usd)
        assert (caught.value.limit, caught.value.attainable) == (usd, 2.0)

    @pytest.mark.parametrize("usd", [-1.0, math.nan])
    def test_no_amount_of_money(self, usd):
        with pytest.raises(InvalidDataError, match="the budget in USD is"):
            exact_front(*TINY).at_budget(usd)

    @pytest.mark.parametrize("seed", range(5))
    def test_bound_is_highs_linear_bound_and_gap_covers_its_optimum(self, seed):
        instance = random_instance(120, 5, seed)
        front = exact_front(*instance)
        usd = float(0.7 * front.cost[0] + 0.3 * front.cost[-1])
        solution = front.at_budget(usd)
        assert solution.bound == pytest.approx(milp_optimum(instance, usd, relaxed=True))
        best = milp_optimum(instance, usd)
        assert solution.success - 1e-9 <= best <= solution.bound + 1e-9
        assert best - solution.success < 0.05

    def test_a_large_instance_is_nearly_closed(self):
        front = exact_front(*random_instance(20_000, 8, seed=2))
        solution = front.at_budget(float(0.8 * front.cost[0] + 0.2 * front.cost[-1]))
        assert solution.gap < 1e-6 * solution.bound


class TestSuccess:
    @given(instances(), fractions)
    def test_brute_force_finds_nothing_cheaper_than_the_bound(self, instance, fraction):
        n = len(instance.p)
        front = exact_front(*instance)
        target = float(front.success[0] + fraction * (front.success[-1] - front.success[0]))
        solution = front.at_success(min(1.0, target / n))
        assert_honest(solution, instance)
        cost, success = all_allocations(instance)
        best = cost[success >= target * (1 - 1e-12)].min()
        assert solution.success >= target * (1 - 2e-12)
        assert solution.bound <= best + 1e-9 * best
        assert best <= solution.cost + 1e-9 * best or solution.success < target
        assert solution.gap == solution.cost - solution.bound

    def test_gives_back_what_is_too_much(self):
        front = exact_front([[0.0, 0.4, 1.0]], [[0.0, 5.0, 10.0]])
        solution = front.at_success(0.35)
        assert solution.allocation.tolist() == [1]
        assert (solution.bound, solution.gap) == (pytest.approx(3.5), pytest.approx(1.5))

    def test_the_rate_of_a_point_is_met_by_that_point(self):
        front = exact_front(*random_instance(100, 5, seed=7))
        for point in front:
            assert front.at_success(point.success / 100).cost <= point.cost * (1 + 1e-12)

    def test_a_target_that_the_cheapest_reaches_costs_the_least(self):
        assert exact_front(*TINY).at_success(0.0).cost == 2.0

    def test_above_the_highest(self):
        with pytest.raises(InfeasibleError, match=r"the highest expected is 0\.9") as caught:
            exact_front(*TINY).at_success(0.91)
        assert (caught.value.limit, caught.value.attainable) == (0.91, pytest.approx(0.9))

    @pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
    def test_no_rate(self, rate):
        with pytest.raises(InvalidDataError, match="target success rate"):
            exact_front(*TINY).at_success(rate)


class TestPrice:
    @given(instances(max_queries=12, max_candidates=6), st.floats(0.0, 1e3, allow_subnormal=False))
    def test_maximises_worth_minus_cost_of_every_query(self, instance, worth):
        solution = exact_front(*instance).at_price(worth)
        assert_honest(solution, instance)
        best = (instance.p * worth - instance.cost).max(axis=1).sum()
        achieved = solution.success * worth - solution.cost
        assert achieved == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert solution.gap == 0.0

    def test_extremes(self):
        front = exact_front(*TINY)
        assert front.at_price(0.0).allocation.tolist() == [0, 0]
        assert front.at_price(math.inf).allocation.tolist() == [1, 1]
        assert front.at_price(1 / 0.2).allocation.tolist() == [0, 1]

    @pytest.mark.parametrize("price", [-1.0, math.nan, "x", None])
    def test_no_price(self, price):
        with pytest.raises(InvalidDataError, match="usd_per_success is"):
            exact_front(*TINY).at_price(price)


class TestShadowPrice:
    def test_is_the_slope_of_the_move_that_money_would_buy_next(self):
        front = exact_front(*TINY)
        assert front.shadow_price(2.0) == front.shadow_price(3.9) == pytest.approx(0.3)
        assert front.shadow_price(4.0) == pytest.approx(0.1)
        assert front.shadow_price(5.0) == front.shadow_price(math.inf) == 0.0

    def test_below_the_least_cost(self):
        with pytest.raises(InfeasibleError):
            exact_front(*TINY).shadow_price(1.0)

    @given(instances(max_queries=12, max_candidates=6), fractions)
    def test_choosing_by_it_query_by_query_gives_a_point_of_the_front(self, instance, fraction):
        front = exact_front(*instance)
        usd = float(front.cost[0] + fraction * (front.cost[-1] - front.cost[0]))
        price = front.shadow_price(usd)
        assume(price < 1e6)
        chosen = (instance.p - price * instance.cost).argmax(axis=1)
        rows = np.arange(len(chosen))
        cost, success = instance.cost[rows, chosen].sum(), instance.p[rows, chosen].sum()
        assert success == pytest.approx(np.interp(cost, front.cost, front.success), abs=1e-9)


@pytest.mark.parametrize("wrong", ["x", "1", None, [1.0, 2.0], 10**400])
def test_what_is_no_number_is_named(wrong):
    front = exact_front(*TINY)
    for ask, name in (
        (front.at_budget, "the budget in USD is"),
        (front.shadow_price, "the budget in USD is"),
        (front.at_success, "the target success rate is"),
    ):
        with pytest.raises(InvalidDataError, match=name):
            ask(wrong)


def test_money_may_be_a_decimal():
    front = exact_front(*TINY)
    assert front.at_budget(Decimal("4.5")).cost == front.at_budget(4.5).cost


class TestKnee:
    def test_moves_too_cheap_to_show_in_the_total(self):
        front = exact_front([[0.5, 0.5], [0.1, 0.9]], [[1e18, 2e18], [0.0, 1e-3]])
        assert front.cost[0] == front.cost[-1]
        assert front.knee().success == pytest.approx(1.4)

    @given(instances(max_queries=12, max_candidates=6))
    def test_is_farthest_above_the_straight_line(self, instance):
        front = exact_front(*instance)
        knee = front.knee()
        assert_honest(knee, instance)
        if len(front) > 1:
            line = np.interp(front.cost, front.cost[[0, -1]], front.success[[0, -1]])
            at_knee = np.interp(knee.cost, front.cost[[0, -1]], front.success[[0, -1]])
            assert knee.success - at_knee >= (front.success - line).max() - 1e-9
