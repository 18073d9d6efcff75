"""Extremely randomised trees, flattened.

scikit-learn grows the trees (Geurts et al., 2006, "Extremely randomized trees"); what their leaves
say is computed elsewhere, from labels that may be partial. All trees are kept in a few flat
arrays with siblings side by side, for :mod:`._walking`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._base import Arrays

_MAX_ROWS = 5_000
"""Rows that one group of trees is grown on at most."""


class Trees(NamedTuple):
    """The inner structure of T trees, node by node.

    A leaf is its own child: its threshold is infinite, so that walking on stays where it is.

    Attributes:
        roots: shape (T,), where each tree begins.
        feature: shape (nodes,), the feature that is compared.
        threshold: shape (nodes,), float32.
        child: shape (nodes,); the left child, the right one is next to it.
        depth: steps that reach every leaf.
    """

    roots: IntArray
    feature: IntArray
    threshold: NDArray[np.float32]
    child: IntArray
    depth: int

    def levels(self) -> list[IntArray]:
        """The inner nodes of all trees, level by level, from the roots down."""
        levels = []
        level = self.roots
        while len(level := level[self.child[level] != level]):
            levels.append(level)
            level = np.concatenate([self.child[level], self.child[level] + 1])
        return levels

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The trees as compact arrays by name."""
        return {
            "roots": self.roots.astype(np.int32),
            "feature": self.feature.astype(np.int16),
            "threshold": self.threshold,
            "child": self.child.astype(np.int32),
            "depth": np.array(self.depth),
        }

    @classmethod
    def restored(cls, arrays: Arrays) -> Trees:
        """The trees that ``arrays`` came from.

        Raises:
            ValueError: they are no trees. Compiled code follows them wherever they lead.
        """
        trees = cls(
            arrays["roots"].astype(np.int64),
            arrays["feature"].astype(np.int64),
            arrays["threshold"].astype(np.float32),
            arrays["child"].astype(np.int64),
            int(arrays["depth"]),
        )
        if not trees._are_sound():
            raise ValueError("its trees are none")
        return trees

    def values_in(self, arrays: Arrays) -> NDArray[np.float32]:
        """What each node says, shape (nodes, k), as it was saved beside the trees.

        Raises:
            ValueError: there is another number of nodes.
        """
        values = arrays["values"].astype(np.float32)
        if len(values) != len(self.child):
            raise ValueError(f"{len(values)} values for {len(self.child)} nodes")
        return values

    def _are_sound(self) -> bool:
        nodes = np.arange(len(self.child))
        inner = self.child[self.child != nodes]
        places = np.concatenate([self.roots, inner, inner + 1])
        return (
            len(self.roots) > 0
            and len(self.feature) == len(self.threshold) == len(nodes)
            and bool(self.feature.min() >= 0)
            and bool(np.all(self.child >= nodes))
            and np.array_equal(np.sort(places), nodes)
            and self.depth == len(self.levels())
        )


def join(parts: list[Trees]) -> Trees:
    """Several groups of trees as one."""
    offsets = np.cumsum([0, *(len(part.child) for part in parts[:-1])])
    return Trees(
        np.concatenate([p.roots + o for p, o in zip(parts, offsets, strict=True)]),
        np.concatenate([part.feature for part in parts]),
        np.concatenate([part.threshold for part in parts]),
        np.concatenate([p.child + o for p, o in zip(parts, offsets, strict=True)]),
        max(part.depth for part in parts),
    )


def grow(x: NDArray[np.float32], targets: FloatArray, *, n_trees: int, seed: int) -> Trees:
    """Grow trees to the end on complete targets, shape (n, outputs).

    More than ``_MAX_ROWS`` rows are sampled: they refine what leaves say, hardly where to split.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    if len(x) > _MAX_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), _MAX_ROWS, replace=False))
        x, targets = x[rows], targets[rows]
    forest = ExtraTreesRegressor(n_trees, max_features=1 / 4, random_state=seed)
    forest.fit(x, outputs(targets))
    return flatten([estimator.tree_ for estimator in forest.estimators_])


def outputs(targets: FloatArray) -> FloatArray:
    """Targets as scikit-learn wants them: a single output is one-dimensional."""
    return targets[:, 0] if targets.shape[1] == 1 else targets


def flatten(fitted: Sequence[Any]) -> Trees:
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
        np.array(roots, dtype=np.int64),
        np.concatenate(features).astype(np.int64),
        _round_down(np.concatenate(thresholds)),
        np.concatenate(children).astype(np.int64),
        max(tree.max_depth for tree in fitted),
    )


def collapse(
    trees: Trees, values: NDArray[np.float32], tolerance: float
) -> tuple[Trees, NDArray[np.float32]]:
    """Cut off subtrees whose leaves all say the same, up to ``tolerance``.

    Args:
        trees: the trees.
        values: shape (nodes, k), what each node says; only leaves count.
        tolerance: values within a subtree that is cut off differ by at most so much.

    Returns:
        Smaller trees and their values, each off by at most half the tolerance.
    """
    low, high = values.copy(), values.copy()
    child = trees.child.copy()
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        low[inner] = np.minimum(low[left], low[left + 1])
        high[inner] = np.maximum(high[left], high[left + 1])
        closed = inner[(high[inner] - low[inner]).max(axis=1, initial=0.0) <= tolerance]
        child[closed] = closed
    cut = trees._replace(child=child)
    levels = cut.levels()
    left = child[np.concatenate([trees.roots[:0], *levels])]
    kept = np.unique(np.concatenate([trees.roots, left, left + 1]))
    place = np.zeros(len(child), dtype=np.int64)
    place[kept] = np.arange(len(kept))
    leaf = child[kept] == kept
    smaller = Trees(
        place[trees.roots],
        np.where(leaf, 0, trees.feature[kept]),
        np.where(leaf, np.float32(np.inf), trees.threshold[kept]),
        place[child[kept]],
        len(levels),
    )
    return smaller, (low[kept] + high[kept]) / np.float32(2)


def leaf_outputs(fitted: Sequence[Any]) -> NDArray[np.float32]:
    """What scikit-learn's own leaves say, in the order of :func:`flatten`: (nodes, outputs)."""
    values = [
        tree.value[_breadth_first(tree.children_left, tree.children_right), :, 0] for tree in fitted
    ]
    return np.concatenate(values).astype(np.float32)


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
