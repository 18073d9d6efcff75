"""OptLLM-M and OptLLM-S: what they promise, and how far they stay behind the exact front."""

from __future__ import annotations

import math

import numpy as np
import pytest
from allocation_instances import Instance, instances, random_instance
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import InfeasibleError, InvalidDataError
from optllm_router.allocation import SOLVERS, exact_front, optllm_m, optllm_s, robust
from optllm_router.allocation._exchange import Exchange, cheapest, most_successful

TINY = Instance(np.array([[0.9, 1.0], [0.2, 0.8]]), np.array([[1.0, 2.0], [1.0, 3.0]]))
fractions = st.floats(0.0, 1.0)


@pytest.mark.parametrize("name", SOLVERS)
class TestEverySolver:
    def test_keeps_the_budget_and_is_honest_about_the_gap(self, name):
        instance = random_instance(300, 5, seed=1)
        front = exact_front(*instance)
        usd = float(0.7 * front.cost[0] + 0.3 * front.cost[-1])
        solution = SOLVERS[name](*instance).at_budget(usd)
        rows = np.arange(300)
        assert solution.cost == math.fsum(instance.cost[rows, solution.allocation]) <= usd
        assert solution.success == math.fsum(instance.p[rows, solution.allocation])
        assert solution.bound == pytest.approx(front.at_budget(usd).bound)
        assert solution.gap == solution.bound - solution.success >= 0.0

    def test_reaches_the_target_and_is_honest_about_the_gap(self, name):
        instance = random_instance(300, 5, seed=2)
        front = exact_front(*instance)
        rate = float(0.5 * front.success[0] + 0.5 * front.success[-1]) / 300
        solution = SOLVERS[name](*instance).at_success(rate)
        assert solution.success >= rate * 300 * (1 - 1e-12)
        assert solution.bound == pytest.approx(front.at_success(rate).bound)
        assert solution.gap == solution.cost - solution.bound >= 0.0

    def test_says_what_is_attainable(self, name):
        answers = SOLVERS[name](*TINY)
        with pytest.raises(InfeasibleError) as caught:
            answers.at_budget(1.0)
        assert caught.value.attainable == 2.0
        with pytest.raises(InfeasibleError) as caught:
            answers.at_success(0.95)
        assert caught.value.attainable == pytest.approx(0.9)

    @pytest.mark.parametrize("usd", [-1.0, math.nan])
    def test_refuses_what_is_no_budget(self, name, usd):
        with pytest.raises(InvalidDataError):
            SOLVERS[name](*TINY).at_budget(usd)

    def test_refuses_nan(self, name):
        with pytest.raises(InvalidDataError, match=r"p\[0, 0\] is nan"):
            SOLVERS[name]([[math.nan]], [[1.0]])

    def test_no_query_at_all(self, name):
        answers = SOLVERS[name](np.empty((0, 3)), np.empty((0, 3)))
        assert answers.at_budget(1.0).allocation.shape == (0,)
        assert answers.at_success(0.5).cost == 0.0

    @given(instance=instances(), fraction=fractions)
    def test_any_instance(self, name, instance, fraction):
        answers, front = SOLVERS[name](*instance), exact_front(*instance)
        usd = float(front.cost[0] + fraction * (front.cost[-1] - front.cost[0]))
        assert answers.at_budget(usd).cost <= usd * (1 + 1e-12)
        target = float(front.success[0] + fraction * (front.success[-1] - front.success[0]))
        rate = min(1.0, target / len(instance.p))
        assert answers.at_success(rate).success >= target * (1 - 1e-9)


