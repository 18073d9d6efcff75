"""Three views of a text, each a bag of hashed n-grams.

characters: 2- to 4-grams of lower-case bytes; wording and recurring fragments.
words: words, punctuation and pairs of these, words with digits masked; topic and template.
shapes: 2- to 4-grams of byte classes with runs collapsed (``10.0.0.1:80`` is ``0.0.0.0:0``);
    the format of recurring traffic, whatever its values.

Hashing needs no vocabulary and no pass over the data, and costs a few vectorised operations per
byte (Weinberger et al., 2009, "Feature hashing for large scale multitask learning").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.features._bytes import CLASS, EDGE, IN_WORD, LOWER, N_CLOSING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._bytes import TextBytes

HASH_BITS = 18
N_BUCKETS = 1 << HASH_BITS

_MIX = np.uint32(0x9E3779B1)
_SHIFT = np.uint32(32 - HASH_BITS)
_SIZES = (2, 3, 4)
_FACTORS = _MIX * np.array([2 * size + 1 for size in _SIZES], dtype=np.uint32)
_TERMS = _MIX * np.array(_SIZES, dtype=np.uint32)
"""An n-gram g of size s has the hash ``((2 s + 1) g + s) _MIX``."""
_MASKED = np.uint32(0x5BD1E995)
_BLANK = ord(" ")
_DIGIT = ord("0")
_N_PLACES = 64
_PLACES = np.array([pow(0x01000193, i + 1, 1 << 32) for i in range(_N_PLACES)], dtype=np.uint32)


@dataclass(frozen=True)
class Bags:
    """The bags of n texts.

    Attributes:
        buckets: shape (total,), hash buckets in ``[0, N_BUCKETS)``, repeated as they occur.
        bounds: shape (n + 1,); text i has ``buckets[bounds[i] : bounds[i + 1]]``.
    """

    buckets: NDArray[np.int32]
    bounds: IntArray

    @cached_property
    def counted(self) -> tuple[NDArray[np.int32], IntArray]:
        """The buckets of a single text in ascending order, and how often each one occurs."""
        ordered = np.sort(self.buckets)
        new = np.ones(len(ordered) + 1, dtype=bool)
        np.not_equal(ordered[1:], ordered[:-1], out=new[1:-1])
        edges = new.nonzero()[0]
        return ordered.take(edges[:-1]), edges[1:] - edges[:-1]


def characters(text: TextBytes) -> Bags:
    """Bags of character n-grams."""
    return _ngrams(LOWER[text.codes], text.bounds)


def shapes(text: TextBytes) -> Bags:
    """Bags of shape n-grams."""
    classes = CLASS[text.codes]
    changes = np.ones(len(classes), dtype=bool)
    np.not_equal(classes[1:], classes[:-1], out=changes[1:])
    changes |= text.codes == EDGE
    return _ngrams(classes[changes], _running(changes)[text.bounds])


def words(text: TextBytes) -> Bags:
    """Bags of words and of pairs of neighbouring words."""
    codes = LOWER[text.codes]
    in_word = IN_WORD[codes]
    first = in_word.copy()
    first[1:] &= ~in_word[:-1]
    single = ~in_word & (codes != _BLANK)
    hashes = _MIX * codes
    hashes[first] = _word_hashes(codes, in_word, first)
    starts = first | single
    tokens = hashes[starts]
    pairs = tokens * np.uint32(31)
    pairs[:-1] += tokens[1:] * np.uint32(17)
    buckets = np.stack([_bucket(tokens), _bucket(pairs)], axis=1).ravel()
    return Bags(buckets, 2 * _running(starts)[text.bounds])


def _word_hashes(
    codes: NDArray[np.uint8], in_word: NDArray[np.bool_], first: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    """One hash per word: bytes weighted by their place in the word, summed modulo 2**32."""
    starts = np.flatnonzero(first)
    last = in_word.copy()
    last[:-1] &= ~in_word[1:]
    ends = np.flatnonzero(last) + 1
    lengths = ends - starts
    inside = np.flatnonzero(in_word)
    place = inside - np.repeat(starts, lengths)
    letters = codes[inside]
    values = (letters + np.uint32(1)) * _PLACES[place % _N_PLACES]
    offsets = np.cumsum(lengths) - lengths
    if len(starts) == 0:
        return np.zeros(0, dtype=np.uint32)
    hashes = np.add.reduceat(values, offsets, dtype=np.uint32)
    masked = np.logical_or.reduceat(CLASS[letters] == _DIGIT, offsets)
    return np.where(masked, _MASKED, hashes)


def _ngrams(codes: NDArray[np.uint8], bounds: IntArray) -> Bags:
    n = len(codes)
    wide = np.zeros(n + 3, dtype=np.uint32)
    wide[:n] = codes
    hashes = np.empty((n, len(_SIZES)), dtype=np.uint32)
    gram = wide[:n]
    for column, size in enumerate(_SIZES):
        gram = (gram << np.uint32(8)) | wide[size - 1 : size - 1 + n]
        hashes[:, column] = gram
    hashes *= _FACTORS
    hashes += _TERMS
    hashes >>= _SHIFT
    for closing in range(1, N_CLOSING + 1):
        hashes[bounds[1:] - closing] = 0  # these n-grams reach into the next text
    return Bags(hashes.view(np.int32).ravel(), 3 * bounds)


def _bucket(hashes: NDArray[np.uint32]) -> NDArray[np.int32]:
    return np.asarray((hashes * _MIX) >> _SHIFT, dtype=np.int32)


def _running(flags: NDArray[np.bool_]) -> IntArray:
    """How many flags are set before each position, and in all: shape (len(flags) + 1,)."""
    counts = np.zeros(len(flags) + 1, dtype=np.int64)
    np.cumsum(flags, out=counts[1:])
    return counts
