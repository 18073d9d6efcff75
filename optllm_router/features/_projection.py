"""One view of texts as few dense numbers: TF-IDF of hashed n-grams, projected by a learnt SVD.

The projection is kept as one C-contiguous float32 table with a row per known bucket, so that
projecting a text is adding up rows of it (a strided table costs a thousand times more). Its last
column holds the squared weights, so that the same pass yields the norm of the bag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router.features._ngrams import N_BUCKETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.features._ngrams import Bags


_MAX_KNOWN = 20_000
"""Buckets that are kept at most, the most frequent: bounds the size of the table."""

_POWER_ITERATIONS = 3

LEAST_SQUARE = float(np.float32(1e-9))
"""Of the norm of a bag."""


class Projection:
    """TF-IDF and truncated SVD over hashed buckets (latent semantic analysis).

    Args:
        n_dims: dimensions to keep; fewer when the texts do not span them.
        seed: of the randomised SVD.

    Attributes:
        rows_: shape (N_BUCKETS,), int32, each bucket's row of ``table_``; 0 when it is unknown.
        table_: shape (1 + known, n_dims + 1), float32; row 0 stands for unknown buckets.
    """

    def __init__(self, n_dims: int, seed: int = 0) -> None:
        self.n_dims = n_dims
        self.seed = seed

    def fit(self, bags: Bags) -> Projection:
        """Learn weights and directions from the bags of n texts."""
        from scipy import sparse

        n = len(bags.bounds) - 1
        everything = _counts(bags.buckets, bags.bounds, N_BUCKETS)
        frequency = np.bincount(everything.indices, minlength=N_BUCKETS)
        known = _most_frequent(frequency, at_least=min(2, n))
        self.rows_ = _rows(known)
        weights = np.log((1 + n) / (1 + frequency[known])) + 1.0
        unknown = np.log(1.0 + n) + 1.0
        squares = np.concatenate([[unknown], weights]) ** 2
        counts = _counts(self.rows_[bags.buckets], bags.bounds, len(squares))
        scales = 1.0 / np.sqrt(np.maximum(counts @ squares, 1e-9))
        weighted = sparse.diags_array(scales) @ counts[:, 1:] @ sparse.diags_array(weights)
        directions = _directions(weighted.astype(np.float32), self.n_dims, self.seed)
        self.table_ = np.zeros((len(squares), self.n_dims + 1), dtype=np.float32)
        self.table_[1:, : directions.shape[1]] = directions * weights[:, None]
        self.table_[:, -1] = squares
        return self

    def transform(self, bags: Bags) -> NDArray[np.float32]:
        """Project n bags: shape (n, n_dims), float32, norm at most about 1."""
        counts = _counts(self.rows_[bags.buckets], bags.bounds, len(self.table_))
        sums = counts @ self.table_
        norms = np.sqrt(np.maximum(sums[:, -1:], LEAST_SQUARE))
        return np.asarray(sums[:, :-1] / norms, dtype=np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learnt: the known buckets in ascending order, and their rows."""
        return {"known": np.flatnonzero(self.rows_).astype(np.int32), "table": self.table_}

    def restore(self, known: NDArray[Any], table: NDArray[Any]) -> Projection:
        """Become the projection that the arrays came from."""
        self.rows_ = _rows(known)
        self.table_ = table
        return self


def _counts(columns: NDArray[np.int32], bounds: IntArray, n_columns: int) -> Any:
    """Square roots of how often each column occurs in each text: a sparse (n, n_columns).

    One sort of all texts' columns, each below those of its text: scipy's sorts text by text.
    """
    from scipy import sparse

    n, bits = len(bounds) - 1, (n_columns - 1).bit_length()
    firsts = np.arange(n + 1, dtype=np.uint64) << np.uint64(bits)
    places = firsts.astype(np.min_scalar_type(max(n, 1) << bits))
    cells = places[:-1].repeat(np.diff(bounds))
    cells += columns.astype(cells.dtype)
    cells.sort()
    new = np.ones(len(cells) + 1, dtype=np.bool_)
    np.not_equal(cells[1:], cells[:-1], out=new[1:-1])
    edges = new.nonzero()[0]
    distinct = cells.take(edges[:-1])
    counts = np.sqrt(np.diff(edges).astype(np.float32))
    indices = (distinct & cells.dtype.type((1 << bits) - 1)).astype(np.int32)
    parts = (counts, indices, distinct.searchsorted(places).astype(np.int32))
    return sparse.csr_array(parts, shape=(n, n_columns))


def _rows(known: NDArray[Any]) -> NDArray[np.int32]:
    """Each bucket's row of the table, given the known buckets in ascending order."""
    rows = np.zeros(N_BUCKETS, dtype=np.int32)
    rows[known] = np.arange(1, len(known) + 1)
    return rows


def _most_frequent(frequency: IntArray, *, at_least: int) -> IntArray:
    """The buckets to keep, at most ``_MAX_KNOWN``, in ascending order."""
    known = np.flatnonzero(frequency >= at_least)
    if len(known) > _MAX_KNOWN:
        order = np.argsort(-frequency[known], kind="stable")[:_MAX_KNOWN]
        known = np.sort(known[order])
    return known


def _directions(matrix: Any, n_dims: int, seed: int) -> FloatArray:
    """The leading right singular vectors, shape (columns, at most n_dims)."""
    from sklearn.utils.extmath import randomized_svd

    limit = min(n_dims, min(matrix.shape) - 1)
    if limit < 1:
        return np.zeros((matrix.shape[1], 0))
    _, _, directions = randomized_svd(matrix, limit, n_iter=_POWER_ITERATIONS, random_state=seed)
    return np.asarray(directions.T, dtype=np.float64)
