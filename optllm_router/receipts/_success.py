"""How good answers were, or would have been: their scores, and predictions for the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optllm_router.learning import Labels
from optllm_router.predictor import make_predictor
from optllm_router.receipts._estimate import Estimate, total

if TYPE_CHECKING:
    from optllm_router._types import BoolArray, FloatArray, IntArray
    from optllm_router.store import AnsweredCall, Answers, GradedAnswer

_CORRELATION = 0.1
"""Between a predictor's errors on two queries, as the policy ``match_best`` takes it."""


@dataclass(frozen=True)
class Success:
    """The success rate of answers.

    Attributes:
        rate: 0..1.
        graded: how many answers' scores are in it; these are exact.
        predicted: for how many answers without a score their success was predicted.
    """

    rate: Estimate
    graded: int
    predicted: int


class _Evidence(NamedTuple):
    """How much the scores of a model say about queries that were not its own.

    Attributes:
        size: so many scores of queries drawn at random say as much (Kish's effective sample
            size, at weights of one over the propensity).
        cover: share of all queries, 0..1, that these scores can stand for.
    """

    size: float
    cover: float

    @classmethod
    def of(cls, model: str, graded: Sequence[GradedAnswer]) -> _Evidence:
        """That of the scores in a store."""
        weights = np.array([1.0 / one.propensity for one in graded if one.candidate == model])
        if not len(weights):
            return cls(0.0, 0.0)
        together = float(weights.sum())
        return cls(together**2 / float((weights**2).sum()), min(1.0, together / len(graded)))

    def variance(self, mean: float, std: float, n: int) -> float:
        """Of the mean of n predictions: a model's own answers were chosen for it, not drawn.

        The errors of the predictions are shared as far as no score stands for the queries; and
        the scores may all be lucky ones, as two more that disagree would show.
        """
        shared = 1.0 - (1.0 - _CORRELATION) * self.cover
        rate = (mean * self.size + 1.0) / (self.size + 2.0)
        return std**2 * (shared + (1.0 - shared) / n) + rate * (1.0 - rate) / (self.size + 1.0)


class Grades:
    """Scores of the answers in a store, and what they say about those without one.

    Args:
        labelled: graded answers.
        sample: answers of the period to predict for.
        answers: all answers of the period, by candidate.
        models: further candidates to predict.
    """

    def __init__(
        self,
        labelled: Sequence[GradedAnswer],
        sample: Sequence[AnsweredCall],
        answers: Mapping[str, Answers],
        models: Sequence[str],
    ) -> None:
        self._labelled, self._sample, self._answers = labelled, sample, answers
        self._names = sorted({*models, *answers, *(one.candidate for one in labelled)})
        self._count = sum(one.count for one in answers.values())
        if labelled and sample:
            self._p, self._std = self._predictions()

    def of(self, model: str) -> int:
        """How many of a model's answers have a score."""
        return sum(one.candidate == model for one in self._labelled)

    def achieved(self) -> Success | None:
        """The success of the answers as they were; ``None`` without any score."""
        if not self._labelled or not self._sample:
            return None
        graded = [one for one in self._answers.values() if one.graded]
        known = sum(one.graded for one in graded)
        by = np.array([self._names.index(one.candidate) for one in self._sample])
        rows = np.array([one.score is None for one in self._sample])
        exact = math.fsum(one.graded * one.score for one in graded)
        return self._success(exact, known, by, rows, _Evidence(float(len(self._labelled)), 1.0))

    def with_only(self, model: str) -> Success | None:
        """The success that one model would have had; ``None`` when it was never graded."""
        if not self.of(model) or not self._sample:
            return None
        j = self._names.index(model)
        own = self._answers.get(model)
        known, exact = (own.graded, own.graded * own.score) if own else (0, 0.0)
        rows = np.array([one.score is None or one.candidate != model for one in self._sample])
        evidence = _Evidence.of(model, self._labelled)
        return self._success(exact, known, np.full(len(rows), j), rows, evidence)

    def _success(
        self, exact: float, known: int, by: IntArray, rows: BoolArray, evidence: _Evidence
    ) -> Success:
        """Exact scores, and predictions of ``by[i]``'s success at the sampled ``rows``."""
        missing = self._count - known
        at = np.flatnonzero(rows) if rows.any() else np.arange(len(rows))
        p, std = self._p[at, by[at]], self._std[at, by[at]]
        n, mean = len(at), float(p.mean())
        variance = evidence.variance(mean, float(std.mean()), n)
        variance += float(p.var()) / n * max(0.0, 1.0 - n / max(missing, 1))
        variance += float((p * (1.0 - p)).mean()) / max(missing, 1)
        share = missing / self._count
        rate = total(
            [
                Estimate.normal(exact / self._count, 0.0),
                Estimate.normal(share * mean, share * math.sqrt(variance)),
            ]
        )
        return Success(rate.within(0.0, 1.0), known, missing)

    def _predictions(self) -> tuple[FloatArray, FloatArray]:
        labels = Labels(len(self._names))
        for one in self._labelled:
            labels.add(one.query, self._names.index(one.candidate), one.score)
        predictor = make_predictor(n_candidates=len(self._names)).fit(*labels.matrix())
        prediction = predictor.predict([one.query for one in self._sample])
        return prediction.p, prediction.std
