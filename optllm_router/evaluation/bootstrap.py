"""95 % intervals over queries and seeds, by the bootstrap.

Two things are random in a figure: which queries happened to be in the test set, and which split
(and forest) the seed happened to draw. The intervals cover both, with the two-level bootstrap
of Davison and Hinkley (1997), "Bootstrap methods and their application", section 3.8: resample
the seeds with replacement and, within each, the test queries; average; take percentiles
(Efron 1979). Fitting is not repeated: given the seed, a method's prediction is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router.evaluation.judge import Judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray, IntArray
    from optllm_router.evaluation.dataset import RecordedOutcomes
    from optllm_router.evaluation.judge import Headline
    from optllm_router.evaluation.methods import Front

__all__ = ["FIGURES", "Estimate", "Resampler", "estimate"]

FIGURES = (
    "auc",
    "gap_closed",
    "savings_at_parity",
    "max_accuracy",
    "accuracy_delta",
    "cost_ratio",
)
"""The figures that get an interval, in the order of the columns of draws."""

# Streams of their own, so that resampling never shares numbers with a split or a forest.
_QUERY_STREAM, _SEED_STREAM = 2, 3
_REPLICATES = 4000


@dataclass(frozen=True)
class Estimate:
    """A figure over several seeds.

    Attributes:
        mean: over the seeds in which the figure exists; None where it never does.
        low: lower end of the 95 % interval; None when the figure does not exist in more than
            2.5 % of the replicates, as savings do not when parity is out of reach.
        high: upper end.
        exists: in how many seeds the figure exists.
    """

    mean: float | None
    low: float | None
    high: float | None
    exists: int


def row_of(headline: Headline) -> FloatArray:
    """Shape (6,), the values of :data:`FIGURES`, NaN where one does not apply."""
    deployed = headline.deployed
    values = (
        headline.auc,
        headline.gap_closed,
        headline.savings_at_parity,
        headline.max_accuracy,
        deployed.accuracy_delta if deployed else None,
        deployed.cost_ratio if deployed else None,
    )
    return np.array([np.nan if value is None else value for value in values])


class Resampler:
    """Resamples the test set of one seed, the same way for every method."""

    def __init__(
        self,
        test: RecordedOutcomes,
        *,
        static: Front,
        oracle: Front,
        seed: int,
        resamples: int,
    ) -> None:
        self._test = test
        rng = np.random.default_rng([seed, _QUERY_STREAM])
        n = len(test)
        self._counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.int16)
        self._references = [
            self._judge(index).references(static=static, oracle=oracle)
            for index in range(resamples)
        ]

    def draws(self, front: Front, deployed: IntArray | None) -> FloatArray:
        """The headline figures of a method on every resample, shape (resamples, 6)."""
        rows = []
        for index, references in enumerate(self._references):
            judge = self._judge(index)
            rows.append(row_of(judge.headline(judge.curve(front), deployed, references)))
        return np.array(rows).reshape(-1, len(FIGURES))

    def _judge(self, index: int) -> Judge:
        return Judge(self._test, self._counts[index].astype(np.float64))


def estimate(values: Sequence[float | None], draws: Sequence[FloatArray]) -> Estimate:
    """Mean over seeds, and its interval.

    Args:
        values: the figure in each of s seeds.
        draws: for each seed, the figure on every resample, NaN where it does not exist.
    """
    known = [value for value in values if value is not None]
    if not known:
        return Estimate(None, None, None, 0)
    mean = float(np.mean(known))
    if not all(len(seed_draws) for seed_draws in draws):
        return Estimate(mean, None, None, len(known))
    rng = np.random.default_rng(_SEED_STREAM)
    picked = rng.integers(len(draws), size=(_REPLICATES, len(draws)))
    position = rng.random((_REPLICATES, len(draws)))
    total = np.zeros(_REPLICATES)
    for seed, seed_draws in enumerate(draws):
        # What does not exist is worse than anything that does.
        ranked = np.where(np.isnan(seed_draws), -np.inf, seed_draws)
        drawn = ranked[(position * len(ranked)).astype(np.int64)]
        total += np.where(picked == seed, drawn, 0.0).sum(axis=1)
    low, high = np.quantile(total / len(draws), [0.025, 0.975], method="lower")
    return Estimate(mean, _existing(low), _existing(high), len(known))


def _existing(value: float) -> float | None:
    return None if np.isneginf(value) else float(value)
