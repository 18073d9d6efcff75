"""A predictor on texts: features, a model, the prior, and what was learnt since the last fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from optllm_router._errors import InvalidDataError
from optllm_router._types import Prediction
from optllm_router.features import TextFeaturizer
from optllm_router.predictor._base import base_rates, checked_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optllm_router._types import FloatArray
    from optllm_router.predictor._base import Model


class TextPredictor:
    """Predicts from texts with one of the named models; see :func:`make_predictor`."""

    def __init__(
        self,
        model: Model,
        *,
        n_candidates: int,
        prior: FloatArray | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.n_candidates = n_candidates
        self.prior = prior
        self.seed = seed

    def fit(self, texts: Sequence[str], scores: FloatArray) -> TextPredictor:
        """Learn from n texts and their scores, shape (n, k) in 0..1, NaN where unknown."""
        scores = checked_scores(scores, len(texts), self.n_candidates)
        graded = np.flatnonzero(~np.isnan(scores).all(axis=1))
        texts = [texts[i] for i in graded]
        self.base_, self.base_std_ = base_rates(scores, self._prior())
        self.recent_ = np.zeros((2, self.n_candidates))
        if texts:
            self.featurizer_ = TextFeaturizer(self.seed).fit(texts)
            self.model.fit(self.featurizer_.transform(texts), scores[graded], self.base_)
        return self

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Success probabilities and their uncertainty for n texts, shape (n, k) each."""
        if hasattr(self, "featurizer_"):
            said = self.model.predict(self.featurizer_.transform(texts))
        else:
            base, std = base_rates(np.empty((0, self.n_candidates)), self._prior())
            shape = (len(texts), self.n_candidates)
            said = Prediction(np.tile(base, (shape[0], 1)), np.tile(std, (shape[0], 1)))
        recent = getattr(self, "recent_", None)
        if recent is None:
            return said
        shift = recent[0] / (recent[1] + 20.0)
        return Prediction(np.clip(said.p + shift, 0.0, 1.0), said.std)

    def learn_one(self, text: str, candidate: int, score: float) -> None:
        """Let one new score change the next predictions at once."""
        if not 0 <= candidate < self.n_candidates:
            raise InvalidDataError(
                f"candidate {candidate} does not exist; there are {self.n_candidates}"
            )
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise InvalidDataError(f"score {score} is outside 0..1; rescale it to 0..1")
        if not hasattr(self, "recent_"):
            self.recent_ = np.zeros((2, self.n_candidates))
        p = self.predict([text]).p[0, candidate]
        self.recent_[:, candidate] += (score - p, 1.0)

    def _prior(self) -> FloatArray:
        if self.prior is None:
            return np.full(self.n_candidates, 0.5)
        return np.asarray(self.prior, dtype=np.float64)
