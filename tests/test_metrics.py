import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optllm_router import metrics
from optllm_router._errors import InvalidDataError

unit = st.floats(0.0, 1.0, width=32)
fronts = st.integers(1, 30).flatmap(
    lambda m: st.tuples(
        arrays(np.float64, m, elements=st.floats(0.0, 100.0, width=32)).map(np.sort),
        arrays(np.float64, m, elements=unit),
    )
)


# ---------------------------------------------------------------------------- fronts


def test_savings_take_the_cheapest_point_at_parity_wherever_it_lies():
    cost, accuracy = [1.0, 2.0, 3.0, 4.0], [0.5, 0.8, 0.7, 0.9]
    assert metrics.savings_at_parity(
        cost, accuracy, parity_accuracy=0.75, parity_cost=10
    ) == pytest.approx(0.8)


def test_savings_are_none_when_parity_is_out_of_reach():
    assert metrics.savings_at_parity([1], [0.5], parity_accuracy=0.6, parity_cost=1) is None


def test_savings_are_negative_when_parity_costs_more():
    assert metrics.savings_at_parity([3], [0.6], parity_accuracy=0.6, parity_cost=2) == -0.5


def test_parity_forgives_rounding_and_nothing_more():
    third = sum([0.1] * 3) / 3  # 0.10000000000000002
    assert metrics.savings_at_parity([1], [0.1], parity_accuracy=third, parity_cost=2) == 0.5
    assert metrics.savings_at_parity([1], [0.1], parity_accuracy=0.1001, parity_cost=2) is None


def test_a_budget_takes_the_last_point_it_pays_for():
    cost, accuracy = [1.0, 2.0, 4.0], [0.1, 0.2, 0.4]
    bought = metrics.accuracy_at_budgets(cost, accuracy, [0.5, 1.0, 1.99, 2.0, 100.0])
    assert bought.tolist() == [0.1, 0.1, 0.1, 0.2, 0.4]


def test_the_walk_stops_where_it_would_first_overspend():
    # Planned with other costs, the second point turned out dearer than the third.
    assert metrics.affordable_points([1.0, 5.0, 3.0], [4.0, 5.0]).tolist() == [0, 2]


def test_area_is_the_mean_over_equally_spaced_budgets():
    # Budgets 0, 1, 2, 3, 4 buy 0, 0, 0.5, 0.5, 1.
    area = metrics.area_under_front([0, 2, 4], [0, 0.5, 1], lowest=0, highest=4, budgets=5)
    assert area == pytest.approx(0.4)


@given(fronts)
def test_area_lies_between_the_lowest_and_the_highest_accuracy(front):
    cost, accuracy = front
    area = metrics.area_under_front(cost, accuracy, lowest=cost[0], highest=cost[-1])
    assert accuracy.min() - 1e-12 <= area <= accuracy.max() + 1e-12


def test_gap_closed_is_zero_at_static_one_at_oracle_and_negative_below():
    assert metrics.gap_closed(0.4, static=0.4, oracle=0.8) == 0
    assert metrics.gap_closed(0.8, static=0.4, oracle=0.8) == 1
    assert metrics.gap_closed(0.3, static=0.4, oracle=0.8) == pytest.approx(-0.25)


def test_there_is_no_gap_to_close_when_static_is_the_oracle():
    assert metrics.gap_closed(0.4, static=0.4, oracle=0.4) is None


def test_igd_averages_over_the_reference_not_over_the_points():
    points = [[0.0, 0.0], [9.0, 9.0]]
    assert metrics.inverted_generational_distance(points, [[3.0, 4.0], [0.0, 1.0]]) == 3.0


@given(fronts)
def test_igd_of_the_reference_itself_is_zero(front):
    points = np.column_stack(front)
    assert metrics.inverted_generational_distance(points, points) == 0


@given(fronts, fronts)
def test_more_points_never_have_a_larger_igd(first, second):
    few, reference = np.column_stack(first), np.column_stack(second)
    many = np.vstack([few, reference[:1]])
    before = metrics.inverted_generational_distance(few, reference)
    assert metrics.inverted_generational_distance(many, reference) <= before + 1e-12


