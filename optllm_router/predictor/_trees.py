"""Extremely randomised trees whose leaves know their labels, flattened for fast prediction.

scikit-learn grows the trees (Geurts et al., 2006, "Extremely randomized trees"). What a leaf says
is computed here, because labels are partial: per candidate, the mean of the scores that are
there, shrunk towards the base rate. All trees are kept in a few flat arrays with siblings side by
side, so that one numpy step moves every query down every tree by one level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray

_CHUNK_PATHS = 1 << 18
"""Pairs of query and tree that are walked at once; keeps the working set in the caches."""


class Trees(NamedTuple):
    """The inner structure of T trees, node by node.

    A leaf is its own child: its threshold is infinite, so that walking on stays where it is.

    Attributes:
        roots: shape (T,), int32, where each tree begins.
        feature: shape (nodes,), int32, the feature that is compared.
        threshold: shape (nodes,), float32.
        child: shape (nodes,), int32; the left child, the right one is next to it.
        depth: steps that reach every leaf.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    child: NDArray[np.int32]
    depth: int


def grow(
    x: NDArray[np.float32], targets: FloatArray, *, n_trees: int, min_leaf: int, seed: int
) -> Trees:
    """Grow trees on complete targets, shape (n, outputs)."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(
        n_trees, min_samples_leaf=min_leaf, max_features=1 / 3, random_state=seed
    )
    forest.fit(x, targets)
    return flatten([estimator.tree_ for estimator in forest.estimators_])


def flatten(fitted: list[Any]) -> Trees:
    """Renumber scikit-learn's trees so that siblings are neighbours."""
    roots, features, thresholds, children = [], [], [], []
    offset = 0
    for tree in fitted:
        order = _breadth_first(tree.children_left, tree.children_right)
        place = np.empty(tree.node_count, dtype=np.int64)
        place[order] = np.arange(tree.node_count)
        left = tree.children_left[order]
        leaf = left < 0
        roots.append(offset)
        features.append(np.where(leaf, 0, tree.feature[order]))
        thresholds.append(np.where(leaf, np.inf, tree.threshold[order]))
        children.append(offset + np.where(leaf, np.arange(tree.node_count), place[left]))
        offset += tree.node_count
    return Trees(
        np.array(roots, dtype=np.int32),
        np.concatenate(features).astype(np.int32),
        _round_down(np.concatenate(thresholds)),
        np.concatenate(children).astype(np.int32),
        max(tree.max_depth for tree in fitted),
    )


def walk(trees: Trees, x: NDArray[np.float32]) -> NDArray[np.int32]:
    """The leaf that each of n queries reaches in each of T trees: shape (n, T)."""
    n_rows = max(_CHUNK_PATHS // len(trees.roots), 1)
    leaves = np.empty((len(x), len(trees.roots)), dtype=np.int32)
    for start in range(0, len(x), n_rows):
        leaves[start : start + n_rows] = _walk(trees, x[start : start + n_rows])
    return leaves


def _walk(trees: Trees, x: NDArray[np.float32]) -> NDArray[np.int32]:
    n, n_features = x.shape
    flat = np.ascontiguousarray(x).ravel()
    rows = np.repeat(np.arange(n, dtype=np.int32) * n_features, len(trees.roots))
    nodes = np.tile(trees.roots, n)
    for _ in range(trees.depth):
        right = flat.take(rows + trees.feature.take(nodes)) > trees.threshold.take(nodes)
        nodes = trees.child.take(nodes) + right
    return nodes.reshape(n, -1)


def _breadth_first(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Node numbers level by level, so that two siblings follow each other."""
    level = np.zeros(1, dtype=np.int64)
    levels = []
    while len(level):
        levels.append(level)
        inner = level[left[level] >= 0]
        level = np.stack([left[inner], right[inner]], axis=1).ravel()
    return np.concatenate(levels)


def _round_down(thresholds: FloatArray) -> NDArray[np.float32]:
    """Thresholds as float32 that split float32 features exactly as the float64 ones do."""
    rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded
