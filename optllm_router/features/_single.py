"""A single text in few numpy calls: at one text, each costs more than what it does.

Bit for bit what the views and their projections say of the text among others.
"""

from __future__ import annotations

import re
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router.features._bytes import IN_WORD, LOWER, N_CLOSING
from optllm_router.features._ngrams import (
    MASKED,
    MIX,
    MODULUS,
    N_BUCKETS,
    PLACES,
    SIZES,
    ngram_hashes,
    shape,
    with_pairs,
)
from optllm_router.features._projection import LEAST_SQUARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._bytes import TextBytes
    from optllm_router.features._projection import Projection

_VIEWS = 3
_STRIDE = 1 + N_BUCKETS
_FIRST_PLACES = _STRIDE * np.arange(_VIEWS, dtype=np.int32)
_BEFORE_FIRST = (_FIRST_PLACES - 1).view(np.uint32)
_UNKNOWN = np.uint16(0xFFFF)
_MOST_TOKENS_KEPT, _MOST_BYTES_KEPT = 20_000, 32


class Counted(NamedTuple):
    """The bags of a single text, all views as one, so that they are looked up at once.

    Bucket b of the v-th view has place ``v * _STRIDE + 1 + b``. Place ``v * _STRIDE`` occurs once
    in every text: where a featurizer notes the buckets that it does not know.

    Attributes:
        places: shape (m,), int32, in ascending order.
        counts: shape (m,), float32, how often each one occurs.
        sizes: shape (views,), float32, how many n-grams each view has, the noted one included.
    """

    places: NDArray[np.int32]
    counts: NDArray[np.float32]
    sizes: NDArray[np.float32]

    @classmethod
    def of(cls, text: TextBytes) -> Counted:
        """Count what is in a single text: the bags of :mod:`._ngrams`, by a third of the calls."""
        lower, (kept, _) = text.raw.translate(LOWER), shape(text)
        n = len(lower)
        ngrams = ngram_hashes(lower + kept)
        ngrams[:, n - N_CLOSING : n] = 0
        ngrams[:, -N_CLOSING:] = 0
        ngrams[:, n:] += np.uint32(2 * _STRIDE)
        tokens = np.fromiter(map(_TOKENS.__getitem__, _TOKEN(lower)), dtype=np.uint32)
        words = with_pairs(tokens)
        words += np.uint32(_STRIDE)
        places = np.concatenate([ngrams.ravel(), words.ravel(), _BEFORE_FIRST]).view(np.int32)
        places += 1
        places.sort()
        new = np.ones(len(places) + 1, dtype=np.bool_)
        np.not_equal(places[1:], places[:-1], out=new[1:-1])
        edges = new.nonzero()[0]
        counts = (edges[1:] - edges[:-1]).astype(np.float32)
        sizes = [1 + len(SIZES) * n, 1 + words.size, 1 + len(SIZES) * len(kept)]
        return cls(places.take(edges[:-1]), counts, np.array(sizes, dtype=np.float32))


class Lookup(NamedTuple):
    """What several projections make of a single text, by one table for all of them.

    Attributes:
        rows: shape (places,), each place's row of the table.
        table: shape (rows, width), the projections' tables below each other, their last columns
            in the last one.
        firsts: shape (views,), where each one's rows begin.
        columns: where the projected text is in the flattened sums, view by view.
    """

    rows: NDArray[np.uint16]
    table: NDArray[np.float32]
    firsts: NDArray[np.uint16]
    columns: IntArray

    @classmethod
    def of(cls, projections: Sequence[Projection]) -> Lookup:
        """Join projections, one for each view."""
        heights = [len(projection.table_) for projection in projections]
        width = max(projection.table_.shape[1] for projection in projections)
        firsts = np.cumsum([0, *heights[:-1]])
        rows = np.full(_VIEWS * _STRIDE, _UNKNOWN)
        table = np.zeros((sum(heights), width), dtype=np.float32)
        columns = []
        for v, (first, projection) in enumerate(zip(firsts, projections, strict=True)):
            known = np.flatnonzero(projection.rows_)
            rows[v * _STRIDE] = first
            rows[v * _STRIDE + 1 + known] = first + projection.rows_[known]
            part = table[first : first + len(projection.table_)]
            part[:, : projection.n_dims] = projection.table_[:, :-1]
            part[:, -1] = projection.table_[:, -1]
            columns.append(v * width + np.arange(projection.n_dims))
        return cls(rows, table, firsts.astype(np.uint16), np.concatenate(columns))

    def transform(self, counted: Counted) -> NDArray[np.float32]:
        """Project a text: shape (sum of all dimensions,).

        Rows are added up in the order in which the projections' sparse products add them.
        """
        rows = self.rows.take(counted.places)
        known = (rows != _UNKNOWN).nonzero()[0]
        rows, weights = rows.take(known), counted.counts.take(known)
        firsts = rows.searchsorted(self.firsts)
        weights[firsts] = counted.sizes - np.add.reduceat(weights, firsts)  # what is not known
        np.sqrt(weights, out=weights)
        parts = self.table.take(rows, axis=0)
        parts *= weights[:, None]
        ends = [*firsts[1:].tolist(), len(parts)]
        spans = zip(firsts.tolist(), ends, strict=True)
        sums = np.array([np.add.reduce(parts[first:end], axis=0) for first, end in spans])
        sums /= np.sqrt(np.maximum(sums[:, -1:], LEAST_SQUARE))
        return sums.ravel().take(self.columns)


class _Tokens(dict[bytes, int]):
    """Hashes of tokens as ``_ngrams.words`` has them; all but those with digits are kept."""

    def __missing__(self, token: bytes) -> int:
        if token.translate(None, b"0123456789") != token:
            return int(MASKED)
        if IN_WORD.item(token[0]):
            places = cycle(PLACES.tolist())
            terms = ((code + 1) * place for code, place in zip(token, places, strict=False))
            hashed: int = sum(terms) % MODULUS
        else:
            hashed = token[0] * int(MIX) % MODULUS
        if len(token) <= _MOST_BYTES_KEPT:
            if len(self) >= _MOST_TOKENS_KEPT:
                self.clear()
            self[token] = hashed
        return hashed


_TOKEN = re.compile(rb"[a-z0-9\x80-\xff]+|[^ ]").findall
_TOKENS = _Tokens()
