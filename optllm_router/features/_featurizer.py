"""Text to numbers: three projected views and the surface statistics, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router.features import _ngrams
from optllm_router.features._bytes import encode
from optllm_router.features._projection import Projection
from optllm_router.features._surface import surface

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from optllm_router.features._bytes import TextBytes

_VIEWS = {
    "characters": (_ngrams.characters, 100),
    "words": (_ngrams.words, 50),
    "shapes": (_ngrams.shapes, 30),
}
_CHUNK = 2_000
"""Texts featurised at once: bounds memory, and keeps the intermediate arrays in the caches."""

_FIT_TEXTS = 20_000
"""Texts the projection is learnt from at most; more would not change it noticeably."""


class TextFeaturizer:
    """Hashed n-grams in three views, each projected by a learnt SVD, plus surface statistics.

    Works offline; no vocabulary to ship, any Unicode, texts of any length.

    Args:
        seed: of the randomised SVD and of the sample it is learnt from.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, texts: Sequence[str]) -> TextFeaturizer:
        """Learn the projections from texts; labels are not needed."""
        if len(texts) > _FIT_TEXTS:
            rng = np.random.default_rng(self.seed)
            texts = [texts[i] for i in np.sort(rng.choice(len(texts), _FIT_TEXTS, replace=False))]
        encoded = encode(texts)
        self.projections_ = {
            name: Projection(n_dims, self.seed).fit(view(encoded))
            for name, (view, n_dims) in _VIEWS.items()
        }
        return self

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features of n texts, shape (n, n_features_), float32, C-contiguous."""
        parts = [self._transform(encode(chunk)) for chunk in _chunks(texts)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _transform(self, text: TextBytes) -> NDArray[np.float32]:
        views = [self.projections_[name].transform(view(text)) for name, (view, _) in _VIEWS.items()]
        return np.concatenate([*views, surface(text).astype(np.float32)], axis=1)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, max(len(texts), 1), _CHUNK):
        yield texts[start : start + _CHUNK]
