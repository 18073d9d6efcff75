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

_FEW_QUERIES = 8
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
        self._last_feature = int(trees.feature.max())
        order = _downwards(trees)
        n_gate = len(trees.roots) - 1
        self._joined = _joined(trees, order, n_gate)
        self._numbers = np.arange(len(trees.roots), dtype=np.float32)
        self._node = np.concatenate([np.zeros(n_gate, dtype=np.int32), order])

    def leaves(self, x: NDArray[np.float32]) -> IntArray:
        """The leaf that each of n queries reaches in each of T trees: shape (n, T).

        Raises:
            ValueError: the trees compare features that ``x`` does not have.
        """
        if x.shape[1] <= self._last_feature:
            raise ValueError(f"no feature {self._last_feature} among {x.shape[1]}")
        if len(x) > _FEW_QUERIES:
            return walk(self._trees, x)
        n_trees = len(self._trees.roots)
        leaves = np.empty((len(x), n_trees), dtype=np.int64)
        asked = np.empty((n_trees, 1 + x.shape[1]), dtype=np.float32)
        asked[:, 0] = self._numbers
        for i, row in enumerate(x):
            asked[:, 1:] = row
            leaves[i] = self._node.take(self._joined.apply(asked))
        return leaves


def _downwards(trees: Trees) -> NDArray[np.int32]:
    """All nodes, each followed by the child with more below it: where most paths go on.

    What is read next is then mostly next to it in memory; walks are a third faster.
    """
    sizes = np.ones(len(trees.child), dtype=np.int64)
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        sizes[inner] += sizes[left] + sizes[left + 1]
    place = np.zeros(len(sizes), dtype=np.int64)
    place[trees.roots] = np.cumsum(sizes[trees.roots]) - sizes[trees.roots]
    for inner in trees.levels():
        left = trees.child[inner]
        small = left + (sizes[left + 1] < sizes[left])
        large = 2 * left + 1 - small
        place[large] = place[inner] + 1
        place[small] = place[large] + sizes[large]
    order = np.zeros(len(place), dtype=np.int32)
    order[place] = np.arange(len(place))
    return order


def _joined(trees: Trees, order: NDArray[np.int32], n_gate: int) -> Any:
    """All trees as one of scikit-learn's; their nodes come after the gate's, in this order."""
    from sklearn.tree._tree import NODE_DTYPE, Tree

    number = np.empty(len(order), dtype=np.int64)
    number[order] = n_gate + np.arange(len(order))
    child = trees.child[order]
    leaf = child == order
    nodes = np.zeros(n_gate + len(order), dtype=NODE_DTYPE)
    nodes["left_child"][n_gate:] = np.where(leaf, -1, number[child])
    nodes["right_child"][n_gate:] = np.where(leaf, -1, number[child + ~leaf])
    nodes["feature"][n_gate:] = 1 + trees.feature[order]
    nodes["threshold"][n_gate:] = np.where(leaf, 0.0, trees.threshold[order])
    numbers = count()

    def gate(begin: int, end: int) -> int:
        """The node below which the trees from ``begin`` on, before ``end``, are told apart."""
        if end - begin == 1:
            return int(number[trees.roots[begin]])
        node, middle = next(numbers), (begin + end) // 2
        nodes["threshold"][node] = middle - 0.5
        nodes["left_child"][node] = gate(begin, middle)
        nodes["right_child"][node] = gate(middle, end)
        return node

    gate(0, len(trees.roots))
    joined = Tree(2 + int(trees.feature.max()), np.ones(1, dtype=np.intp), 1)
    depth = trees.depth + len(trees.roots).bit_length()
    values = np.zeros((len(nodes), 1, 1))
    joined.__setstate__(
        {"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values}
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
