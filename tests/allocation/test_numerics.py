"""The parts that the solvers stand on, each against its plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_instances import all_allocations, instances, random_instance
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optllm_router.allocation._dual import Limits, minimise_dual
from optllm_router.allocation._front import _steepest_first
from optllm_router.allocation._hull import upper_hulls
from optllm_router.allocation._rounding import rounded

slopes = st.one_of(
    st.sampled_from([0.0, 5e-324, 1.0, np.nextafter(1.0, 2.0), 1e300, np.inf]),
    st.floats(0.0, 2.0),
)


@given(hnp.arrays(np.float64, st.integers(0, 200), elements=slopes))
def test_steepest_first_is_a_stable_descending_argsort(values):
    assert _steepest_first(values).tolist() == np.argsort(-values, kind="stable").tolist()


def test_steepest_first_tells_neighbouring_floats_apart():
    close = 1.0 + np.random.default_rng(0).permutation(50_000) * np.finfo(float).eps
    assert np.all(np.diff(close[_steepest_first(close)]) < 0.0)


@given(instances(max_queries=6, max_candidates=8))
def test_hulls_start_at_the_cheapest_end_at_the_best_and_leave_nothing_above(instance):
    hulls = upper_hulls(*instance)
    for query, (p, cost) in enumerate(zip(*instance, strict=True)):
        own = slice(hulls.offset[query], hulls.offset[query + 1])
        hull_cost, hull_p = hulls.cost[own], hulls.p[own]
        assert hull_p[0] == p[cost == cost.min()].max()
        assert hull_p[-1] == p.max()
        assert np.all(np.diff(hull_cost) > 0.0)
        assert np.all(np.diff(hull_p) > 0.0)
        assert np.all(p <= np.interp(cost, hull_cost, hull_p) + 1e-12)
        assert np.all(hulls.owner[own] == query)


@given(instances(max_queries=4, max_candidates=3), st.data())
def test_the_dual_bounds_every_feasible_allocation_at_any_prices(instance, data):
    n, k = instance.p.shape
    usd = data.draw(st.floats(1.0, 400.0))
    prices = data.draw(hnp.arrays(np.float64, k + 1, elements=st.floats(0.0, 5.0)))
    limits = Limits(instance.p, instance.cost * n / usd, np.zeros((n, k)))
    cost, success = all_allocations(instance)
    best = success[cost <= usd].max(initial=-np.inf)
    assert limits.bound(prices) >= best - 1e-9
    least = minimise_dual(limits)
    assert least.bound >= best - 1e-9
    assert least.bound <= limits.bound(np.zeros(k + 1))
    assert least.shares.sum(axis=1) == pytest.approx(np.ones(n))


def test_the_dual_proves_that_nothing_is_feasible():
    cost = np.full((3, 2), 2.0)  # twice what the budget allows, in scaled units
    assert minimise_dual(Limits(np.full((3, 2), 0.5), cost, np.zeros((3, 2)))).infeasible


def test_rounding_keeps_whole_choices_and_spreads_split_ones():
    whole = np.eye(4)[random_instance(500, 4, seed=0).p.argmax(axis=1)]
    assert np.all(rounded(whole) == whole.argmax(axis=1))
    counts = np.bincount(rounded(np.tile([0.5, 0.3, 0.2], (1_000, 1))))
    assert np.abs(counts - [500, 300, 200]).max() <= 5
