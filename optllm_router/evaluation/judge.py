"""What a front is worth on a test set; what every method is measured against.

The queries may be weighted: a bootstrap resample of the test set is the same test set with each
query counted as often as it was drawn. The moves of an exact front do not depend on each other's
queries, so the front of the resample is the same front with its sums weighted; nothing is solved
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router import metrics

if TYPE_CHECKING:
    from optllm_router._types import FloatArray, IntArray
    from optllm_router.evaluation.dataset import RecordedOutcomes
    from optllm_router.evaluation.methods import Front

__all__ = ["Curve", "Deployed", "Headline", "Judge", "References", "SingleModel"]

BUDGETS = 300
"""Number of budgets over which AUC is a mean."""


@dataclass(frozen=True)
class SingleModel:
    """What comes of sending every query of the test set to one model.

    Attributes:
        model: its name.
        accuracy: its mean score there, 0..1.
        cost_usd: what it costs to send it the whole test set.
    """

    model: str
    accuracy: float
    cost_usd: float


@dataclass(frozen=True)
class Deployed:
    """What ``match_best`` picked, judged with the test labels it did not see.

    Attributes:
        accuracy_delta: its accuracy minus that of the best single model.
        cost_ratio: its cost over that of the best single model.
    """

    accuracy_delta: float
    cost_ratio: float


@dataclass(frozen=True)
class Headline:
    """The figures of a front that depend on the true scores; None where one does not apply."""

    auc: float
    gap_closed: float | None
    savings_at_parity: float | None
    max_accuracy: float
    deployed: Deployed | None


@dataclass(frozen=True, eq=False)
class Curve:
    """A front as it was paid and as it came true.

    Attributes:
        cost: shape (points,), recorded cost of the whole test set at each point, USD.
        accuracy: shape (points,), true accuracy, 0..1.
    """

    cost: FloatArray
    accuracy: FloatArray

    @property
    def points(self) -> FloatArray:
        """Shape (points, 2)."""
        return np.column_stack([self.cost, self.accuracy])


class References(NamedTuple):
    """Areas between which gap closed is measured."""

    static: float
    oracle: float


class Judge:
    """Judges fronts on one test set.

    Attributes:
        singles: every model on its own there, in the order of the recorded outcomes.
        best: the one of them with the highest accuracy; of equals, the cheaper one.
    """

    def __init__(self, test: RecordedOutcomes, weight: FloatArray | None = None) -> None:
        """Prepare.

        Args:
            test: n queries, each complete.
            weight: shape (n,), how often each query counts; once by default.
        """
        factor = np.ones((len(test), 1)) if weight is None else weight[:, None]
        self._size = float(factor.sum())
        self._score = test.score * factor
        self._cost = test.cost * factor
        self._cheapest = float(self._cost.min(axis=1).sum())
        accuracy = self._score.sum(axis=0) / self._size
        cost = self._cost.sum(axis=0)
        self.singles = tuple(map(SingleModel, test.models, accuracy.tolist(), cost.tolist()))
        self.best = self.singles[int(np.lexsort((cost, -accuracy))[0])]

    def references(self, *, static: Front, oracle: Front) -> References:
        """Where gap closed is 0 and 1: fronts of the base rates and of the true scores."""
        return References(self._auc(self.curve(static)), self._auc(self.curve(oracle)))

    def curve(self, front: Front) -> Curve:
        """Pay every point of a front with the recorded costs, and grade it."""
        return Curve(front.along(self._cost), front.along(self._score) / self._size)

    def headline(self, curve: Curve, deployed: IntArray | None, references: References) -> Headline:
        """The figures of a front and of the allocation (n,) that was deployed without labels."""
        auc = self._auc(curve)
        return Headline(
            auc=auc,
            gap_closed=metrics.gap_closed(auc, **references._asdict()),
            savings_at_parity=self._savings(curve),
            max_accuracy=float(curve.accuracy.max()),
            deployed=self._deployed(deployed),
        )

    def _auc(self, curve: Curve) -> float:
        return metrics.area_under_front(
            curve.cost,
            curve.accuracy,
            lowest=self._cheapest,
            highest=self.best.cost_usd,
            budgets=BUDGETS,
        )

    def _savings(self, curve: Curve) -> float | None:
        if self.best.cost_usd == 0:
            return None
        return metrics.savings_at_parity(
            curve.cost,
            curve.accuracy,
            parity_accuracy=self.best.accuracy,
            parity_cost=self.best.cost_usd,
        )

    def _deployed(self, allocation: IntArray | None) -> Deployed | None:
        if allocation is None or self.best.cost_usd == 0:
            return None
        row = np.arange(len(allocation))
        accuracy = float(self._score[row, allocation].sum()) / self._size
        cost = float(self._cost[row, allocation].sum())
        return Deployed(accuracy - self.best.accuracy, cost / self.best.cost_usd)
