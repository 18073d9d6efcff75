"""From the roots of trees down to the leaves that queries reach.

Many queries are walked by numpy: one step moves every query down every tree by one level. For
a single query most of such a step is overhead, so it is walked by scikit-learn's compiled
code; not by its forests, which take milliseconds to begin, but by one tree that holds them all.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import IntArray
    from optllm_router.predictor._trees import Trees

_CHUNK_PATHS = 1 << 18
"""Pairs of query and tree that are walked at once; keeps the working set in the caches."""

_STEPS_BETWEEN_SIEVES = 6
"""Levels after which paths that have reached their leaf are set aside: most are short."""

_FEW_PATHS = 12
"""So many paths are sooner walked one by one than a level of all of them by numpy."""

_FEW_QUERIES = 2
"""So many are sooner walked one by one than by numpy together."""


class Walker:
    """Walks fitted trees, fast for a single query as for many; safe to share by threads.

    Above all trees there is a gate, a balanced tree that tells them apart by the number of the
    tree, an additional feature in front of the others. A query is walked once for each number.

    Args:
        trees: at least one.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._first = len(trees.roots) - 1  # as many nodes has the gate
        self._joined = _joined(trees, self._first)

    def leaves(self, x: NDArray[np.float32]) -> IntArray:
        """The leaf that each of n queries reaches in each of T trees: shape (n, T)."""
        if len(x) > _FEW_QUERIES:
            return walk(self._trees, x)
        n_trees = len(self._trees.roots)
        leaves = np.empty((len(x), n_trees), dtype=np.int64)
        asked = np.empty((n_trees, 1 + x.shape[1]), dtype=np.float32)
        asked[:, 0] = np.arange(n_trees)
        for i, row in enumerate(x):
            asked[:, 1:] = row
            np.subtract(self._joined.apply(asked), self._first, out=leaves[i])
        return leaves


def _joined(trees: Trees, first: int) -> Any:
    """All trees as one of scikit-learn's; their nodes begin at ``first``, after the gate's."""
    from sklearn.tree._tree import NODE_DTYPE, Tree

    n_nodes = first + len(trees.child)
    leaf = trees.child == np.arange(len(trees.child))
    left = np.where(leaf, -1, first + trees.child)
    nodes = np.zeros(n_nodes, dtype=NODE_DTYPE)
    nodes["left_child"][first:] = left
    nodes["right_child"][first:] = np.where(leaf, -1, left + 1)
    nodes["feature"][first:] = 1 + trees.feature
    nodes["threshold"][first:] = np.where(leaf, 0.0, trees.threshold)
    numbers = count()

    def gate(begin: int, end: int) -> int:
        """The node below which the trees from ``begin`` on, before ``end``, are told apart."""
        if end - begin == 1:
            return first + int(trees.roots[begin])
        node, middle = next(numbers), (begin + end) // 2
        nodes["threshold"][node] = middle - 0.5
        nodes["left_child"][node] = gate(begin, middle)
        nodes["right_child"][node] = gate(middle, end)
        return node

    gate(0, len(trees.roots))
    joined = Tree(2 + int(trees.feature.max()), np.ones(1, dtype=np.intp), 1)
    values = np.zeros((n_nodes, 1, 1))
    depth = trees.depth + len(trees.roots).bit_length()
    joined.__setstate__(
        {"max_depth": depth, "node_count": n_nodes, "nodes": nodes, "values": values}
    )
    return joined


def walk(trees: Trees, x: NDArray[np.float32]) -> IntArray:
    """The leaf that each of n queries reaches in each of T trees: shape (n, T)."""
    leaves = np.empty((len(x), len(trees.roots)), dtype=np.int64)
    n_rows = max(_CHUNK_PATHS // max(len(trees.roots), 1), 1)
    for start in range(0, len(x), n_rows):
        leaves[start : start + n_rows] = _walk(trees, x[start : start + n_rows])
    return leaves


def _walk(trees: Trees, x: NDArray[np.float32]) -> IntArray:
    n, n_features = x.shape
    values = np.ascontiguousarray(x).ravel()
    rows = np.repeat(np.arange(n) * n_features, len(trees.roots))
    nodes = np.tile(trees.roots, n)
    leaves = nodes.copy()
    paths = np.arange(len(nodes))
    for step in range(trees.depth):
        right = values.take(rows + trees.feature.take(nodes)) > trees.threshold.take(nodes)
        nodes = trees.child.take(nodes) + right
        if step % _STEPS_BETWEEN_SIEVES == _STEPS_BETWEEN_SIEVES - 1:
            leaves[paths] = nodes
            moving = np.flatnonzero(trees.child.take(nodes) != nodes)
            nodes, rows, paths = nodes[moving], rows[moving], paths[moving]
            if len(paths) <= _FEW_PATHS:
                few = zip(rows.tolist(), nodes.tolist(), strict=True)
                nodes = np.array([_descend(trees, values, *one) for one in few], dtype=np.int64)
                break
    leaves[paths] = nodes
    return np.asarray(leaves.reshape(n, len(trees.roots)))


def _descend(trees: Trees, values: NDArray[np.float32], row: int, node: int) -> int:
    """The leaf below a node for the query whose features begin at ``values[row]``."""
    while (left := trees.child.item(node)) != node:
        right = values.item(row + trees.feature.item(node)) > trees.threshold.item(node)
        node = left + right
    return node
