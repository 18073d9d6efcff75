"""Topics that are not named: how far a query belongs to each cluster of similar ones, as features.

Scattered traffic is a mixture of tasks, each with its format and its best candidate. Trees need
many splits to set a task apart, and have not the labels for it; with its memberships one will do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router.features import coarse_features
from optllm_router.predictor._scaling import Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router.predictor._base import Arrays, Features

_SIZES = (5, 10, 20)
"""Topics, coarse to fine: nobody knows how many tasks there are."""

_ROWS_PER_TOPIC = 4
_MAX_ROWS = 5_000
"""Rows that topics are found in at most; more would hardly move them."""

_SOFTNESS = 0.25
"""Share of the mean squared distance to the nearest centre that makes another e times less."""


class Topics:
    """Soft k-means at several granularities, on the coarse features.

    Args:
        seed: of k-means.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, x: Features) -> Topics:
        """Find the topics; labels are not needed."""
        if len(x) > _MAX_ROWS:
            rows = np.random.default_rng(self.seed).choice(len(x), _MAX_ROWS, replace=False)
            x = x[np.sort(rows)]
        coarse = x[:, _coarse(x.shape[1])]
        self.scaling_ = Scaling.of(coarse)
        standard = self.scaling_.apply(coarse)
        most = min(max(len(x) // _ROWS_PER_TOPIC, 1), len(np.unique(standard, axis=0)))
        self.sizes_ = np.minimum(_SIZES, most)
        found = [_centres(standard, int(size), self.seed) for size in self.sizes_]
        self.centres_ = np.concatenate([centres for centres, _ in found])
        softness = [max(_SOFTNESS * spread, 1e-6) for _, spread in found]
        self.softness_ = np.repeat(softness, self.sizes_).astype(np.float32)
        self._prepare()
        return self

    def beside(self, x: Features) -> Features:
        """Features of n queries with their memberships behind them, in 0..1."""
        near = self.scaling_.apply(x.take(_coarse(x.shape[1]), axis=1)) @ self._towards
        near -= self._away
        near -= np.maximum.reduceat(near, self._starts, axis=1).take(self._granularity, axis=1)
        np.exp(near, out=near)
        near /= np.add.reduceat(near, self._starts, axis=1).take(self._granularity, axis=1)
        return np.concatenate([x, near], axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What memberships need, as arrays by name."""
        return {
            **self.scaling_._asdict(),
            "sizes": self.sizes_,
            "centres": self.centres_,
            "softness": self.softness_,
        }

    def restore(self, arrays: Arrays) -> Topics:
        """Become the topics that ``arrays`` came from."""
        self.scaling_ = Scaling.restored(arrays)
        self.sizes_, self.centres_ = arrays["sizes"], arrays["centres"]
        self.softness_ = arrays["softness"]
        self._prepare()
        return self

    def _prepare(self) -> None:
        """What every query needs: nearness to a centre c is ``(2 c x - c c) / softness``."""
        self._towards = np.ascontiguousarray(2.0 * self.centres_.T / self.softness_)
        self._away = np.sum(self.centres_**2, axis=1) / self.softness_
        self._starts = np.cumsum(self.sizes_) - self.sizes_
        self._granularity = np.repeat(np.arange(len(self.sizes_)), self.sizes_)


_coarse = lru_cache(coarse_features)


def _centres(x: Features, size: int, seed: int) -> tuple[Features, float]:
    """Centres of k-means, and the mean squared distance to the nearest of them."""
    from sklearn.cluster import KMeans

    fitted = KMeans(size, n_init=2, random_state=seed).fit(x)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32), float(fitted.inertia_) / len(x)
