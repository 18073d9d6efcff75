"""Surface statistics: what a text looks like, whatever it says.

Length, shares of classes of characters, punctuation, kinds of words, lines: with few labels they
tell code from prose, multiple choice from open questions, templates from sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router.features._bytes import CLASS, EDGE, IN_WORD, N_CLOSING, N_FRAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.features._bytes import TextBytes

    Flags = NDArray[np.bool_]

_COUNTED = "?.,:;!=()[]{}<>/\\_-+*\"'$%@#|&^`~"
_STRUCTURAL = "=(){}[]<>;_\\/"
_DIGIT, _LETTER, _BLANK, _BEYOND_ASCII = (ord(c) for c in "0a u")
_SHORT, _LONG = 3, 9
"""Tokens of at most, and of at least, so many bytes count as short, and as long."""


def _membership() -> NDArray[np.float32]:
    """Shape (256, m): which byte counts towards which statistic; the shares come first."""
    codes = np.arange(256)
    groups = [
        CLASS == _DIGIT,
        (codes >= ord("A")) & (codes <= ord("Z")),
        CLASS == _LETTER,
        CLASS == _BEYOND_ASCII,
        CLASS == _BLANK,
        np.isin(codes, [ord(c) for c in _STRUCTURAL]),
        codes == ord("\n"),
        *(codes == ord(c) for c in _COUNTED),
    ]
    return np.stack(groups, axis=1).astype(np.float32)


_MEMBERSHIP = _membership()
_N_SHARES = 6
_UPPER = _MEMBERSHIP[:, 1] > 0


class _Runs(NamedTuple):
    """Stretches of neighbouring bytes: where they start and end, and whose text they are in."""

    starts: IntArray
    ends: IntArray
    owners: IntArray


def surface(text: TextBytes) -> FloatArray:
    """Surface statistics of n texts, shape (n, m): shares in 0..1, lengths, logs of counts."""
    size = np.maximum(np.diff(text.bounds) - float(N_FRAME), 1.0)
    counts = _byte_counts(text)
    words = _runs(IN_WORD[text.codes], text)
    numbers = _runs(CLASS[text.codes] == _DIGIT, text)
    n_words, n_numbers = _per_text(words, text), _per_text(numbers, text)
    shares = counts[:, :_N_SHARES] / size[:, None]
    logs = np.log1p(np.column_stack([size, n_words, n_numbers, counts[:, _N_SHARES:]]))
    per_word = size / np.maximum(n_words, 1.0)
    return np.column_stack([shares, logs, per_word, _tokens(text), _lines(text), _edges(text)])


def _byte_counts(text: TextBytes) -> FloatArray:
    n = len(text.bounds) - 1
    rows = np.repeat(np.arange(n, dtype=np.int64) * 256, np.diff(text.bounds))
    histogram = np.bincount(rows + text.codes, minlength=256 * n).reshape(n, 256)
    return np.asarray(histogram.astype(np.float32) @ _MEMBERSHIP, dtype=np.float64)


def _tokens(text: TextBytes) -> FloatArray:
    """Kinds and lengths of tokens (what blanks separate): identifiers, numbers, names, ..."""
    codes = text.codes
    tokens = _runs((CLASS[codes] != _BLANK) & (codes != EDGE), text)
    lengths = (tokens.ends - tokens.starts).astype(np.float64)
    digits = _inside(CLASS[codes] == _DIGIT, tokens)
    letters = _inside(CLASS[codes] == _LETTER, tokens)
    capitals = _inside(_UPPER[codes], tokens)
    mixed = (digits > 0) & (letters > 0)
    kinds = [
        mixed,
        digits == lengths,
        (capitals == letters) & (capitals > 1),
        _UPPER[codes[tokens.starts]],
        lengths <= _SHORT,
        lengths >= _LONG,
    ]
    n_tokens = np.maximum(_per_text(tokens, text), 1.0)
    per_token = [_per_text(tokens, text, kind.astype(np.float64)) / n_tokens for kind in kinds]
    mean, spread, longest = _moments(tokens, lengths, text)
    camel = _UPPER[codes[1:]] & (CLASS[codes[:-1]] == _LETTER) & ~_UPPER[codes[:-1]]
    n_camel = _between(np.append(camel, False), text.bounds)
    n_mixed = _per_text(tokens, text, mixed.astype(np.float64))
    logs = np.log1p(np.column_stack([n_mixed, n_camel, mean, spread, longest]))
    return np.column_stack([*per_token, logs])


def _lines(text: TextBytes) -> FloatArray:
    """Lengths of lines: the first, the last, the longest, their spread."""
    lines = _runs((text.codes != ord("\n")) & (text.codes != EDGE), text)
    lengths = (lines.ends - lines.starts).astype(np.float64)
    _, spread, longest = _moments(lines, lengths, text)
    first, last = np.zeros_like(longest), np.zeros_like(longest)
    first[lines.owners[::-1]] = lengths[::-1]
    last[lines.owners] = lengths
    return np.log1p(np.column_stack([first, last, longest, spread]))


def _edges(text: TextBytes) -> FloatArray:
    """What kind of character a text begins and ends with."""
    first = text.codes[text.bounds[:-1] + 1]
    last = text.codes[text.bounds[1:] - N_CLOSING - 1]
    kinds = [
        _UPPER[first],
        CLASS[first] == _DIGIT,
        IN_WORD[last],
        CLASS[last] == _DIGIT,
        last == ord("?"),
    ]
    return np.column_stack(kinds).astype(np.float64)


def _runs(flags: Flags, text: TextBytes) -> _Runs:
    """The runs of set flags; the frames between texts must never be flagged."""
    changes = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    starts, ends = changes[::2], changes[1::2]
    owners = np.searchsorted(text.bounds, starts, side="right") - 1
    return _Runs(starts, ends, owners)


def _per_text(runs: _Runs, text: TextBytes, weights: FloatArray | None = None) -> FloatArray:
    sums = np.bincount(runs.owners, weights=weights, minlength=len(text.bounds) - 1)
    return sums.astype(np.float64)


def _moments(
    runs: _Runs, lengths: FloatArray, text: TextBytes
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, standard deviation and maximum of the runs' lengths in each text."""
    n = np.maximum(_per_text(runs, text), 1.0)
    mean = _per_text(runs, text, lengths) / n
    square = _per_text(runs, text, lengths**2) / n
    longest = np.zeros_like(mean)
    np.maximum.at(longest, runs.owners, lengths)
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0)), longest


def _inside(flags: Flags, runs: _Runs) -> FloatArray:
    """How many flags are set inside each run."""
    before = _running(flags)
    return (before[runs.ends] - before[runs.starts]).astype(np.float64)


def _between(flags: Flags, bounds: IntArray) -> FloatArray:
    """How many flags are set in each text."""
    return np.diff(_running(flags)[bounds]).astype(np.float64)


def _running(flags: Flags) -> IntArray:
    before = np.zeros(len(flags) + 1, dtype=np.int64)
    np.cumsum(flags, out=before[1:])
    return before
