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


def tally(
    trees: Trees, leaves: IntArray, scores: FloatArray, weights: FloatArray | None = None
) -> Tally:
    """Count the known scores that reach each node.

    Args:
        trees: T of them.
        leaves: shape (n, T), where each row ends in each tree.
        scores: shape (n, k), NaN where unknown.
        weights: shape (n, T), how often each tree counts a row; once when not given.
    """
    n_nodes = len(trees.child)
    sums = np.zeros((n_nodes, scores.shape[1]))
    counts = np.zeros_like(sums)
    weights = np.ones(leaves.shape) if weights is None else weights
    for j in range(scores.shape[1]):
        known = ~np.isnan(scores[:, j])
        reached, weight = leaves[known].ravel(), weights[known]
        hits = (weight * scores[known, j, None]).ravel()
        sums[:, j] = np.bincount(reached, weights=hits, minlength=n_nodes)
        counts[:, j] = np.bincount(reached, weights=weight.ravel(), minlength=n_nodes)
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        sums[inner] = sums[left] + sums[left + 1]
        counts[inner] = counts[left] + counts[left + 1]
    return Tally(sums, counts)


def resampled(seen: Tally, sample: Tally) -> Tally:
    """As many labels as were seen, with the means that a sample of them has in each node.

    So a node's expectation over samples is what all labels say, however few these are.
    """
    seldom = np.maximum(sample.counts, np.finfo(np.float64).tiny)
    return Tally(sample.sums * (seen.counts / seldom), seen.counts)


def node_values(
    trees: Trees, seen: Tally, base: FloatArray, caution: Caution, sample: Tally | None = None
) -> NDArray[np.float32]:
    """What a query that ends in each node is told, averaged over prunings: shape (nodes, k).

    Args:
        trees: the trees.
        seen: the labels; they decide what a pruning weighs.
        base: shape (k,), the success rate above each root.
        caution: how slowly labels are believed.
        sample: the labels that nodes take their means from; those seen when not given.
    """
    means, prior = _means(trees, seen, base, caution)
    keep = _kept(trees, _evidence(seen, prior, caution), caution)
    if sample is not None:
        means, _ = _means(trees, sample, base, caution)
    values = np.zeros_like(means)
    weight = np.ones_like(means)
    for inner in trees.levels():
        said = values[inner] + weight[inner] * keep[inner] * means[inner]
        left_over = weight[inner] * (1.0 - keep[inner])
        for side in (trees.child[inner], trees.child[inner] + 1):
            values[side], weight[side] = said, left_over
    return np.asarray(values + weight * means, dtype=np.float32)


def _means(
    trees: Trees, seen: Tally, base: FloatArray, caution: Caution
) -> tuple[FloatArray, FloatArray]:
    """Each node's posterior mean, and the prior mean that its parent gives it."""
    strength = caution.strength
    prior = np.empty_like(seen.sums)
    prior[trees.roots] = base
    for inner in trees.levels():
        mean = (seen.sums[inner] + strength * prior[inner]) / (seen.counts[inner] + strength)
        for side in (trees.child[inner], trees.child[inner] + 1):
            prior[side] = mean
    return (seen.sums + strength * prior) / (seen.counts + strength), prior


def _evidence(seen: Tally, prior: FloatArray, caution: Caution) -> FloatArray:
    """The log evidence of each node for its labels when it is not split, discounted."""
    from scipy.special import betaln

    prior = np.clip(prior, _EDGE, 1.0 - _EDGE)
    yes, no = caution.strength * prior, caution.strength * (1.0 - prior)
    evidence = betaln(yes + seen.sums, no + seen.counts - seen.sums) - betaln(yes, no)
    return np.asarray(caution.evidence * evidence)


def _kept(trees: Trees, evidence: FloatArray, caution: Caution) -> FloatArray:
    """The probability that pruning stops at each node, once it came so far."""
    keep = np.ones_like(evidence)
    for inner in trees.levels()[::-1]:
        left = trees.child[inner]
        split = np.log(caution.split) + evidence[left] + evidence[left + 1]
        stop = np.log1p(-caution.split) + evidence[inner]
        evidence[inner] = np.logaddexp(split, stop)
        keep[inner] = np.exp(stop - evidence[inner])
    return keep
