"""What a tree says when it does not know how deep to be trusted.

A fully grown tree is right for recurring traffic and noise for scattered traffic. Instead of
choosing a leaf size, average over all prunings of the tree, each weighted by how well it explains
the labels. With Beta-Bernoulli nodes the average over exponentially many prunings is exact and
takes one pass up and one pass down: context-tree weighting (Willems, Shtarkov and Tjalkens, 1995,
"The context-tree weighting method", section IV), as used for decision trees by Buntine (1992,
"Learning classification trees"). Each node's prior is centred on its parent, the root's on the
base rate, so few labels mean a prediction near the base rate.

Splits were chosen by looking at the same labels, hence ``evidence`` < 1 discounts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.predictor._trees import Trees

_EDGE = 1e-3
"""Prior means are kept this far from 0 and 1, where a Beta distribution is degenerate."""


class Caution(NamedTuple):
    """How slowly a tree believes its labels.

    Attributes:
        strength: labels that a node's parent counts for.
        evidence: in (0, 1], how much a label's likelihood counts when prunings are weighted.
        split: prior probability in (0, 1) that a node is worth splitting.
    """

    strength: float
    evidence: float
    split: float = 0.5


class Tally(NamedTuple):
    """Labels that passed through each node, shape (nodes, k) each."""

    sums: FloatArray
    counts: FloatArray


def tally(trees: Trees, leaves: IntArray, scores: FloatArray) -> Tally:
    """Count the known scores, shape (n, k), that reach each node; ``leaves`` is (n, trees)."""
    n_nodes, n_trees = len(trees.child), leaves.shape[1]
    sums = np.zeros((n_nodes, scores.shape[1]))
    counts = np.zeros_like(sums)
    for j in range(scores.shape[1]):
        known = ~np.isnan(scores[:, j])
        reached = leaves[known].ravel()
        weights = np.repeat(scores[known, j], n_trees)
        sums[:, j] = np.bincount(reached, weights=weights, minlength=n_nodes)
        counts[:, j] = np.bincount(reached, minlength=n_nodes)
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        sums[inner] = sums[left] + sums[left + 1]
        counts[inner] = counts[left] + counts[left + 1]
    return Tally(sums, counts)


def node_values(
    trees: Trees, seen: Tally, base: FloatArray, caution: Caution
) -> NDArray[np.float32]:
    """What a query that ends in each node is told, averaged over prunings: shape (nodes, k)."""
    means, evidence = _means_and_evidence(trees, seen, base, caution)
    keep = np.ones_like(means)
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        split = np.log(caution.split) + evidence[left] + evidence[left + 1]
        stop = np.log1p(-caution.split) + evidence[inner]
        evidence[inner] = np.logaddexp(split, stop)
        keep[inner] = np.exp(stop - evidence[inner])
    values = np.zeros_like(means)
    weight = np.ones_like(means)
    for inner in trees.levels():
        said = values[inner] + weight[inner] * keep[inner] * means[inner]
        left_over = weight[inner] * (1.0 - keep[inner])
        for side in (trees.child[inner], trees.child[inner] + 1):
            values[side], weight[side] = said, left_over
    return np.asarray(values + weight * means, dtype=np.float32)


def _means_and_evidence(
    trees: Trees, seen: Tally, base: FloatArray, caution: Caution
) -> tuple[FloatArray, FloatArray]:
    """Each node's posterior mean, and the log evidence for its labels when it is not split."""
    from scipy.special import betaln

    strength = caution.strength
    prior = np.empty_like(seen.sums)
    prior[trees.roots] = base
    for inner in trees.levels():
        mean = (seen.sums[inner] + strength * prior[inner]) / (seen.counts[inner] + strength)
        for side in (trees.child[inner], trees.child[inner] + 1):
            prior[side] = mean
    means = (seen.sums + strength * prior) / (seen.counts + strength)
    prior = np.clip(prior, _EDGE, 1.0 - _EDGE)
    yes, no = strength * prior, strength * (1.0 - prior)
    evidence = betaln(yes + seen.sums, no + seen.counts - seen.sums) - betaln(yes, no)
    return means, caution.evidence * evidence
