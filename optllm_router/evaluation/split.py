"""The labelled part and the test set of recorded outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import ConfigurationError, InvalidDataError

if TYPE_CHECKING:
    from optllm_router.evaluation.dataset import RecordedOutcomes

__all__ = ["Split", "split_recorded"]


@dataclass(frozen=True, eq=False)
class Split:
    """What a router may learn from, and what it is judged on.

    Attributes:
        labels: share of the queries that is labelled.
        seed: of the permutation.
        train: the labelled queries; pairs may be missing.
        test: the others, as far as every model's score and cost is known.
        n_dropped: test queries that were left out because a pair is missing. An allocation must
            be free to choose any model, and what a missing pair would have cost or scored is
            unknown; guessing it, or forbidding the pair, would both bend the comparison.
    """

    labels: float
    seed: int
    train: RecordedOutcomes
    test: RecordedOutcomes
    n_dropped: int


def split_recorded(recorded: RecordedOutcomes, *, labels: float, seed: int) -> Split:
    """Label the first ``floor(n * labels)`` queries of a seeded permutation; test on the rest.

    Args:
        recorded: all n queries.
        labels: share to label, 0 <= labels < 1.
        seed: of ``numpy.random.default_rng(seed).permutation(n)``.

    Raises:
        ConfigurationError: when ``labels`` is outside 0..1 or ``seed`` is negative.
        InvalidDataError: when no complete query is left to test on.
    """
    if not 0 <= labels < 1:
        raise ConfigurationError(
            f"labels is {labels}; give the share of queries to learn from, from 0 to below 1 "
            "(0.02 is 2 %)"
        )
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}; give a whole number of at least 0")
    order = np.random.default_rng(seed).permutation(len(recorded))
    n_train = math.floor(len(recorded) * labels)
    rest = order[n_train:]
    complete = rest[recorded.complete[rest]]
    if not complete.size:
        raise InvalidDataError(
            f"{recorded.name}: {_why_none_is_complete(recorded)}; to test on, there must "
            "be queries with the score and cost_usd of every model"
        )
    return Split(
        labels=labels,
        seed=seed,
        train=recorded.select(order[:n_train]),
        test=recorded.select(complete),
        n_dropped=len(rest) - len(complete),
    )


def _why_none_is_complete(recorded: RecordedOutcomes) -> str:
    if np.isnan(recorded.cost).all():
        return "the outcomes have no column cost_usd, or it is empty"
    return "no query of the test set has the score and cost of every model"
