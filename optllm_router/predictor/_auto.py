"""The default predictor: chooses its caution by cross-validation, and shrinks to base rates.

How slowly should the trees believe their labels? Bold for recurring traffic, cautious for scattered
traffic, hardly at all where texts say nothing: whichever has the least squared error out of sample.
How much of what they say then holds up is learnt on the same texts, see :mod:`._calibration`.

Validation can afford few trees, and few trees are noisy. Noise in what is said looks as if less of
it held up; how much there is follows from how far the trees disagree, and is taken off.

Caution makes trees agree, and is no knowledge: uncertainty is what bold trees would say it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._base import base_rates
from optllm_router.predictor._calibration import (
    MOST_VALIDATED,
    Calibration,
    calibrated,
    uncalibrated,
)
from optllm_router.predictor._forest import Forest, average
from optllm_router.predictor._pruning import Caution

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

CAUTIONS = (
    Caution(strength=0.5, evidence=0.85),
    Caution(strength=2.0, evidence=0.5),
    Caution(strength=2.0, evidence=0.1),
)
"""Bold, for recurring traffic; cautious, for scattered traffic; and for texts that say nothing."""

_LEAST_TO_SAY_NOTHING = 200
"""With fewer graded texts errors out of sample do not tell that texts say nothing."""

_LEAST_SPREAD = 1e-9
"""Of trees that all say the same, as a variance."""

_VALIDATING_TREES = 12
"""Trees in each group of a forest that only validates."""


class Auto:
    """The forest, with caution and shrinkage chosen by cross-validation.

    Args:
        seed: of the trees and of the folds.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Auto:
        """Choose, then learn from all rows."""
        caution, self.calibration_ = self._choose(x, scores, base)
        self.base_ = base
        n_trees = 35 if len(x) > MOST_VALIDATED else 70
        forest = Forest(n_trees=n_trees, seed=self.seed)
        self.forest_ = forest.fit(x, scores, base).settle(caution)
        return self

    def predict(self, x: Features) -> Prediction:
        """What the forest says, as far as it held up; how its samples of the labels differ."""
        said = np.empty((len(x), len(self.base_)))
        std = np.empty_like(said)
        for rows, votes in self.forest_.samples(x):
            said[rows] = mean = np.add.reduce(votes, axis=1) / np.float32(votes.shape[1])
            std[rows] = self._spread(votes - mean[:, None])
        return Prediction(self.calibration_.p(said, self.base_), std)

    def _spread(self, away: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviation, (n, k), of samples that are so far from their mean, (n, s, k)."""
        n_samples, k = away.shape[1:]
        f, g = self.calibration_.doubt_difficulty, self.calibration_.doubt_difference
        common = np.add.reduce(away, axis=2, keepdims=True)
        away = np.float32(g) * away + np.float32((f - g) / k) * common
        squares = np.einsum("nsk,nsk->nk", away, away)
        return np.asarray(np.sqrt(squares / np.float32(n_samples)))

    def _choose(
        self, x: Features, scores: FloatArray, base: FloatArray
    ) -> tuple[Caution, Calibration]:
        """The caution, and what holds up under it."""
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(x))[:MOST_VALIDATED]
        if len(rows) < 2:
            return CAUTIONS[1], uncalibrated(len(rows))
        truth = scores[rows]
        said, noise, spread, expected = self._out_of_fold(x[rows], truth, base)
        errors = np.nanmean((said - truth) ** 2, axis=(1, 2))
        n_choices = len(CAUTIONS) - (len(rows) < _LEAST_TO_SAY_NOTHING)
        best = int(np.argmin(errors[:n_choices]))
        found, bold = (
            calibrated(said[i] - expected, noise[i], truth - expected) for i in (best, 0)
        )
        wider = float(np.sqrt(spread[0].mean() / max(spread[best].mean(), _LEAST_SPREAD)))
        return CAUTIONS[best], found.doubting(bold, wider)

    def _out_of_fold(
        self, x: Features, scores: FloatArray, prior: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Predictions for every row by trees that did not see it, (cautions, n, k); the variance
        of their two parts had other trees been drawn, (cautions, n, 2); that of the trees around
        them, (cautions, n, k); base rates, (n, k).
        """
        n, k = scores.shape
        n_folds = min(5 if n < 500 else 3, n)
        said = np.empty((len(CAUTIONS), n, k))
        noise = np.empty((len(CAUTIONS), n, 2))
        spread = np.empty_like(said)
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
                said[i, test], spread[i, test] = each.p, each.std**2
                noise[i, test] = _noise(each.std, leaves, values)
            expected[test] = base
        return said, noise, spread, expected

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        factors = np.array(self.calibration_)
        return {**self.forest_.arrays(), "base": self.base_, "factors": factors}

    def restore(self, arrays: Arrays) -> Auto:
        """Become the model that ``arrays`` came from."""
        self.base_ = arrays["base"]
        self.calibration_ = Calibration(*map(float, arrays["factors"]))
        self.forest_ = Forest(n_trees=0).restore(arrays)
        return self


def _noise(std: FloatArray, leaves: IntArray, values: NDArray[np.float32]) -> FloatArray:
    """Variance over draws of the trees of the two parts of what they say, shape (n, 2).

    ``std`` is the spread over the trees of what they say of each candidate, shape (n, k).
    """
    common = average(leaves, values.mean(axis=1, keepdims=True)).std ** 2
    rest = np.maximum((std**2).mean(axis=1, keepdims=True) - common, 0.0)
    return np.asarray(np.concatenate([common, rest], axis=1) / leaves.shape[1])
