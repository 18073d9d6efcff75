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
        frequency = _document_frequency(bags)
        known = _most_frequent(frequency, at_least=min(2, n))
        self.rows_ = np.zeros(N_BUCKETS, dtype=np.int32)
        self.rows_[known] = np.arange(1, len(known) + 1)
        weights = np.log((1 + n) / (1 + frequency[known])) + 1.0
        unknown = np.log(1.0 + n) + 1.0
        self.table_ = np.zeros((1 + len(known), 1), dtype=np.float32)
        self.table_[:, -1] = np.concatenate([[unknown], weights]) ** 2
        counts = self._counts(bags)
        norms = np.sqrt(counts @ self.table_[:, -1])
        scaled = sparse.diags_array(1.0 / np.maximum(norms, 1e-9)) @ counts[:, 1:]
        weighted = scaled @ sparse.diags_array(weights.astype(np.float32))
        directions = _directions(weighted.astype(np.float32), self.n_dims, self.seed)
        table = np.zeros((1 + len(known), self.n_dims + 1), dtype=np.float32)
        table[1:, : directions.shape[1]] = directions * weights[:, None]
        table[:, -1] = self.table_[:, -1]
        self.table_ = table
        return self

    def transform(self, bags: Bags) -> NDArray[np.float32]:
        """Project n bags: shape (n, n_dims), float32, norm at most about 1."""
        sums = self._counts(bags) @ self.table_
        norms = np.sqrt(np.maximum(sums[:, -1:], 1e-9))
        return np.asarray(sums[:, :-1] / norms, dtype=np.float32)

    def _counts(self, bags: Bags) -> Any:
        from scipy import sparse

        ones = np.ones(len(bags.buckets), dtype=np.float32)
        shape = (len(bags.bounds) - 1, len(self.table_))
        counts = sparse.csr_array((ones, self.rows_[bags.buckets], bags.bounds), shape=shape)
        counts.sum_duplicates()
        np.sqrt(counts.data, out=counts.data)
        return counts


def _most_frequent(frequency: FloatArray, *, at_least: int) -> IntArray:
    """The buckets to keep, at most ``_MAX_KNOWN``, in ascending order."""
    known = np.flatnonzero(frequency >= at_least)
    if len(known) > _MAX_KNOWN:
        order = np.argsort(-frequency[known], kind="stable")[:_MAX_KNOWN]
        known = np.sort(known[order])
    return known


def _document_frequency(bags: Bags) -> FloatArray:
    """In how many bags each bucket occurs."""
    lengths = np.diff(bags.bounds)
    keys = np.repeat(np.arange(len(lengths), dtype=np.int64) * N_BUCKETS, lengths) + bags.buckets
    distinct = np.unique(keys) % N_BUCKETS
    return np.bincount(distinct, minlength=N_BUCKETS).astype(np.float64)


def _directions(matrix: Any, n_dims: int, seed: int) -> FloatArray:
    """The leading right singular vectors, shape (columns, at most n_dims)."""
    from sklearn.decomposition import TruncatedSVD

    limit = min(n_dims, min(matrix.shape) - 1)
    if limit < 1:
        return np.zeros((matrix.shape[1], 0))
    svd = TruncatedSVD(limit, n_iter=3, random_state=seed).fit(matrix)
    return np.asarray(svd.components_.T, dtype=np.float64)
