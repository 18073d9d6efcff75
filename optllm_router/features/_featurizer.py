"""Text to numbers: three projected views and the surface statistics, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router.features import _ngrams
from optllm_router.features._bytes import MAX_BYTES, encode
from optllm_router.features._projection import Projection
from optllm_router.features._surface import surface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._bytes import TextBytes
    from optllm_router.features._ngrams import Bags


class _View(NamedTuple):
    """One way to see texts: how to make bags, directions to keep, and how many are coarse."""

    bags: Callable[[TextBytes], Bags]
    n_dims: int
    n_coarse: int


_VIEWS = {
    "characters": _View(_ngrams.characters, 100, 24),
    "words": _View(_ngrams.words, 50, 12),
    "shapes": _View(_ngrams.shapes, 30, 10),
}
_CHUNK_TEXTS = 2_000
_CHUNK_BYTES = 1_000_000
"""Featurised at once, at most: bounds memory, and keeps intermediate arrays in the caches."""

_FIT_BYTES = 1_200_000
"""Bytes of text the projection is learnt from, about; more would not change it noticeably."""

N_DIRECTIONS = sum(view.n_dims for view in _VIEWS.values())
"""The first features are directions of n-grams; the others are surface statistics."""


def coarse_features(n_features: int) -> IntArray:
    """Indices of the leading directions of each view, and of all surface statistics."""
    indices, start = [], 0
    for view in _VIEWS.values():
        indices.append(np.arange(start, start + view.n_coarse))
        start += view.n_dims
    return np.concatenate([*indices, np.arange(start, n_features)])


class TextFeaturizer:
    """Hashed n-grams in three views, each projected by a learnt SVD, plus surface statistics.

    Works offline; no vocabulary to ship, any Unicode, texts of any length. The features of a
    text do not depend on the texts it is transformed with.

    Args:
        seed: of the randomised SVD and of the sample it is learnt from.

    Attributes:
        projections_: what was learnt, by the name of the view.

    Examples:
        >>> featurizer = TextFeaturizer().fit(["open port 80", "open port 443", "who was Plato?"])
        >>> x = featurizer.transform(["open port 22", "who was Kant?"])
        >>> x.shape == (2, x.shape[1]), x.dtype.name
        (True, 'float32')
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, texts: Sequence[str]) -> TextFeaturizer:
        """Learn the projections from texts; labels are not needed."""
        order = np.random.default_rng(self.seed).permutation(len(texts))
        sizes = np.cumsum([min(len(texts[i]), MAX_BYTES) for i in order])
        enough = 1 + int(np.searchsorted(sizes, _FIT_BYTES))
        encoded = encode([texts[i] for i in np.sort(order[:enough])])
        self.projections_ = {
            name: Projection(view.n_dims, self.seed).fit(view.bags(encoded))
            for name, view in _VIEWS.items()
        }
        return self

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features of n texts, shape (n, n_features_), float32, C-contiguous."""
        parts = [self._transform(encode(chunk)) for chunk in _chunks(texts)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _transform(self, text: TextBytes) -> NDArray[np.float32]:
        views = [
            self.projections_[name].transform(view.bags(text)) for name, view in _VIEWS.items()
        ]
        return np.concatenate([*views, surface(text).astype(np.float32)], axis=1)

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
            name: Projection(view.n_dims, self.seed).restore(
                arrays[f"{name}.known"], arrays[f"{name}.table"]
            )
            for name, view in _VIEWS.items()
        }
        return self


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive parts of ``texts``; a single empty one when there are none."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), MAX_BYTES)
        if i > start and (size > _CHUNK_BYTES or i - start == _CHUNK_TEXTS):
            yield texts[start:i]
            start, size = i, min(len(text), MAX_BYTES)
    yield texts[start:]
