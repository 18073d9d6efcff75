"""What the rooms of the predictor share: the model protocol, base rates, label checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from optllm_router._errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, Prediction

    Features = NDArray[np.float32]
    Arrays = Mapping[str, NDArray[Any]]

PRIOR_STRENGTH = 4.0
"""How many labels the prior success rate counts for."""


class Model(Protocol):
    """Learns from features what the named predictors learn from texts.

    ``base`` is shape (k,): each candidate's success rate, already shrunk towards its prior; what
    a model says where the features tell it nothing.
    """

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Model:
        """Learn from n >= 1 rows; scores are in 0..1, NaN where unknown."""
        ...

    def predict(self, x: Features) -> Prediction:
        """Predict for n rows."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learnt, as arrays by name."""
        ...

    def restore(self, arrays: Arrays) -> Model:
        """Become the model that ``arrays`` came from; raises KeyError when one is missing."""
        ...


def base_rates(scores: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each candidate's success rate and its standard deviation, shape (k,) each.

    The posterior of a Beta distribution around the prior, worth ``PRIOR_STRENGTH`` labels.
    """
    counts = PRIOR_STRENGTH + np.sum(~np.isnan(scores), axis=0)
    rates = (PRIOR_STRENGTH * prior + np.nansum(scores, axis=0)) / counts
    return rates, np.sqrt(rates * (1.0 - rates) / (counts + 1.0))


def checked_scores(scores: FloatArray, n_texts: int, n_candidates: int) -> FloatArray:
    """Scores as a float array of the right shape, or InvalidDataError."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n_texts, n_candidates):
        raise InvalidDataError(
            f"scores have shape {array.shape}, but {n_texts} texts and {n_candidates} candidates "
            f"need {(n_texts, n_candidates)}; put NaN where a pair was never graded"
        )
    bad = ~np.isnan(array) & ~((array >= 0.0) & (array <= 1.0))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise InvalidDataError(
            f"score {array[row, column]} of text {row}, candidate {column} is outside 0..1; "
            "rescale scores to 0..1, and use NaN for unknown"
        )
    return array
