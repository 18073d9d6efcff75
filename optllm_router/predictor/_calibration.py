"""How much of what a model says holds up, learnt out of sample; the same for every model.

Two questions are answered from texts that the model had not learnt:

1. How much of what it says about a query's difficulty holds up? A factor for the mean over the
   candidates.
2. How much of what it says about differences between candidates holds up? A factor for the
   rest. It is what routing acts on, so it starts from a sceptical prior: with too few labels to
   tell, the prediction stays near the base rates and cannot do harm.

Uncertainty is asked the other way round: not what has been shown to hold up, but what may. Its two
factors start from a prior that believes the texts, and only labels lower them. So a prediction
that was shrunk for want of labels is not taken for a sure one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._base import base_rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays, Features, Model

_LABEL_VARIANCE = 0.2

_MOST_NOISE = 0.75
"""Share of the squares of what was said that is taken for noise at most."""


class Factor(NamedTuple):
    """Prior of a factor: mean and standard deviation, and the most it may become."""

    mean: float
    std: float
    most: float


_DIFFICULTY = Factor(mean=0.8, std=0.4, most=1.3)

_DOUBT = Factor(mean=1.0, std=0.4, most=1.0)
"""Of both factors, where it is asked what may be."""


def _difference(n: float) -> Factor:
    """Prior of the factor for differences after n fully graded queries: sceptical when few."""
    return Factor(mean=0.9 * n / (n + 60.0), std=0.25, most=1.0)


class Calibration(NamedTuple):
    """What holds up of what a model says, and what may.

    Attributes:
        difficulty: factor for what it says of all candidates alike.
        difference: factor for what it says of one against the others.
        doubt_difficulty: the first as it may be, for the uncertainty.
        doubt_difference: the second as it may be.
    """

    difficulty: float
    difference: float
    doubt_difficulty: float
    doubt_difference: float

    def p(self, said: FloatArray, base: FloatArray) -> FloatArray:
        """Success probabilities in 0..1 from what was said and the base rates, (n, k)."""
        common, rest = split(said - base)
        p = base + self.difficulty * common + self.difference * rest
        return np.asarray(np.minimum(np.maximum(p, 0.0), 1.0))

    def doubting(self, other: Calibration, wider: float) -> Calibration:
        """The same with the doubts of another, whose spread is so many times wider."""
        return self._replace(
            doubt_difficulty=wider * other.doubt_difficulty,
            doubt_difference=wider * other.doubt_difference,
        )

    @property
    def doubt(self) -> float:
        """The larger of the two factors for the uncertainty."""
        return max(self.doubt_difficulty, self.doubt_difference)


def calibrated(said: FloatArray, noise: FloatArray, true: FloatArray) -> Calibration:
    """The calibration that labels call for.

    Args:
        said: shape (n, k), out of sample, as deviations from the base rates.
        noise: shape (n, 2), variance of its mean over the candidates, and of the rest, that comes
            from the model's own chance and not from the labels.
        true: shape (n, k), scores as deviations from the base rates, NaN where unknown.
    """
    n_complete = float(np.sum(~np.isnan(true)) / true.shape[1])
    believed = posterior(said, noise, true, (_DIFFICULTY, _difference(n_complete)))
    possible = posterior(said, noise, true, (_DOUBT, _DOUBT))
    return Calibration(*believed, *possible)


def uncalibrated(n: float) -> Calibration:
    """What is taken to hold up before it can be tried, with n graded queries."""
    return Calibration(_DIFFICULTY.mean, _difference(n).mean, _DOUBT.mean, _DOUBT.mean)


def split(deviations: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each row's mean over the candidates, shape (n, 1), and what differs from it, (n, k)."""
    common = np.add.reduce(deviations, axis=1, keepdims=True) / deviations.shape[1]
    return common, deviations - common


def posterior(
    said: FloatArray, noise: FloatArray, true: FloatArray, priors: tuple[Factor, Factor]
) -> tuple[float, float]:
    """Posterior means of f and g in ``true = f * common + g * rest + error``.

    ``common`` and ``rest`` are the two parts of what was ``said``, shape (n, k), after the variance
    ``noise`` of each, (n, 2), is taken off; ``true`` is NaN where unknown. A row's candidates err
    together: k of them witness like the square root of k.
    """
    known = ~np.isnan(true)
    weight = known / (_LABEL_VARIANCE * np.sqrt(np.maximum(known.sum(axis=1, keepdims=True), 1)))
    common, rest = split(said)
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


_FOLDS = 5
MOST_VALIDATED = 1_500
"""Rows used for cross-validation at most: beyond, its answers no longer change."""


class Calibrated:
    """A model that is shrunk to what holds up of it, and as unsure as what may.

    What the model says differs from text to text by so much; what it does not see may differ by as
    much again. Its own standard deviation is hence joined by that, times the factor that labels
    leave possible.

    Args:
        make: makes the model, as it is before it learnt anything.
        seed: of the folds.
    """

    def __init__(self, make: Callable[[], Model], seed: int = 0) -> None:
        self.make = make
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Calibrated:
        """Try the model on texts that it did not learn, then let it learn from all."""
        rows = np.random.default_rng(self.seed).permutation(len(x))[:MOST_VALIDATED]
        self.base_ = base
        self.calibration_, self.unseen_ = uncalibrated(len(rows)), np.zeros(len(base))
        if len(rows) > 1:
            said, expected = self._out_of_fold(x[rows], scores[rows], base)
            noise = np.zeros((len(rows), 2))
            self.calibration_ = calibrated(said - expected, noise, scores[rows] - expected)
            self.unseen_ = np.sqrt(np.mean((said - expected) ** 2, axis=0))
        self.model_ = self.make().fit(x, scores, base)
        return self

    def predict(self, x: Features) -> Prediction:
        """What the model says, as far as it held up."""
        said = self.model_.predict(x)
        std = self.calibration_.doubt * np.hypot(said.std, self.unseen_)
        return Prediction(self.calibration_.p(said.p, self.base_), std)

    def _out_of_fold(
        self, x: Features, scores: FloatArray, prior: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """What models that did not learn a row say of it, and its base rates: (n, k) each."""
        said, expected = np.empty_like(scores), np.empty_like(scores)
        for fold in range(min(_FOLDS, len(x))):
            test = np.arange(len(x)) % min(_FOLDS, len(x)) == fold
            base, _ = base_rates(scores[~test], prior)
            said[test] = self.make().fit(x[~test], scores[~test], base).predict(x[test]).p
            expected[test] = base
        return said, expected

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        return {
            **self.model_.arrays(),
            "calibration.base": self.base_,
            "calibration.factors": np.array(self.calibration_),
            "calibration.unseen": self.unseen_,
        }

    def restore(self, arrays: Arrays) -> Calibrated:
        """Become the model that ``arrays`` came from."""
        self.base_, self.unseen_ = arrays["calibration.base"], arrays["calibration.unseen"]
        self.calibration_ = Calibration(*map(float, arrays["calibration.factors"]))
        self.model_ = self.make().restore(arrays)
        return self
