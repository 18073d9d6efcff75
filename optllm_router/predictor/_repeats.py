"""What was asked before, word for word: its own labels outweigh what similar queries say.

A label of the very same text is a label of the same difficulty, whatever features make of it; what
the model said counts for one label more. Texts that differ in their numbers only are left to the
trees: taking them for repeats cost more than it gave.

Of the texts only digests are kept.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays

_STRENGTH = 1.0
"""Labels that what the model said counts for."""

_MAX_LABELLED = 50_000
"""Labelled queries that are remembered at most, the last ones."""


class Repeats:
    """The labels of each distinct text."""

    def __init__(self, n_candidates: int) -> None:
        empty = np.zeros((0, n_candidates), dtype=np.float32)
        self._remember(np.zeros(0, dtype=np.uint64), empty, empty)

    def fit(self, texts: Sequence[str], scores: FloatArray) -> Repeats:
        """Remember n texts and their scores, shape (n, k), NaN where unknown."""
        texts, scores = texts[-_MAX_LABELLED:], scores[-_MAX_LABELLED:]
        digests, place = np.unique(_digests(texts), return_inverse=True)
        known = ~np.isnan(scores)
        sums, counts = np.zeros((2, len(digests), scores.shape[1]), dtype=np.float32)
        np.add.at(sums, place, np.where(known, scores, 0.0))
        np.add.at(counts, place, known)
        self._remember(digests, sums, counts)
        return self

    def corrected(self, texts: Sequence[str], p: FloatArray) -> FloatArray:
        """Success probabilities p, shape (n, k), moved towards the labels of the same texts."""
        if not self._place:
            return p
        places = map(self._place.get, _digests(texts).tolist())
        known = {i: place for i, place in enumerate(places) if place is not None}
        if not known:
            return p
        again, place = list(known), list(known.values())
        p = p.copy()
        p[again] = (self._sums[place] + _STRENGTH * p[again]) / (self._counts[place] + _STRENGTH)
        return p

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything remembered, as arrays by name."""
        return {"digests": self._digests, "sums": self._sums, "counts": self._counts}

    @classmethod
    def restored(cls, arrays: Arrays) -> Repeats:
        """The memory that ``arrays`` came from.

        Raises:
            ValueError: its parts do not fit together.
        """
        digests, sums, counts = arrays["digests"], arrays["sums"], arrays["counts"]
        if len(digests) != len(sums) or sums.shape != counts.shape:
            raise ValueError(f"{len(digests)} texts, labels of {sums.shape} and {counts.shape}")
        repeats = cls(sums.shape[1])
        repeats._remember(digests, sums, counts)
        return repeats

    def _remember(
        self,
        digests: NDArray[np.uint64],
        sums: NDArray[np.float32],
        counts: NDArray[np.float32],
    ) -> None:
        self._digests, self._sums, self._counts = digests, sums, counts
        self._place = {digest: i for i, digest in enumerate(digests.tolist())}


def _digests(texts: Sequence[str]) -> NDArray[np.uint64]:
    """One number for each text, the same on every machine."""
    joined = b"".join(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)
