from __future__ import annotations

import numpy as np
import pytest

from optllm_router.predictor import _forest
from optllm_router.predictor._auto import CAUTIONS, Auto, _noise
from optllm_router.predictor._base import base_rates
from optllm_router.predictor._calibration import Factor, posterior
from optllm_router.predictor._forest import Forest, average, impute


def fitted(x, scores, seed=0):
    base, _ = base_rates(scores, np.full(scores.shape[1], 0.5))
    return Auto(seed=seed).fit(x, scores, base), base


def features(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 190)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_stays_near_the_base_rates_when_features_say_nothing(seed):
    rng = np.random.default_rng(seed)
    scores = (rng.random((120, 3)) < [0.3, 0.5, 0.8]).astype(float)
    model, base = fitted(features(120, seed), scores)
    p = model.predict(features(300, 100 + seed)).p
    assert np.abs(p - base).mean() < 0.05


def test_trusts_features_that_tell_candidates_apart():
    x = features(300, 0)
    right = x[:, 182] > 0
    scores = np.column_stack([right, ~right]).astype(float)
    model, _ = fitted(x, scores)
    asked = features(200, 1)
    p = model.predict(asked).p
    agrees = (p[:, 0] > p[:, 1]) == (asked[:, 182] > 0)
    assert agrees.mean() > 0.9
    assert model.calibration_.difference > 0.8


def test_learns_differences_from_bandit_labels():
    x = features(900, 0)
    right = x[:, 182] > 0
    scores = np.column_stack([right, ~right]).astype(float)
    chosen = np.random.default_rng(0).integers(2, size=900)
    scores[np.arange(2) != chosen[:, None]] = np.nan
    model, _ = fitted(x, scores)
    asked = features(200, 1)
    p = model.predict(asked).p
    assert ((p[:, 0] > p[:, 1]) == (asked[:, 182] > 0)).mean() > 0.85


def test_noise_of_few_trees_does_not_look_like_words_that_did_not_hold_up():
    rng = np.random.default_rng(0)
    true = rng.normal(scale=0.1, size=(4_000, 4))
    trees = true + rng.normal(scale=0.1, size=true.shape)
    vague = (Factor(mean=0.0, std=10.0, most=2.0),) * 2
    noise = np.tile([0.1**2 / 4, 0.1**2 * 3 / 4], (len(true), 1))
    np.testing.assert_allclose(posterior(trees, np.zeros_like(noise), true, vague), 0.5, atol=0.05)
    np.testing.assert_allclose(posterior(trees, noise, true, vague), 1.0, atol=0.1)


def test_noise_is_the_variance_over_draws_of_the_trees():
    x, asked = features(200, 0), features(100, 1)
    scores = (np.random.default_rng(0).random((200, 3)) < 0.5).astype(float)
    base, _ = base_rates(scores, np.full(3, 0.5))
    means, expected = [], []
    for seed in range(30):
        forest = Forest(n_trees=4, seed=10 * seed).fit(x, scores, base)
        leaves, values = forest.leaves(asked), forest.values(CAUTIONS[0])
        said = average(leaves, values)
        means.append(said.p)
        expected.append(_noise(said.std, leaves, values))
    common = np.mean(means, axis=2, keepdims=True)
    rest = (means - common).var(axis=0, ddof=1).mean()
    assert np.mean(expected, axis=(0, 1)) == pytest.approx(
        [common.var(axis=0, ddof=1).mean(), rest], rel=0.2
    )


def test_uncertainty_shrinks_with_labels():
    scores = (np.random.default_rng(0).random((800, 2)) < 0.5).astype(float)
    few = base_rates(scores[:20], np.full(2, 0.5))[1]
    many = base_rates(scores, np.full(2, 0.5))[1]
    assert (many < few / 3).all()


def test_a_large_forest_is_coarsened_until_it_fits(monkeypatch):
    x = features(400, 0)
    scores = (np.random.default_rng(0).random((400, 3)) < 0.5).astype(float)
    base, _ = base_rates(scores, np.full(3, 0.5))
    forest = Forest(n_trees=5).fit(x, scores, base)
    values = forest.values(CAUTIONS[0])
    monkeypatch.setattr(_forest, "_MAX_VALUE_BYTES", values.nbytes // 20)
    forest.settle(CAUTIONS[0])
    assert 0 < forest.values_.nbytes <= values.nbytes // 20
    assert ((forest.values_ >= 0) & (forest.values_ <= 1)).all()


def test_imputed_scores_carry_the_difficulty_of_the_row():
    base = np.array([0.5, 0.5, 0.5])
    scores = np.array([[0.0, 0.0, np.nan], [1.0, 1.0, np.nan], [np.nan] * 3])
    complete = impute(scores, base)
    np.testing.assert_array_equal(complete[:2, :2], scores[:2, :2])
    assert complete[0, 2] < 0.5 < complete[1, 2]
    np.testing.assert_array_equal(complete[2], base)
