from __future__ import annotations

import numpy as np
import pytest

from optllm_router.predictor._auto import CAUTIONS
from optllm_router.predictor._base import base_rates
from optllm_router.predictor._forest import Forest
from optllm_router.predictor._topics import Topics
from optllm_router.predictor._trees import Trees

N_FEATURES = 200


def kinds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of queries of four kinds, none of which a single feature tells from the rest."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(4, size=n)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, N_FEATURES))
    x = 0.5 * signs[kind] + rng.normal(size=(n, N_FEATURES))
    return x.astype(np.float32), kind


def memberships(topics: Topics, x: np.ndarray) -> np.ndarray:
    return topics.beside(x)[:, x.shape[1] :]


def test_memberships_are_shares_at_each_granularity():
    x, _ = kinds(300, 0)
    topics = Topics().fit(x)
    shares = memberships(topics, kinds(50, 1)[0])
    assert topics.sizes_.tolist() == [5, 10, 20]
    assert shares.shape == (50, 35)
    assert shares.dtype == np.float32
    assert (shares >= 0).all()
    for granularity in np.split(shares, [5, 15], axis=1):
        np.testing.assert_allclose(granularity.sum(axis=1), 1.0, atol=1e-5)


def test_features_stand_in_front_as_they_were():
    x, _ = kinds(60, 0)
    np.testing.assert_array_equal(Topics().fit(x).beside(x)[:, :N_FEATURES], x)


def test_queries_of_one_kind_share_their_topics():
    topics = Topics().fit(kinds(400, 0)[0])
    asked, kind = kinds(200, 1)
    shares = memberships(topics, asked)[:, :5]
    alike = (shares @ shares.T).ravel()
    same = (kind[:, None] == kind).ravel()
    assert alike[same].mean() > 2 * alike[~same].mean()


def test_one_query_belongs_where_it_belongs_among_many():
    x, _ = kinds(300, 0)
    topics = Topics().fit(x)
    alone = np.concatenate([topics.beside(row[None]) for row in x[:40]])
    np.testing.assert_allclose(alone, topics.beside(x[:40]), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_few_queries_or_all_alike(n):
    x, _ = kinds(n, 0)
    for known in (x, np.repeat(x[:1], n, axis=0)):
        topics = Topics().fit(known)
        shares = memberships(topics, kinds(10, 1)[0])
        assert np.isfinite(shares).all()
        np.testing.assert_allclose(shares.sum(axis=1), 3.0, atol=1e-5)
        assert topics.beside(x[:0]).shape == (0, N_FEATURES + topics.sizes_.sum())


def test_a_seed_repeats_every_number_and_so_does_a_copy():
    x, _ = kinds(100, 0)
    first, second = Topics(3).fit(x), Topics(3).fit(x)
    np.testing.assert_array_equal(first.beside(x), second.beside(x))
    np.testing.assert_array_equal(Topics().restore(first.arrays()).beside(x), first.beside(x))


def test_only_trees_on_differences_ask_for_topics():
    x, kind = kinds(300, 0)
    scores = np.column_stack([kind < 2, kind >= 2]).astype(float)
    base, _ = base_rates(scores, np.full(2, 0.5))
    forest = Forest(n_trees=4).fit(x, scores, base)
    per_group = np.split(forest.trees_.feature, forest.trees_.roots[[4, 8]])
    assert [bool((group >= N_FEATURES).any()) for group in per_group] == [False, False, True]


def test_a_forest_s_topics_are_saved_with_it():
    x, kind = kinds(200, 0)
    scores = np.column_stack([kind < 2, kind >= 2]).astype(float)
    base, _ = base_rates(scores, np.full(2, 0.5))
    forest = Forest(n_trees=4).fit(x, scores, base).settle(CAUTIONS[0])
    copy = Forest(n_trees=0).restore(forest.arrays())
    assert isinstance(copy.trees_, Trees)
    ((_, copied),), ((_, original),) = copy.samples(x), forest.samples(x)
    np.testing.assert_array_equal(copied, original)
