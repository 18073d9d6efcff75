"""Surface statistics: what a text looks like, whatever it says.

Length, shares of classes of characters, punctuation, kinds of words, lines: with few labels they
tell code from prose, multiple choice from open questions, templates from sentences.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router.features._bytes import CLASSES, EDGE, IN_WORD, N_CLOSING, N_FRAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.features._bytes import TextBytes

    Flags = NDArray[np.bool_]

_COUNTED = "?.,:;!=()[]{}<>/\\_-+*\"'$%@#|&^`~"
_STRUCTURAL = "=(){}[]<>;_\\/"
_DIGIT, _LETTER, _BLANK, _BEYOND_ASCII = (ord(c) for c in "0a u")
_SHORT, _LONG = 3, 9
"""Tokens of at most, and of at least, so many bytes count as short, and as long."""


def _membership() -> FloatArray:
    """Shape (256, m): which byte counts towards which statistic; the shares come first."""
    codes = np.arange(256)
    groups = [
        CLASSES == _DIGIT,
        (codes >= ord("A")) & (codes <= ord("Z")),
        CLASSES == _LETTER,
        CLASSES == _BEYOND_ASCII,
        CLASSES == _BLANK,
        np.isin(codes, [ord(c) for c in _STRUCTURAL]),
        codes == ord("\n"),
        *(codes == ord(c) for c in _COUNTED),
    ]
    return np.stack(groups, axis=1).astype(np.float64)


_MEMBERSHIP, _groups = np.unique(_membership(), axis=0, return_inverse=True)
_GROUP_OF_BYTE = _groups.astype(np.uint8).tobytes()
"""Bytes that count towards the same statistics are one group: shape (groups, m)."""
_N_SHARES = 6
_IS_DIGIT = CLASSES == _DIGIT
_IS_LETTER = CLASSES == _LETTER
_IS_UPPER = _membership()[:, 1] > 0
_IS_SMALL = _IS_LETTER & ~_IS_UPPER
_IN_LINE = ~np.isin(np.arange(256), [ord("\n"), EDGE])
_IN_TOKEN = (CLASSES != _BLANK) & (np.arange(256) != EDGE)
_KIND_OF_BYTE = (
    np.select([_IS_SMALL, _IS_UPPER, _IS_DIGIT, _IN_TOKEN], list(b"aA0."), _BLANK)
    .astype(np.uint8)
    .tobytes()
)
_WORD_OF_BYTE = np.where(IN_WORD, ord("w"), _BLANK).astype(np.uint8).tobytes()
_DIGIT_OF_BYTE = np.where(_IS_DIGIT, _DIGIT, _BLANK).astype(np.uint8).tobytes()
"""For ``bytes.translate``: what matters of each byte when tokens, words and numbers are told."""
_IS_LOG = np.repeat(
    [False, True, False, True, False], [_N_SHARES, 3 + _MEMBERSHIP.shape[1] - _N_SHARES, 7, 9, 5]
)
"""Which statistics are logarithms: counts and lengths."""


class _Runs(NamedTuple):
    """Stretches of neighbouring bytes.

    Attributes:
        edges: shape (2 m,), where each one starts and ends.
        lengths: shape (m,), in bytes.
        bounds: shape (n + 1,); text i has the runs ``bounds[i]`` to ``bounds[i + 1] - 1``.
    """

    edges: IntArray
    lengths: IntArray
    bounds: IntArray


def surface(text: TextBytes) -> FloatArray:
    """Surface statistics of n texts, shape (n, m): shares in 0..1, lengths, logs of counts."""
    return _of_one(text)[None] if len(text.bounds) == 2 else _of_many(text)


def _of_one(text: TextBytes) -> FloatArray:
    """The statistics of a single text, shape (m,), in Python: a hundred small numpy calls cost
    five times as much.
    """
    body = text.raw[1:-N_CLOSING]
    kinds = body.translate(_KIND_OF_BYTE)
    histogram = np.bincount(text.mapped(_GROUP_OF_BYTE), minlength=len(_MEMBERSHIP))
    counts = (histogram @ _MEMBERSHIP).tolist()
    size = max(len(body), 1)
    n_words = len(body.translate(_WORD_OF_BYTE).split())
    n_numbers = len(body.translate(_DIGIT_OF_BYTE).split())
    tokens = [_told(token) for token in kinds.split()]
    lengths, *of_kind = zip(*tokens, strict=True) if tokens else [()] * 7
    n_of_kind = [sum(kind) for kind in of_kind]
    lines = [len(line) for line in body.split(b"\n") if line] or [0]
    _, spread, longest = _moments_of_one(lines)
    statistics = [
        *(count / size for count in counts[:_N_SHARES]),
        *(size, n_words, n_numbers, *counts[_N_SHARES:]),
        size / max(n_words, 1),
        *(n / max(len(tokens), 1) for n in n_of_kind),
        *(n_of_kind[0], kinds.count(b"aA"), *_moments_of_one(lengths)),
        *(lines[0], lines[-1], longest, spread),
        *(kinds[:1] == b"A", kinds[:1] == b"0", IN_WORD.item(text.raw[-N_CLOSING - 1])),
        *(kinds[-1:] == b"0", body[-1:] == b"?"),
    ]
    array = np.array(statistics, dtype=np.float64)
    return np.log1p(array, out=array, where=_IS_LOG)


@lru_cache(maxsize=1_024)
def _told(token: bytes) -> tuple[int, ...]:
    """The length of a token, and whether it is of each kind; few patterns make most texts."""
    length, small, upper, digits = len(token), *(token.count(kind) for kind in (b"a", b"A", b"0"))
    return (
        length,
        digits > 0 and small + upper > 0,
        digits == length,
        upper > 1 and not small,
        token.startswith(b"A"),
        length <= _SHORT,
        length >= _LONG,
    )


def _moments_of_one(lengths: Sequence[int]) -> tuple[float, float, int]:
    """Mean, standard deviation and maximum; zeros of nothing."""
    n = max(len(lengths), 1)
    mean = sum(lengths) / n
    variance = sum(length * length for length in lengths) / n - mean * mean
    return mean, math.sqrt(max(variance, 0.0)), max(lengths, default=0)


def _of_many(text: TextBytes) -> FloatArray:
    size = np.maximum(np.diff(text.bounds) - float(N_FRAME), 1.0)
    counts = _byte_counts(text)
    n_words = _beginnings(IN_WORD[text.codes], text)
    n_numbers = _beginnings(_IS_DIGIT[text.codes], text)
    logs = np.log1p(np.vstack([size, n_words, n_numbers, counts[_N_SHARES:]]))
    per_word = size / np.maximum(n_words, 1.0)
    shares = counts[:_N_SHARES] / size
    parts = [shares, logs, per_word, _tokens(text), _lines(text), _edges(text)]
    return np.asarray(np.vstack(parts).T, dtype=np.float64)


def _byte_counts(text: TextBytes) -> FloatArray:
    """How many bytes belong to each group, shape (groups, n)."""
    n, n_groups = len(text.bounds) - 1, len(_MEMBERSHIP)
    rows = np.repeat(np.arange(n, dtype=np.int64) * n_groups, np.diff(text.bounds))
    groups = rows + text.mapped(_GROUP_OF_BYTE)
    histogram = np.bincount(groups, minlength=n_groups * n).reshape(n, n_groups)
    return np.asarray((histogram @ _MEMBERSHIP).T, dtype=np.float64)


def _tokens(text: TextBytes) -> FloatArray:
    """Kinds and lengths of tokens (what blanks separate): identifiers, numbers, names, ..."""
    codes = text.codes
    tokens = _runs(_IN_TOKEN[codes], text)
    digits = _inside(_IS_DIGIT[codes], tokens)
    letters = _inside(_IS_LETTER[codes], tokens)
    capitals = _inside(_IS_UPPER[codes], tokens)
    kinds = [
        (digits > 0) & (letters > 0),
        digits == tokens.lengths,
        (capitals == letters) & (capitals > 1),
        _IS_UPPER[codes[tokens.edges[::2]]],
        tokens.lengths <= _SHORT,
        tokens.lengths >= _LONG,
    ]
    of_kind = _sums(kinds, tokens)
    n_camel = _beginnings(_IS_UPPER[codes], text, after=_IS_SMALL[codes])
    logs = np.log1p(np.vstack([of_kind[0], n_camel, *_moments(tokens)]))
    shares = of_kind / np.maximum(np.diff(tokens.bounds), 1)
    return np.asarray(np.vstack([shares, logs]), dtype=np.float64)


def _lines(text: TextBytes) -> FloatArray:
    """Lengths of lines: the first, the last, the longest, their spread."""
    lines = _runs(_IN_LINE[text.codes], text)
    _, spread, longest = _moments(lines)
    ends = np.stack([lines.bounds[:-1], lines.bounds[1:] - 1])
    first, last = np.append(lines.lengths, 0)[ends] * (np.diff(lines.bounds) > 0)
    return np.asarray(np.log1p(np.vstack([first, last, longest, spread])), dtype=np.float64)


def _edges(text: TextBytes) -> FloatArray:
    """What kind of character a text begins and ends with."""
    first = text.codes[text.bounds[:-1] + 1]
    last = text.codes[text.bounds[1:] - N_CLOSING - 1]
    kinds = [_IS_UPPER[first], _IS_DIGIT[first], IN_WORD[last], _IS_DIGIT[last], last == ord("?")]
    return np.stack(kinds).astype(np.float64)


def _runs(flags: Flags, text: TextBytes) -> _Runs:
    """The runs of set flags; the frames between texts must never be flagged."""
    edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    starts = edges[::2]
    return _Runs(edges, edges[1::2] - starts, np.searchsorted(starts, text.bounds))


def _beginnings(flags: Flags, text: TextBytes, after: Flags | None = None) -> IntArray:
    """How many flags in each text follow one that is not set, or one of ``after`` that is."""
    found = flags[1:] > flags[:-1] if after is None else flags[1:] & after[:-1]
    return np.asarray(np.add.reduceat(found, text.bounds[:-1], dtype=np.int64))


def _inside(flags: Flags, runs: _Runs) -> IntArray:
    """How many flags are set inside each run."""
    return np.asarray(np.add.reduceat(flags, runs.edges, dtype=np.int64)[::2])


def _moments(runs: _Runs) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, standard deviation and maximum of the runs' lengths in each text."""
    per_text = np.diff(runs.bounds)
    sums, squares = _sums([runs.lengths, runs.lengths**2], runs)
    n = np.maximum(per_text, 1.0)
    mean = sums / n
    longest = np.maximum.reduceat(np.append(runs.lengths, 0), runs.bounds[:-1]) * (per_text > 0)
    return mean, np.sqrt(np.maximum(squares / n - mean**2, 0.0)), longest


def _sums(values: list[Any], runs: _Runs) -> IntArray:
    """Sums over the runs of each text, exactly: shape (len(values), n)."""
    before = np.zeros((len(values), len(runs.lengths) + 1), dtype=np.int64)
    np.cumsum(values, axis=1, out=before[:, 1:])
    return np.diff(before[:, runs.bounds], axis=1)
