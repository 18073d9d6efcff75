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
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.features._bytes import CLASS, CLASSES, EDGE, IN_WORD, LOWER, N_CLOSING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.features._bytes import TextBytes

HASH_BITS = 18
N_BUCKETS = 1 << HASH_BITS

MIX = np.uint32(0x9E3779B1)
_SHIFT = np.uint32(32 - HASH_BITS)
SIZES = (2, 3, 4)
_SURPLUS = np.array([[8 * (SIZES[-1] - size)] for size in SIZES], dtype=np.uint32)
"""Bits by which an n-gram is shorter than the longest one."""
_FACTORS = MIX * np.array([[2 * size + 1] for size in SIZES], dtype=np.uint32)
_TERMS = MIX * np.array([[size] for size in SIZES], dtype=np.uint32)
"""An n-gram g of size s has the hash ``((2 s + 1) g + s) MIX``."""
MASKED = np.uint32(0x5BD1E995)
_BLANK = ord(" ")
_IN_WORD = IN_WORD.tobytes()
_IS_DIGIT = np.equal(CLASSES, ord("0")).tobytes()
"""For ``bytes.translate``: 1 where a byte belongs to a word, or is a digit."""
_N_PLACES = 64
MODULUS = 1 << 32
PLACES = np.array([pow(0x01000193, i + 1, MODULUS) for i in range(_N_PLACES)], dtype=np.uint32)


@dataclass(frozen=True)
class Bags:
    """The bags of n texts.

    Attributes:
        buckets: shape (total,), hash buckets in ``[0, N_BUCKETS)``, repeated as they occur.
        bounds: shape (n + 1,); text i has ``buckets[bounds[i] : bounds[i + 1]]``.
    """

    buckets: NDArray[np.int32]
    bounds: IntArray


def characters(text: TextBytes) -> Bags:
    """Bags of character n-grams."""
    return _ngrams(text.raw.translate(LOWER), text.bounds)


def shapes(text: TextBytes) -> Bags:
    """Bags of shape n-grams."""
    kept, places = shape(text)
    return _ngrams(kept, places.searchsorted(text.bounds))


def words(text: TextBytes) -> Bags:
    """Bags of words and of pairs of neighbouring words."""
    codes, in_word = text.mapped(LOWER), text.mapped(_IN_WORD).view(np.bool_)
    starts = np.ones(len(codes), dtype=np.bool_)
    np.logical_and(in_word[1:], in_word[:-1], out=starts[1:])
    np.logical_not(starts[1:], out=starts[1:])
    places = starts.nonzero()[0]
    first = codes.take(places)
    hashes = np.where(in_word.take(places), _word_hashes(text, codes, starts, places), first * MIX)
    said = first != _BLANK
    tokens = hashes[said]
    return Bags(_by_text(with_pairs(tokens)), 2 * places[said].searchsorted(text.bounds))


def with_pairs(tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Buckets of tokens, and of each one with the next: shape (2, tokens)."""
    buckets = np.empty((2, len(tokens)), dtype=np.uint32)
    buckets[0] = tokens
    buckets[1] = tokens * np.uint32(31)
    buckets[1, :-1] += tokens[1:] * np.uint32(17)
    buckets *= MIX
    buckets >>= _SHIFT
    return buckets


def _word_hashes(
    text: TextBytes, codes: NDArray[np.uint8], starts: NDArray[np.bool_], places: IntArray
) -> NDArray[np.uint32]:
    """One hash for each stretch of bytes that begins at ``places``, where ``starts`` is set.

    Bytes weighted by their place in the word, summed modulo 2**32; all words with digits are one.
    """
    index = np.arange(len(codes))
    within = index - np.maximum.accumulate(index * starts)
    within &= _N_PLACES - 1
    values = PLACES.take(within)
    values *= codes + np.uint32(1)
    hashes = np.add.reduceat(values, places, dtype=np.uint32)
    hashes[np.logical_or.reduceat(text.mapped(_IS_DIGIT).view(np.bool_), places)] = MASKED
    return hashes


def shape(text: TextBytes) -> tuple[bytes, IntArray]:
    """Classes of bytes, runs of a class being one, and where each begins in the text."""
    classes = text.mapped(CLASS)
    kept = classes == EDGE
    kept[1:] |= classes[1:] != classes[:-1]
    places = kept.nonzero()[0]
    return classes.take(places).tobytes(), places


def _ngrams(raw: bytes, bounds: IntArray) -> Bags:
    hashes = ngram_hashes(raw)
    for closing in range(1, N_CLOSING + 1):
        hashes[:, bounds[1:] - closing] = 0  # these n-grams reach into the next text
    return Bags(_by_text(hashes), len(SIZES) * bounds)


def ngram_hashes(raw: bytes) -> NDArray[np.uint32]:
    """The bucket of the n-gram of each size that begins at each byte, shape (sizes, n)."""
    size = SIZES[-1]
    longest = np.ndarray(len(raw), ">u4", raw + bytes(size - 1), strides=(1,)).astype(np.uint32)
    hashes: NDArray[np.uint32] = longest >> _SURPLUS
    hashes *= _FACTORS
    hashes += _TERMS
    hashes >>= _SHIFT
    return hashes


def _by_text(hashes: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Hashes of several kinds, shape (kinds, n), byte by byte as one array."""
    return hashes.ravel("F").view(np.int32)
