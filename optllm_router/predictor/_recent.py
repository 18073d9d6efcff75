"""What was learnt since the last fit: corrections near the newest scores, at once.

A new score cannot wait for the next fit. It is kept as a residual, score minus what the model
said, and predictions move by the residuals of the same candidate: all of them a little (a
candidate may have become worse), those of similar queries a lot. Means are shrunk by counting
additional zeros, so that a single score never decides alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Features

CAPACITY = 512
"""Scores that are kept; the oldest make room. The next fit learns from all of them."""

_SAME = 1e-5
"""What differs by less is the same: it may have been computed alone, or in a batch."""

_NEARBY = 2.0
"""Zeros added to the residuals of similar queries."""

_SHARPNESS = 6.0
"""A query at squared distance d weighs ``exp(-_SHARPNESS * d)``."""


class _Summary(NamedTuple):
    """What m residuals say, whatever is asked.

    Attributes:
        overall: shape (k,), by how much each candidate does better than the model said.
        squares: shape (m,), squared norms of the features.
        sums: shape (m, 2 k), what is left over of each residual, and 1 where it is the candidate's.
    """

    overall: FloatArray
    squares: Features
    sums: FloatArray


class Recent:
    """A ring of residuals.

    Args:
        inertia: shape (k,), zeros added to each candidate's residuals.
        n_features: length of the feature vectors; 0 when there are none yet.
    """

    def __init__(self, inertia: FloatArray, n_features: int) -> None:
        self.inertia = inertia
        self.features = np.zeros((CAPACITY, n_features), dtype=np.float32)
        self.candidates = np.zeros(CAPACITY, dtype=np.int64)
        self.residuals = np.zeros(CAPACITY)
        self.n_seen = 0
        self._summary: _Summary | None = None

    def add(self, features: Features, candidate: int, residual: float) -> None:
        """Remember one residual; ``features`` has shape (n_features,)."""
        place = self.n_seen % CAPACITY
        self.features[place] = features
        self.candidates[place] = candidate
        self.residuals[place] = residual
        self.n_seen += 1
        self._summary = None

    def correct(
        self, features: Features, candidate: int, residual: float, corrected: float
    ) -> bool:
        """Put a residual in the place of one that is remembered; False when it is not."""
        n_kept = min(self.n_seen, CAPACITY)
        same = (self.candidates[:n_kept] == candidate) & (
            np.abs(self.residuals[:n_kept] - residual) < _SAME
        )
        same &= (np.abs(self.features[:n_kept] - features) < _SAME).all(axis=1)
        if not same.any():
            return False
        self.residuals[np.flatnonzero(same)[-1]] = corrected
        self._summary = None
        return True

    def shifts(self, x: Features) -> FloatArray:
        """By how much each prediction moves: shape (n, k)."""
        if self._summary is None:
            self._summary = self._summarised()
        overall, squares, sums = self._summary
        if x.shape[1] == 0 or len(squares) == 0:
            return np.tile(overall, (len(x), 1))
        k, known = len(overall), self.features[: len(squares)]
        near = _nearness(x, known, squares) @ sums
        return np.asarray(overall + near[:, :k] / (near[:, k:] + _NEARBY))

    def _summarised(self) -> _Summary:
        n_kept = min(self.n_seen, CAPACITY)
        residuals, features = self.residuals[:n_kept], self.features[:n_kept]
        chosen = np.eye(len(self.inertia))[self.candidates[:n_kept]]
        overall = (residuals @ chosen) / (chosen.sum(axis=0) + self.inertia)
        left_over = (residuals[:, None] - overall) * chosen
        return _Summary(overall, np.sum(features**2, axis=1), np.hstack([left_over, chosen]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as arrays by name."""
        n_kept = min(self.n_seen, CAPACITY)
        return {
            "inertia": self.inertia,
            "features": self.features[:n_kept],
            "candidates": self.candidates[:n_kept],
            "residuals": self.residuals[:n_kept],
            "n_seen": np.array(self.n_seen),
        }

    @classmethod
    def restored(cls, arrays: dict[str, NDArray[Any]]) -> Recent:
        """The ring that ``arrays`` came from; raises ValueError when they do not fit together."""
        recent = cls(arrays["inertia"], arrays["features"].shape[1])
        n_seen, candidates = int(arrays["n_seen"]), arrays["candidates"]
        n_kept = min(n_seen, CAPACITY)
        each = (len(arrays["features"]), len(candidates), len(arrays["residuals"]))
        if each != (n_kept,) * 3 or not np.isin(candidates, np.arange(len(recent.inertia))).all():
            raise ValueError(f"the {n_seen} newest scores are not all there")
        recent.features[:n_kept] = arrays["features"]
        recent.candidates[:n_kept] = arrays["candidates"]
        recent.residuals[:n_kept] = arrays["residuals"]
        recent.n_seen = n_seen
        return recent


def _nearness(x: Features, known: Features, squares: Features) -> FloatArray:
    """Similarity in 0..1 of n queries to m remembered ones, whose squares are known: (n, m)."""
    distances = np.sum(x**2, axis=1)[:, None] + squares
    distances -= 2.0 * (x @ known.T)
    return np.asarray(np.exp(-_SHARPNESS * np.maximum(distances, 0.0)), dtype=np.float64)
