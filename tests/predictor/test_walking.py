from __future__ import annotations

import numpy as np
import pytest
from noisy_targets import data

from optllm_router.predictor._trees import grow
from optllm_router.predictor._walking import Walker, walk


def test_walk_ends_in_leaves_of_the_right_tree():
    x, targets = data()
    trees = grow(x, targets, n_trees=7, seed=0)
    leaves = walk(trees, x)
    assert leaves.shape == (200, 7)
    assert (trees.child[leaves] == leaves).all()
    assert (leaves >= trees.roots).all()
    assert (leaves[:, :-1] < trees.roots[1:]).all()


def test_one_row_walks_like_many():
    x, targets = data(2_000)
    trees = grow(x, targets, n_trees=40, seed=0)
    assert trees.depth > 15  # deep enough that few paths are left near the end
    together = walk(trees, x[:100])
    alone = np.concatenate([walk(trees, row[None]) for row in x[:100]])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("n_trees", [1, 2, 7, 40])
def test_a_walker_says_of_one_query_what_is_said_of_many(n_trees):
    x, targets = data(500)
    trees = grow(x, targets, n_trees=n_trees, seed=0)
    walker, together = Walker(trees), walk(trees, x)
    np.testing.assert_array_equal(walker.leaves(x), together)
    for n in (1, 2, 8, 9):
        few = np.concatenate([walker.leaves(x[i : i + n]) for i in range(0, 500, n)])
        np.testing.assert_array_equal(few, together)


def test_a_walker_turns_at_thresholds_as_numpy_does():
    x, targets = data(400)
    trees = grow(x, targets, n_trees=20, seed=0)
    walker = Walker(trees)
    finite = trees.threshold[np.isfinite(trees.threshold)]
    for threshold in finite[:: len(finite) // 100]:
        asked = np.full((1, x.shape[1]), threshold)
        np.testing.assert_array_equal(walker.leaves(asked), walk(trees, asked))


def test_a_walker_over_trees_without_a_split():
    x = np.zeros((4, 6), dtype=np.float32)
    trees = grow(x, np.zeros((4, 2)), n_trees=3, seed=0)
    np.testing.assert_array_equal(Walker(trees).leaves(x[:1]), [[0, 1, 2]])


def test_walk_of_no_rows():
    x, targets = data()
    trees = grow(x, targets, n_trees=3, seed=0)
    assert walk(trees, x[:0]).shape == Walker(trees).leaves(x[:0]).shape == (0, 3)
