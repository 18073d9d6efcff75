"""Surface statistics: what a text looks like, whatever it says.

Length, share of each class of characters, punctuation, lines and words: with few labels they
tell code from prose, multiple choice from open questions, templates from sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router.features._bytes import CLASS, IN_WORD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.features._bytes import TextBytes

_COUNTED = "?.,:;!=()[]{}<>/\\_-+*\"'$%@#|&^`~"
_SHARED = "=(){}[]<>;_\\/"


def _membership() -> FloatArray:
    """Shape (256, m): which byte counts towards which statistic."""
    codes = np.arange(256)
    groups = [
        ord("0") == CLASS,
        (codes >= ord("A")) & (codes <= ord("Z")),
        ord("a") == CLASS,
        ord("u") == CLASS,
        ord(" ") == CLASS,
        np.isin(codes, [ord(c) for c in _SHARED]),
        codes == ord("\n"),
        *(codes == ord(c) for c in _COUNTED),
    ]
    return np.stack(groups, axis=1).astype(np.float64)


_MEMBERSHIP = _membership()
_N_SHARES = 6
N_SURFACE = 3 + _MEMBERSHIP.shape[1] + 1


def surface(text: TextBytes) -> FloatArray:
    """Surface statistics of n texts, shape (n, N_SURFACE): shares in 0..1, logs of counts."""
    n = len(text.bounds) - 1
    lengths = np.diff(text.bounds)
    rows = np.repeat(np.arange(n, dtype=np.int64) * 256, lengths)
    histogram = np.bincount(rows + text.codes, minlength=256 * n).reshape(n, 256)
    counts = histogram @ _MEMBERSHIP
    size = np.maximum(lengths - 2.0, 1.0)
    n_words = _run_starts(IN_WORD[text.codes], text)
    n_numbers = _run_starts(CLASS[text.codes] == ord("0"), text)
    shares = counts[:, :_N_SHARES] / size[:, None]
    logs = np.log1p(np.column_stack([size, n_words, n_numbers, counts[:, _N_SHARES:]]))
    return np.column_stack([shares, logs, size / np.maximum(n_words, 1.0)])


def _run_starts(flags: NDArray[np.bool_], text: TextBytes) -> FloatArray:
    """How many runs of set flags each text has; the edges of texts are never flagged."""
    starts = flags.copy()
    starts[1:] &= ~flags[:-1]
    before = np.zeros(len(flags) + 1, dtype=np.int64)
    np.cumsum(starts, out=before[1:])
    return np.diff(before[text.bounds]).astype(np.float64)
