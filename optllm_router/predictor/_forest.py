"""A forest that suits recurring and scattered traffic alike.

Three groups of extremely randomised trees look at the same labels in different ways, and err
differently: on all features; on the coarse features only (few labels cannot tell a hundred
directions apart); and on the differences between candidates, which is what routing needs. Only
these differ by the topic as such, so only this group sees the memberships of :mod:`._topics`;
elsewhere they would crowd out the finer features that recurring traffic lives on. The leaves are
computed by :mod:`._pruning`, from the scores that are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optllm_router._types import Prediction
from optllm_router.features import coarse_features
from optllm_router.predictor._pruning import Caution, node_values, tally
from optllm_router.predictor._topics import Topics
from optllm_router.predictor._trees import Trees, collapse, grow, join
from optllm_router.predictor._walking import Walker, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

_CHUNK_CELLS = 1 << 19
"""Numbers gathered from the leaves at once; keeps them in the caches."""

_TOLERANCE = 0.004
"""Success probabilities closer than this are the same, at first."""

_MAX_VALUE_BYTES = 24_000_000
"""Bytes of what the nodes say; larger forests are coarsened until they fit."""


class Forest:
    """Extra-trees over partial labels, averaged over their prunings.

    Args:
        n_trees: trees in each of the three groups.
        seed: of the trees and of the topics.
    """

    def __init__(self, *, n_trees: int, seed: int = 0) -> None:
        self.n_trees = n_trees
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Forest:
        """Grow the trees and count which labels reach which node."""
        complete = impute(scores, base)
        differences = complete - complete.mean(axis=1, keepdims=True)
        coarse = coarse_features(x.shape[1])
        on_coarse = grow(
            np.ascontiguousarray(x[:, coarse]), complete, n_trees=self.n_trees, seed=self.seed + 1
        )
        on_coarse = on_coarse._replace(feature=coarse[on_coarse.feature])
        self.topics_ = Topics(self.seed).fit(x)
        with_topics = self.topics_.beside(x)
        self.trees_ = join(
            [
                grow(x, complete, n_trees=self.n_trees, seed=self.seed),
                on_coarse,
                grow(with_topics, differences, n_trees=self.n_trees, seed=self.seed + 2),
            ]
        )
        self.base_ = base
        self.seen_ = tally(self.trees_, walk(self.trees_, with_topics), scores)
        return self

    def settle(self, caution: Caution) -> Forest:
        """Fix what the leaves say, and forget what is not needed to say it."""
        values, tolerance = self.values(caution), _TOLERANCE
        self.trees_, self.values_ = collapse(self.trees_, values, tolerance)
        while self.values_.nbytes > _MAX_VALUE_BYTES:
            tolerance *= 2.0
            self.trees_, self.values_ = collapse(self.trees_, self.values_, tolerance)
        self._walker = Walker(self.trees_)
        del self.seen_
        return self

    def values(self, caution: Caution) -> NDArray[np.float32]:
        """What each node says under ``caution``, shape (nodes, k)."""
        return node_values(self.trees_, self.seen_, self.base_, caution)

    def leaves(self, x: Features) -> IntArray:
        """The leaf that each query reaches in each tree, shape (n, trees), before settling."""
        return walk(self.trees_, self.topics_.beside(x))

    def predict(self, x: Features) -> Prediction:
        """Mean and standard deviation over the trees."""
        return average(self._walker.leaves(self.topics_.beside(x)), self.values_)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        topics = {f"topics.{name}": array for name, array in self.topics_.arrays().items()}
        return {**self.trees_.arrays(), **topics, "values": self.values_}

    def restore(self, arrays: Arrays) -> Forest:
        """Become the forest that ``arrays`` came from."""
        self.trees_ = Trees.restored(arrays)
        self.values_ = self.trees_.values_in(arrays)
        topics = {
            name.removeprefix("topics."): array
            for name, array in arrays.items()
            if name.startswith("topics.")
        }
        self.topics_ = Topics().restore(topics)
        self._walker = Walker(self.trees_)
        return self


def average(leaves: IntArray, values: NDArray[np.float32]) -> Prediction:
    """Mean and standard deviation, over the trees, of what the leaves (n, trees) say."""
    n, n_trees = leaves.shape
    p = np.empty((n, values.shape[1]))
    std = np.empty_like(p)
    for rows, said in _said(leaves, values):
        mean = np.add.reduce(said, axis=1) / np.float32(n_trees)
        square = np.einsum("ntk,ntk->nk", said, said) / n_trees
        p[rows] = mean
        std[rows] = np.sqrt(np.maximum(square - mean**2, 0.0))
    return Prediction(p, std)


def mean(leaves: IntArray, values: NDArray[np.float32]) -> FloatArray:
    """Mean over the trees of what the leaves (n, trees) say: shape (n, k)."""
    means = np.empty((len(leaves), values.shape[1]))
    for rows, said in _said(leaves, values):
        means[rows] = np.add.reduce(said, axis=1) / np.float32(leaves.shape[1])
    return means


def _said(
    leaves: IntArray, values: NDArray[np.float32]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """What each leaf says, shape (rows, trees, k), for a few rows of ``leaves`` at a time."""
    step = max(_CHUNK_CELLS // (leaves.shape[1] * values.shape[1]), 1)
    for start in range(0, len(leaves), step):
        rows = slice(start, start + step)
        yield rows, values.take(leaves[rows], axis=0)


def impute(scores: FloatArray, base: FloatArray) -> FloatArray:
    """Fill unknown scores with the base rate, moved by how the row's known scores differ from it.

    A query on which the graded candidates did badly is probably hard for the others too. Imputed
    scores shape the trees only; what leaves say comes from known scores.
    """
    residuals = scores - base
    known = ~np.isnan(residuals)
    common = np.where(known, residuals, 0.0).sum(axis=1) / (known.sum(axis=1) + 1.0)
    return np.where(known, scores, np.clip(base + common[:, None], 0.0, 1.0))
