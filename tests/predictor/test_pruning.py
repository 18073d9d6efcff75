from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from optllm_router.predictor._pruning import Caution, node_values, resampled, tally
from optllm_router.predictor._trees import grow
from optllm_router.predictor._walking import walk

BASE = np.array([0.4, 0.7])


def grown(n, seed, n_trees=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    scores = (rng.random((n, 2)) < 0.5).astype(float)
    trees = grow(x, scores, n_trees=n_trees, seed=seed)
    return trees, walk(trees, x), scores


def prunings(trees, node):
    """Every way to prune below ``node``: sets of nodes where to stop, with their prior."""
    if trees.child[node] == node:
        return [({node}, 1.0)]
    left, right = (prunings(trees, trees.child[node] + side) for side in (0, 1))
    both = [(a | b, 0.5 * p * q) for a, p in left for b, q in right]
    return [({node}, 0.5), *both]


def brute_force(trees, seen, caution, path, j):
    """The average over all prunings of what the node on ``path`` where each stops says."""
    parents = {
        int(child): int(n)
        for n in range(len(trees.child))
        for child in (trees.child[n], trees.child[n] + 1)
        if trees.child[n] != n
    }

    def mean(node):
        above = mean(parents[node]) if node in parents else BASE[j]
        return (seen.sums[node, j] + caution.strength * above) / (
            seen.counts[node, j] + caution.strength
        )

    def evidence(node):
        above = mean(parents[node]) if node in parents else BASE[j]
        above = np.clip(above, 1e-3, 1 - 1e-3)
        yes, no = caution.strength * above, caution.strength * (1 - above)
        hits, misses = seen.sums[node, j], seen.counts[node, j] - seen.sums[node, j]
        return caution.evidence * (betaln(yes + hits, no + misses) - betaln(yes, no))

    total = said = 0.0
    for stops, prior in prunings(trees, 0):
        weight = prior * np.exp(sum(evidence(node) for node in stops))
        (stop,) = stops & set(path)
        total += weight
        said += weight * mean(stop)
    return said / total


@pytest.mark.parametrize("caution", [Caution(1.0, 0.7), Caution(4.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_values_are_the_average_over_all_prunings(caution, seed):
    trees, leaves, scores = grown(5, seed)
    scores[0, 1] = np.nan
    seen = tally(trees, leaves, scores)
    values = node_values(trees, seen, BASE, caution)
    parents = {int(c) + s: n for n, c in enumerate(trees.child) if c != n for s in (0, 1)}
    for leaf in np.unique(leaves):
        path = [int(leaf)]
        while path[-1] in parents:
            path.append(parents[path[-1]])
        for j in range(2):
            expected = brute_force(trees, seen, caution, path, j)
            assert values[leaf, j] == pytest.approx(expected, abs=1e-6)


def test_tally_counts_known_scores_along_the_path():
    trees, leaves, scores = grown(30, 1, n_trees=3)
    scores[:4, 0] = np.nan
    seen = tally(trees, leaves, scores)
    np.testing.assert_allclose(seen.counts[trees.roots], [[26, 30]] * 3)
    np.testing.assert_allclose(seen.sums[trees.roots], [np.nansum(scores, axis=0)] * 3)
    inner = np.concatenate(trees.levels())
    left = trees.child[inner]
    np.testing.assert_allclose(seen.counts[inner], seen.counts[left] + seen.counts[left + 1])


def test_samples_of_the_labels_say_on_average_what_all_labels_say():
    trees, leaves, scores = grown(40, 2, n_trees=2)
    scores[:5, 1] = np.nan
    seen, caution = tally(trees, leaves, scores), Caution(0.5, 0.85)
    rng, said = np.random.default_rng(0), []
    for _ in range(400):
        weights = np.repeat(rng.exponential(size=(40, 1)), 2, axis=1)
        sample = resampled(seen, tally(trees, leaves, scores, weights))
        said.append(node_values(trees, seen, BASE, caution, sample))
    everything = node_values(trees, seen, BASE, caution)
    error = np.std(said, axis=0) / np.sqrt(len(said))
    assert np.std(said, axis=0).max() > 0.02
    assert (np.abs(np.mean(said, axis=0) - everything) <= 5 * error + 1e-6).all()


def test_without_labels_every_node_says_the_base_rate():
    trees, leaves, scores = grown(20, 0)
    seen = tally(trees, leaves, np.full_like(scores, np.nan))
    values = node_values(trees, seen, BASE, Caution(1.0, 0.7))
    np.testing.assert_allclose(values, np.tile(BASE, (len(values), 1)), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.floats(0.1, 10), evidence=st.floats(0.1, 1))
def test_values_are_probabilities_and_caution_pulls_to_the_base_rate(seed, strength, evidence):
    trees, leaves, scores = grown(25, seed, n_trees=2)
    seen = tally(trees, leaves, scores)
    values = node_values(trees, seen, BASE, Caution(strength, evidence))
    assert ((values >= 0) & (values <= 1)).all()
    timid = node_values(trees, seen, BASE, Caution(1e6, evidence))
    np.testing.assert_allclose(timid, np.tile(BASE, (len(values), 1)), atol=1e-3)
