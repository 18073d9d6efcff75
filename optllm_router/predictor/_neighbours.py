"""Nearest neighbours: the scores of the most similar graded queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._scaling import Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

_CHUNK_CELLS = 1 << 22
_MAX_KEPT = 20_000


class Neighbours:
    """The mean score of the nearest graded queries, shrunk towards the base rates.

    Args:
        n_neighbours: how many queries are asked.
        strength: labels that the base rate counts for.
        seed: of the sample that is kept when there are more than 20,000 graded queries.
    """

    def __init__(self, *, n_neighbours: int = 20, strength: float = 2.0, seed: int = 0) -> None:
        self.n_neighbours = n_neighbours
        self.strength = strength
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Neighbours:
        """Keep the graded queries."""
        if len(x) > _MAX_KEPT:
            rng = np.random.default_rng(self.seed)
            kept = np.sort(rng.choice(len(x), _MAX_KEPT, replace=False))
            x, scores = x[kept], scores[kept]
        self.scaling_ = Scaling.of(x)
        self.known_ = self.scaling_.apply(x)
        self.scores_ = scores.astype(np.float32)
        self.base_ = base
        return self

    def predict(self, x: Features) -> Prediction:
        """Mean over the neighbours whose score is known; Beta standard deviation."""
        p = np.empty((len(x), self.scores_.shape[1]))
        counts = np.empty_like(p)
        step = max(_CHUNK_CELLS // len(self.known_), 1)
        for start in range(0, len(x), step):
            near = self.scores_[self._nearest(x[start : start + step])].astype(np.float64)
            n_known = self.strength + np.sum(~np.isnan(near), axis=1)
            sums = self.strength * self.base_ + np.nansum(near, axis=1)
            p[start : start + step] = sums / n_known
            counts[start : start + step] = n_known
        return Prediction(p, np.sqrt(p * (1.0 - p) / (counts + 1.0)))

    def _nearest(self, x: Features) -> IntArray:
        asked = self.scaling_.apply(x)
        distances = np.sum(self.known_**2, axis=1) - 2.0 * (asked @ self.known_.T)
        if self.n_neighbours >= len(self.known_):
            return np.tile(np.arange(len(self.known_)), (len(x), 1))
        nearest = np.argpartition(distances, self.n_neighbours, axis=1)
        return np.asarray(nearest[:, : self.n_neighbours])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        return {
            **self.scaling_._asdict(),
            "known": self.known_,
            "scores": self.scores_,
            "base": self.base_,
        }

    def restore(self, arrays: Arrays) -> Neighbours:
        """Become the model that ``arrays`` came from."""
        self.scaling_ = Scaling.restored(arrays)
        self.known_, self.scores_ = arrays["known"], arrays["scores"]
        self.base_ = arrays["base"]
        return self
