"""The default predictor: chooses its caution by cross-validation, and shrinks to base rates.

Three questions are answered from the labels alone, out of sample:

1. How slowly should the trees believe their labels? Bold for recurring traffic, cautious for
   scattered traffic: whichever has the least squared error.
2. How much of what they say about a query's difficulty holds up? A factor for the mean over the
   candidates.
3. How much of what they say about differences between candidates holds up? A factor for the
   rest. It is what routing acts on, so it starts from a sceptical prior: with too few labels to
   tell, the prediction stays near the base rates and cannot do harm.

Validation can afford few trees, and few trees are noisy. Noise in what is said looks as if less of
it held up; how much there is follows from how far the trees disagree, and is taken off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._base import base_rates
from optllm_router.predictor._forest import Forest, average
from optllm_router.predictor._pruning import Caution

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

CAUTIONS = (Caution(strength=0.5, evidence=0.85), Caution(strength=2.0, evidence=0.5))
"""Bold, for recurring traffic, and cautious, for scattered traffic."""

_MAX_VALIDATED = 1_500
"""Rows used for cross-validation at most: beyond, its answers no longer change."""

_VALIDATING_TREES = 12
"""Trees in each group of a forest that only validates."""

_LABEL_VARIANCE = 0.2

_MOST_NOISE = 0.75
"""Share of the squares of what was said that is taken for noise at most."""


class _Factor(NamedTuple):
    """Prior of a shrinking factor: mean and standard deviation, and the most it may become."""

    mean: float
    std: float
    most: float


_DIFFICULTY = _Factor(mean=0.8, std=0.4, most=1.3)


def _difference(n: float) -> _Factor:
    """Prior of the factor for differences after n fully graded queries: sceptical when few."""
    return _Factor(mean=0.9 * n / (n + 60.0), std=0.25, most=1.0)


class Auto:
    """The forest, with caution and shrinkage chosen by cross-validation.

    Args:
        seed: of the trees and of the folds.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Auto:
        """Choose, then learn from all rows."""
        caution, self.difficulty_, self.difference_ = self._choose(x, scores, base)
        self.base_ = base
        n_trees = 35 if len(x) > _MAX_VALIDATED else 70
        forest = Forest(n_trees=n_trees, seed=self.seed)
        self.forest_ = forest.fit(x, scores, base).settle(caution)
        return self

    def predict(self, x: Features) -> Prediction:
        """What the forest says, as far as it held up."""
        said = self.forest_.predict(x)
        common, rest = _split(said.p - self.base_)
        p = self.base_ + self.difficulty_ * common + self.difference_ * rest
        factor = max(self.difficulty_, self.difference_)
        return Prediction(np.minimum(np.maximum(p, 0.0), 1.0), factor * said.std)

    def _choose(
        self, x: Features, scores: FloatArray, base: FloatArray
    ) -> tuple[Caution, float, float]:
        """The caution, and the factors for difficulty and differences."""
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(x))[:_MAX_VALIDATED]
        if len(rows) < 2:
            return CAUTIONS[-1], _DIFFICULTY.mean, _difference(len(rows)).mean
        truth = scores[rows]
        said, noise, expected = self._out_of_fold(x[rows], truth, base)
        best = int(np.argmin(np.nanmean((said - truth) ** 2, axis=(1, 2))))
        n_complete = np.sum(~np.isnan(truth)) / truth.shape[1]
        difficulty, difference = _factors(
            said[best] - expected,
            noise[best],
            truth - expected,
            (_DIFFICULTY, _difference(n_complete)),
        )
        return CAUTIONS[best], difficulty, difference

    def _out_of_fold(
        self, x: Features, scores: FloatArray, prior: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Predictions for every row by trees that did not see it, (cautions, n, k); the variance
        of their two parts had other trees been drawn, (cautions, n, 2); base rates, (n, k).
        """
        n, k = scores.shape
        n_folds = min(5 if n < 500 else 3, n)
        said = np.empty((len(CAUTIONS), n, k))
        noise = np.empty((len(CAUTIONS), n, 2))
        expected = np.empty((n, k))
        for fold in range(n_folds):
            test = np.arange(n) % n_folds == fold
            base, _ = base_rates(scores[~test], prior)
            forest = Forest(n_trees=_VALIDATING_TREES, seed=self.seed)
            forest.fit(x[~test], scores[~test], base)
            leaves = forest.leaves(x[test])
            for i, caution in enumerate(CAUTIONS):
                values = forest.values(caution)
                each = average(leaves, values)
                said[i, test] = each.p
                noise[i, test] = _noise(each.std, leaves, values)
            expected[test] = base
        return said, noise, expected

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        factors = np.array([self.difficulty_, self.difference_])
        return {**self.forest_.arrays(), "base": self.base_, "factors": factors}

    def restore(self, arrays: Arrays) -> Auto:
        """Become the model that ``arrays`` came from."""
        self.base_ = arrays["base"]
        self.difficulty_, self.difference_ = (float(f) for f in arrays["factors"])
        self.forest_ = Forest(n_trees=0).restore(arrays)
        return self


def _split(deviations: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each row's mean over the candidates, shape (n, 1), and what differs from it, (n, k)."""
    common = np.add.reduce(deviations, axis=1, keepdims=True) / deviations.shape[1]
    return common, deviations - common


def _factors(
    said: FloatArray, noise: FloatArray, true: FloatArray, priors: tuple[_Factor, _Factor]
) -> tuple[float, float]:
    """Posterior means of f and g in ``true = f * common + g * rest + error``.

    ``common`` and ``rest`` are the two parts of what was ``said``, shape (n, k), after the variance
    ``noise`` of each, (n, 2), is taken off; ``true`` is NaN where unknown. A row's candidates err
    together: k of them witness like the square root of k.
    """
    known = ~np.isnan(true)
    weight = known / (_LABEL_VARIANCE * np.sqrt(np.maximum(known.sum(axis=1, keepdims=True), 1)))
    common, rest = _split(said)
    parts = np.stack([np.broadcast_to(common, said.shape)[known], rest[known]])
    weighted = parts * weight[known]
    squares = weighted @ parts.T
    of_noise = weight.sum(axis=1) @ noise
    squares -= np.diag(np.minimum(of_noise, _MOST_NOISE * np.diag(squares)))
    precision = np.array([prior.std**-2 for prior in priors])
    means = np.array([prior.mean for prior in priors])
    factors = np.linalg.solve(
        squares + np.diag(precision), weighted @ true[known] + precision * means
    )
    f, g = (
        float(np.clip(factor, 0.0, prior.most))
        for factor, prior in zip(factors, priors, strict=True)
    )
    return f, g


def _noise(std: FloatArray, leaves: IntArray, values: NDArray[np.float32]) -> FloatArray:
    """Variance over draws of the trees of the two parts of what they say, shape (n, 2).

    ``std`` is the spread over the trees of what they say of each candidate, shape (n, k).
    """
    common = average(leaves, values.mean(axis=1, keepdims=True)).std ** 2
    rest = np.maximum((std**2).mean(axis=1, keepdims=True) - common, 0.0)
    return np.asarray(np.concatenate([common, rest], axis=1) / leaves.shape[1])
