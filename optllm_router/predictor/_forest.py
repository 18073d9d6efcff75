"""Forests of extremely randomised trees over partial labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optllm_router._types import Prediction
from optllm_router.predictor._trees import Trees, grow, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Arrays, Features


class Forest:
    """Extra-trees whose leaves average the labels that are there.

    Args:
        n_trees: how many trees.
        min_leaf: rows in a leaf at least.
        strength: labels that the base rate counts for in each leaf.
        seed: of the trees.
    """

    def __init__(
        self, *, n_trees: int = 100, min_leaf: int = 2, strength: float = 0.3, seed: int = 0
    ) -> None:
        self.n_trees = n_trees
        self.min_leaf = min_leaf
        self.strength = strength
        self.seed = seed

    def fit(self, x: Features, scores: FloatArray, base: FloatArray) -> Forest:
        """Grow trees on imputed scores, then fill their leaves with the true ones."""
        self.trees_ = grow(
            x, impute(scores, base), n_trees=self.n_trees, min_leaf=self.min_leaf, seed=self.seed
        )
        self.values_ = leaf_values(walk(self.trees_, x), self.trees_, scores, base, self.strength)
        return self

    def predict(self, x: Features) -> Prediction:
        """Mean and standard deviation of what the trees say."""
        leaves = walk(self.trees_, x)
        p = np.empty((len(x), self.values_.shape[1]))
        std = np.empty_like(p)
        for j in range(p.shape[1]):
            said = np.ascontiguousarray(self.values_[:, j]).take(leaves)
            p[:, j] = said.mean(axis=1)
            std[:, j] = said.std(axis=1)
        return Prediction(np.clip(p, 0.0, 1.0), std)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything learnt, as arrays by name."""
        trees = self.trees_._replace(depth=np.array(self.trees_.depth))._asdict()
        return {**trees, "values": self.values_}

    def restore(self, arrays: Arrays) -> Forest:
        """Become the forest that ``arrays`` came from."""
        self.trees_ = Trees(
            arrays["roots"], arrays["feature"], arrays["threshold"], arrays["child"],
            int(arrays["depth"]),
        )
        self.values_ = arrays["values"]
        return self


def impute(scores: FloatArray, base: FloatArray) -> FloatArray:
    """Fill unknown scores with the base rate, moved by how the row's known scores differ from it.

    A query on which the graded candidates did badly is probably hard for the others too.
    """
    residuals = scores - base
    known = ~np.isnan(residuals)
    common = np.where(known, residuals, 0.0).sum(axis=1) / (known.sum(axis=1) + 1.0)
    return np.where(known, scores, np.clip(base + common[:, None], 0.0, 1.0))


def leaf_values(
    leaves: NDArray[np.int32],
    trees: Trees,
    scores: FloatArray,
    base: FloatArray,
    strength: float,
) -> NDArray[np.float32]:
    """What each node says: shape (nodes, k), float32; only leaves are ever asked."""
    n_nodes = len(trees.feature)
    values = np.empty((n_nodes, scores.shape[1]), dtype=np.float32)
    for j, rate in enumerate(base):
        known = np.flatnonzero(~np.isnan(scores[:, j]))
        reached = leaves[known].ravel()
        weights = np.repeat(scores[known, j] - rate, leaves.shape[1])
        sums = np.bincount(reached, weights=weights, minlength=n_nodes)
        counts = np.bincount(reached, minlength=n_nodes)
        values[:, j] = rate + sums / (counts + strength)
    return values
