"""What a front, a prediction and a log of decisions are worth: pure functions of arrays.

Three families, each independent of how its input was made:

* of a front (paid cost and true accuracy of its points): :func:`savings_at_parity`,
  :func:`area_under_front`, :func:`gap_closed`, :func:`inverted_generational_distance`,
  :func:`spread`;
* of predicted probabilities: :func:`brier_score`, :func:`expected_calibration_error`;
* of a policy that was never run, from the log of one that was:
  :func:`inverse_propensity_estimate`, :func:`self_normalized_estimate`,
  :func:`doubly_robust_estimate`.

A figure that does not exist for its input (no point reaches parity, nothing to close) is
``None``, never NaN and never a number that stands for something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from optllm_router._types import FloatArray, IntArray

__all__ = [
    "PolicyValue",
    "accuracy_at_budgets",
    "affordable_points",
    "area_under_front",
    "brier_score",
    "doubly_robust_estimate",
    "expected_calibration_error",
    "gap_closed",
    "inverse_propensity_estimate",
    "inverted_generational_distance",
    "savings_at_parity",
    "self_normalized_estimate",
    "spread",
]

# Sums of scores in different orders differ in the last bits; parity must not hang on them.
_PARITY_TOLERANCE = 1e-9


# ---------------------------------------------------------------------------- fronts


def savings_at_parity(
    cost: ArrayLike, accuracy: ArrayLike, *, parity_accuracy: float, parity_cost: float
) -> float | None:
    """Share of the reference's cost that is saved at the reference's accuracy.

    ``1 - min{cost_i : accuracy_i >= parity_accuracy} / parity_cost``, as "cost savings" in
    OptLLM (Liu et al. 2024, arXiv 2405.15130, RQ1).

    Args:
        cost: shape (m,), what each point costs, USD.
        accuracy: shape (m,), the true accuracy of each point.
        parity_accuracy: accuracy of the reference, usually the best single model.
        parity_cost: cost of the reference, USD, > 0.

    Returns:
        At most 1; negative when parity costs more than the reference; None when no point
        reaches parity.

    >>> savings_at_parity([1, 2, 4], [0.5, 0.7, 0.8], parity_accuracy=0.7, parity_cost=8)
    0.75
    """
    cost, accuracy = _paired(cost, accuracy)
    if not parity_cost > 0:
        raise InvalidDataError(
            f"parity_cost is {parity_cost!r}; savings are a share of a cost above zero"
        )
    reached = accuracy >= parity_accuracy - _PARITY_TOLERANCE
    if not reached.any():
        return None
    return float(1.0 - cost[reached].min() / parity_cost)


def accuracy_at_budgets(cost: ArrayLike, accuracy: ArrayLike, budgets: ArrayLike) -> FloatArray:
    """Accuracy that each budget buys when a front is walked from its cheap end.

    The point taken for a budget is the last one before the walk would first overspend; a
    budget below the first point takes the first point, since nothing cheaper exists.

    Args:
        cost: shape (m,), what each point costs, in the order of the walk.
        accuracy: shape (m,), the true accuracy of each point.
        budgets: shape (b,).

    Returns:
        Shape (b,).

    >>> accuracy_at_budgets([1, 2, 4], [0.5, 0.7, 0.8], [1, 3.9, 4]).tolist()
    [0.5, 0.7, 0.8]
    """
    cost, accuracy = _paired(cost, accuracy)
    index = affordable_points(cost, budgets)
    return np.asarray(accuracy[index], dtype=np.float64)


def affordable_points(cost: ArrayLike, budgets: ArrayLike) -> IntArray:
    """Index of the point that :func:`accuracy_at_budgets` takes for each budget.

    >>> affordable_points([1, 2, 4], [0.5, 3, 9]).tolist()
    [0, 1, 2]
    """
    # Paid costs need not rise along a front that was planned with other costs: the walk stops
    # at the first point that overspends, as it would have stopped in service.
    highest_so_far = np.maximum.accumulate(np.asarray(cost, dtype=np.float64))
    index = np.searchsorted(highest_so_far, np.asarray(budgets, dtype=np.float64), side="right") - 1
    return np.asarray(np.maximum(index, 0), dtype=np.int64)


def area_under_front(
    cost: ArrayLike, accuracy: ArrayLike, *, lowest: float, highest: float, budgets: int = 300
) -> float:
    """Mean accuracy over equally spaced budgets from ``lowest`` to ``highest``, both included.

    Args:
        cost: shape (m,), what each point costs, in the order of the front.
        accuracy: shape (m,), the true accuracy of each point.
        lowest: first budget, usually the cost of the all-cheapest allocation.
        highest: last budget, usually the cost of the best single model.
        budgets: how many.

    >>> area_under_front([0, 1], [0.5, 1.0], lowest=0, highest=1, budgets=2)
    0.75
    """
    grid = np.linspace(lowest, highest, budgets)
    return float(accuracy_at_budgets(cost, accuracy, grid).mean())


def gap_closed(area: float, *, static: float, oracle: float) -> float | None:
    """Share of the way from the static mixture to the oracle, ``(area - s) / (o - s)``.

    Args:
        area: area under the front in question.
        static: area of the front made from base rates alone, blind to the query.
        oracle: area of the front made from the true scores.

    Returns:
        1 is the oracle, 0 the static mixture, below 0 is harm; None when the two coincide.

    >>> gap_closed(0.75, static=0.5, oracle=1.0)
    0.5
    """
    if oracle <= static:
        return None
    return (area - static) / (oracle - static)


def inverted_generational_distance(points: ArrayLike, reference: ArrayLike) -> float:
    """Mean Euclidean distance from each reference point to the nearest of ``points`` (IGD).

    Coello Coello and Reyes Sierra (2004), in the form of mean distances used by the OptLLM
    paper (section V) for the axes (total cost in USD, true accuracy in 0..1), not rescaled: a
    front over a thousand times the traffic has a larger IGD, so compare within one test set.

    Args:
        points: shape (m, d), the obtained front.
        reference: shape (r, d), the true front.

    Returns:
        Zero when every reference point is attained.

    >>> inverted_generational_distance([[0, 0]], [[0, 0], [3, 4]])
    2.5
    """
    from scipy.spatial import cKDTree  # on use: scipy takes longer to import than this package

    points, reference = _points(points), _points(reference)
    distance, _ = cKDTree(points).query(reference)
    return float(np.mean(distance))


def spread(points: ArrayLike, reference: ArrayLike) -> float | None:
    """How unevenly a front is spread, and how far from the true extremes (Delta).

    Deb et al. (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II",
    section IV-A: with ``d_i`` the Euclidean distances between consecutive points and ``d_f``,
    ``d_l`` those from the first and last point to the extremes of the true front,
    ``Delta = (d_f + d_l + sum |d_i - mean d|) / (d_f + d_l + (m - 1) mean d)``.
    (The code published with the OptLLM paper takes nearest-neighbour distances in the sum;
    the formula here is Deb's.) Axes are as in :func:`inverted_generational_distance`.

    Args:
        points: shape (m, 2), in the order of the front.
        reference: shape (r, 2), the true front in its order; only its ends count.

    Returns:
        0 for equal steps between the true extremes; about 1 when the steps are very unequal;
        None when everything falls on one point.

    >>> spread([[0, 0], [1, 0], [2, 0]], [[0, 0], [2, 0]])
    0.0
    """
    points, reference = _points(points), _points(reference)
    ends = float(
        np.linalg.norm(points[0] - reference[0]) + np.linalg.norm(points[-1] - reference[-1])
    )
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    whole = ends + float(steps.sum())
    if whole == 0.0:
        return None
    uneven = float(np.abs(steps - steps.mean()).sum()) if steps.size else 0.0
    return (ends + uneven) / whole


# ---------------------------------------------------------------------- probabilities


def brier_score(p: ArrayLike, score: ArrayLike) -> float:
    """Mean squared difference between probability and score.

    Brier (1950), "Verification of forecasts expressed in terms of probability", for two
    classes; scores may be fractional.

    Args:
        p: any shape, probabilities in 0..1.
        score: same shape, 0..1; NaN entries do not count.

    Returns:
        0 is perfect; 0.25 is what always saying 0.5 gives.

    >>> brier_score([0.5, 1.0], [1.0, 1.0])
    0.125
    """
    p, score = _graded(p, score)
    return float(np.mean((p - score) ** 2))


def expected_calibration_error(p: ArrayLike, score: ArrayLike, *, bins: int = 15) -> float:
    """Mean distance between what was promised and what came true, over bins of the promise.

    ``sum_b n_b / n * |mean p in b - mean score in b|`` with equal-width bins: Guo et al.
    (2017), "On calibration of modern neural networks", equation 3.

    Args:
        p: any shape, probabilities in 0..1.
        score: same shape, 0..1; NaN entries do not count.
        bins: number of bins of equal width.

    >>> expected_calibration_error([0.75, 0.75, 0.25, 0.25], [1, 1, 0, 0])
    0.25
    """
    p, score = _graded(p, score)
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    # n_b cancels: the sum of p - score over a bin is n_b times the difference of the means.
    surplus = np.bincount(bin_of, weights=p - score, minlength=bins)
    return float(np.abs(surplus).sum() / p.size)


# ------------------------------------------------------------------------- off-policy


@dataclass(frozen=True)
class PolicyValue:
    """Estimated mean score of a policy.

    Attributes:
        value: the estimate; may leave 0..1 by chance, except when self-normalised.
        standard_error: of ``value``; the normal 95 % interval is ``value ± 1.96`` times it.
        effective_size: ``(sum w)^2 / sum w^2`` of the importance weights (Kish 1965): how many
            decisions of the target policy the log is worth. Distrust estimates where it is small.
    """

    value: float
    standard_error: float
    effective_size: float


def inverse_propensity_estimate(
    score: ArrayLike, propensity: ArrayLike, target: ArrayLike
) -> PolicyValue:
    """Mean score that a target policy would have had: ``mean(target / propensity * score)``.

    Horvitz and Thompson (1952). Unbiased where the logging policy could have taken every
    choice that the target policy takes; its variance grows with the weights.

    Args:
        score: shape (n,), score of each logged choice, 0..1.
        propensity: shape (n,), probability with which it was logged, in (0, 1].
        target: shape (n,), probability with which the target policy takes the same choice.

    >>> inverse_propensity_estimate([1, 0], [0.5, 0.5], [1, 0]).value
    1.0
    """
    score, weight = _logged(score, propensity, target)
    return _mean_with_error(weight * score, weight)


def self_normalized_estimate(
    score: ArrayLike, propensity: ArrayLike, target: ArrayLike
) -> PolicyValue | None:
    """Like :func:`inverse_propensity_estimate`, divided by the mean weight instead of by one.

    ``sum(w * score) / sum(w)``: Swaminathan and Joachims (2015), "The self-normalized
    estimator for counterfactual learning". Slightly biased, bounded by the scores, and of much
    lower variance. The standard error is the delta method's.

    Args:
        score: shape (n,), score of each logged choice, 0..1.
        propensity: shape (n,), probability with which it was logged, in (0, 1].
        target: shape (n,), probability with which the target policy takes the same choice.

    Returns:
        None when the target policy takes none of the logged choices.

    >>> self_normalized_estimate([1, 0, 1], [0.5, 0.25, 0.5], [0.5, 0.5, 0.5]).value
    0.5
    """
    score, weight = _logged(score, propensity, target)
    total = float(weight.sum())
    if total == 0.0:
        return None
    value = float(weight @ score) / total
    error = float(np.sqrt(np.sum((weight * (score - value)) ** 2))) / total
    return PolicyValue(value, error, _effective_size(weight))


def doubly_robust_estimate(
    score: ArrayLike,
    propensity: ArrayLike,
    chosen: ArrayLike,
    target: ArrayLike,
    predicted: ArrayLike,
) -> PolicyValue:
    """Score a target policy by a predictor, and correct the predictor by the log.

    ``mean_i( sum_j target_ij * predicted_ij + target_ic / propensity_i * (score_i -
    predicted_ic) )`` with ``c`` the logged choice: Dudik, Langford and Li (2011), "Doubly
    robust policy evaluation and learning". Right when either the propensities or the
    predictions are. The predictions must not have been fitted on the same scores.

    Args:
        score: shape (n,), score of each logged choice, 0..1.
        propensity: shape (n,), probability with which it was logged, in (0, 1].
        chosen: shape (n,), index of the logged choice, 0..k-1.
        target: shape (n, k), probability of each choice under the target policy.
        predicted: shape (n, k), predicted score of each choice.

    >>> doubly_robust_estimate([1, 0], [0.5, 0.5], [0, 1], [[1, 0], [1, 0]], [[0.5, 0.5]] * 2).value
    1.0
    """
    target = _finite(target, "target")
    predicted = _finite(predicted, "predicted")
    chosen = np.asarray(chosen, dtype=np.int64)
    if target.ndim != 2 or target.shape != predicted.shape or chosen.shape != target.shape[:1]:
        raise InvalidDataError(
            f"target {target.shape} and predicted {predicted.shape} must both be (n, k) with one "
            f"chosen index per row, not {chosen.shape}"
        )
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < target.shape[1]:
        raise InvalidDataError(f"chosen must be within 0..{target.shape[1] - 1}")
    row = np.arange(len(chosen))
    score, weight = _logged(score, propensity, target[row, chosen])
    direct = np.einsum("ij,ij->i", target, predicted)
    return _mean_with_error(direct + weight * (score - predicted[row, chosen]), weight)


def _mean_with_error(term: FloatArray, weight: FloatArray) -> PolicyValue:
    n = term.size
    error = float(term.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    return PolicyValue(float(term.mean()), error, _effective_size(weight))


def _effective_size(weight: FloatArray) -> float:
    squares = float(weight @ weight)
    return float(weight.sum()) ** 2 / squares if squares else 0.0


# -------------------------------------------------------------------------- checking


def _finite(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise InvalidDataError(f"{name} is empty; at least one value is needed")
    if not np.isfinite(array).all():
        raise InvalidDataError(f"{name} holds NaN or infinity; leave such entries out")
    return array


def _paired(cost: ArrayLike, accuracy: ArrayLike) -> tuple[FloatArray, FloatArray]:
    cost, accuracy = _finite(cost, "cost"), _finite(accuracy, "accuracy")
    if cost.ndim != 1 or cost.shape != accuracy.shape:
        raise InvalidDataError(
            f"cost {cost.shape} and accuracy {accuracy.shape} must be two vectors of one length"
        )
    return cost, accuracy


def _points(values: ArrayLike) -> FloatArray:
    array = _finite(values, "points")
    if array.ndim != 2:
        raise InvalidDataError(f"points must be (m, d), one row each, not {array.shape}")
    return array


def _graded(p: ArrayLike, score: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The pairs that have a score, flat, checked."""
    p = _finite(p, "p")
    score = np.asarray(score, dtype=np.float64)
    if p.shape != score.shape:
        raise InvalidDataError(f"p {p.shape} and score {score.shape} must have the same shape")
    if p.min() < 0 or p.max() > 1:
        raise InvalidDataError(f"p ranges over {p.min()}..{p.max()}; probabilities are in 0..1")
    graded = ~np.isnan(score)
    if not graded.any():
        raise InvalidDataError("every score is missing; at least one is needed")
    return p[graded], score[graded]


def _logged(
    score: ArrayLike, propensity: ArrayLike, target: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Scores and importance weights of a log, checked."""
    score = _finite(score, "score")
    propensity, target = _finite(propensity, "propensity"), _finite(target, "target")
    if score.ndim != 1 or not score.shape == propensity.shape == target.shape:
        raise InvalidDataError(
            f"score {score.shape}, propensity {propensity.shape} and target {target.shape} must be "
            "vectors of one length"
        )
    if propensity.min() <= 0 or propensity.max() > 1:
        raise InvalidDataError(
            f"propensity ranges over {propensity.min()}..{propensity.max()}; a logged choice had "
            "a probability in (0, 1]"
        )
    if target.min() < 0 or target.max() > 1:
        raise InvalidDataError(f"target ranges over {target.min()}..{target.max()}, not 0..1")
    return score, target / propensity
