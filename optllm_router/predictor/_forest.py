"""A forest that suits recurring and scattered traffic alike.

Three groups of extremely randomised trees look at the same labels in different ways, and err
differently: on all features; on the coarse features only (few labels cannot tell a hundred
directions apart); and on the differences between candidates, which is what routing needs. Only
these differ by the topic as such, so only this group sees the memberships of :mod:`._topics`;
elsewhere they would crowd out the finer features that recurring traffic lives on. The leaves are
computed by :mod:`._pruning`, from the scores that are there.

How sure it is comes from the Bayesian bootstrap (Rubin, 1981): the i-th trees of the three groups
take the means of their nodes from the i-th sample of the labels, and what the samples say differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optllm_router._types import Prediction
from optllm_router.features import coarse_features
from optllm_router.predictor._pruning import Caution, node_values, resampled, tally
from optllm_router.predictor._topics import Topics
from optllm_router.predictor._trees import Trees, collapse, grow, join
from optllm_router.predictor._walking import Walker, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays, Features

_GROUPS = 3
"""Of trees, as many in each."""

_CHUNK_CELLS = 1 << 19
"""Numbers gathered from the leaves at once; keeps them in the caches."""

_TOLERANCE = 0.004
"""Success probabilities closer than this are the same, at first."""

_MAX_VALUE_BYTES = 24_000_000
"""Bytes of what the nodes say; larger forests are coarsened until they fit."""


class _Graded(NamedTuple):
    """What the labels are counted from: leaves, shape (n, trees), and scores, shape (n, k)."""

    leaves: IntArray
    scores: FloatArray


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
        self._graded = _Graded(walk(self.trees_, with_topics), scores)
        self.seen_ = tally(self.trees_, *self._graded)
        return self

    def settle(self, caution: Caution) -> Forest:
        """Fix what the leaves say, each from its sample of the labels; forget the labels."""
        values, tolerance = self.sampled_values(caution), _TOLERANCE
        self.trees_, self.values_ = collapse(self.trees_, values, tolerance)
        while self.values_.nbytes > _MAX_VALUE_BYTES:
            tolerance *= 2.0
            self.trees_, self.values_ = collapse(self.trees_, self.values_, tolerance)
        self._walker = Walker(self.trees_)
        del self.seen_, self._graded
        return self

    def values(self, caution: Caution) -> NDArray[np.float32]:
        """What each node says under ``caution``, shape (nodes, k)."""
        return node_values(self.trees_, self.seen_, self.base_, caution)

    def sampled_values(self, caution: Caution) -> NDArray[np.float32]:
        """What each node says when its tree has drawn a sample of the labels: (nodes, k)."""
        leaves, scores = self._graded
        weights = _sample_weights(len(scores), self.n_trees, self.seed)
        drawn = tally(self.trees_, leaves, scores, np.tile(weights, (1, _GROUPS)))
        sample = resampled(self.seen_, drawn)
        return node_values(self.trees_, self.seen_, self.base_, caution, sample)

    def leaves(self, x: Features) -> IntArray:
        """The leaf that each query reaches in each tree, shape (n, trees), before settling."""
        return walk(self.trees_, self.topics_.beside(x))

    def samples(self, x: Features) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """What each sample of the labels says, (rows, samples, k), for a few rows at a time."""
        leaves = self._walker.leaves(self.topics_.beside(x))
        for rows, said in _said(leaves, self.values_):
            m, n_trees, k = said.shape
            votes = np.add.reduce(said.reshape(m, _GROUPS, n_trees // _GROUPS, k), axis=1)
            votes /= np.float32(_GROUPS)
            yield rows, votes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What prediction needs, as arrays by name."""
        topics = {f"topics.{name}": array for name, array in self.topics_.arrays().items()}
        return {**self.trees_.arrays(), **topics, "values": self.values_}

    def restore(self, arrays: Arrays) -> Forest:
        """Become the forest that ``arrays`` came from."""
        self.trees_ = Trees.restored(arrays)
        if len(self.trees_.roots) % _GROUPS:
            raise ValueError(f"{len(self.trees_.roots)} trees are not {_GROUPS} equal groups")
        self.values_ = self.trees_.values_in(arrays)
        topics = {
            name.removeprefix("topics."): array
            for name, array in arrays.items()
            if name.startswith("topics.")
        }
        self.topics_ = Topics().restore(topics)
        self._walker = Walker(self.trees_)
        return self


def _sample_weights(n: int, n_samples: int, seed: int) -> FloatArray:
    """How often each sample counts each of n labelled rows, shape (n, n_samples).

    Exponential, as in the Bayesian bootstrap, and balanced: over all samples every row counts as
    often as every other, so that their mean says what all labels say.
    """
    weights = np.random.default_rng(seed).exponential(size=(n, n_samples))
    return np.asarray(weights / weights.mean(axis=1, keepdims=True))


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
