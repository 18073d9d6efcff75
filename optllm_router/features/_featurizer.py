"""Text to numbers: three projected views and the surface statistics, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router.features._bytes import MAX_BYTES, encode
from optllm_router.features._projection import Projection
from optllm_router.features._single import Lookup
from optllm_router.features._texts import VIEWS, Texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._texts import Reading


class _Directions(NamedTuple):
    """How many directions of a view are kept, and how many of them are coarse."""

    kept: int
    coarse: int


_DIRECTIONS = {
    "characters": _Directions(100, 24),
    "words": _Directions(50, 12),
    "shapes": _Directions(30, 10),
}

_FIT_BYTES = 1_200_000
"""Bytes of text the projection is learnt from, about; more would not change it noticeably."""

N_DIRECTIONS = sum(directions.kept for directions in _DIRECTIONS.values())
"""The first features are directions of n-grams; the others are surface statistics."""


def coarse_features(n_features: int) -> IntArray:
    """Indices of the leading directions of each view, and of all surface statistics."""
    indices, start = [], 0
    for directions in _DIRECTIONS.values():
        indices.append(np.arange(start, start + directions.coarse))
        start += directions.kept
    return np.concatenate([*indices, np.arange(start, n_features)])


class TextFeaturizer:
    """Hashed n-grams in three views, each projected by a learnt SVD, plus surface statistics.

    Works offline; no vocabulary to ship, any Unicode, texts of any length. The features of a
    text do not depend on the texts it is transformed with.

    Args:
        seed: of the randomised SVD and of the sample it is learnt from.
        coarse: keep the leading directions of each view only, a quarter of the others' work; see
            :func:`coarse_features`.

    Attributes:
        projections_: what was learnt, by the name of the view.

    Examples:
        >>> featurizer = TextFeaturizer().fit(["open port 80", "open port 443", "who was Plato?"])
        >>> x = featurizer.transform(["open port 22", "who was Kant?"])
        >>> x.shape == (2, x.shape[1]), x.dtype.name
        (True, 'float32')
    """

    def __init__(self, seed: int = 0, *, coarse: bool = False) -> None:
        self.seed = seed
        self.coarse = coarse

    def fit(self, texts: Sequence[str]) -> TextFeaturizer:
        """Learn the projections from texts; labels are not needed."""
        order = np.random.default_rng(self.seed).permutation(len(texts))
        sizes = np.cumsum([min(len(texts[i]), MAX_BYTES) for i in order])
        enough = 1 + int(np.searchsorted(sizes, _FIT_BYTES))
        encoded = encode([texts[i] for i in np.sort(order[:enough])])
        self.projections_ = {
            name: projection.fit(VIEWS[name](encoded))
            for name, projection in self._unfitted().items()
        }
        self._lookup = Lookup.of(list(self.projections_.values()))
        return self

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features of n texts, shape (n, n_features_), float32, C-contiguous.

        Args:
            texts: any strings; as :class:`Texts` when other featurizers transform them as well.
        """
        texts = texts if isinstance(texts, Texts) else Texts(texts)
        parts = [self._transform(reading) for reading in texts.readings()]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _transform(self, reading: Reading) -> NDArray[np.float32]:
        if len(reading.surface) == 1:
            projected = self._lookup.transform(reading.counted)
            return np.concatenate([projected[None], reading.surface], axis=1)
        views = [
            projection.transform(reading.bags[name])
            for name, projection in self.projections_.items()
        ]
        return np.concatenate([*views, reading.surface], axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learnt, as arrays by name."""
        return {
            f"{name}.{part}": array
            for name, projection in self.projections_.items()
            for part, array in projection.arrays().items()
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> TextFeaturizer:
        """Become the featurizer that ``arrays`` came from; KeyError when one is missing."""
        self.projections_ = {
            name: projection.restore(arrays[f"{name}.known"], arrays[f"{name}.table"])
            for name, projection in self._unfitted().items()
        }
        self._lookup = Lookup.of(list(self.projections_.values()))
        return self

    def _unfitted(self) -> dict[str, Projection]:
        return {
            name: Projection(directions.coarse if self.coarse else directions.kept, self.seed)
            for name, directions in _DIRECTIONS.items()
        }
