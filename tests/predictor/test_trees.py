from __future__ import annotations

import numpy as np
import pytest
from noisy_targets import data
from sklearn.ensemble import ExtraTreesRegressor

from optllm_router.predictor._trees import (
    Trees,
    collapse,
    flatten,
    grow,
    join,
    leaf_outputs,
)
from optllm_router.predictor._walking import walk


def test_flattened_trees_predict_what_scikit_learn_predicts():
    x, targets = data()
    asked = np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32)
    forest = ExtraTreesRegressor(20, random_state=0).fit(x, targets)
    fitted = [estimator.tree_ for estimator in forest.estimators_]
    leaves = walk(flatten(fitted), asked)
    said = leaf_outputs(fitted)[leaves].mean(axis=1)
    np.testing.assert_allclose(said, forest.predict(asked), atol=1e-6)


def test_thresholds_split_float32_features_as_float64_ones_do():
    x, targets = data(400)
    forest = ExtraTreesRegressor(30, random_state=2).fit(x, targets)
    trees = flatten([estimator.tree_ for estimator in forest.estimators_])
    at_thresholds = np.tile(trees.threshold[np.isfinite(trees.threshold)][:500, None], (1, 6))
    expected = forest.predict(at_thresholds)
    values = leaf_outputs([estimator.tree_ for estimator in forest.estimators_])
    np.testing.assert_allclose(values[walk(trees, at_thresholds)].mean(axis=1), expected, atol=1e-6)


def test_joined_trees_walk_like_their_parts():
    x, targets = data()
    parts = [grow(x, targets, n_trees=3, seed=seed) for seed in (0, 1)]
    leaves = walk(join(parts), x)
    np.testing.assert_array_equal(leaves[:, :3], walk(parts[0], x))
    np.testing.assert_array_equal(leaves[:, 3:], walk(parts[1], x) + len(parts[0].child))


def test_levels_hold_every_inner_node_once():
    x, targets = data()
    trees = grow(x, targets, n_trees=4, seed=0)
    levels = np.concatenate(trees.levels())
    inner = np.flatnonzero(trees.child != np.arange(len(trees.child)))
    np.testing.assert_array_equal(np.sort(levels), inner)


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 2.0])
def test_collapse_changes_no_value_by_more_than_half_its_tolerance(tolerance):
    x, targets = data()
    trees = grow(x, targets, n_trees=5, seed=0)
    values = np.random.default_rng(0).random((len(trees.child), 3)).astype(np.float32)
    values = np.round(values, 1)
    smaller, kept = collapse(trees, values, tolerance)
    before, after = values[walk(trees, x)], kept[walk(smaller, x)]
    assert np.abs(before - after).max() <= tolerance / 2 + 1e-6
    assert len(smaller.child) <= len(trees.child)
    if tolerance >= 1.0:
        assert len(smaller.child) == 5


def test_arrays_round_trip():
    x, targets = data()
    trees = grow(x, targets, n_trees=4, seed=0)
    restored = Trees.restored(trees.arrays())
    np.testing.assert_array_equal(walk(restored, x), walk(trees, x))
