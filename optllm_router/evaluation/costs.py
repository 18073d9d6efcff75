"""Costs of unseen queries, predicted from the labelled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["predict_costs"]


def predict_costs(train: RecordedOutcomes, queries: Sequence[str]) -> FloatArray:
    """Expected USD of sending each query to each model: a line in the query's size.

    Prompt tokens are proportional to the size of the text and completion tokens follow it
    loosely, so each model's cost is fitted as ``a + b * bytes`` by least squares, which is
    what the client's forecast converges to. Never below the cheapest call that was seen.

    Args:
        train: the labelled queries; missing costs are skipped.
        queries: n texts.

    Returns:
        Shape (n, k), USD.

    Raises:
        InvalidDataError: when a model has no labelled cost at all.
    """
    size, unseen = _sizes(train.queries), _sizes(queries)
    predicted = np.empty((len(queries), len(train.models)))
    for column, model in enumerate(train.models):
        known = ~np.isnan(train.cost[:, column])
        if not known.any():
            raise InvalidDataError(
                f"{train.name}: no labelled query has a cost_usd of {model!r}; label more "
                "queries, or evaluate with the recorded costs"
            )
        cost = train.cost[known, column]
        predicted[:, column] = np.maximum(_line(size[known], cost, unseen), cost.min())
    return predicted


def _line(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    centred = x - x.mean()
    variance = float(centred @ centred)
    slope = float(centred @ y) / variance if variance > 0 else 0.0
    return np.asarray(y.mean() + slope * (at - x.mean()), dtype=np.float64)


def _sizes(texts: Sequence[str]) -> FloatArray:
    return np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)