def test_spread_by_hand():
    # Steps 1 and 3, mean 2, deviations 1 + 1; ends 0 and 2: (2 + 2) / (2 + 4).
    points = [[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]
    assert metrics.spread(points, [[0.0, 0.0], [6.0, 0.0]]) == pytest.approx(2 / 3)


def test_spread_of_one_point_counts_its_distance_to_both_ends():
    assert metrics.spread([[1.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]]) == 1.0


def test_spread_does_not_exist_for_a_front_without_extent():
    assert metrics.spread([[1.0, 0.5]], [[1.0, 0.5]]) is None


# ---------------------------------------------------------------------- probabilities


def test_brier_by_hand_ignores_missing_scores():
    p = [[0.9, 0.2], [0.4, 0.5]]
    score = [[1.0, 0.0], [math.nan, 0.5]]
    assert metrics.brier_score(p, score) == pytest.approx((0.01 + 0.04 + 0.0) / 3)


def test_calibration_error_by_hand():
    # Bins [0, 0.5) and [0.5, 1]: |0.2 - 0.5| on two of four, |0.75 - 1| on the other two.
    p, score = [0.1, 0.3, 0.5, 1.0], [0.0, 1.0, 1.0, 1.0]
    expected = 0.5 * 0.3 + 0.5 * 0.25
    assert metrics.expected_calibration_error(p, score, bins=2) == pytest.approx(expected)


@given(st.integers(1, 50).flatmap(lambda n: arrays(np.float64, n, elements=unit)))
def test_certain_and_right_is_perfect(p):
    score = np.round(p)
    assert metrics.brier_score(score, score) == 0
    assert metrics.expected_calibration_error(score, score) == 0


@given(
    st.integers(1, 50).flatmap(
        lambda n: st.tuples(arrays(np.float64, n, elements=unit), arrays(np.bool_, n))
    )
)
def test_calibration_error_is_at_least_the_overall_bias(case):
    p, score = case[0], case[1].astype(float)
    error = metrics.expected_calibration_error(p, score)
    assert abs(p.mean() - score.mean()) - 1e-9 <= error <= 1 + 1e-9


# ------------------------------------------------------------------------- off-policy


def test_estimates_by_hand():
    score, propensity, target = [1.0, 0.0, 1.0], [0.5, 0.5, 0.25], [1.0, 0.0, 0.5]
    weights = np.array([2.0, 0.0, 2.0])
    ips = metrics.inverse_propensity_estimate(score, propensity, target)
    assert ips.value == pytest.approx(4 / 3)
    assert ips.standard_error == pytest.approx(np.std([2, 0, 2], ddof=1) / math.sqrt(3))
    assert ips.effective_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    snips = metrics.self_normalized_estimate(score, propensity, target)
    assert snips is not None
    assert (snips.value, snips.standard_error) == (1.0, 0.0)


def test_doubly_robust_corrects_the_prediction_by_the_log():
    estimate = metrics.doubly_robust_estimate(
        score=[1.0, 0.0],
        propensity=[0.5, 0.8],
        chosen=[0, 1],
        target=[[1.0, 0.0], [0.0, 1.0]],
        predicted=[[0.7, 0.1], [0.2, 0.4]],
    )
    first, second = 0.7 + 2 * 0.3, 0.4 + 1.25 * -0.4
    assert estimate.value == pytest.approx((first + second) / 2)


def test_self_normalized_needs_one_choice_in_common():
    assert metrics.self_normalized_estimate([1.0], [0.5], [0.0]) is None


def test_one_logged_decision_has_no_finite_standard_error():
    assert metrics.inverse_propensity_estimate([1.0], [0.5], [0.5]).standard_error == math.inf


def _logged_bandit(n: int, seed: int):
    """A log of a random policy over three models, and a target policy with a known value."""
    rng = np.random.default_rng(seed)
    success = rng.random((n, 3))
    logging = rng.dirichlet([2.0, 2.0, 2.0], n)
    chosen = (rng.random((n, 1)) > logging.cumsum(axis=1)[:, :-1]).sum(axis=1)
    score = (rng.random(n) < success[np.arange(n), chosen]).astype(float)
    target = rng.dirichlet([1.0, 1.0, 1.0], n)
    truth = float((target * success).sum(axis=1).mean())
    return score, logging[np.arange(n), chosen], chosen, target, success, truth


@pytest.mark.parametrize("seed", range(3))
def test_every_estimator_covers_the_true_value(seed):
    score, propensity, chosen, target, success, truth = _logged_bandit(20_000, seed)
    taken = target[np.arange(len(chosen)), chosen]
    ips = metrics.inverse_propensity_estimate(score, propensity, taken)
    snips = metrics.self_normalized_estimate(score, propensity, taken)
    robust = metrics.doubly_robust_estimate(score, propensity, chosen, target, success)
    assert snips is not None
    for estimate in (ips, snips, robust):
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert robust.standard_error < ips.standard_error


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_doubly_robust_survives_a_wrong_predictor(wrong):
    score, propensity, chosen, target, success, truth = _logged_bandit(20_000, 7)
    predicted = np.full_like(success, wrong)
    robust = metrics.doubly_robust_estimate(score, propensity, chosen, target, predicted)
    assert abs(robust.value - truth) < 4 * robust.standard_error


@pytest.mark.parametrize(
    ("score", "chosen", "target"),
    [([1.0], [2], [[0.5, 0.5]]), ([1.0], [-1], [[0.5, 0.5]]), ([1.0], [0, 1], [[0.5, 0.5]])],
)
def test_doubly_robust_refuses_choices_that_do_not_exist(score, chosen, target):
    with pytest.raises(InvalidDataError, match="chosen"):
        metrics.doubly_robust_estimate(score, [0.5], chosen, target, [[0.5, 0.5]])


# -------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.brier_score([], []), "empty"),
        (lambda: metrics.brier_score([0.5], [math.nan]), "every score is missing"),
        (lambda: metrics.brier_score([1.5], [1.0]), r"1\.5"),
        (lambda: metrics.brier_score([math.nan], [1.0]), "NaN"),
        (lambda: metrics.brier_score([0.5], [1.0, 0.0]), "same shape"),
        (lambda: metrics.accuracy_at_budgets([1], [1, 2], [1]), "one length"),
        (lambda: metrics.spread([1, 2], [[1, 2]]), r"\(m, d\)"),
        (lambda: metrics.inverse_propensity_estimate([1], [0.0], [1]), r"\(0, 1\]"),
        (lambda: metrics.inverse_propensity_estimate([1], [0.5], [1.5]), r"not 0\.\.1"),
        (lambda: metrics.inverse_propensity_estimate([1, 1], [0.5], [1]), "one length"),
        (
            lambda: metrics.savings_at_parity([1], [1], parity_accuracy=1, parity_cost=0),
            "above zero",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(InvalidDataError, match=says):
        call()