class TestOptLLMM:
    def test_points_are_non_dominated_and_what_they_claim(self):
        instance = random_instance(400, 5, seed=3)
        archive = optllm_m(*instance)
        assert 15 < len(archive) <= 20
        assert np.all(np.diff(archive.cost) > 0.0)
        assert np.all(np.diff(archive.success) > 0.0)
        assert archive.along(instance.cost) == pytest.approx(archive.cost)
        assert archive.along(instance.p) == pytest.approx(archive.success)
        assert archive.allocation(0).tolist() == exact_front(*instance).allocation(0).tolist()

    @given(instances())
    def test_never_beats_the_exact_front_and_shares_its_extremes(self, instance):
        front, archive = exact_front(*instance), optllm_m(*instance, grid=3)
        on_front = np.interp(archive.cost, front.cost, front.success)
        assert np.all(archive.success <= on_front + 1e-9)
        assert archive.cost[0] == pytest.approx(front.cost[0])
        assert archive.success[-1] == pytest.approx(front.success[-1])

    def test_reconstruction_ends_on_the_exact_front(self):
        instance = random_instance(400, 5, seed=4)
        front, archive = exact_front(*instance), optllm_m(*instance, grid=20)
        on_front = np.interp(archive.cost, front.cost, front.success)
        assert archive.success == pytest.approx(on_front, rel=1e-12)

    def test_a_finer_grid_finds_more_points(self):
        instance = random_instance(400, 5, seed=5)
        sizes = [len(optllm_m(*instance, grid=grid)) for grid in (1, 5, 20)]
        assert sizes[0] == 2
        assert sizes == sorted(set(sizes))

    def test_uncertainty_moves_queries_to_candidates_that_are_known(self):
        p, cost = np.array([[0.5, 0.9], [0.5, 0.9]]), np.array([[1.0, 2.0], [1.0, 2.0]])
        std = np.array([[0.0, 0.9], [0.0, 0.1]])
        archive = optllm_m(p, cost, std=std, alpha=1.0, grid=4)
        assert archive.allocation(-1).tolist() == [0, 1]
        assert archive.success[-1] == pytest.approx(1.4)  # counted by p, not by what is believed

    @pytest.mark.parametrize("grid", [0, 2.5, "10", None])
    def test_refuses_a_grid_that_is_no_number_of_parts(self, grid):
        with pytest.raises(InvalidDataError, match=f"grid number is {grid!r}"):
            optllm_m(*TINY, grid=grid)


class TestOptLLMS:
    @pytest.mark.parametrize("seed", range(3))
    def test_is_close_to_the_bound_after_refinement(self, seed):
        instance = random_instance(1_000, 6, seed)
        front = exact_front(*instance)
        usd = float(0.6 * front.cost[0] + 0.4 * front.cost[-1])
        solution = optllm_s(*instance).at_budget(usd)
        assert solution.gap <= 1e-3 * solution.bound

    def test_the_target_is_held_against_the_robust_prediction(self):
        p, cost = np.array([[0.5, 0.9]]), np.array([[1.0, 2.0]])
        std = np.array([[0.1, 0.1]])
        assert optllm_s(p, cost, std=std, alpha=0.0).at_success(0.5).allocation.tolist() == [0]
        assert optllm_s(p, cost, std=std, alpha=1.0).at_success(0.5).allocation.tolist() == [1]
        with pytest.raises(InfeasibleError) as caught:
            optllm_s(p, cost, std=std, alpha=1.0).at_success(0.85)
        assert caught.value.attainable == pytest.approx(0.8)


class TestRobust:
    def test_is_kept_between_0_and_1(self):
        p = np.array([[0.1, 0.9]])
        assert robust(p, np.array([[0.5, 0.1]]), 2.0).tolist() == [[0.0, pytest.approx(0.7)]]
        assert robust(p, None, 2.0) is p

    @pytest.mark.parametrize(
        ("std", "alpha", "message"),
        [
            ([[0.1]], 0.5, r"std has shape \(1, 1\)"),
            ([[0.1, -0.1]], 0.5, "std goes down to"),
            ([[0.1, math.nan]], 0.5, r"std\[0, 1\] is nan"),
            ([[0.1, 0.1]], -1.0, "alpha is -1.0"),
            ([[0.1, 0.1]], math.nan, "alpha is nan"),
            ([[0.1, 0.1]], math.inf, "alpha is inf"),
            ([[0.1, 0.1]], "much", "alpha is 'much'"),
        ],
    )
    def test_refuses_what_is_no_uncertainty(self, std, alpha, message):
        with pytest.raises(InvalidDataError, match=message):
            robust(np.array([[0.1, 0.9]]), std, alpha)


class TestExchange:
    def test_destruction_takes_the_largest_changes_until_it_has_enough(self):
        p = np.array([[0.1, 0.9], [0.1, 0.5], [0.1, 0.3]])
        cost = np.array([[1.0, 4.0], [1.0, 9.0], [1.0, 2.0]])
        search = Exchange(p, cost, most_successful(p, cost))
        search.destroy_cost(8.5)
        assert search.allocation.tolist() == [0, 0, 1]
        search = Exchange(p, cost, cheapest(p, cost))
        search.destroy_success(0.7)
        assert search.allocation.tolist() == [1, 0, 0]

    def test_reconstruction_exchanges_until_nothing_gains(self):
        p = np.array([[0.1, 0.9], [0.1, 0.2]])
        cost = np.array([[1.0, 2.0], [1.0, 2.0]])
        search = Exchange(p, cost, np.array([0, 1]))
        search.reconstruct()
        assert search.allocation.tolist() == [1, 0]
        assert (search.cost, search.success) == (3.0, 1.0)

    def test_what_is_cheaper_and_no_worse_is_taken_at_once(self):
        search = Exchange(np.array([[0.5, 0.5, 0.4]]), np.array([[2.0, 1.0, 0.5]]), np.array([0]))
        assert search.allocation.tolist() == [1]
