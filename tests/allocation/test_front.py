"""The exact front: what its points are, checked against every allocation there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from allocation_instances import Instance, all_allocations, instances, random_instance
from hypothesis import given
from hypothesis import strategies as st

from optllm_router._errors import InvalidDataError
from optllm_router.allocation import FrontPoint, exact_front

TINY = Instance(np.array([[0.9, 1.0], [0.2, 0.8]]), np.array([[1.0, 2.0], [1.0, 3.0]]))


def test_points_moves_and_allocations_of_a_tiny_front():
    front = exact_front(*TINY)
    assert front.shape == (2, 2)
    assert front.cost.tolist() == [2.0, 4.0, 5.0]
    assert front.success.tolist() == pytest.approx([1.1, 1.7, 1.8])
    assert front.slope.tolist() == pytest.approx([0.3, 0.1])
    assert front.move_query.tolist() == [1, 0]
    assert front.move_to.tolist() == [1, 1]
    assert [front.allocation(i).tolist() for i in range(3)] == [[0, 0], [0, 1], [1, 1]]
    assert front.allocation(-1).tolist() == [1, 1]
    assert "2 queries and 2 candidates: 3 points" in repr(front)


def test_iterating_gives_every_point_with_the_price_of_the_next_move():
    points = list(exact_front(*TINY))
    assert points[0] == FrontPoint(0, 2.0, pytest.approx(1.1), pytest.approx(0.3))
    assert points[-1] == FrontPoint(2, 5.0, pytest.approx(1.8), 0.0)
    assert len(points) == 3


def test_no_such_point():
    with pytest.raises(IndexError):
        exact_front(*TINY).allocation(3)


@given(instances())
def test_no_allocation_lies_above_the_front(instance):
    front = exact_front(*instance)
    cost, success = all_allocations(instance)
    assert np.all(success <= np.interp(cost, front.cost, front.success) + 1e-9)
    assert front.cost[0] == cost.min()
    assert front.success[-1] == pytest.approx(success.max(), abs=1e-12)


@given(instances(max_queries=12, max_candidates=6))
def test_every_point_is_the_allocation_it_claims_to_be(instance):
    front = exact_front(*instance)
    rows = np.arange(len(instance.p))
    for point in front:
        allocation = front.allocation(point.index)
        assert point.cost == pytest.approx(
            math.fsum(instance.cost[rows, allocation]), rel=1e-15, abs=0
        )
        assert point.success == pytest.approx(
            math.fsum(instance.p[rows, allocation]), rel=1e-15, abs=0
        )


@given(instances(max_queries=12, max_candidates=6))
def test_neighbours_differ_in_one_query_and_slopes_never_rise(instance):
    front = exact_front(*instance)
    assert np.all(np.diff(front.slope) <= 0.0)
    assert np.all(np.diff(front.cost) >= 0.0)
    assert np.all(np.diff(front.success) >= 0.0)
    before = front.allocation(0)
    for i, (query, to) in enumerate(zip(front.move_query, front.move_to, strict=True)):
        after = front.allocation(i + 1)
        assert np.flatnonzero(after != before).tolist() == [query]
        assert after[query] == to
        before = after


@given(instances(max_queries=12, max_candidates=6), st.randoms(use_true_random=False))
def test_order_of_queries_and_candidates_does_not_matter(instance, random):
    n, k = instance.p.shape
    rows, columns = random.sample(range(n), n), random.sample(range(k), k)
    front = exact_front(*instance)
    shuffled = exact_front(instance.p[rows][:, columns], instance.cost[rows][:, columns])
    # Moves of equal slope may change places, which moves points along a straight piece only.
    on_front = np.interp(shuffled.cost, front.cost, front.success)
    assert len(shuffled) == len(front)
    assert shuffled.success == pytest.approx(on_front, abs=1e-9)


@given(instances(max_queries=12, max_candidates=6))
def test_along_its_own_matrices_is_the_front_itself(instance):
    front = exact_front(*instance)
    assert front.along(instance.p).tolist() == front.success.tolist()
    assert front.along(instance.cost).tolist() == front.cost.tolist()
    assert front.along(np.ones_like(instance.p)).tolist() == [len(instance.p)] * len(front)


def test_along_true_scores_counts_what_each_allocation_really_gets():
    instance = random_instance(200, 5, seed=3)
    truth = (np.random.default_rng(4).random(instance.p.shape) < instance.p).astype(float)
    front = exact_front(*instance)
    along = front.along(truth)
    for index in (0, 1, len(front) // 2, len(front) - 1):
        assert along[index] == truth[np.arange(200), front.allocation(index)].sum()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3)), r"values has shape \(2, 3\): it must be \(2, 2\)"),
        ([[0.0, 0.0], [np.nan, 0.0]], r"values\[1, 0\] is nan: it must be a finite number"),
    ],
)
def test_along_refuses_values_that_do_not_fit(values, message):
    with pytest.raises(InvalidDataError, match=message):
        exact_front(*TINY).along(values)


def test_more_queries_than_fit_one_block():
    instance = random_instance(30_000, 4, seed=5)
    front = exact_front(*instance)
    halves = [
        exact_front(instance.p[part], instance.cost[part])
        for part in np.split(np.arange(30_000), 2)
    ]
    assert len(front) == sum(len(half) - 1 for half in halves) + 1
    assert front.success[-1] == pytest.approx(sum(half.success[-1] for half in halves))


class TestDegenerateInput:
    def test_equal_costs_keep_only_the_most_successful(self):
        front = exact_front([[0.1, 0.7, 0.3]], [[2.0, 2.0, 2.0]])
        assert (len(front), front.allocation(0).tolist()) == (1, [1])

    def test_equal_p_keeps_only_the_cheapest(self):
        front = exact_front([[0.5, 0.5, 0.5]], [[3.0, 1.0, 2.0]])
        assert (len(front), front.allocation(0).tolist()) == (1, [1])

    def test_collinear_candidates_make_one_long_move(self):
        front = exact_front([[0.0, 0.25, 0.5]], [[0.0, 1.0, 2.0]])
        assert (len(front), front.move_to.tolist()) == (2, [2])

    def test_everything_free(self):
        front = exact_front([[0.1, 0.9], [0.8, 0.2]], np.zeros((2, 2)))
        assert (len(front), front.allocation(0).tolist()) == (1, [1, 0])
        assert front.at_budget(0.0).success == pytest.approx(1.7)

    def test_one_candidate(self):
        front = exact_front([[0.3], [0.4]], [[1.0], [2.0]])
        assert len(front) == 1
        assert front.knee().allocation.tolist() == [0, 0]
        assert front.at_budget(3.0).gap == 0.0

    def test_one_query(self):
        front = exact_front([[0.3, 0.6, 0.7]], [[1.0, 2.0, 9.0]])
        assert front.cost.tolist() == [1.0, 2.0, 9.0]

    def test_no_query_at_all(self):
        front = exact_front(np.empty((0, 3)), np.empty((0, 3)))
        assert front.cost.tolist() == [0.0]
        assert front.at_budget(0.0).allocation.shape == (0,)
        assert front.at_success(0.5).success == 0.0
        assert front.along(np.empty((0, 3))).tolist() == [0.0]

    def test_costs_so_small_that_slopes_overflow(self):
        front = exact_front([[0.0, 0.5, 1.0]], [[0.0, 5e-324, 1.0]])
        assert front.allocation(1).tolist() == [1]
        assert front.at_budget(1.0).success == 1.0

    def test_gains_so_small_that_slopes_vanish(self):
        front = exact_front([[0.0, 5e-324]], [[0.0, 1e200]])
        assert front.slope.tolist() == [0.0]
        assert front.at_price(math.inf).allocation.tolist() == [1]


class TestRefusedInput:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.001, 1.001])
    def test_p_that_is_no_probability(self, bad):
        p = np.full((3, 2), 0.5)
        p[1, 1] = bad
        with pytest.raises(InvalidDataError, match=r"p\[1, 1\] is .*probability in 0\.\.1"):
            exact_front(p, np.ones((3, 2)))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300, -math.inf, -1e-12])
    def test_cost_that_is_no_amount(self, bad):
        cost = np.ones((3, 2))
        cost[2, 0] = bad
        with pytest.raises(InvalidDataError, match=r"cost\[2, 0\] is .*USD, >= 0 and finite"):
            exact_front(np.full((3, 2), 0.5), cost)

    @pytest.mark.parametrize(
        ("p", "cost", "message"),
        [
            ([[0.5]], [[1.0, 2.0]], r"p has shape \(1, 1\) and cost has shape \(1, 2\)"),
            ([0.5], [1.0], r"p has 1 dimension\(s\)"),
            (np.empty((3, 0)), np.empty((3, 0)), "no columns"),
            ([["a"]], [[1.0]], "p is not a matrix of numbers"),
            ([[0.5 + 1j]], [[1.0]], "p is not a matrix of numbers: complex"),
        ],
    )
    def test_matrices_of_the_wrong_form(self, p, cost, message):
        with pytest.raises(InvalidDataError, match=message):
            exact_front(p, cost)
