"""Clusters of similar queries, each with its own success rates.

k-means on the features, known from the routing literature to be hard to beat (Jitkrittum et al.,
2025, "Universal model routing for efficient LLM inference", arXiv 2502.08773).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._scaling import Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

_ROWS_PER_CLUSTER = 15
_MAX_CLUSTERS = 64


class Clusters:
    """Success rates per cluster, shrunk towards the base rates.

    Args:
        strength: labels that the base rate counts for in each cluster.
        seed: of k-means.
    """

    def __init__(self, *, strength: float = 4.0, seed: int = 0) -> None:
        self.strength = strength
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Clusters:
        """Find the clusters and count the scores in each."""
        self.scaling_ = Scaling.of(x)
        standard = self.scaling_.apply(x)
        distinct = len(np.unique(standard, axis=0))
        n_clusters = min(1 + len(x) // _ROWS_PER_CLUSTER, _MAX_CLUSTERS, distinct)
        self.centres_ = _centres(standard, n_clusters, self.seed)
        member = np.eye(n_clusters)[self._assign(x)]
        known = ~np.isnan(scores)
        counts = self.strength + member.T @ known
        self.rates_ = (self.strength * base + member.T @ np.where(known, scores, 0.0)) / counts
        self.std_ = np.sqrt(self.rates_ * (1.0 - self.rates_) / (counts + 1.0))
        return self

    def predict(self, x: Features) -> Prediction:
        """The rates of each query's cluster."""
        cluster = self._assign(x)
        return Prediction(self.rates_[cluster], self.std_[cluster])

    def _assign(self, x: Features) -> IntArray:
        products = self.scaling_.apply(x) @ self.centres_.T
        distances = np.sum(self.centres_**2, axis=1) - 2.0 * products
        return np.asarray(np.argmin(distances, axis=1), dtype=np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        return {
            **self.scaling_._asdict(),
            "centres": self.centres_,
            "rates": self.rates_,
            "rates_std": self.std_,
        }

    def restore(self, arrays: Arrays) -> Clusters:
        """Become the model that ``arrays`` came from."""
        self.scaling_ = Scaling.restored(arrays)
        self.centres_, self.rates_, self.std_ = (
            arrays["centres"],
            arrays["rates"],
            arrays["rates_std"],
        )
        if not len(self.centres_) == len(self.rates_) == len(self.std_):
            raise ValueError(f"{len(self.centres_)} clusters have {len(self.rates_)} rates")
        return self


def _centres(x: Features, n_clusters: int, seed: int) -> Features:
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters, n_init=3, random_state=seed).fit(x)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)
