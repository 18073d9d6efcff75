"""Costs of unseen queries, predicted from the labelled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router.features import TextFeaturizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["predict_costs"]

_TREES, _LEAF = 100, 3


def predict_costs(train: RecordedOutcomes, queries: Sequence[str], *, seed: int = 0) -> FloatArray:
    """Expected USD of sending each query to each model.

    Two steps. Prompt tokens are proportional to the size of the text, so each model's cost is
    first fitted as ``a + b * bytes`` by least squares. What that leaves over is mostly the length
    of the answer, which depends on what is asked (a letter, a proof): extremely randomised trees
    (Geurts, Ernst and Wehenkel 2006) on the features of the text predict it for all models at
    once. Never below the cheapest call that was seen.

    Args:
        train: the labelled queries; missing costs are skipped.
        queries: n texts.
        seed: of the features and the trees.

    Returns:
        Shape (n, k), USD.

    Raises:
        InvalidDataError: when a model has no labelled cost at all.
    """
    known = ~np.isnan(train.cost)
    for column, model in enumerate(train.models):
        if not known[:, column].any():
            raise InvalidDataError(
                f"{train.name}: no labelled query has a cost_usd of {model!r}; label more "
                "queries, or evaluate with the recorded costs"
            )
    seen, unseen = _sizes(train.queries), _sizes(queries)
    fitted, predicted = np.empty_like(train.cost), np.empty((len(queries), len(train.models)))
    for column in range(len(train.models)):
        rows = known[:, column]
        a, b = _line(seen[rows], train.cost[rows, column])
        fitted[:, column], predicted[:, column] = a + b * seen, a + b * unseen
    # As shares of each model's mean cost, or the dearest model would decide every split.
    scale = np.nanmean(train.cost, axis=0)
    left_over = np.where(known, train.cost - fitted, 0.0) / np.where(scale > 0, scale, 1.0)
    predicted += _from_text(train.queries, left_over, queries, seed) * scale
    least: FloatArray = np.nanmin(train.cost, axis=0)
    return np.maximum(predicted, least)


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Intercept and slope by least squares; flat when all x are equal."""
    centred = x - x.mean()
    variance = float(centred @ centred)
    slope = float(centred @ y) / variance if variance > 0 else 0.0
    return float(y.mean() - slope * x.mean()), slope


def _from_text(
    texts: Sequence[str], values: FloatArray, unseen: Sequence[str], seed: int
) -> FloatArray:
    if len(set(texts)) < 2 * _LEAF:  # too few to tell anything apart
        return np.zeros((len(unseen), values.shape[1]))
    from sklearn.ensemble import ExtraTreesRegressor  # on use: slow to import

    featurizer = TextFeaturizer(seed=seed).fit(texts)
    trees = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, random_state=seed)
    # One model is one target: scikit-learn wants that as a vector.
    trees.fit(featurizer.transform(texts), values if values.shape[1] > 1 else values[:, 0])
    predicted = trees.predict(featurizer.transform(unseen))
    return np.asarray(predicted, dtype=np.float64).reshape(len(unseen), values.shape[1])


def _sizes(texts: Sequence[str]) -> FloatArray:
    return np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)
